"""What PyTorch and Python say when memory has run out."""

from __future__ import annotations

import torch

# Of the processor's allocator; of CUDA's driver, and MPS; of cuBLAS.
_WORDS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` was raised because memory ran out, of the host or of a device."""
    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or any(words in str(error) for words in _WORDS)
