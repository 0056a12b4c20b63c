"""The compiled step function: the oracle's numbers, no recompilation, and the fallback."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import qnet.fused
from qnet.fused import fused_backward, fused_forward, use_compiled
from qnet.kernels import window_over_t
from qnet.levels import LevelSet, activation_levels, weight_levels
from qnet.plans import plan_of
from qnet.quantizer import Quantizer
from qnet.staircase import Stairs, compute_dtype, stairs_of
from qnet.steps import Quantize, soft_steps
from tests.textbook import every_set, halfway, uneven
from tests.waiting import NoWaiting

EVERY_WINDOW = [(None, 4.0), (None, 0.5), (3.0, 3.0), (40.0, 1.0), (2000.0, 2000.0)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use the compiled path for tensors of any size."""
    monkeypatch.setattr(qnet.fused, "_WORTH_IT", 0)
    use_compiled(True)
    yield
    use_compiled(False)
    qnet.fused._forward_kernel.cache_clear()
    qnet.fused._backward_kernel.cache_clear()


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    """Run the kernels' arithmetic without the time for compiling."""
    monkeypatch.setattr(qnet.fused, "_compiled", lambda function, contract=False: function)


def quantized(
    x: Tensor, levels: LevelSet, thresholds: Tensor, forward: float | None, window: float
) -> list[Tensor]:
    """Values and the gradients of x, alpha and beta."""
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    x = x.detach().requires_grad_()
    alpha, beta = (torch.tensor(s, dtype=x.dtype).requires_grad_() for s in (0.75, 1.25))
    places = thresholds.to(x.dtype)
    stairs = stairs_of(places, levels.steps, compute_dtype(x), levels.offset)
    y = Quantize.apply(x, alpha, beta, places, stairs, forward, window, False)
    return [y.detach(), *torch.autograd.grad(y, (x, alpha, beta), grad)]


def values(levels: LevelSet, count: int) -> Tensor:
    """Multiples of 1/64: 1.25 x is exact in float32, and no threshold comparison is ambiguous."""
    reach = levels.max_abs + 3.0
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, generator=generator).mul(reach * 32).round().div(64)


@every_set
@pytest.mark.parametrize("place", [halfway, uneven])
@pytest.mark.parametrize(("forward", "window"), EVERY_WINDOW)
def test_a_kernel_gives_the_numbers_of_float64(
    uncompiled: None, levels: LevelSet, place, forward: float | None, window: float
) -> None:
    x, thresholds = values(levels, 600), place(levels).float()
    mine = quantized(x, levels, thresholds, forward, window)
    oracle = quantized(x.double(), levels, thresholds.double(), forward, window)
    for found, expected in zip(mine, oracle, strict=True):
        size = max(1.0, expected.abs().max().item())
        if expected.dim() == 0:  # the sum of as many terms, of either sign
            size *= len(x)
        # At T = 2000 rounding u in float32 moves σ by up to T eps u.
        precision = 1e-5 + 2e-7 * max(forward or 0, window) * levels.max_abs
        assert (found - expected).abs().max().item() / size < precision


@pytest.mark.parametrize(("bits", "mode"), [(2, "hard"), (4, "soft")])
def test_a_compiled_kernel_gives_the_numbers_of_the_uncompiled_path(
    small: None, bits: int, mode: Any
) -> None:
    quantizer = Quantizer(
        activation_levels(bits), alpha=0.3, beta=1.7, forward_mode=mode, temperature=2.0
    )
    x = torch.randn(3, 8, 5, 7).to(memory_format=torch.channels_last)
    results = []
    for on in (False, True):
        use_compiled(on)
        leaf = x.clone().requires_grad_()
        y = quantizer(leaf)
        grads = torch.autograd.grad(y, (leaf, quantizer.alpha, quantizer.beta), torch.ones_like(y))
        results.append([y, *grads])
    assert qnet.fused.uses_compiled(), "compiling failed"
    plain, compiled = results
    if mode == "hard":
        assert torch.equal(plain[0], compiled[0])
    assert plain[0].stride() == compiled[0].stride()
    for mine, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("levels", [activation_levels(2), activation_levels(4), weight_levels(5)])
def test_compiled_or_not_a_value_next_to_a_threshold_is_on_the_same_side(
    small: None, levels: LevelSet
) -> None:
    """Check that beta x is rounded before it is compared, in a kernel too."""
    thresholds, beta = halfway(levels), torch.tensor(1.7)
    at = (thresholds.double() / beta.double()).float()
    steps = torch.arange(-8, 9, dtype=torch.int32).view(-1, 1)
    x = (at.view(torch.int32) + steps).view(torch.float32)  # each and its neighbours
    quantizer = Quantizer(levels, beta=beta)
    found = quantizer(x)
    assert qnet.fused.uses_compiled(), "compiling failed"
    assert torch.equal(found, quantizer.integers(x).float())


