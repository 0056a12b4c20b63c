"""Networks independent of this project, through all five stages."""

import json

import pytest
import torch
import torchvision
from torch import nn

import stages.cluster
import stages.train_activations
import stages.training
from qnet.checkpoint import load_checkpoint, save_checkpoint
from qnet.layers import QuantizedConv2d, QuantizedLinear
from qnet.quantizer import Quantizer
from tests.pictures import WNIDS, write_tree
from tests.pipeline import run, write_params

STAGES = ("prepare", "train_fp", "cluster", "train_weights", "train_activations")
SIZE, BITS = 32, 2
OWN = '''
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """What other networks have: groups, dilation, functions for modules, a gate, a split."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(8, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.grouped = nn.Conv2d(16, 8, 3, padding=2, dilation=2, groups=4)
        self.norm = nn.GroupNorm(2, 8)
        self.gate = nn.Linear(8, 8)

    def forward(self, x):
        y = F.relu(self.wide(x))
        y = F.gelu(self.depthwise(y))
        y = self.norm(self.grouped(y))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        first, second = (x + y).chunk(2, dim=1)
        return torch.cat([second, first], dim=1)


class Network(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, stride=2)
        self.block = Block()
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = self.block(self.block(self.stem(x)))  # one module, used twice
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def network(classes, channels, size):
    return Network(classes, channels)
'''


class ThinVGG(torchvision.models.VGG):
    """VGG with a small classifier: its own has 120 million weights, too many for a test."""

    def __init__(self, features: nn.Module, num_classes: int) -> None:
        nn.Module.__init__(self)
        self.features, self.avgpool = features, nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(512, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, num_classes)
        )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """36 training images of three classes, and 12 test images."""
    return write_tree(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize(
    ("name", "grouped"),  # number of grouped convolutions that are quantized
    [
        ("torchvision/mobilenet_v2", 17),
        ("torchvision/vgg11", 0),
        ("torchvision/shufflenet_v2_x0_5", 19),
        ("torchvision/regnet_y_400mf", 16),
        ("own.networks:network", 2),
    ],
)
def test_through_all_stages(name, grouped, pictures, tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torchvision.models.vgg, "VGG", ThinVGG)
    monkeypatch.setattr(stages.cluster, "BITS", [BITS])
    for module in (stages.cluster, stages.train_activations):  # it takes most of the time
        monkeypatch.setattr(module, "draw_clusters", lambda *arguments: None)
    torch.manual_seed(0)
    images = torch.randn(8, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    logits = []

    @torch.no_grad()
    def keep(path, checkpoint):
        logits.append(checkpoint.model(images))
        save_checkpoint(path, checkpoint)

    monkeypatch.setattr(stages.training, "save_checkpoint", keep)
    brief = {"epochs": 1, "batch_size": 9}
    write_params(
        tmp_path,
        data__name="image_folder",
        data__root=str(pictures),
        data__size=SIZE,
        data__channels=3,
        data__validation=0.25,
        model__name=name,
        activations__bits=BITS,
        **{f"{s}__{k}": v for s in ("fp", "weights", "activations") for k, v in brief.items()},
    )
    for stage in STAGES:
        run(stage, tmp_path)

    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "activations.safetensors")
    assert checkpoint.dataset.classes == WNIDS
    model = checkpoint.model.to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(model(images), logits[-1])
    assert_quantized(model, images, grouped)  # with hooks, α is inside the sums
    run("evaluate", tmp_path, "checkpoints/activations.safetensors", "--json", "found.json")
    metrics = json.loads((tmp_path / "metrics" / "train_activations" / "metrics.json").read_text())
    found = json.loads((tmp_path / "found.json").read_text())
    assert {key: found[key] for key in metrics["test"]} == metrics["test"]


def assert_quantized(model: nn.Module, images: torch.Tensor, grouped: int) -> None:
    """Check that all but the first and last layers have one-bit weights and inputs of `BITS`."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    first, *between, last = layers
    assert {type(first), type(last)} == {nn.Conv2d, nn.Linear}
    assert {type(layer) for layer in between} <= {QuantizedConv2d, QuantizedLinear}
    assert sum(isinstance(x, nn.Conv2d) and x.groups > 1 for x in between) == grouped

    inputs: dict[nn.Module, torch.Tensor] = {}
    for layer in between:
        assert isinstance(layer.weight_quantizer, Quantizer)
        assert isinstance(layer.input_quantizer, Quantizer)
        assert len(layer.weight_quantizer(layer.weight).unique()) <= 2
        layer.input_quantizer.register_forward_hook(
            lambda quantizer, given, output: inputs.__setitem__(quantizer, output)
        )
    with torch.no_grad():
        model(images)
    assert inputs.keys() == {layer.input_quantizer for layer in between}
    for output in inputs.values():
        assert len(output.unique()) <= 2**BITS
