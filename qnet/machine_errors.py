"""Errors caused by the machine (memory, file handles, disk), not by a file or a network."""

from __future__ import annotations

import errno

import torch

# Of the CPU's allocator; of CUDA's driver, and MPS; of cuBLAS.
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")

_MACHINE_ERRNOS = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}


def is_machine_failure(error: Exception) -> bool:
    """Whether memory or file handles ran out, or a disk failed; the file itself may be fine."""
    return is_out_of_memory(error) or getattr(error, "errno", None) in _MACHINE_ERRNOS


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` was raised because memory ran out, of the host or of a device."""
    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or any(text in str(error) for text in _OUT_OF_MEMORY)
