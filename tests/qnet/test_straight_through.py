"""Straight-through gradients, and step functions in compiled networks."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from qnet import Quantizer, UserError, activation_levels, insert_quantizers, weight_levels
from qnet.fused import applies, use_compiled
from qnet.relus import skip_relus
from qnet.steps import hard_steps, soft_steps

LEVELS = [weight_levels(1), weight_levels("3pm4"), activation_levels(1), activation_levels(3)]


def oracle(x, grad, levels, alpha, beta):
    """Gradients of x, alpha and beta in float64: those of alpha beta x between the levels."""
    u = x.double() * beta
    inside = (u >= levels.values[0]) & (u <= levels.values[-1])
    thresholds = [(low + high) / 2 for low, high in pairwise(levels.values)]
    climbed = levels.values[0] + sum(
        step * (u > b) for step, b in zip(levels.steps, thresholds, strict=True)
    )
    return (
        grad * alpha * beta * inside,
        (grad * climbed).sum(),
        (grad * alpha * x.double() * inside).sum(),
    )


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_is_that_of_a_line_between_the_outermost_levels(levels, compiled):
    torch.manual_seed(0)
    x = (4 * torch.randn(2, 16, 96, 96)).requires_grad_()
    grad = torch.randn(x.shape)
    quantizer = Quantizer(levels, alpha=0.7, beta=1.3, backward_temperature="straight_through")
    use_compiled(compiled)
    assert applies(x, quantizer.alpha, quantizer.beta) == compiled
    try:
        quantizer.train()(x).backward(grad)
    finally:
        use_compiled(False)
    found = x.grad, quantizer.alpha.grad, quantizer.beta.grad
    beta = quantizer.beta.item()
    expected = oracle(x.detach(), grad.double(), levels, quantizer.alpha.item(), beta)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-2)
    away = ((x.detach().double() * beta)[..., None] - torch.tensor(levels.values)).abs() > 1e-5
    wrong = ((x.grad.double() - expected[0]).abs() > 1e-5) & away.all(dim=-1)
    assert not wrong.any()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("window", [4.0, "exact", "straight_through"])
@pytest.mark.parametrize("mode", ["hard", "soft"])
def test_a_network_compiled_whole_has_the_same_gradients(window, mode):
    def make():
        torch.manual_seed(0)
        settings = {"forward_mode": mode, "backward_temperature": window}
        return insert_quantizers(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)),
            weights={"2": Quantizer(weight_levels(2), alpha=0.1, beta=9.0, **settings)},
            activations={"2": Quantizer(activation_levels(2), alpha=0.7, beta=1.3, **settings)},
        )

    plain, compiled = make(), make()
    assert skip_relus(compiled) == (["1"] if mode == "hard" else [])
    x = torch.randn(4, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    plain(x).square().sum().backward()
    torch.compile(compiled, fullgraph=True)(x).square().sum().backward()
    for (name, mine), (_, other) in zip(
        plain.named_parameters(), compiled.named_parameters(), strict=True
    ):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("temperature", [4.0, torch.tensor(4.0)])
def test_the_plain_functions_compile_into_one_graph(temperature):
    def both(x):
        thresholds = torch.tensor([-0.5, 0.5])
        soft = soft_steps(x, thresholds, (1, 1), temperature)
        return torch.stack([soft, hard_steps(x, thresholds, (1, 1), temperature)])

    found = []
    for function in (both, torch.compile(both, fullgraph=True)):
        x = torch.linspace(-2, 2, 50).requires_grad_()
        y = function(x)
        y.square().sum().backward()
        found.append((y, x.grad))
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-4, atol=1e-4)


def test_a_window_of_another_name_is_refused():
    with pytest.raises(UserError, match="backward_temperature 'line': unknown; use a number above"):
        Quantizer(activation_levels(1), backward_temperature="line")


def test_thresholds_that_are_loaded_are_those_used():
    given = Quantizer(activation_levels(2), thresholds=[0.1, 0.2, 0.3])
    quantizer = Quantizer(activation_levels(2))
    quantizer.load_state_dict(given.state_dict())
    x = torch.tensor([0.15, 0.25, 0.5])
    assert quantizer(x).tolist() == given(x).tolist() == [1, 2, 3]
