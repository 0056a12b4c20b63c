from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from qnet.errors import UserError
from qnet.models import MODELS, build_model, source_files
from qnet.models.resnet_cifar import CifarResNet, PadShortcut


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's weights, with batch norm statistics other than the initial ones."""
    state = model.state_dict()
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.normal_()
        if key.endswith("running_var"):
            value.uniform_(0.5, 2.0)
    return state


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("resnet50", 64), ("alexnet", 224)])
def test_imagenet_forms_are_those_of_torchvision(name: str, size: int) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    ours = build_model(name, classes=7, size=size).eval()
    ours.load_state_dict(random_state(theirs), strict=True)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_alexnet_pools_other_sizes_as_torchvision_does() -> None:
    theirs = torchvision.models.alexnet(num_classes=3).eval()
    ours = build_model("alexnet", classes=3, size=96).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "count"),
    [
        (20, 269_722),
        (32, 464_154),
        (44, 658_586),
        (56, 853_018),
        (110, 1_727_962),
        (1202, 19_421_274),
    ],
)
def test_cifar_resnets_have_the_published_number_of_parameters(depth: int, count: int) -> None:
    with torch.device("meta"):
        model = CifarResNet(depth, classes=10)
    assert parameter_count(model) == count


def test_cifar_resnet_names_are_those_of_the_published_weights() -> None:
    keys = list(build_model("resnet20", classes=10).state_dict())
    assert keys[:2] == ["conv1.weight", "bn1.weight"]
    assert "layer1.0.conv1.weight" in keys
    assert "layer3.2.bn2.running_var" in keys
    assert keys[-2:] == ["linear.weight", "linear.bias"]
    stems = {key.rpartition(".")[0].rpartition(".")[2] for key in keys}
    assert stems == {"conv1", "bn1", "conv2", "bn2", "linear"}  # shortcuts have no parameters


