"""Types, sizes and chunks: the fast code must be correct, and keep no more than it needs."""

from __future__ import annotations

import hypothesis.extra.numpy as npst
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import qnet.quantizer
import qnet.staircase
import qnet.steps
from qnet.errors import UserError
from qnet.levels import LevelSet
from qnet.quantizer import Quantizer
from qnet.steps import soft_steps
from tests.textbook import (
    ACTIVATIONS,
    LEVEL_SETS,
    WEIGHTS,
    close,
    every_set,
    halfway,
    named,
    scale,
    small_sets,
    textbook_hard,
    textbook_soft,
    uneven,
    values_for,
)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even the small tensors of a test into chunks."""
    monkeypatch.setattr(qnet.staircase, "_CHUNK", 16)


@small_sets
@pytest.mark.parametrize("temperature", [1.0, 4.0, 60.0, 2000.0])
def test_float32_is_within_1e_5_of_float64(levels: LevelSet, temperature: float) -> None:
    for thresholds in (halfway(levels).float(), uneven(levels).float()):
        x = values_for(levels, 2000).float().requires_grad_()
        x64 = x.detach().double().requires_grad_()
        y = soft_steps(x, thresholds, levels.steps, temperature)
        one = torch.ones((), dtype=torch.float64)
        y64 = textbook_soft(x64, one, one, thresholds.double(), levels, temperature)
        close(y, y64 + levels.offset, 1e-5)
        (grad,), (grad64,) = torch.autograd.grad(y.sum(), x), torch.autograd.grad(y64.sum(), x64)
        close(grad / temperature, grad64 / temperature, 1e-5)


@every_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 190.0, 2000.0])
def test_nothing_overflows_or_is_denormal(
    levels: LevelSet, dtype: torch.dtype, temperature: float
) -> None:
    x = torch.cat([torch.linspace(-300, 300, 4001), torch.tensor([0.0, -0.0, 1e4, -1e4])])
    x = x.to(dtype).requires_grad_()
    for backward_temperature in ("exact", 4.0):
        quantizer = Quantizer(
            levels,
            forward_mode="soft",
            temperature=temperature,
            backward_temperature=backward_temperature,
        )
        y = quantizer(x)
        grads = torch.autograd.grad(y.sum(), (x, quantizer.alpha, quantizer.beta))
        assert [tensor.dtype for tensor in (y, *grads)] == [dtype, dtype, *[torch.float32] * 2]
        assert all(tensor.isfinite().all() for tensor in (y, *grads))
        if dtype == torch.float32 and levels.values[0] == 0:
            assert not ((y != 0) & (y.abs() < 1e-30)).any()
        if dtype == torch.float32:
            assert not ((grads[0] != 0) & (grads[0].abs() < 1e-30)).any()


def test_half_precision_computes_in_float32() -> None:
    levels = ACTIVATIONS[3]
    x = values_for(levels, 300).to(torch.bfloat16)
    quantizer = Quantizer(levels, alpha=0.37, beta=0.93).eval()
    assert torch.equal(quantizer(x), quantizer(x.float()).to(torch.bfloat16))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    "alpha_shape", [(), (1,), (6, 1, 1, 1), (1, 4, 1, 1), (4, 1, 1), (6, 4, 3, 2)]
)
@pytest.mark.parametrize("beta_shape", [(), (6, 1, 1, 1), (1, 4, 1, 1)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_scales_of_any_shape_that_broadcasts(alpha_shape, beta_shape, memory_format) -> None:
    levels = WEIGHTS[3]
    x = values_for(levels, 6, 4, 3, 2).contiguous(memory_format=memory_format).requires_grad_()
    quantizer = Quantizer(
        levels,
        alpha=scale(*alpha_shape),
        beta=scale(*beta_shape),
        forward_mode="soft",
        temperature=3.0,
        backward_temperature="exact",
    ).double()
    arguments = (x, quantizer.alpha, quantizer.beta)
    y = quantizer(x)
    expected = textbook_soft(*arguments, quantizer.thresholds, levels, 3.0)
    close(y, expected)
    assert y.stride() == x.stride()
    grad = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(y, arguments, grad),
        torch.autograd.grad(expected, arguments, grad),
        strict=True,
    ):
        assert mine.shape == theirs.shape
        close(mine, theirs)
    quantizer.eval()
    assert torch.equal(quantizer(x), quantizer.alpha * quantizer.integers(x))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (1, 40)])
def test_a_scale_that_does_not_fit_is_an_error(shape: tuple[int, int]) -> None:
    for scales in ({"alpha": torch.ones(7, 1)}, {"beta": torch.ones(7, 1)}):
        with pytest.raises(UserError, match=r"(alpha|beta) is of shape \[7, 1\] and x of"):
            Quantizer(WEIGHTS[1], **scales)(torch.zeros(shape))


@settings(deadline=None, max_examples=60)
@given(
    npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    st.sampled_from(LEVEL_SETS),
    st.floats(0.01, 100),
    st.floats(0.01, 100),
    st.one_of(st.none(), st.floats(-300, 300, width=32)),
    st.sampled_from(["hard", "soft"]),
)
def test_any_shape_scale_and_constant(shape, levels, alpha, beta, constant, mode) -> None:
    x = values_for(levels, *shape) if constant is None else torch.full(shape, constant).double()
    x.requires_grad_()
    quantizer = Quantizer(levels, alpha=alpha, beta=beta, forward_mode=mode).double()
    arguments = (x, quantizer.alpha, quantizer.beta, quantizer.thresholds, levels)
    hard, soft = textbook_hard(*arguments), textbook_soft(*arguments, 5.0)
    y = quantizer(x)
    assert y.shape == x.shape
    close(y, hard if mode == "hard" else soft)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert all(p.grad is not None and p.grad.isfinite().all() for p in quantizer.parameters())
    close(quantizer.eval()(x), hard)
    assert quantizer.integers(x).shape == x.shape


@small_sets
@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("backward_temperature", ["exact", 4.0])
def test_no_number_is_read_from_a_device(
    levels: LevelSet, mode, backward_temperature, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = values_for(levels, 300).requires_grad_()
    quantizer = Quantizer(
        levels, forward_mode=mode, temperature=9.0, backward_temperature=backward_temperature
    ).double()
    arguments = (x, quantizer.alpha, quantizer.beta)

    def run() -> list[Tensor]:
        y = quantizer(x)
        return [y, *torch.autograd.grad(y.square().sum(), arguments), quantizer.integers(x)]

    expected = run()
    monkeypatch.setattr(qnet.staircase, "on_cpu", lambda tensor: False)
    monkeypatch.setattr(qnet.steps, "on_cpu", lambda tensor: False)
    monkeypatch.setattr(qnet.quantizer, "on_cpu", lambda tensor: False)
    monkeypatch.setattr(Tensor, "item", None)
    monkeypatch.setattr(Tensor, "tolist", None)
    for mine, theirs in zip(run(), expected, strict=True):
        close(mine, theirs)


def test_views_and_expanded_gradients() -> None:
    levels = WEIGHTS[2]
    x = values_for(levels, 6, 8)
    quantizer = Quantizer(levels).double()
    for view in (x.t(), x[:, ::2], x[:1].expand(6, 8), x[3]):
        leaf = view.detach().requires_grad_()
        quantizer(leaf).sum().backward()
        dense = view.clone().requires_grad_()
        quantizer(dense).sum().backward()
        assert leaf.grad is not None
        assert dense.grad is not None
        assert torch.equal(leaf.grad, dense.grad)


@pytest.mark.parametrize("levels", [WEIGHTS[0], ACTIVATIONS[3], ACTIVATIONS[5]], ids=named)
@pytest.mark.parametrize("mode", ["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_backward_pass_keeps_x_and_no_more(levels: LevelSet, mode, dtype: torch.dtype) -> None:
    x = values_for(levels, 4, 5000).to(dtype).requires_grad_()
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = Quantizer(levels, forward_mode=mode)(x)
    large = [tensor for tensor in saved if tensor.numel() >= x.shape[1]]
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]
    total = sum(tensor.numel() * tensor.element_size() for tensor in saved)
    assert total <= x.numel() * x.element_size() + 8 * (len(levels.steps) + 4)
    y.sum().backward()
