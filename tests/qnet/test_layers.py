from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qnet.clustering import cluster
from qnet.errors import UserError
from qnet.insertion import insert_quantizers
from qnet.layers import QuantizedConv2d, QuantizedReLU, has_hooks
from qnet.levels import activation_levels, weight_levels
from qnet.models import build_model
from qnet.quantizer import Quantizer
from qnet.sites import quantizable_layers, relu_sites


def weight_quantizer(alpha: float = 0.1) -> Quantizer:
    return Quantizer(weight_levels(2), alpha=alpha, beta=1 / alpha)


def input_quantizer(alpha: float = 0.5, signed: bool = False) -> Quantizer:
    return Quantizer(activation_levels(2, signed), alpha=alpha, beta=1 / alpha)


def small_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(8 * 36, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_of_quantized_input_and_weight(padding_mode: str, groups: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(
        4, 6, 3, stride=2, padding=2, dilation=2, groups=groups, padding_mode=padding_mode
    )
    weights, inputs = weight_quantizer(), input_quantizer()
    layer = copy.deepcopy(plain)
    insert_quantizers(layer, weights={"": weights}, activations={"": inputs}).eval()
    x = torch.rand(2, 4, 9, 9) * 2
    with torch.no_grad():
        plain.weight.copy_(weights(layer.weight))
        torch.testing.assert_close(layer(x), plain(inputs(x)))
    assert len(plain.weight.unique()) == 3


def test_linear_of_quantized_input_and_weight() -> None:
    weights, inputs = weight_quantizer(), input_quantizer()
    layer = nn.Linear(5, 3)
    insert_quantizers(layer, weights={"": weights}, activations={"": inputs}).eval()
    x = torch.rand(2, 7, 5)
    expected = F.linear(inputs(x), weights(layer.weight), layer.bias)
    torch.testing.assert_close(layer(x), expected)


def test_relu_with_quantized_output() -> None:
    quantizer = input_quantizer(alpha=0.5)
    model = insert_quantizers(nn.ReLU(), activations={"": quantizer}).eval()
    x = torch.tensor([-3.0, 0.2, 0.3, 1.0, 9.0])
    assert torch.equal(model(x), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.5]))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv2d(3, 4, 3, bias=False), (1, 3, 5, 5)), (nn.Linear(3, 4), (2, 3))],
)
def test_with_one_quantizer_the_other_tensor_is_as_it_was(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    x, quantizer = torch.randn(shape), input_quantizer()
    expected = layer(quantizer(x))
    insert_quantizers(layer, activations={"": quantizer})
    assert torch.equal(layer(x), expected)


def test_insertion_keeps_what_was_there() -> None:
    model = small_model()
    model[2].eval()
    parameters = dict(model.named_parameters())
    modules = dict(model.named_modules())
    calls: list[str] = []
    model[2].register_forward_hook(lambda module, inputs, output: calls.append("hook"))

    result = insert_quantizers(
        model, weights={"2": weight_quantizer()}, activations={"3": input_quantizer()}
    )

    assert result is model
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in parameters.items())
    assert all(model.get_submodule(name) is module for name, module in modules.items())
    assert isinstance(model[2], QuantizedConv2d)
    assert isinstance(model[3], QuantizedReLU)
    assert type(model[0]) is nn.Conv2d
    assert not model[2].weight_quantizer.training
    assert model[3].output_quantizer.training
    model(torch.randn(2, 3, 8, 8))
    assert calls == ["hook"]


def test_what_is_no_quantizer_is_refused_before_anything_changes() -> None:
    model = small_model()
    clusters = cluster(model[5].weight, weight_levels(2))
    with pytest.raises(UserError, match="weights: '5' is given a Clusters; give a Quantizer"):
        insert_quantizers(model, weights={"2": weight_quantizer(), "5": clusters})
    assert type(model[2]) is nn.Conv2d


def test_second_insertion_adds_and_does_not_replace() -> None:
    model = small_model()
    first, second = weight_quantizer(), input_quantizer()
    insert_quantizers(model, weights={"5": first})
    insert_quantizers(model, activations={"5": second})
    assert model[5].weight_quantizer is first
    assert model[5].input_quantizer is second
    with pytest.raises(UserError, match="weights: '5' has a quantizer already"):
        insert_quantizers(model, weights={"5": weight_quantizer()})
    with pytest.raises(UserError, match="activations: '5' has a quantizer already"):
        insert_quantizers(model, activations={"5": input_quantizer()})


def test_a_state_of_quantized_weights_loads_where_activations_are_quantized_too() -> None:
    source, target = small_model(), small_model()
    insert_quantizers(source, weights={"5": weight_quantizer(0.3)})
    insert_quantizers(target, weights={"5": weight_quantizer()})
    insert_quantizers(target, activations={"2": input_quantizer(), "5": input_quantizer()})
    target.load_state_dict(source.state_dict())
    assert target[5].weight_quantizer.alpha == source[5].weight_quantizer.alpha
    assert target[5].input_quantizer.alpha == 0.5


def test_full_precision_state_loads_unchanged() -> None:
    state = small_model().state_dict()
    model = insert_quantizers(
        small_model(),
        weights={"2": weight_quantizer(0.3)},
        activations={"2": input_quantizer(), "6": input_quantizer()},
    )
    model.load_state_dict(state, strict=True)
    assert torch.equal(model[2].weight, state["2.weight"])
    assert model[2].weight_quantizer.alpha.item() == pytest.approx(0.3)


