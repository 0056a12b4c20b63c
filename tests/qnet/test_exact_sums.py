"""In eval mode a layer with quantized input and weight adds integers, without rounding."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from qnet.insertion import insert_quantizers
from qnet.levels import activation_levels, weight_levels
from qnet.quantizer import Quantizer, soft_forward

LAYERS = {
    "convolution": (lambda: nn.Conv2d(48, 8, 3, padding=1), (4, 48, 9, 9)),
    "linear": (lambda: nn.Linear(1024, 8), (64, 1024)),
}


@pytest.fixture(params=LAYERS)
def layer_and_input(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """Quantized layer in eval mode, with scales that are not powers of two, and its input."""
    torch.manual_seed(0)
    build, shape = LAYERS[request.param]
    layer = build()
    levels, weights = activation_levels(4, signed=False), weight_levels(3)
    insert_quantizers(
        layer,
        weights={"": Quantizer(weights, alpha=0.013, beta=1 / 0.013)},
        activations={"": Quantizer(levels, alpha=0.17, beta=1 / 0.17)},
    )
    return layer.eval(), torch.rand(shape) * 3


def scaled_sums(layer: nn.Module, x: Tensor) -> Tensor:
    """Sums of levels in float64, where integers are exact, scaled in float32."""
    inputs, weights = layer.input_quantizer, layer.weight_quantizer
    levels = inputs.integers(x).double(), weights.integers(layer.weight).double()
    is_convolution = isinstance(layer, nn.Conv2d)
    if is_convolution:
        sums = nn.functional.conv2d(*levels, padding=layer.padding)
    else:
        sums = nn.functional.linear(*levels)
    assert sums.abs().max() > 100
    bias = layer.bias.view(-1, 1, 1) if is_convolution else layer.bias
    return sums.float() / (1 / (inputs.alpha * weights.alpha)) + bias


def test_sums_are_exact(layer_and_input):
    layer, x = layer_and_input
    assert torch.equal(layer(x), scaled_sums(layer, x))


def test_the_order_of_the_sum_is_no_matter(layer_and_input):
    layer, x = layer_and_input
    expected = layer(x)
    dim = 1  # of the channels, and of the features
    order = torch.randperm(x.shape[dim])
    with torch.no_grad():
        layer.weight.copy_(layer.weight.index_select(1, order))
    assert torch.equal(layer(x.index_select(dim, order)), expected)


def test_one_image_is_as_many(layer_and_input):
    layer, x = layer_and_input
    assert torch.equal(torch.cat([layer(part) for part in x.split(1)]), layer(x))


def test_another_library_gives_the_same_bits(layer_and_input, tmp_path):
    layer, x = layer_and_input
    file = tmp_path / "layer.onnx"
    any_number = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(layer, (x,), file, dynamic_shapes=any_number, external_data=False)
    session = onnxruntime.InferenceSession(file)  # with all its optimizations
    for part in (x, x[:1]):
        (found,) = session.run(None, {session.get_inputs()[0].name: part.numpy()})
        assert torch.equal(torch.from_numpy(found), layer(part))


def test_gradients_are_those_of_training(layer_and_input):
    layer, x = layer_and_input
    found = []
    for training in (False, True):
        layer.train(training).zero_grad()
        leaf = x.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        found.append([leaf.grad, *(parameter.grad.clone() for parameter in layer.parameters())])
    assert len(found[0]) == 7  # x, weight, bias, two times alpha and beta
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_agree_to_rounding(layer_and_input, dtype):
    layer, x = layer_and_input
    layer.to(dtype)
    expected = scaled_sums(layer, x.to(dtype)).to(dtype)
    torch.testing.assert_close(layer(x.to(dtype)), expected, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_its_type(layer_and_input, dtype):
    layer, x = layer_and_input
    with torch.autocast("cpu", dtype):
        assert layer(x).dtype == dtype


def test_a_sum_too_large_for_float16_is_scaled_before():
    eight = weight_levels(8)
    layer, x = nn.Linear(512, 1), torch.full((1, 512), 0.7)
    nn.init.constant_(layer.weight, 0.9)
    insert_quantizers(
        layer,
        weights={"": Quantizer(eight, alpha=1 / 127, beta=127.0)},
        activations={"": Quantizer(eight, alpha=1 / 127, beta=127.0)},
    )
    layer.eval()
    expected = layer(x)
    with torch.autocast("cpu", torch.float16):
        torch.testing.assert_close(layer(x).float(), expected, rtol=0.01, atol=0)
    torch.testing.assert_close(layer.half()(x.half()).float(), expected, rtol=0.01, atol=0)


def test_the_soft_function_is_scaled_likewise(layer_and_input):
    layer, x = layer_and_input
    with soft_forward(layer):
        found = layer(x)
        handle = layer.input_quantizer.register_forward_hook(lambda *_: None)
        torch.testing.assert_close(found, layer(x))
    handle.remove()


def test_a_hook_sees_what_the_quantizer_gives(layer_and_input):
    layer, x = layer_and_input
    expected, seen = layer(x), []
    layer.input_quantizer.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(seen[0], layer.input_quantizer.alpha * layer.input_quantizer.integers(x))


def test_an_alpha_for_each_channel_cannot_be_taken_out_of_the_sum():
    layer, x = nn.Conv2d(2, 3, 1, bias=False), torch.rand(2, 2, 4, 4)
    levels, weights = activation_levels(2, signed=False), weight_levels(1)
    inputs = Quantizer(levels, alpha=torch.tensor([0.1, 3.0]).view(1, 2, 1, 1), beta=4.0)
    insert_quantizers(layer, weights={"": Quantizer(weights)}, activations={"": inputs}).eval()
    expected = nn.functional.conv2d(inputs(x), layer.weight_quantizer(layer.weight))
    assert torch.equal(layer(x), expected)
