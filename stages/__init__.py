"""The pipeline's five stages, the tools beside them, and what they share."""
