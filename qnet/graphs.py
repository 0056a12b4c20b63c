"""A training step as one CUDA graph: recorded once, then replayed without the host.

A step of a small network is hundreds of kernels of a few microseconds each, which the host takes
longer to start than the device to compute. A graph starts all of them at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from qnet.compiling import warn_slower
from qnet.data import Batch

_BEFORE = 3  # steps that compile kernels, choose algorithms and make what the optimizer keeps

Step = Callable[[Tensor, Tensor], None]


class GraphedStep:
    """Calls `step(images, labels)` a few times, then records it and replays what was recorded.

    Args:
        step: runs on one CUDA device. Apart from its two arguments, all that differs between calls
            is in tensors that stay where they are, and nothing in it waits for the device. If it
            does wait, or cannot be recorded, a warning says so and it is called directly from then
            on.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._works = True
        self._stream: torch.cuda.Stream | None = None
        self.forget()

    def forget(self) -> None:
        """Record again at the next call: the step has changed."""
        self._called = 0
        self._inputs: Batch | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Take the step on images [N, C, H, W] with labels [N]; N is the same each time."""
        if not self._works:
            self._step(images, labels)
            return
        if self._inputs is None:
            self._inputs = torch.empty_like(images), torch.empty_like(labels)
        for kept, given in zip(self._inputs, (images, labels), strict=True):
            kept.copy_(given)
        if self._called < _BEFORE:
            self._called += 1
            if self._called < _BEFORE:
                self._beside(*self._inputs)
            else:
                self._works = not self._waits(*self._inputs)
            return
        if self._graph is None:
            self._graph = self._record(*self._inputs)
        if self._graph is None:
            self._step(*self._inputs)
        else:
            self._graph.replay()

    def _beside(self, images: Tensor, labels: Tensor) -> None:
        """On a stream of its own, as recording is: what autograd keeps belongs to a stream."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            self._step(images, labels)
        here.wait_stream(self._stream)

    def _waits(self, images: Tensor, labels: Tensor) -> bool:
        """Take the step, and return whether the host waited in it, in which case a warning says so.

        Recording such a step fails, and leaves the memory allocator and, in some versions of
        PyTorch, the random numbers unusable.
        """
        with _noted_waits() as waits:
            self._beside(images, labels)
        if waits:
            warn_slower(
                "the training step is not recorded as a CUDA graph",
                RuntimeError(f"it waits for the device, in {waits[0]}"),
            )
        return bool(waits)

    def _record(self, images: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph | None:
        """The step as a graph, not run yet; None if it cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        try:
            # Threads that load images may pin memory meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step(images, labels)
        except Exception as error:  # a network of the user's own may wait for the device
            warn_slower(
                "the training step could not be recorded as a CUDA graph and is made as it is",
                _cause(error),
            )
            torch.cuda.synchronize()
            self._works = False
            return None
        return graph


@contextmanager
def _noted_waits() -> Iterator[list[str]]:
    """Context with a list of the places in the code where the host waited for the device."""
    waits: list[str] = []
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")  # this warns too: that it may miss some
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        if "called a synchronizing CUDA operation" in str(warning.message):
            waits.append(f"{warning.filename}, line {warning.lineno}")


def _cause(error: Exception) -> Exception:
    """The error that broke the recording, not the one that it then could not be ended."""
    return error.__context__ if isinstance(error.__context__, Exception) else error
