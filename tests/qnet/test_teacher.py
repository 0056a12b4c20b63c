import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune

from qnet.models import build_model
from qnet.runtime import Runtime
from qnet.teacher import Teacher, folded, teaching


def settled(name: str) -> nn.Module:
    """Network with nontrivial batch norm statistics."""
    torch.manual_seed(0)
    network = build_model(name, classes=5, channels=3, size=32)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    return network.eval()


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "simplenet", "torchvision/mobilenet_v2"])
def test_a_folded_network_has_no_batch_norm_and_the_same_logits(name):
    network = settled(name).double()
    before = copy.deepcopy(network.state_dict())
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    without = folded(network)
    with torch.no_grad():
        expected, found = network(images), without(images)
    assert not any(isinstance(module, _BatchNorm) for module in without.modules())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert all(tensor.equal(before[name]) for name, tensor in network.state_dict().items())


def test_a_network_that_cannot_be_traced_stays_as_it_is():
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    network = Branching()
    assert folded(network) is network
    assert not network.training


@pytest.mark.parametrize("norms", [1, 2])
def test_a_network_that_uses_a_layer_twice_keeps_its_logits(norms):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(norms))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norms[-1](self.conv(self.norms[0](self.conv(x))))

    network = Twice().eval()
    for norm in network.norms:
        norm.running_var.fill_(4.0)
        norm.running_mean.fill_(0.3)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(network)(images), network(images))


def test_a_network_that_reads_a_weight_beside_its_layer_keeps_its_logits():
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x)) + self.conv.weight.mean()

    network = Beside().eval()
    network.norm.running_var.fill_(4.0)
    nn.init.ones_(network.conv.weight)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(folded(network)(images), network(images))


@pytest.mark.parametrize("place", [0, 1, None])
def test_a_network_with_hooks_keeps_its_logits(place):
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    network[1].running_mean.fill_(1.0)
    hooked = network if place is None else network[place]
    hooked.register_forward_hook(lambda module, inputs, output: output.clamp(-0.5, 0.5))
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(folded(network)(images), network(images))


def test_a_pruned_network_stays_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    prune.l1_unstructured(network[0], "weight", amount=0.3)
    assert folded(network) is network


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "simplenet"])
def test_converted_once_it_computes_the_same_as_converted_in_every_call(name):
    network = settled(name)
    images = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    ready = teaching(network, mixed=True)
    weights = [m.weight for m in ready.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert all(
        weight.is_contiguous(memory_format=torch.channels_last)
        for weight in weights
        if weight.dim() == 4
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ready(images), folded(network)(images))
    assert {p.dtype for p in network.parameters()} == {torch.float32}


class Optional(nn.Module):
    """Network that branches on arguments that a trainer does not pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x, scale=None, labels=None):
        z = self.body(x).mean((2, 3))
        if scale is None:
            z = z * 5
        return z if labels is None else nn.functional.cross_entropy(z, labels)


def test_an_argument_that_is_not_given_has_its_default():
    network = Optional().eval()
    network.body[1].running_mean.fill_(0.3)
    without = folded(network)
    assert not any(isinstance(module, _BatchNorm) for module in without.modules())
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(without(images), network(images))


class Tokens(nn.Module):
    """Linear layers whose features are as many as the channels of batch norm, which are others."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(32, 3), nn.BatchNorm1d(3, affine=affine)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x.mean(2))).mean(2)  # [N, 3, 32] -> [N, 3, 3] -> [N, 3]


class Asking(nn.Module):
    """Takes another branch while it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        return y.mean((2, 3)) if isinstance(y, torch.Tensor) else y.amax((2, 3))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("network", [Tokens(), Tokens(affine=False), Asking()])
def test_a_teacher_gives_the_logits_of_its_network(network, mixed):
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
    images = torch.randn(4, 3, 32, 32)
    network.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        expected = network(images).float()
    teacher = Teacher(network, Runtime(torch.device("cpu"), mixed=mixed))
    teacher.check(SimpleNamespace(ordered=lambda: iter([(images, None)])))
    found = teacher(images)
    tolerance = 0.05 if mixed else 1e-6
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
