"""Benchmarks of speed, memory and error; each module is run by hand and prints tables."""