def test_pad_shortcut_subsamples_and_adds_zero_channels_on_both_sides() -> None:
    x = torch.randn(2, 4, 5, 6)
    y = PadShortcut(2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_the_gradient_of_pad_shortcut_is_that_of_subsampling() -> None:
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    weights = torch.randn(2, 8, 3, 3)
    (found,) = torch.autograd.grad((PadShortcut(2)(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((x[:, :, ::2, ::2] * weights[:, 2:6]).sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("layer", ["layer1", "layer2"])
def test_cifar_resnet_keeps_channels_last_forward_and_backward(layer: str) -> None:
    model = build_model("resnet20", classes=4).to(memory_format=torch.channels_last)
    seen = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        seen.append(output)
        output.register_hook(seen.append)

    model.get_submodule(layer).register_forward_hook(look)
    model(torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)).sum().backward()
    output, gradient = seen
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_cifar_resnet_of_an_impossible_depth() -> None:
    with pytest.raises(ValueError, match="depth: 21"):
        CifarResNet(21, classes=10)


def test_simplenet_shapes() -> None:
    model = build_model("simplenet", classes=10, channels=3, size=32)
    shapes = {key: tuple(value.shape) for key, value in model.named_parameters()}
    assert shapes["conv1.weight"] == (32, 3, 5, 5)
    assert shapes["conv2.weight"] == (64, 32, 5, 5)
    assert shapes["conv3.weight"] == (128, 64, 5, 5)
    assert shapes["fc1.weight"] == (1024, 128)
    assert shapes["fc2.weight"] == (10, 1024)


def test_alexnet_small_sees_two_by_two_positions() -> None:
    model = build_model("alexnet_small", classes=10)
    assert model.features(torch.zeros(1, 3, 32, 32)).shape == (1, 256, 2, 2)
    assert model.classifier[1].in_features == 256 * 2 * 2


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50", "alexnet_small", "simplenet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_models_take_gray_and_colour_images_of_odd_size(name: str, channels: int) -> None:
    model = build_model(name, classes=5, channels=channels, size=29)
    assert model.training
    logits = model(torch.randn(2, channels, 29, 29))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "resnet50", "alexnet_small", "simplenet"])
def test_each_relu_module_is_used_once(name: str) -> None:
    model = build_model(name, classes=2)
    uses: dict[str, int] = {}
    for site, module in model.named_modules():
        if isinstance(module, nn.ReLU):
            uses[site] = 0

            def count(module: nn.Module, inputs: object, output: object, site: str = site) -> None:
                uses[site] += 1

            module.register_forward_hook(count)
    model(torch.randn(2, 3, 32, 32))
    assert set(uses.values()) == {1}


def test_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"model\.name: 'resnet_20'.*nearest is 'resnet20'"
    ) as error:
        build_model("resnet_20", classes=10)
    assert all(name in str(error.value) for name in MODELS)
    with pytest.raises(UserError, match="nearest is 'torchvision/resnet101'"):
        build_model("resnet101", classes=10)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.name: 'simplenet'.*data\.size 12") as error:
        build_model("simplenet", classes=10, size=12)
    assert "\n" not in str(error.value)
    assert build_model("simplenet", classes=10, size=13)


@pytest.mark.parametrize(
    ("name", "size"), [("mobilenet_v2", 32), ("shufflenet_v2_x0_5", 32), ("inception_v3", 75)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_models(name: str, size: int, channels: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build_model(f"torchvision/{name}", classes=6, channels=channels, size=size)
    assert model.training
    assert model(torch.randn(2, channels, size, size)).shape == (2, 6)


def test_only_the_first_convolution_changes_with_the_channels() -> None:
    gray = build_model("torchvision/mobilenet_v2", classes=6, channels=1).state_dict()
    colour = build_model("torchvision/mobilenet_v2", classes=6).state_dict()
    changed = [key for key in colour if gray[key].shape != colour[key].shape]
    assert list(gray) == list(colour)
    assert changed == ["features.0.0.weight"]


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_images_are_scaled_as_pretrained_weights_expect(name: str) -> None:
    with torch.device("meta"):
        colour = build_model(f"torchvision/{name}", classes=6, size=96)
        gray = build_model(f"torchvision/{name}", classes=6, channels=1, size=96)
    assert (colour.transform_input, gray.transform_input) == (True, False)


def test_unknown_torchvision_name() -> None:
    with pytest.raises(UserError, match=r"model\.name: 'torchvision/resnet19'.*resnet18"):
        build_model("torchvision/resnet19", classes=10)
    with pytest.raises(UserError, match="not a classifier"):
        build_model("torchvision/fcn_resnet50", classes=10)


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("own_models")
    monkeypatch.setitem(sys.modules, "own_models", module)
    return module


def test_own_model(own_module: types.ModuleType) -> None:
    def tiny(classes: int, channels: int, size: int) -> nn.Module:
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(channels * size**2, classes), nn.Dropout().eval()
        )
        return model

    own_module.tiny = tiny
    model = build_model("own_models:tiny", classes=3, channels=2, size=5)
    assert model[1].weight.shape == (3, 50)
    assert [module.training for module in model] == [True, True, False]  # unchanged


def test_the_source_of_an_own_model_is_its_package(tmp_path, monkeypatch) -> None:
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "blocks.py").write_text("from torch import nn\nlayer = nn.Flatten\n")
    (package / "net.py").write_text(
        "from own_package.blocks import layer\n"
        "from torch import nn\n"
        "def network(classes, channels, size):\n"
        "    return nn.Sequential(layer(), nn.Linear(channels * size**2, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name = "own_package.net:network"
    build_model(name, classes=3)
    used = [package / file for file in ("__init__.py", "blocks.py", "net.py")]
    assert source_files(name) == used
    (tmp_path / "own_file.py").touch()
    assert source_files("own_file:network") == [tmp_path / "own_file.py"]
    assert source_files("resnet20") == source_files("torchvision/resnet18") == []


def test_own_model_that_cannot_be_traced_without_data(own_module: types.ModuleType) -> None:
    class Careful(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            x = input.flatten(1)
            return super().forward(x / 255 if x.max().item() > 1 else x)

    own_module.careful = lambda classes, channels, size: Careful(channels * size**2, classes)
    assert build_model("own_models:careful", classes=3, size=4)


@pytest.mark.parametrize(
    ("source", "reason"), [("def net(:", "SyntaxError: .*, line 1"), ("nothing", "NameError: name")]
)
def test_own_model_in_a_file_that_cannot_run(
    source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mistaken.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"'mistaken:net' cannot be imported \({reason}"):
        build_model("mistaken:net", classes=3)


def test_own_models_that_do_not_fit(own_module: types.ModuleType) -> None:
    def build(name: str) -> nn.Module:
        return build_model(f"own_models:{name}", classes=3, size=4)

    own_module.few = lambda classes: nn.Identity()
    own_module.none = lambda **sizes: None
    own_module.images = lambda **sizes: nn.Identity()
    with pytest.raises(
        UserError, match=r"signature \(classes\).*must accept .* classes, channels and size"
    ):
        build("few")
    own_module.broken = lambda **sizes: 1 / 0
    with pytest.raises(
        UserError, match=r"failed \(ZeroDivisionError: .*test_models.py, line \d+\)"
    ):
        build("broken")
    with pytest.raises(UserError, match="returned NoneType"):
        build("none")
    with pytest.raises(UserError, match=r"gives \[2, 3, 4, 4\].*data\.size 4"):
        build("images")
    with pytest.raises(UserError, match=r"cannot be imported.*no attribute 'missing'"):
        build("missing")
    with pytest.raises(UserError, match=r"cannot be imported.*No module named 'no_such_package'"):
        build_model("no_such_package.models:f", classes=3)


def test_own_model_of_the_program_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "net", lambda **sizes: Linear(**sizes), False)
    with pytest.raises(UserError, match=r"'__main__:net' is known only to the program that runs"):
        build_model("__main__:net", classes=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_own_model_in_another_type(dtype: torch.dtype, own_module: types.ModuleType) -> None:
    own_module.net = lambda **sizes: Linear(**sizes).to(dtype)
    assert build_model("own_models:net", classes=3, size=4).weight.dtype == dtype


class Linear(nn.Linear):
    """Network of one layer with the fault `how`."""

    def __init__(self, classes: int, channels: int, size: int, how: str = "") -> None:
        super().__init__(channels * size**2, classes)
        self.how = how
        self.requires_grad_(how != "frozen")

    def forward(self, input: torch.Tensor) -> Any:
        logits = super().forward(input.flatten(1))
        if self.training and self.how == "raises":
            raise ValueError("no training today")
        return (logits, logits) if self.training and self.how == "pair" else logits


class WithExtra(Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"x": 1}


@pytest.mark.parametrize(
    ("kind", "how", "message"),
    [
        (Linear, "pair", r"gives tuple while training for two images"),
        (Linear, "raises", r"cannot take images of data.size 4 .*no training today"),
        (Linear, "frozen", "without a parameter to train"),
        (WithExtra, "", "whose state holds _extra_state, a dict; a checkpoint can hold only"),
    ],
)
def test_own_model_that_cannot_be_trained(
    kind: type[Linear], how: str, message: str, own_module: types.ModuleType
) -> None:
    own_module.net = lambda **sizes: kind(**sizes, how=how)
    with pytest.raises(UserError, match=rf"^model\.name: 'own_models:net' .*{message}"):
        build_model("own_models:net", classes=3, size=4)


def test_own_model_with_a_module_of_two_names(own_module: types.ModuleType) -> None:
    class Twice(nn.Module):
        def __init__(self, classes: int, channels: int, size: int) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
            self.two = self.one
            self.last = nn.Linear(channels * size**2, classes)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.last(self.two(self.one(images)).flatten(1))

    own_module.twice = Twice
    model = build_model("own_models:twice", classes=3, size=4)
    assert model.two is model.one
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())
    assert model.one[1].num_batches_tracked == 0  # the check leaves no trace
    assert torch.equal(model.one[1].running_mean, torch.zeros(3))


def test_own_model_that_ends_the_interpreter(own_module: types.ModuleType) -> None:
    own_module.leave = lambda **sizes: sys.exit("bye")
    with pytest.raises(UserError, match=r"'own_models:leave' failed \(SystemExit: bye"):
        build_model("own_models:leave", classes=3)
