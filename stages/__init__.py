"""The pipeline's stages, one module each: read params.yaml, call qnet, write outputs."""