def test_one_kernel_serves_every_size_scale_and_temperature(small: None) -> None:
    levels = activation_levels(1)
    thresholds = halfway(levels).float()

    def train(count: int, temperature: float) -> None:
        quantized(torch.randn(count), levels, thresholds, temperature, temperature)

    train(100, 5.0)
    assert qnet.fused.uses_compiled(), "compiling failed"
    with torch.compiler.set_stance("fail_on_recompile"):
        train(100, 10.0)
        train(37, 15.0)  # the last, short batch
        assert qnet.fused.uses_compiled(), "compiled again"


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("forward_mode", "window", "plans"),
    [("hard", 4.0, 1), ("hard", "exact", 3), ("soft", "exact", 3)],
)
def test_a_whole_schedule_of_temperatures_needs_few_kernels(
    small: None,
    monkeypatch: pytest.MonkeyPatch,
    bits: int,
    forward_mode: Any,
    window: Any,
    plans: int,
) -> None:
    made = []
    monkeypatch.setattr(
        qnet.fused, "_compiled", lambda kernel, **how: made.append(kernel) or kernel
    )
    quantizer = Quantizer(
        activation_levels(bits), forward_mode=forward_mode, backward_temperature=window
    )
    for epoch in range(400):
        quantizer.set_temperature(min(5.0 * (epoch + 1), 2000.0))
        quantizer(torch.randn(8, requires_grad=True)).sum().backward()
    assert 2 <= len(made) <= 2 * plans  # one forward and one backward for each plan


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_on_a_gpu_nothing_makes_the_host_wait(uncompiled: None, soft: bool, exact: bool) -> None:
    levels = activation_levels(2)
    with FakeTensorMode(), NoWaiting():  # shapes and devices only, so no GPU is needed
        x, alpha, beta, thresholds, t = (
            torch.empty(shape, device="cuda") for shape in ((2, 4, 3, 3), (), (), (3,), ())
        )
        stairs = stairs_of(thresholds, levels.steps, torch.float32)
        temperature, window = t if soft else None, t if exact else 4.0
        assert fused_forward(x, alpha, beta, stairs, temperature) is not None
        found = fused_backward(x, x, alpha, beta, stairs, temperature, window, False)
    assert found is not None
    assert {grad.device.type for grad in found} == {"cuda"}


def test_without_a_compiler_the_numbers_are_the_same_and_it_says_so_once(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(function: object, contract: bool = False) -> object:
        def kernel(*tensors: Tensor) -> Tensor:
            raise RuntimeError("no C++ compiler\nand a long story")

        return kernel

    monkeypatch.setattr(qnet.fused, "_compiled", broken)
    levels = activation_levels(2)
    x, thresholds = values(levels, 50), halfway(levels).float()
    with pytest.warns(UserWarning, match="uncompiled, which is slower: RuntimeError: no C\\+\\+"):
        first = quantized(x, levels, thresholds, None, 4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = quantized(x, levels, thresholds, None, 4.0)
    use_compiled(False)
    for got in (first, second):
        for mine, theirs in zip(got, quantized(x, levels, thresholds, None, 4.0), strict=True):
            assert torch.equal(mine, theirs)


def test_small_tensors_and_scales_per_channel_are_not_compiled() -> None:
    one, many = torch.ones(()), torch.ones(4, 1, 1)
    use_compiled(True)
    try:
        large = torch.zeros(2**18 + 4).reshape(-1, 4, 1, 1)
        assert qnet.fused.applies(large, one, one)
        assert not qnet.fused.applies(large, many, one)
        assert not qnet.fused.applies(large[::2], one, one)
        assert not qnet.fused.applies(large.double(), one, one)
        assert not qnet.fused.applies(large[:100], one, one)
    finally:
        use_compiled(False)
    assert not qnet.fused.applies(large, one, one)


def test_far_below_thresholds_that_share_an_exponential_the_gradient_is_zero() -> None:
    """T (b - c) is just below the limit at which they share it."""
    thresholds, steps = (-2.49, -1.0, 0.7, 2.49), (1, 1, 1, 1)
    planned = plan_of(Stairs(thresholds, steps), 8.0)
    assert planned is not None
    plan, numbers = planned
    assert plan.how == "shared"
    u = torch.tensor([-50.0, -10.0, 10.0, 50.0])
    assert window_over_t(u, steps, 0.0, plan, torch.tensor(numbers)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("levels", [activation_levels(2), weight_levels(2)], ids=repr)
def test_the_straight_line_ends_at_the_outermost_levels(uncompiled: None, levels: LevelSet) -> None:
    for compiled in (False, True):
        use_compiled(compiled)
        low, high = float(levels.values[0]), float(levels.values[-1])
        beyond = torch.tensor([low, high]).nextafter(torch.tensor([-9.0, 9.0]))
        x = torch.cat([torch.tensor([low, high]), beyond]).requires_grad_()
        Quantizer(levels, backward_temperature="straight_through")(x).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [1, 1, 0, 0]


def test_in_place_of_a_relu_it_has_no_gradient_at_zero(uncompiled: None) -> None:
    for compiled in (False, True):
        use_compiled(compiled)
        quantizer = Quantizer(activation_levels(2))
        quantizer.rectifies = True
        x = torch.tensor([-0.1, 0.0, 0.1], requires_grad=True)
        quantizer(x).sum().backward()
        assert x.grad is not None
        assert (x.grad != 0).tolist() == [False, False, True]


def test_thresholds_that_learn_have_the_same_gradient(uncompiled: None) -> None:
    grads = []
    for compiled in (False, True):
        use_compiled(compiled)
        thresholds = torch.tensor([-0.5, 0.4], requires_grad=True)
        soft_steps(torch.linspace(-2, 2, 9), thresholds, (1, 2), 3.0).sum().backward()
        grads.append(thresholds.grad)
    torch.testing.assert_close(*grads)


def test_a_gradient_may_have_another_layout_than_the_values(uncompiled: None) -> None:
    grad, found = torch.randn(2, 3, 4, 5), []
    values = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    for compiled in (False, True):
        use_compiled(compiled)
        x = values.clone().requires_grad_()
        Quantizer(activation_levels(2))(x).backward(grad)
        found.append(x.grad)
    torch.testing.assert_close(*found)
