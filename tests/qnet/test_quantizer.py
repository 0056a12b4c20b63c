"""The quantizer module: what it learns, saves and refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qnet.errors import UserError
from qnet.levels import activation_levels, weight_levels
from qnet.quantizer import Quantizer, quantizers, soft_forward
from qnet.steps import soft_steps
from tests.textbook import (
    ACTIVATIONS,
    WEIGHTS,
)


def test_thresholds_are_halfway_between_levels_by_default() -> None:
    assert Quantizer(weight_levels("3pm4")).thresholds.tolist() == [-3, -1.5, -0.5, 0.5, 1.5, 3]


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
        ({"temperature": 1e39}, "temperature 1e.39: .*up to 3.4e.38"),
        ({"alpha": float("nan")}, "alpha nan: must be finite"),
        ({"beta": torch.tensor([1.0, float("inf")])}, "beta .*inf.*: must be finite"),
        ({"backward_temperature": -1.0}, "backward_temperature -1.0"),
        ({"forward_mode": "both"}, "forward_mode 'both'"),
    ],
)
def test_bad_arguments_are_named_in_one_line(arguments, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Quantizer(WEIGHTS[1], **arguments)
    assert "\n" not in str(caught.value)


def test_a_temperature_is_set_in_place_and_must_be_positive() -> None:
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
    text = repr(Quantizer(WEIGHTS[1], temperature=7.5, backward_temperature="exact"))
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


@pytest.mark.parametrize("thresholds", [[0.5, -0.5], [0.0, 0.0], [0.0, float("nan")]])
def test_thresholds_that_do_not_increase_are_not_loaded(thresholds: list[float]) -> None:
    quantizer = Quantizer(WEIGHTS[1])
    before = quantizer.thresholds.clone()
    state = quantizer.state_dict() | {"thresholds": torch.tensor(thresholds)}
    with pytest.raises(RuntimeError, match=r"thresholds .* strictly increasing"):
        quantizer.load_state_dict(state)
    assert torch.equal(quantizer.thresholds, before)


def test_quantizers_are_named() -> None:
    model = network()
    assert dict(quantizers(model)) == {"first": model.first, "inner.1": model.inner[1]}
    assert [name for name, _ in quantizers(model.first)] == [""]


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_soft_within_the_context_only(training: bool) -> None:
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
    with soft_forward(model.inner[1]):
        assert torch.equal(model.first(x), hard)
        assert model.inner[1](x).frac().all()
    with pytest.raises(KeyError), soft_forward(model):
        raise KeyError
    assert torch.equal(model.first(x), hard)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_keep_their_digits_where_the_model_has_fewer(dtype: torch.dtype) -> None:
    quantizer = Quantizer(activation_levels(8), alpha=0.3, beta=1e6, temperature=1e5)
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.to(dtype).eval()
    assert all(torch.equal(quantizer.state_dict()[name], value) for name, value in before.items())
    x = torch.linspace(0, 3e-4, 20001)
    assert torch.equal(quantizer(x), quantizer.alpha * quantizer.integers(x))
    assert len(quantizer.integers(x).unique()) == 256
    assert quantizer(x.to(dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_have_the_digits_of_float32_whatever_the_default(dtype: torch.dtype) -> None:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        quantizer = Quantizer(activation_levels(8), alpha=torch.ones(()))
    finally:
        torch.set_default_dtype(default)
    assert {value.dtype for value in quantizer.state_dict().values()} == {torch.float32}


def test_whole_numbers_are_not_quantized() -> None:
    with pytest.raises(UserError, match=r"x is of torch\.int64; convert it"):
        Quantizer(WEIGHTS[1], alpha=0.5)(torch.tensor([1, 2, -3]))


def test_a_temperature_becomes_a_plain_number() -> None:
    quantizer = Quantizer(WEIGHTS[1], backward_temperature=np.float32(3))
    assert type(quantizer.backward_temperature) is float
    assert quantizer.backward_temperature == 3


def test_scales_stay_in_float32_when_their_tensors_are_taken_over() -> None:
    quantizer = Quantizer(weight_levels(2))
    state = {name: value.bfloat16() for name, value in quantizer.state_dict().items()}
    quantizer.load_state_dict(state, assign=True)
    assert {value.dtype for value in quantizer.state_dict().values()} == {torch.float32}
    assert quantizer.alpha.requires_grad


def test_a_value_that_is_no_tensor_is_told_by_torch() -> None:
    quantizer = Quantizer(weight_levels(2))
    with pytest.raises(RuntimeError, match="alpha"):
        quantizer.load_state_dict({**quantizer.state_dict(), "alpha": 0.5})


@pytest.mark.parametrize("shape", [(10,), (1, 1, 1), (2, 3, 1)])
def test_a_scale_that_does_not_fit_the_values_is_refused(shape: tuple[int, ...]) -> None:
    x = torch.ones(5, 1)
    for name in ("alpha", "beta"):
        quantizer = Quantizer(weight_levels(2), **{name: torch.ones(shape)})
        with pytest.raises(UserError, match=rf"{name} is of shape .* and x of \[5, 1\]"):
            quantizer(x)


def test_a_quantizer_without_storage_can_be_printed() -> None:
    assert "temperature=meta" in repr(Quantizer(WEIGHTS[1]).to("meta"))


@pytest.mark.parametrize("how", ["written to", "replaced", "replaced twice", "unseen"])
def test_thresholds_that_change_are_followed(how: str) -> None:
    quantizer = Quantizer(weight_levels(2))
    thresholds = torch.tensor([-2.0, 2.0])
    if how == "replaced":
        quantizer.thresholds = thresholds
    elif how == "replaced twice":
        quantizer.thresholds = torch.tensor([-3.0, 3.0])
        quantizer(torch.zeros(1))
        quantizer.thresholds = thresholds
    elif how == "unseen":  # as torch.distributed.broadcast does: no version counts it
        quantizer.thresholds.data.copy_(thresholds)
    else:
        with torch.no_grad():  # as in weight averaging, or at the start of DistributedDataParallel
            quantizer.thresholds.copy_(thresholds)
    x = torch.tensor([-3.0, 1.0, 3.0])
    for values in (x, x.double()):
        assert quantizer(values).tolist() == [-1, 0, 1]
        assert quantizer.integers(values).tolist() == [-1, 0, 1]


def test_integers_follow_thresholds_without_a_forward() -> None:
    quantizer = Quantizer(weight_levels(2))
    with torch.no_grad():
        quantizer.thresholds.copy_(torch.tensor([-2.0, 2.0]))
    assert quantizer.integers(torch.tensor([-3.0, 1.0, 3.0])).tolist() == [-1, 0, 1]


def test_a_level_of_128_needs_two_bytes() -> None:
    quantizer = Quantizer(weight_levels([-128, 128]))
    assert quantizer.integers(torch.tensor([-200.0, 200.0])).tolist() == [-128, 128]


def test_in_float64_and_back() -> None:
    state = Quantizer(weight_levels(2)).double().float().state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_thresholds_that_are_equal_in_float32_are_refused() -> None:
    thresholds = torch.tensor([0.1, 0.1 + 1e-12], dtype=torch.float64)
    with pytest.raises(UserError, match="strictly increasing"):
        Quantizer(weight_levels(2), thresholds=thresholds)
