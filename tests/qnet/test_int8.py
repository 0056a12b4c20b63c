"""A network that adds 8-bit integers computes the same as the one it was made from."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from qnet import (
    Checkpoint,
    Quantizer,
    UserError,
    activation_levels,
    load_model,
    quantizers,
    save_checkpoint,
    to_int8,
    weight_levels,
)
from qnet.insertion import insert_quantizers
from qnet.layers import QuantizedConv2d, QuantizedLinear
from qnet.models import build_model
from qnet.sites import activation_sites, quantizable_layers
from tests import tiny

LAYERS = {
    "convolution": (lambda: nn.Conv2d(48, 8, 3, padding=1), (4, 48, 9, 9)),
    "stride, dilation, groups": (
        lambda: nn.Conv2d(6, 9, (3, 2), (2, 1), (1, 2), (1, 3), groups=3, bias=False),
        (2, 6, 11, 12),
    ),
    "depthwise": (lambda: nn.Conv2d(16, 16, 3, groups=16), (3, 16, 8, 8)),
    "linear": (lambda: nn.Linear(1024, 8), (64, 1024)),
    "linear of sequences": (lambda: nn.Linear(32, 5, bias=False), (3, 7, 32)),
}


def quantized(
    layer: nn.Module, weights: int | str = 3, activations: int = 4, signed: bool = False
) -> nn.Module:
    """The layer in eval mode with quantizers whose scales are not powers of two."""
    torch.manual_seed(0)
    of_weights = weight_levels(weights)
    of_inputs = activation_levels(activations, signed=signed)
    insert_quantizers(
        layer,
        weights={"": Quantizer(of_weights, alpha=0.013, beta=20.0 * of_weights.max_abs)},
        activations={"": Quantizer(of_inputs, alpha=0.17, beta=of_inputs.max_abs / 3)},
    )
    return layer.eval()


@pytest.fixture(params=LAYERS)
def layer_and_input(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    build, shape = LAYERS[request.param]
    layer = quantized(build())
    return layer, torch.randn(shape) * 2


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [(1, 1), ("3pm4", 2), (4, 4), (8, 7), (7, 8)])
@pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS)
def test_a_layer_gives_the_same_bits(build, shape, bits, signed):
    layer, x = quantized(build(), *bits, signed=signed), torch.randn(shape) * 2
    converted = to_int8(layer)
    assert type(converted) is not type(layer)
    with torch.no_grad():
        assert torch.equal(converted(x), layer(x))


@pytest.mark.parametrize("shape", [(0, 8), (0, 5, 8), (2, 0, 8)])
def test_an_empty_batch(shape):
    layer = quantized(nn.Linear(8, 4))
    x = torch.zeros(shape)
    assert to_int8(layer)(x).shape == layer(x).shape


def test_the_largest_sum_that_float32_holds():
    layer, x = quantized(nn.Linear(1024, 2, bias=False), 7, 8), torch.full((1, 1024), 9.0)
    nn.init.ones_(layer.weight)
    with torch.no_grad():
        found = to_int8(layer)(x)
        assert torch.equal(found, layer(x))
    torch.testing.assert_close(found, torch.full((1, 2), 255 * 63 * 1024 * 0.17 * 0.013))


def test_a_layer_whose_sums_could_be_larger_stays_as_it_is():
    layer = quantized(nn.Linear(1056, 2, bias=False), 7, 8)
    small = to_int8(nn.Sequential(quantized(nn.Linear(1056, 2)), layer))
    nn.init.ones_(layer.weight)
    large = to_int8(nn.Sequential(quantized(nn.Linear(1056, 2)), layer))
    assert type(small[1]) is not QuantizedLinear
    assert type(large[1]) is QuantizedLinear


def test_the_network_it_was_made_from_is_left_alone(layer_and_input):
    layer, x = layer_and_input
    kind, before, expected = type(layer), copy.deepcopy(layer.state_dict()), layer(x)
    to_int8(layer.train())
    assert type(layer) is kind
    assert layer.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert torch.equal(layer.eval()(x), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_it_can_be_copied(layer_and_input, copied):
    layer, x = layer_and_input
    converted = to_int8(layer)
    assert torch.equal(copied(converted)(x), converted(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_agree_to_rounding(layer_and_input, dtype):
    layer, x = layer_and_input
    found = to_int8(layer.to(dtype))(x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found, layer(x.to(dtype)), rtol=0.02, atol=0.02)


def test_weights_take_a_byte(layer_and_input):
    layer, _ = layer_and_input
    state = to_int8(layer).state_dict()
    assert state["weight"].dtype == torch.int8
    assert state["weight"].shape == layer.weight.shape


def network(name: str) -> nn.Module:
    """A network with quantizers everywhere."""
    torch.manual_seed(0)
    model = build_model(name, classes=5, channels=3, size=32)
    insert_quantizers(
        model,
        weights={
            n: Quantizer(weight_levels(2), alpha=0.1, beta=10.0) for n in quantizable_layers(model)
        },
        activations={
            n: Quantizer(activation_levels(2), alpha=0.5, beta=2.0)
            for n in activation_sites(model, "input")
        },
    )
    return model.eval()


@pytest.mark.parametrize("name", ["resnet20", "simplenet", "torchvision/mobilenet_v2"])
def test_a_network_gives_the_same_bits(name):
    model, images = network(name), torch.randn(4, 3, 32, 32)
    converted = to_int8(model)
    left = (QuantizedConv2d, QuantizedLinear)
    assert not any(type(module) in left for module in converted.modules())
    with torch.inference_mode():
        expected = model.to(memory_format=torch.channels_last)(images)
        assert torch.equal(converted(images), expected)


def test_from_a_packed_file(tmp_path, tiny_info):
    model = tiny.network(len(tiny_info.classes), tiny_info.channels, tiny_info.size).eval()
    insert_quantizers(
        model,
        weights={"3": Quantizer(weight_levels(2), alpha=0.1, beta=10.0)},
        activations={"3": Quantizer(activation_levels(2), alpha=0.3, beta=3.0)},
    )
    file = tmp_path / "packed.safetensors"
    save_checkpoint(file, Checkpoint(model, "tests.tiny:network", tiny_info), packed=True)
    images = torch.randn(4, tiny_info.channels, tiny_info.size, tiny_info.size)
    with torch.inference_mode():
        found = to_int8(load_model(file))(images)
        assert torch.equal(found, model.to(memory_format=torch.channels_last)(images))


@pytest.mark.usefixtures("fresh_compiler")
def test_it_compiles_into_one_graph():
    convolution = quantized(nn.Conv2d(8, 8, 3, padding=1))
    linear = quantized(nn.Linear(8, 5), 2, 2)
    model = nn.Sequential(
        convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), linear
    )
    converted = to_int8(model)
    compiled = torch.compile(converted, fullgraph=True)
    for count in (4, 1, 3):
        images = torch.randn(count, 8, 6, 6)
        with torch.inference_mode():
            torch.testing.assert_close(compiled(images), converted(images))


def test_a_transformer_calls_it():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    insert_quantizers(
        layer,
        weights={
            n: Quantizer(weight_levels(4), alpha=0.05, beta=20.0) for n in ("linear1", "linear2")
        },
        activations={
            n: Quantizer(activation_levels(4, signed=True), alpha=0.3, beta=3.0)
            for n in ("linear1", "linear2")
        },
    )
    layer.eval()
    x = torch.randn(2, 6, 16)
    converted = to_int8(layer)
    with torch.inference_mode():
        assert torch.equal(converted(x), layer(x))


OTHERS = {
    "levels of 8 and 8 bits": lambda: quantized(nn.Conv2d(2, 2, 1), weights=8, activations=8),
    "padding that is not zero": lambda: quantized(
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
    ),
    "padding by name": lambda: quantized(nn.Conv2d(2, 2, 3, padding="same")),
    "no quantizer of the input": lambda: insert_quantizers(
        nn.Conv2d(2, 2, 1), weights={"": Quantizer(weight_levels(1))}
    ),
    "an alpha for each channel": lambda: insert_quantizers(
        nn.Conv2d(2, 3, 1),
        weights={"": Quantizer(weight_levels(1), alpha=torch.ones(3, 1, 1, 1))},
        activations={"": Quantizer(activation_levels(1))},
    ),
    "full precision": lambda: nn.Conv2d(2, 2, 1),
}


@pytest.mark.parametrize("build", OTHERS.values(), ids=OTHERS)
def test_other_layers_stay_as_they_are(build):
    other = build()
    converted = to_int8(nn.Sequential(other, quantized(nn.Linear(2, 2))))
    assert type(converted[0]) is type(other)
    assert type(converted[1]) is not QuantizedLinear
    with pytest.raises(
        UserError, match="no layer of the network has input and weight quantized"
    ) as caught:
        to_int8(other)
    quantized_otherwise = len(list(quantizers(other))) == 2
    assert ("one alpha each" in str(caught.value)) == quantized_otherwise


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_weights_stays_as_it_is():
    layers = nn.Sequential(quantized(nn.Linear(3, 4)), quantized(nn.Linear(0, 4)))
    x = torch.empty(2, 0)
    assert torch.equal(to_int8(layers)[1](x), layers[1](x))


def test_it_is_not_trained(layer_and_input):
    converted = to_int8(layer_and_input[0])
    assert converted.eval() is converted
    with pytest.raises(UserError, match="cannot be trained; train the one it came from"):
        converted.train()


def test_it_has_no_gradients(layer_and_input):
    layer, x = layer_and_input
    converted = to_int8(layer)
    assert not any(parameter.requires_grad for parameter in converted.parameters())
    assert all(parameter.requires_grad for parameter in layer.parameters())
    with pytest.raises(UserError, match="no gradients; take those of the one it came from"):
        converted(x.clone().requires_grad_())
    with torch.no_grad():
        converted(x.clone().requires_grad_())


def test_it_is_not_converted_again(layer_and_input):
    with pytest.raises(UserError, match="comes from to_int8 already; use it as it is"):
        to_int8(to_int8(layer_and_input[0]))


def test_it_is_not_saved(tmp_path, tiny_info):
    model = tiny.network(len(tiny_info.classes), tiny_info.channels, tiny_info.size).eval()
    insert_quantizers(
        model,
        weights={"3": Quantizer(weight_levels(2))},
        activations={"3": Quantizer(activation_levels(2))},
    )
    converted = Checkpoint(to_int8(model), "tests.tiny:network", tiny_info)
    with pytest.raises(
        UserError, match=r"3\.weight is torch\.int8 instead of .*, not what to_int8"
    ):
        save_checkpoint(tmp_path / "int8.safetensors", converted)


def test_where_there_is_no_onednn(layer_and_input, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(UserError, match="built without oneDNN; use the network as it is"):
        to_int8(layer_and_input[0])


def test_a_network_on_another_device():
    with pytest.raises(UserError, match="the network is on meta; load it on cpu"):
        to_int8(nn.Linear(2, 2, device="meta"))


def test_beside_a_layer_of_volumes():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.volume = nn.Conv3d(1, 1, 3, padding=1)
            self.linear = quantized(nn.Linear(8, 2))

        def forward(self, x):
            return self.linear(self.volume(x.unsqueeze(1)).squeeze(1))

    model, x = Beside().eval(), torch.randn(2, 4, 4, 8)
    with torch.inference_mode():
        assert torch.equal(to_int8(model)(x), model(x))


def test_where_float64_is_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        layer = quantized(nn.Linear(8, 2)).eval()
        x = torch.randn(4, 8)
        with torch.inference_mode():
            torch.testing.assert_close(to_int8(layer)(x), layer(x), rtol=1e-6, atol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)


def test_another_state_is_loaded_whole() -> None:
    a, b = (to_int8(quantized(nn.Linear(8, 2))) for _ in range(2))
    a.load_state_dict(b.state_dict())
    x = torch.randn(4, 8)
    with torch.inference_mode():
        assert torch.equal(a(x), b(x))
    with pytest.raises(UserError, match=r"is of torch\.float32, and its network holds levels"):
        a.load_state_dict(quantized(nn.Linear(8, 2)).state_dict())
    with torch.inference_mode():
        assert torch.equal(a(x), b(x))
