"""Networks by name, independent of quantization, which `qnet.insertion` adds to any of them."""

from qnet.models.building import MODELS, build_model, source_files
from qnet.models.probing import computes_alike

__all__ = ["MODELS", "build_model", "computes_alike", "source_files"]
