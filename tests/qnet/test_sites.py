"""Which layers are quantized, and where activations are."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn.utils import prune

from qnet.errors import UserError
from qnet.insertion import insert_quantizers
from qnet.models import build_model
from qnet.sites import activation_sites, quantizable_layers, relu_sites
from tests.qnet.test_layers import input_quantizer, small_model, weight_quantizer


def test_text_is_no_list_of_layers() -> None:
    with pytest.raises(UserError, match=r"model\.keep: 'fc' is text; give a list of names"):
        quantizable_layers(small_model(), keep="fc")


def test_layers_are_in_the_order_of_registration() -> None:
    model = build_model("resnet20", classes=3)
    everything = quantizable_layers(model, keep=())
    assert len(everything) == 20
    assert everything[0] == "conv1"
    assert everything[-1] == "linear"
    assert quantizable_layers(model) == everything[1:-1]
    insert_quantizers(model, weights={everything[3]: weight_quantizer()})
    assert quantizable_layers(model) == everything[1:-1]


def test_patterns_keep_and_choose_layers() -> None:
    model = build_model("resnet18", classes=3)
    kept = quantizable_layers(model, keep=["first", "last", "*.downsample.*"])
    assert len(kept) == 16
    assert not any("downsample" in name for name in kept)
    assert quantizable_layers(model, keep=[], quantize=["last", "layer1.?.conv1"]) == [
        "layer1.0.conv1",
        "layer1.1.conv1",
        "fc",
    ]


@pytest.mark.parametrize("parameter", ["keep", "quantize"])
def test_a_pattern_that_fits_no_layer(parameter: str) -> None:
    model = build_model("resnet20", classes=3)
    with pytest.raises(
        UserError, match=rf"model\.{parameter}: 'layer9\.\*'.*conv1.*linear"
    ) as error:
        quantizable_layers(model, **{parameter: ["layer9.*"]})
    assert "\n" not in str(error.value)


def test_a_number_is_a_name_too() -> None:
    assert quantizable_layers(small_model(), keep=[0, 7], quantize=[2]) == ["2"]


def test_nothing_left_to_quantize() -> None:
    with pytest.raises(UserError, match=r"model\.keep.*model\.quantize.*leave no nn\.Conv2d or"):
        quantizable_layers(nn.Linear(2, 2))
    with pytest.raises(UserError, match="keep fewer of the network's 4: 0, 2, 5, 7"):
        quantizable_layers(small_model(), keep=["*"])
    with pytest.raises(UserError, match=r"no nn\.Conv2d or nn\.Linear"):
        quantizable_layers(nn.Sequential(nn.ReLU()))


def test_subclasses_are_left_alone() -> None:
    # Attention reads the weight of its projection itself: a quantizer there would do nothing.
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    assert quantizable_layers(model, keep=()) == ["1"]


def test_a_weight_that_is_computed_from_others_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    prune.random_unstructured(model[0], "weight", amount=1)
    assert quantizable_layers(model, keep=()) == ["1"]
    with pytest.raises(UserError, match="weights: '0' is not"):
        insert_quantizers(model, weights={"0": weight_quantizer()})


def test_activation_sites_are_inputs_of_layers_or_relus() -> None:
    model = small_model()
    assert activation_sites(model, "input") == ["2", "5"]
    assert activation_sites(model, "relu") == relu_sites(model) == ["1", "3", "6"]
    insert_quantizers(model, activations={"3": input_quantizer()})
    assert relu_sites(model) == ["1", "3", "6"]
    with pytest.raises(UserError, match=r"activations\.sites=input"):
        activation_sites(nn.Sequential(nn.ReLU6()), "relu")
