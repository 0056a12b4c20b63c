"""The quantizer against its textbook formula, written plainly in float64."""

from __future__ import annotations

import copy

import hypothesis.extra.numpy as npst
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import qnet.staircase
import qnet.steps
from qnet.errors import UserError
from qnet.levels import LevelSet, activation_levels, weight_levels
from qnet.quantizer import Quantizer, quantizers, soft_forward
from qnet.steps import hard_steps, soft_steps

WEIGHT_SPECS: list[str | list[int]] = ["1", "2", "3pm2", "3", "3pm4", "4", "5", "8", [-9, -1, 1, 9]]
WEIGHTS = [levels for spec in WEIGHT_SPECS if (levels := weight_levels(spec))]
ACTIVATIONS = [levels for bits in (1, 2, 3, 4, 6, 8) if (levels := activation_levels(bits))]
LEVEL_SETS = WEIGHTS + ACTIVATIONS
SMALL_SETS = [levels for levels in LEVEL_SETS if len(levels.values) <= 16]


def named(levels: object) -> str:
    return levels.name if isinstance(levels, LevelSet) else str(levels)


every_set = pytest.mark.parametrize("levels", LEVEL_SETS, ids=named)
small_sets = pytest.mark.parametrize("levels", SMALL_SETS, ids=named)


# --- The textbook: one level at a time, gradients by autograd ----------------------------------


def textbook_soft(
    x: Tensor, alpha: Tensor, beta: Tensor, thresholds: Tensor, levels: LevelSet, temperature: float
) -> Tensor:
    total = torch.zeros_like(x)
    for threshold, step in zip(thresholds, levels.steps, strict=True):
        total = total + step * torch.sigmoid(temperature * (beta * x - threshold))
    return alpha * (total - levels.offset)


def textbook_hard(
    x: Tensor, alpha: Tensor, beta: Tensor, thresholds: Tensor, levels: LevelSet
) -> Tensor:
    total = torch.zeros_like(x)
    for threshold, step in zip(thresholds, levels.steps, strict=True):
        total = total + step * (beta * x > threshold).to(x.dtype)
    return alpha * (total - levels.offset)


def halfway(levels: LevelSet) -> Tensor:
    values = torch.tensor(levels.values, dtype=torch.float64)
    return (values[1:] + values[:-1]) / 2


def uneven(levels: LevelSet) -> Tensor:
    """Thresholds that no arithmetic progression gives."""
    return halfway(levels) + 0.2 * torch.sin(torch.arange(len(levels.steps)) + 1.0)


def values_for(levels: LevelSet, *shape: int) -> Tensor:
    """Values over the whole range of the levels and somewhat beyond, in float64."""
    low, high = levels.values[0] - 1.5, levels.values[-1] + 1.5
    generator = torch.Generator().manual_seed(7)
    return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=generator)


