"""Errors caused by the machine (memory, file handles, disk), not by a file or network."""

from __future__ import annotations

import errno

import torch

# Of the CPU's allocator; of CUDA's driver, and MPS; of cuBLAS.
_WORDS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


_OF_THE_SYSTEM = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}


def is_of_machine(error: Exception) -> bool:
    """Whether `error` says nothing of the file that was read: memory or handles ran out, or a disk
    failed."""
    return is_out_of_memory(error) or getattr(error, "errno", None) in _OF_THE_SYSTEM


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` was raised because memory ran out, of the host or of a device."""
    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or any(words in str(error) for words in _WORDS)
