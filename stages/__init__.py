"""The pipeline's five stages, the command-line tools, and the code they share."""
