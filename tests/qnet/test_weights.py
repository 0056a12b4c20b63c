"""Weights quantized together, and their gradients, equal those quantized one by one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import qnet.weights
from qnet.clustering import cluster
from qnet.insertion import insert_quantizers
from qnet.levels import weight_levels
from qnet.models import build_model
from qnet.quantizer import Quantizer
from qnet.sites import quantizable_layers
from qnet.steps import Quantize
from qnet.weights import quantized_in_groups, weight_groups
from tests.textbook import uneven

LEVELS = weight_levels(2)


def resnet20(levels: int | str = 2) -> nn.Module:
    """ResNet-20 with quantized weights, in float64; each layer has its own scales."""
    torch.manual_seed(0)
    model = build_model("resnet20", classes=10, channels=3, size=32).double()
    given = weight_levels(levels)
    found = {
        name: Quantizer.from_clusters(cluster(model.get_parameter(f"{name}.weight"), given))
        for name in quantizable_layers(model)
    }
    return insert_quantizers(model, weights=found).double()


def outcome(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of all parameters."""
    model.zero_grad()
    logits = model(images)
    logits.square().mean().backward()
    return logits.detach(), {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("levels", [1, 2, 4, "3pm4"])
def test_together_as_one_by_one(levels: int | str) -> None:
    model, images = resnet20(levels), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    logits, grads = outcome(model, images)
    with quantized_in_groups(weight_groups(model)):
        found, found_grads = outcome(model, images)
    assert torch.equal(found, logits)
    assert found_grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(found_grads[name], grad, msg=name)


def test_a_step_of_resnet20_quantizes_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its 18 quantized layers have weights of five shapes, two of them in a single layer each."""
    model, calls = resnet20(), []
    apply = Quantize.apply
    monkeypatch.setattr(Quantize, "apply", lambda x, *rest: calls.append(len(x)) or apply(x, *rest))
    groups = weight_groups(model)
    assert sorted(map(len, groups)) == [5, 5, 6]
    with quantized_in_groups(groups):
        model(torch.randn(2, 3, 32, 32, dtype=torch.float64))
    assert len(calls) == 5


def test_weights_are_those_of_the_moment() -> None:
    model = resnet20()
    layer = weight_groups(model)[0][0]
    for _ in range(2):
        with quantized_in_groups(weight_groups(model)):
            found = layer.quantized_weight
        assert torch.equal(found, layer.weight_quantizer(layer.weight))
        with torch.no_grad():
            layer.weight.mul_(-1.5)
    assert layer.quantized_weight is None


def test_what_stands_ready_goes_when_a_step_fails() -> None:
    model = resnet20()
    with pytest.raises(ZeroDivisionError), quantized_in_groups(weight_groups(model)):
        raise ZeroDivisionError
    assert all(layer.quantized_weight is None for group in weight_groups(model) for layer in group)


class Halved(Quantizer):
    """Quantizer with a different computation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / 2)


def odd_ones() -> Iterator[Quantizer]:
    """Quantizers that differ from `Quantizer(LEVELS)`, each in a way that rules out grouping."""
    yield Quantizer(LEVELS, forward_mode="soft")
    yield Quantizer(LEVELS, backward_temperature="exact")
    yield Quantizer(LEVELS, backward_temperature=2.0)
    yield Quantizer(LEVELS, alpha=torch.ones(4, 1))
    yield Quantizer(LEVELS, thresholds=uneven(LEVELS))
    yield Quantizer(weight_levels(1))
    yield Halved(LEVELS)
    watched = Quantizer(LEVELS)
    watched.register_forward_hook(lambda module, inputs, output: output + 1)
    yield watched


@pytest.mark.parametrize("odd", list(odd_ones()), ids=repr)
def test_only_what_is_alike_goes_together(odd: Quantizer) -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 4), nn.Linear(4, 5))
    given = {str(i): Quantizer(LEVELS, alpha=0.1 * (i + 1)) for i in (0, 1, 4)} | {"2": odd}
    insert_quantizers(model, weights=given)
    assert weight_groups(model) == [[model[0], model[1]]]  # 3 is not quantized, 4 has another shape
    assert weight_groups(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))) == []


def test_large_weights_go_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qnet.weights, "_SMALL", 16 * 16 * 9)
    assert [len(group) for group in weight_groups(resnet20())] == [6]


def test_an_exact_gradient_goes_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    weights = {name: Quantizer(LEVELS, backward_temperature="exact") for name in ("0", "1")}
    assert weight_groups(insert_quantizers(model, weights=weights)) == []


def test_a_beta_for_each_channel_goes_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    given = {name: Quantizer(LEVELS, beta=torch.ones(4, 1)) for name in "01"}
    assert weight_groups(insert_quantizers(model, weights=given)) == []
