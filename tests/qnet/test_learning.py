"""A phase trains what its parameters say, whatever was trained before."""

import pytest
from torch import nn

from qnet.layers import quantized_weights
from qnet.learning import Learning
from qnet.quantizer import quantizers
from tests.trainers import model_of


def learning_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def names(model: nn.Module, *ends: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.endswith(ends)}


@pytest.mark.parametrize(
    ("weights", "backward", "follows"),
    [
        ("frozen", "exact", False),
        ("hard", 4.0, False),
        ("hard", "exact", True),
        ("soft", 4.0, True),
    ],
)
def test_weights_follow_t_where_it_has_a_part(weights, backward, follows, activations_params):
    model = model_of("activations")
    of_weights = [quantizer for *_, quantizer in quantized_weights(model)]
    for quantizer in of_weights:
        quantizer.backward_temperature = backward
    learning = Learning(model, activations_params(weights=weights))
    of_inputs = [quantizer for _, quantizer in quantizers(model) if quantizer not in of_weights]
    assert set(learning.annealed) == {*of_inputs, *(of_weights if follows else [])}
    modes = {quantizer.forward_mode for quantizer in of_weights}
    assert modes == {"soft" if weights == "soft" else "hard"}


def test_the_parameters_decide_what_learns(activations_params):
    model = model_of("activations")
    weights = {"3.weight", "6.weight"}
    weight_scales = names(model, "weight_quantizer.alpha", "weight_quantizer.beta")
    scales = names(model, "alpha", "beta")
    norms = {"1.weight", "1.bias", "4.weight", "4.bias", "7.weight", "7.bias"}
    for changes, still in (
        ({"weights": "frozen"}, weights | weight_scales),
        ({"weights": "frozen", "weight_scales": True}, weights | weight_scales),
        ({"weights": "hard"}, weight_scales),
        ({"weights": "hard", "weight_scales": True}, set()),
        ({"weights": "hard", "weight_scales": True, "scale_lr": 0.0}, scales),
        ({"weights": "hard", "weight_scales": True, "freeze_bn_affine": True}, norms),
        ({"weights": "soft", "weight_scales": True}, set()),
    ):
        Learning(model, activations_params(**changes))  # the previous phase leaves no trace
        assert names(model, "") - learning_names(model) == still, changes


def test_frozen_at_first_is_undone_by_another_phase(activations_params):
    model = model_of("activations")
    first = Learning(model, activations_params(frozen_epochs=2))
    first.begin(0)
    assert not model.get_parameter("3.weight").requires_grad
    Learning(model, activations_params(frozen_epochs=0))
    assert model.get_parameter("3.weight").requires_grad


@pytest.mark.parametrize("changes", [{"weights": "frozen"}, {"frozen_epochs": 2}])
def test_where_no_weight_is_quantized_all_are_frozen(changes, activations_params):
    model = model_of("fp")
    Learning(model, activations_params(**changes)).begin(0)
    weights = {"0.weight", "3.weight", "6.weight", "11.weight"}
    assert names(model, "") - learning_names(model) == weights


def test_where_no_weight_is_quantized_those_stay_frozen_that_were(activations_params):
    model = model_of("fp")
    model[0].requires_grad_(False)
    Learning(model, activations_params(weights="hard")).begin(0)
    assert names(model, "") - learning_names(model) == {"0.weight"}


def test_after_a_phase_all_learn_that_did_before(activations_params):
    model = model_of("activations")
    model[0].requires_grad_(False)
    before = learning_names(model)
    learning = Learning(model, activations_params(weights="frozen", freeze_bn_affine=True))
    learning.begin(0)
    assert learning_names(model) != before
    learning.end()
    assert learning_names(model) == before
