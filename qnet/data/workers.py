"""Processes that decode pictures: how many, room for them, and what a lost one looks like."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import suppress

FEWER_WORKERS = "use fewer, or give more memory (shared memory, in a container)"


def processors() -> int:
    """Those that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_room() -> None:
    """Let this process open as many files as it is allowed to: each worker takes eight of them."""
    with suppress(ImportError, OSError, ValueError):  # not on Windows; or no more are to be had
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def why_lost(error: Exception) -> str | None:
    """What `error` says, if it says that a worker died or that there is no room for it.

    PyTorch raises that wherever the process is that waits for batches, between them too.
    """
    full = isinstance(error, OSError) and error.errno == errno.EMFILE
    text = str(error)
    if isinstance(error, BrokenPipeError):
        return "as it started"
    if full or text.startswith(("DataLoader worker", "Too many open files")):
        return text.splitlines()[0]
    return None


def ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C to the process that trains: it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
