"""Worker processes that decode images: their number, file limits, and why one was lost."""

from __future__ import annotations

import errno
import signal
from contextlib import suppress

import joblib

FEWER_WORKERS = "use fewer, or give more memory (shared memory, in a container)"


def usable_cpus() -> int:
    """Number of CPUs that this process may use: of its affinity mask and its container's quota."""
    return int(joblib.cpu_count())


def make_room() -> None:
    """Raise the open-file limit as far as allowed: each worker needs eight files."""
    with suppress(ImportError, OSError, ValueError):  # on Windows, or if it cannot be raised
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def why_lost(error: Exception) -> str | None:
    """Message of `error` if it says that a worker died or could not open its files.

    PyTorch raises it in the process that waits for batches, wherever that is, even between batches.
    """
    full = isinstance(error, OSError) and error.errno == errno.EMFILE
    text = str(error)
    if isinstance(error, BrokenPipeError):
        return "as it started"
    if full or text.startswith(("DataLoader worker", "Too many open files")):
        return text.splitlines()[0]
    return None


def ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C to the training process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