def test_a_wrong_name_is_told_the_nearest_and_changes_nothing() -> None:
    model = build_model("resnet20", classes=3)
    with pytest.raises(UserError, match=r"weights: 'layer1\.0\.conv3'.*'layer1\.0\.conv\d'"):
        insert_quantizers(
            model, weights={"conv1": weight_quantizer(), "layer1.0.conv3": weight_quantizer()}
        )
    with pytest.raises(UserError, match="weights: 'relu' is not"):
        insert_quantizers(model, weights={"relu": weight_quantizer()})
    with pytest.raises(UserError, match="activations: 'bn1' is not"):
        insert_quantizers(model, activations={"bn1": input_quantizer()})
    with pytest.raises(UserError, match="weights: 0 is not"):
        insert_quantizers(model, weights={0: weight_quantizer()})
    with pytest.raises(UserError, match="there is none"):
        insert_quantizers(nn.Flatten(), activations={"": input_quantizer()})
    assert type(model.conv1) is nn.Conv2d


def test_a_shared_module_has_one_quantizer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.two = self.one
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.two(self.relu(self.one(x))))

    model = Twice()
    assert quantizable_layers(model, keep=()) == ["one"]
    with pytest.raises(UserError, match="'two' has a quantizer already"):
        insert_quantizers(model, weights={"one": weight_quantizer(), "two": weight_quantizer()})
    quantizer = weight_quantizer()
    insert_quantizers(
        model, weights={"two": quantizer}, activations={relu_sites(model)[0]: input_quantizer()}
    ).eval()
    assert model.one is model.two
    assert model.one.weight_quantizer is quantizer
    assert set(model(torch.randn(5, 4)).unique().tolist()) <= {0.0, 0.5, 1.0, 1.5}


def test_a_transformer_in_eval_mode_calls_its_quantized_layers() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    insert_quantizers(model, weights={"linear1": weight_quantizer()})
    with torch.no_grad():
        deployed = model(x)
    torch.testing.assert_close(deployed, model(x).detach())


def test_compiles_into_one_graph() -> None:
    model = small_model()
    names = quantizable_layers(model)
    insert_quantizers(
        model,
        weights={name: weight_quantizer() for name in names},
        activations={name: input_quantizer() for name in ["6", *names]},
    )
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


TORCHVISION = ["resnet18", "mobilenet_v2", "vgg11", "shufflenet_v2_x0_5", "regnet_y_400mf"]


def input_scales(model: nn.Module, names: list[str], images: Tensor) -> dict[str, float]:
    """Root mean square of each layer's input, used as α to keep the signal from vanishing."""
    scales: dict[str, float] = {}
    handles = []
    for name in names:

        def look(module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
            scales[name] = inputs[0].square().mean().sqrt().item()

        handles.append(model.get_submodule(name).register_forward_pre_hook(look))
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return scales


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_models_can_be_quantized(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(f"torchvision/{name}", classes=4)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(4, 3, 32, 32)
    # The large linear layers of VGG would take most of the time and show nothing more.
    names = quantizable_layers(model, ["first", "last", *(["classifier.*"] * (name == "vgg11"))])
    scales = input_scales(model, names, images)

    insert_quantizers(
        model,
        weights={
            layer: weight_quantizer(model.get_submodule(layer).weight.std().item())
            for layer in names
        },
    )
    insert_quantizers(
        model, activations={layer: input_quantizer(scales[layer], signed=True) for layer in names}
    )
    model.load_state_dict(state, strict=True)
    logits = model(images)
    logits.square().sum().backward()

    assert logits.isfinite().all()
    for layer in names:
        module = model.get_submodule(layer)
        assert module.weight.grad.isfinite().all()
        assert module.weight.grad.any()
        assert module.weight_quantizer.alpha.grad.isfinite().all()
        assert module.input_quantizer.beta.grad.isfinite().all()


def test_torchvision_resnet_with_relus_quantized() -> None:
    model = build_model("torchvision/resnet18", classes=4)
    sites = relu_sites(model)
    assert len(sites) == 9  # its blocks call one module twice
    insert_quantizers(model, activations={site: input_quantizer() for site in sites})
    logits = model(torch.randn(2, 3, 32, 32))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert len(relu_sites(build_model("resnet18", classes=4))) == 17


def test_one_quantizer_in_two_places_is_refused() -> None:
    model, quantizer = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), Quantizer(weight_levels(2))
    message = r"^weights: the quantizer of '1' has another place; make a new one$"
    with pytest.raises(UserError, match=message):
        insert_quantizers(model, weights={"0": quantizer, "1": quantizer})
    assert type(model[0]) is nn.Linear
    insert_quantizers(model, weights={"0": quantizer})
    with pytest.raises(UserError, match=message):
        insert_quantizers(model, weights={"1": quantizer})


def test_a_quantizer_goes_to_the_device_of_its_layer() -> None:
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.Linear(2, 2))
    quantizer = Quantizer(activation_levels(2))
    insert_quantizers(model, activations={"1": quantizer})
    assert quantizer.alpha.device == model[1].weight.device


def test_a_layer_whose_forward_is_its_own_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    forward = model[0].forward
    model[0].forward = lambda x: forward(x)
    with pytest.raises(UserError, match="'0' has a forward that was set on it"):
        insert_quantizers(model, weights={"0": Quantizer(weight_levels(1))})


def test_shapes_can_be_had_on_the_meta_device() -> None:
    model = insert_quantizers(
        nn.Sequential(nn.Linear(2, 3)),
        weights={"0": Quantizer(weight_levels(1))},
        activations={"0": Quantizer(activation_levels(2))},
    )
    assert model.to("meta").eval()(torch.empty(4, 2, device="meta")).shape == (4, 3)


@pytest.mark.parametrize(
    "kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_every_kind_of_hook_counts(kind: str) -> None:
    layer = nn.Linear(2, 2)
    assert not has_hooks(layer)
    getattr(layer, f"register_{kind}")(lambda *_: None)
    assert has_hooks(layer)
