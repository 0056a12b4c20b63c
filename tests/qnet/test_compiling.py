"""A compiled network falls back if compiling fails, and hides no other errors."""

import warnings
from functools import partial

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd

from qnet.compiling import CompiledNetwork
from qnet.errors import UserError
from tests.tiny import network

IMAGES = torch.zeros(2, 1, 8, 8)


class Failing:
    """Stand-in for the result of torch.compile."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        raise self.error


@pytest.fixture
def failing(monkeypatch):
    """A compiled network whose calls raise an error."""

    def make(error: Exception) -> tuple[CompiledNetwork, Failing]:
        compiled = Failing(error)
        monkeypatch.setattr(torch, "compile", lambda network: compiled)
        return CompiledNetwork(network(3, 1, 8)), compiled

    return make


def test_what_cannot_be_compiled_is_computed_uncompiled_and_told_once(failing):
    compiled, calls = failing(RuntimeError("no C++ compiler\nand a long story"))
    with pytest.warns(UserWarning, match=r"slower: RuntimeError: no C\+\+ compiler$"):
        found = compiled(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(found, compiled(IMAGES))
    assert calls.calls == 1


@pytest.mark.usefixtures("fresh_compiler")
def test_a_backward_pass_that_cannot_be_compiled_is_told_in_the_forward_pass(monkeypatch):
    def fail(graph, inputs):
        raise RuntimeError("g++ was killed")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=fail)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compiled = CompiledNetwork(network(3, 1, 8))
    with pytest.warns(UserWarning, match=r"g\+\+ was killed"):
        compiled(IMAGES).sum().backward()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        UserError("data.root is gone; fix it"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_no_fault_of_compiling_is_raised_as_it_is(error, failing):
    compiled, calls = failing(error)
    for _ in range(2):  # and it stays compiled
        with pytest.raises(type(error)) as caught:
            compiled(IMAGES)
        assert caught.value is error
    assert calls.calls == 2
