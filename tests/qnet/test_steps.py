"""The staircase and its gradients against the textbook formula, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import qnet.staircase
import qnet.steps
from qnet.errors import UserError
from qnet.levels import LevelSet
from qnet.quantizer import Quantizer
from qnet.steps import hard_steps, soft_steps
from tests.textbook import (
    WEIGHTS,
    close,
    every_set,
    halfway,
    scale,
    small_sets,
    textbook_hard,
    textbook_soft,
    uneven,
    values_for,
)


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
        backward_temperature="exact",
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
def test_soft_gradients_agree_with_finite_differences(levels: LevelSet) -> None:
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
        backward_temperature="exact",
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
    close(by_alpha, (grad * y / alpha).sum_to_size(alpha.shape))  # that of the forward pass


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


@pytest.mark.parametrize("steps", [soft_steps, hard_steps])
@pytest.mark.parametrize(
    ("heights", "temperature", "message"),
    [
        ((1, 1), 0.0, "temperature 0.0; give a number above zero"),
        ((1, 1), -5.0, "temperature -5.0"),
        ((1, 1), "steep", "temperature 'steep'"),
        ((1, 1, 1), 2.0, "2 thresholds and 3 heights"),
    ],
)
def test_steps_that_make_no_sense_are_refused(steps, heights, temperature, message) -> None:
    with pytest.raises(UserError, match=f"^{steps.__name__}: .*{message}"):
        steps(torch.zeros(3), torch.tensor([-0.5, 0.5]), heights, temperature)


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


def test_an_exact_window_of_a_hard_forward_is_that_of_the_soft_function() -> None:
    levels = WEIGHTS[3]
    x = values_for(levels, 30).requires_grad_()
    quantizer = Quantizer(levels, temperature=6.0, backward_temperature="exact").double()
    soft = textbook_soft(x, *(torch.ones(2, 1).double()), quantizer.thresholds, levels, 6.0)
    close(*(torch.autograd.grad(y.sum(), x)[0] for y in (quantizer(x), soft)))


def test_gradient_is_of_the_temperature_of_the_forward_pass() -> None:
    x = torch.tensor([0.3], requires_grad=True)
    quantizer = Quantizer(WEIGHTS[0], temperature=2.0, backward_temperature="exact")
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