def scale(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return 0.6 + torch.rand(shape, dtype=torch.float64, generator=generator)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, check_dtype=False)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even the small tensors of a test into chunks."""
    monkeypatch.setattr(qnet.staircase, "_CHUNK", 16)


# --- Forward and the gradients ------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("place", [halfway, uneven])
@pytest.mark.parametrize("temperature", [0.7, 4.0, 60.0, 2000.0])
def test_soft_forward_and_gradients_are_the_textbook_s(
    levels: LevelSet, place, temperature: float
) -> None:
    x = values_for(levels, 5, 7).requires_grad_()
    quantizer = Quantizer(
        levels,
        thresholds=place(levels),
        alpha=torch.tensor(0.7, dtype=torch.float64),
        beta=torch.tensor(1.1, dtype=torch.float64),
        forward_mode="soft",
        temperature=temperature,
        backward_temperature=None,
    )
    arguments = (x, quantizer.alpha, quantizer.beta)
    expected = textbook_soft(*arguments, quantizer.thresholds, levels, quantizer.temperature.item())
    grad = torch.randn_like(expected)
    y = quantizer(x)
    close(y, expected)
    # The window can be as high as T s / 4, and its sums as T s x.
    size = temperature * max(levels.steps) * levels.max_abs
    for mine, theirs in zip(
        torch.autograd.grad(y, arguments, grad),
        torch.autograd.grad(expected, arguments, grad),
        strict=True,
    ):
        close(mine / size, theirs / size)


@small_sets
@pytest.mark.parametrize("place", [halfway, uneven])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 50.0])
def test_gradients_of_thresholds_are_the_textbook_s(
    levels: LevelSet, place, temperature: float
) -> None:
    x = values_for(levels, 40).requires_grad_()
    thresholds = place(levels).requires_grad_()
    one = torch.ones((), dtype=torch.float64)
    expected = textbook_soft(x, one, one, thresholds, levels, temperature) + levels.offset
    y = soft_steps(x, thresholds, levels.steps, temperature)
    close(y, expected)
    grad = torch.randn_like(y)
    for mine, theirs in zip(
        torch.autograd.grad(y, (x, thresholds), grad),
        torch.autograd.grad(expected, (x, thresholds), grad),
        strict=True,
    ):
        close(mine, theirs)


@small_sets
def test_gradcheck(levels: LevelSet) -> None:
    x = values_for(levels, 6).requires_grad_()
    thresholds = halfway(levels).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, thresholds: soft_steps(x, thresholds, levels.steps, 3.0), (x, thresholds)
    )
    quantizer = Quantizer(
        levels,
        alpha=scale(6),
        beta=scale(1),
        forward_mode="soft",
        temperature=3.0,
        backward_temperature=None,
    ).double()

    def call(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return torch.func.functional_call(quantizer, {"alpha": alpha, "beta": beta}, (x,))

    assert torch.autograd.gradcheck(call, (x, scale(6).requires_grad_(), scale(1).requires_grad_()))


@every_set
@pytest.mark.parametrize("place", [halfway, uneven])
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_window_has_its_own_temperature(levels: LevelSet, place, mode) -> None:
    x = values_for(levels, 6, 5).requires_grad_()
    alpha, beta = scale(6, 1), scale(1, 5)
    quantizer = Quantizer(
        levels,
        thresholds=place(levels),
        alpha=alpha,
        beta=beta,
        forward_mode=mode,
        temperature=9.0,
        backward_temperature=2.5,
    )
    y = quantizer(x)
    if mode == "hard":
        close(y, textbook_hard(x, alpha, beta, quantizer.thresholds, levels))
    else:
        close(y, textbook_soft(x, alpha, beta, quantizer.thresholds, levels, 9.0))
    grad = torch.randn_like(y)
    surrogate = textbook_soft(x, quantizer.alpha, quantizer.beta, quantizer.thresholds, levels, 2.5)
    by_x, by_alpha, by_beta = torch.autograd.grad(y, (x, quantizer.alpha, quantizer.beta), grad)
    theirs_by_x, theirs_by_beta = torch.autograd.grad(surrogate, (x, quantizer.beta), grad)
    close(by_x, theirs_by_x)
    close(by_beta, theirs_by_beta, 1e-9)
    close(by_alpha, (grad * y / alpha).sum_to_size(alpha.shape))  # of the forward, as it was


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 1e9])
@pytest.mark.parametrize("thresholds", [[0.0] * 7, [3.0, 2.0, 1.0, 0.0, -1.0, -2.0], [0.0, 1e-40]])
def test_thresholds_and_temperatures_nobody_would_choose(
    thresholds: list[float], temperature: float
) -> None:
    x = torch.linspace(-9, 9, 41, dtype=torch.float64)
    b, steps = torch.tensor(thresholds, dtype=torch.float64), (1,) * len(thresholds)
    soft = sum(torch.sigmoid(temperature * (x - threshold)) for threshold in thresholds)
    hard = (x[:, None] > b).sum(1)
    close(soft_steps(x, b, steps, temperature), torch.as_tensor(soft))
    close(hard_steps(x, b, steps), hard)


def test_hard_steps_without_a_window_have_no_gradient() -> None:
    x = torch.linspace(-2, 2, 9).requires_grad_()
    thresholds = torch.tensor([-0.5, 0.5], requires_grad=True)
    hard_steps(x, thresholds, (1, 1)).sum().backward()
    assert x.grad is not None
    assert not x.grad.any()
    assert thresholds.grad is not None
    assert not thresholds.grad.any()


def test_hard_steps_take_the_gradient_of_soft_steps() -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64).requires_grad_()
    thresholds = torch.tensor([-0.5, 0.4], dtype=torch.float64, requires_grad=True)
    hard = hard_steps(x, thresholds, (1, 2), backward_temperature=3.0)
    soft = soft_steps(x, thresholds, (1, 2), 3.0)
    assert hard.tolist() == [0, 0, 0, 0, 1, 3, 3, 3, 3]
    for mine, theirs in zip(
        torch.autograd.grad(hard.sum(), (x, thresholds)),
        torch.autograd.grad(soft.sum(), (x, thresholds)),
        strict=True,
    ):
        close(mine, theirs)


def test_hard_mode_without_backward_temperature_uses_the_soft_function_s() -> None:
    levels = WEIGHTS[3]
    x = values_for(levels, 30).requires_grad_()
    quantizer = Quantizer(levels, temperature=6.0, backward_temperature=None).double()
    soft = textbook_soft(x, *(torch.ones(2, 1).double()), quantizer.thresholds, levels, 6.0)
    close(*(torch.autograd.grad(y.sum(), x)[0] for y in (quantizer(x), soft)))


def test_gradient_is_of_the_temperature_of_the_forward_pass() -> None:
    x = torch.tensor([0.3], requires_grad=True)
    quantizer = Quantizer(WEIGHTS[0], temperature=2.0, backward_temperature=None)
    y = quantizer(x)
    (expected,) = torch.autograd.grad(y, x, retain_graph=True)
    quantizer.set_temperature(50.0)
    assert torch.equal(torch.autograd.grad(y, x)[0], expected)


def test_only_the_gradients_that_are_needed() -> None:
    quantizer = Quantizer(WEIGHTS[1])
    quantizer.beta.requires_grad_(False)
    quantizer(torch.tensor([0.2])).sum().backward()
    assert quantizer.alpha.grad is not None
    assert quantizer.beta.grad is None


# --- The hard function --------------------------------------------------------------------------


@every_set
@pytest.mark.parametrize("place", [halfway, uneven])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_value_on_a_threshold_takes_the_lower_level(
    levels: LevelSet, place, dtype: torch.dtype
) -> None:
    quantizer = Quantizer(levels, thresholds=place(levels).to(dtype)).eval()
    on = quantizer.thresholds
    infinity = torch.tensor(torch.inf, dtype=dtype)
    lower, upper = list(levels.values[:-1]), list(levels.values[1:])
    assert quantizer.integers(on).tolist() == lower
    assert quantizer.integers(on.nextafter(-infinity)).tolist() == lower
    assert quantizer.integers(on.nextafter(infinity)).tolist() == upper


@pytest.mark.parametrize("count", [2, 4, 7, 15, 254, 255])
@pytest.mark.parametrize("first", [-126.5, -7.0, -0.5, 0.5, 1e-3, 0.1])
@pytest.mark.parametrize("spacing", [1.0, 0.5, 1 / 3, 1e-3])
def test_even_thresholds_agree_with_comparisons_for_all_floats(
    count: int, first: float, spacing: float
) -> None:
    thresholds = torch.arange(count).mul(spacing).add(first)
    generator = torch.Generator().manual_seed(0)
    anything = torch.randint(-(2**31), 2**31, (2000,), generator=generator)
    anything = anything.to(torch.int32).view(torch.float32)
    infinity = torch.tensor(torch.inf)
    x = torch.cat(
        [
            anything[anything.isfinite()],
            torch.empty(2000).normal_(first, 2 * spacing * count, generator=generator),
            torch.tensor([0.0, -0.0]),
            thresholds,
            thresholds.nextafter(infinity),
            thresholds.nextafter(-infinity),
        ]
    )
    expected = (x[:, None] > thresholds).sum(1)
    assert torch.equal(hard_steps(x, thresholds, (1,) * count).long(), expected)


@every_set
def test_default_thresholds_of_equal_steps_are_known_to_be_even(levels: LevelSet) -> None:
    stairs = qnet.staircase.stairs_of(halfway(levels).float(), levels.steps, torch.float32)
    even = len(set(levels.steps)) == 1 and len(levels.steps) > 1
    assert stairs.spacing == (levels.steps[0] if even else None)
    moved = qnet.staircase.stairs_of(uneven(levels).float(), levels.steps, torch.float32)
    assert moved.spacing is None or len(levels.steps) == 2


@every_set
def test_eval_gives_exactly_level_times_alpha(levels: LevelSet) -> None:
    x = values_for(levels, 50, 4).float()
    alpha = torch.tensor([0.1, 1 / 3, 1e-6, 777.7])
    quantizer = Quantizer(levels, alpha=alpha, beta=1.03).eval()
    integers = quantizer.integers(x)
    assert integers.dtype == (torch.int8 if levels.max_abs <= 127 else torch.int16)
    assert set(integers.unique().tolist()) <= set(levels.values)
    assert torch.equal(quantizer(x), alpha * integers)
    hard = textbook_hard(x, torch.ones(4), quantizer.beta, quantizer.thresholds, levels)
    assert torch.equal(integers, hard.to(integers.dtype))
    all_levels = torch.tensor(levels.values) / quantizer.beta.detach()
    assert quantizer.integers(all_levels).tolist() == list(levels.values)


@small_sets
def test_soft_becomes_hard_as_the_temperature_grows(levels: LevelSet) -> None:
    thresholds = halfway(levels)
    x = values_for(levels, 500)
    x = x[(x[:, None] - thresholds).abs().amin(1) > 0.02]
    hard = hard_steps(x, thresholds, levels.steps)
    errors = [
        (soft_steps(x, thresholds, levels.steps, temperature) - hard).abs().max().item()
        for temperature in (5.0, 50.0, 500.0, 2000.0)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-12


def test_training_may_be_soft_and_eval_is_hard() -> None:
    x = torch.tensor([0.1, 0.6])
    quantizer = Quantizer(WEIGHTS[1], forward_mode="soft", temperature=1.0)
    assert quantizer(x).frac().all()
    assert quantizer.eval()(x).tolist() == [0, 1]
    assert Quantizer(WEIGHTS[1])(x).tolist() == [0, 1]


# --- Types, sizes, chunks -----------------------------------------------------------------------


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
    for backward_temperature in (None, 4.0):
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
        backward_temperature=None,
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
        with pytest.raises(RuntimeError, match=r"shape|size"):
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
@pytest.mark.parametrize("backward_temperature", [None, 4.0])
def test_no_number_is_read_from_a_device(
    levels: LevelSet, mode, backward_temperature: float | None, monkeypatch: pytest.MonkeyPatch
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


# --- The module ---------------------------------------------------------------------------------


def test_thresholds_are_halfway_between_levels_by_default() -> None:
    levels = weight_levels("3pm4")
    assert levels is not None
    assert Quantizer(levels).thresholds.tolist() == [-3, -1.5, -0.5, 0.5, 1.5, 3]


def test_what_is_learned_and_what_is_kept() -> None:
    quantizer = Quantizer(WEIGHTS[1], alpha=torch.ones(3, 1), temperature=7.0)
    assert {name for name, _ in quantizer.named_parameters()} == {"alpha", "beta"}
    assert set(quantizer.state_dict()) == {"alpha", "beta", "thresholds", "temperature"}
    assert quantizer.temperature.shape == ()
    assert quantizer.alpha.dtype == quantizer.thresholds.dtype == torch.float32


def test_arguments_are_copied() -> None:
    alpha, thresholds = torch.ones(3), torch.tensor([-0.5, 0.5])
    quantizer = Quantizer(WEIGHTS[1], alpha=alpha, thresholds=thresholds)
    alpha.zero_()
    thresholds.zero_()
    assert quantizer.alpha.tolist() == [1, 1, 1]
    assert quantizer.thresholds.tolist() == [-0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": [0.0]}, "thresholds of shape .* need 2"),
        ({"thresholds": [[-0.5, 0.5]]}, "thresholds of shape .* need 2"),
        ({"thresholds": [0.5, 0.5]}, "strictly increasing"),
        ({"thresholds": [0.5, -0.5]}, "strictly increasing"),
        ({"thresholds": [0.5, float("nan")]}, "finite"),
        ({"thresholds": [0.5, float("inf")]}, "finite"),
        ({"temperature": 0.0}, "temperature 0.0: .*above zero"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"backward_temperature": -1.0}, "backward_temperature -1.0"),
        ({"forward_mode": "both"}, "forward_mode 'both'"),
    ],
)
def test_bad_arguments_are_named_in_one_line(arguments, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Quantizer(WEIGHTS[1], **arguments)
    assert "\n" not in str(caught.value)


def test_set_temperature() -> None:
    quantizer = Quantizer(WEIGHTS[1], forward_mode="soft")
    buffer = quantizer.temperature
    quantizer.set_temperature(2000)
    assert quantizer.temperature is buffer
    x = torch.linspace(-2, 2, 9)
    expected = soft_steps(x, quantizer.thresholds, (1, 1), 2000.0) - 1
    assert torch.equal(quantizer(x), expected)
    with pytest.raises(UserError, match="temperature 0"):
        quantizer.set_temperature(0)


def test_repr_says_what_matters() -> None:
    text = repr(Quantizer(WEIGHTS[1], temperature=7.5, backward_temperature=None))
    assert text == (
        "Quantizer(levels=2, forward_mode=hard, temperature=7.5, backward_temperature=exact)"
    )


def network(**arguments) -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2))
    model.first = Quantizer(WEIGHTS[1], **arguments)
    model.inner = nn.Sequential(nn.Linear(2, 2), Quantizer(ACTIVATIONS[1], **arguments))
    return model


def test_state_dict_round_trip() -> None:
    source = network(alpha=0.3, beta=2.5, temperature=9.0, thresholds=None)
    target = network()
    target.load_state_dict(source.state_dict())
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


def test_a_full_precision_state_dict_leaves_quantizers_alone() -> None:
    model = network(alpha=0.3)
    full = {"weight": torch.zeros(2)} | {
        f"inner.0.{name}": torch.zeros_like(value)
        for name, value in model.inner[0].state_dict().items()
    }
    before = copy.deepcopy(model.first.state_dict())
    assert model.load_state_dict(full, strict=True).missing_keys == []
    assert not model.weight.any()
    assert all(torch.equal(model.first.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("missing", ["alpha", "beta", "thresholds", "temperature"])
def test_half_a_quantizer_is_an_error(missing: str) -> None:
    state = network().state_dict()
    del state[f"first.{missing}"]
    with pytest.raises(RuntimeError, match=f"first.{missing}"):
        network().load_state_dict(state)


def test_another_quantizer_s_state_is_an_error() -> None:
    state = Quantizer(WEIGHTS[3]).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for thresholds"):
        Quantizer(WEIGHTS[1]).load_state_dict(state)


def test_quantizers_are_named() -> None:
    model = network()
    assert dict(quantizers(model)) == {"first": model.first, "inner.1": model.inner[1]}
    assert [name for name, _ in quantizers(model.first)] == [""]


@pytest.mark.parametrize("training", [True, False])
def test_soft_forward(training: bool) -> None:
    model = network(temperature=1.0).train(training)
    x = torch.tensor([0.1, 0.6])
    hard = model.first(x)
    with soft_forward(model):
        soft = model.first(x)
        with soft_forward(model.first):
            pass
        assert torch.equal(model.first(x), soft)
        assert model.inner[1](x).frac().all()
    assert hard.tolist() == model.first(x).tolist() == [0, 1]
    expected = soft_steps(x, model.first.thresholds, (1, 1), 1.0) - 1
    assert torch.equal(soft, expected)
    with pytest.raises(KeyError), soft_forward(model):
        raise KeyError
    assert torch.equal(model.first(x), hard)
