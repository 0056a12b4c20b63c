"""What is measured about speed, memory and error; each module runs by hand and prints tables."""
