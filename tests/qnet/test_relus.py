from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import qnet.fused
from qnet.batch_norm import synchronise_batch_norm
from qnet.fused import use_compiled
from qnet.insertion import insert_quantizers
from qnet.layers import QuantizedReLU
from qnet.levels import activation_levels
from qnet.models import build_model
from qnet.quantizer import Quantizer, quantizers
from qnet.relus import SkippedReLU, skip_relus
from qnet.sites import activation_sites


def quantizer(bits: int = 1, *, signed: bool = False, **changes: object) -> Quantizer:
    return Quantizer(activation_levels(bits, signed), alpha=0.5, beta=2.0, **changes)


def quantized(model: nn.Module, *names: str, **changes: object) -> nn.Module:
    return insert_quantizers(model, activations={name: quantizer(**changes) for name in names})


def chain(inplace: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace), nn.Conv2d(3, 4, 3))


def images(count: int = 4, channels: int = 3, size: int = 8) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_relu_inside_each_block_is_skipped_and_that_of_the_shortcut_is_not(bits: int) -> None:
    model = build_model("resnet20", classes=10)
    quantized(model, *activation_sites(model, "input"), bits=bits)
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert skip_relus(model) == [f"{block}.relu1" for block in blocks]


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "torchvision/vgg11_bn"])
def test_outputs_and_statistics_do_not_change(name: str, bits: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, classes=10, size=32)
    quantized(model, *activation_sites(model, "input"), bits=bits)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    skipped = copy.deepcopy(model)
    assert skip_relus(skipped)
    for mode in (True, False):
        x = images(size=32)
        assert torch.equal(skipped.train(mode)(x), model.train(mode)(x))
    for name, value in model.state_dict().items():
        assert torch.equal(skipped.state_dict()[name], value), name


@pytest.mark.parametrize("watched", [0, 1, 2])
def test_a_relu_whose_values_someone_looks_at_stays(watched: int) -> None:
    model = quantized(chain(), "2")
    handle = model[watched].register_forward_hook(lambda module, inputs, output: None)
    assert skip_relus(model) == []
    handle.remove()
    assert skip_relus(model) == ["1"]


def test_batch_norm_over_several_processes_changes_nothing() -> None:
    model = build_model("resnet20", classes=10)
    quantized(model, *activation_sites(model, "input"))
    synchronise_batch_norm(model)
    assert len(skip_relus(model)) == 9


def test_alexnet_can_be_traced() -> None:
    model = build_model("alexnet_small", classes=10, size=32)
    quantized(model, *activation_sites(model, "input"))
    assert skip_relus(model) == ["features.7", "features.9"]


def test_values_just_below_zero_get_the_gradient_of_the_window() -> None:
    x = torch.tensor([[-2.0, -0.05, 0.05, 0.3]], dtype=torch.float64, requires_grad=True)
    same, layer = nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False)
    nn.init.eye_(same.weight)
    model = quantized(nn.Sequential(same, nn.ReLU(), layer), "2").double()
    assert skip_relus(model) == ["1"]
    model.train()(x).backward()
    weight = layer.weight.detach()
    sigma = torch.sigmoid(4 * (2.0 * x.detach() - 0.5))
    window = 4 * sigma * (1 - sigma)
    torch.testing.assert_close(x.grad, weight * 0.5 * 2.0 * window, rtol=1e-9, atol=0)
    assert x.grad[0, 1] != 0


@pytest.fixture(params=[False, True], ids=["uncompiled", "compiled"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(qnet.fused, "_WORTH_IT", 0)
    use_compiled(request.param)
    yield
    assert qnet.fused.uses_compiled() == request.param, "compiling failed"
    use_compiled(False)


def test_with_more_levels_no_gradient_changes(compiled: None) -> None:
    torch.manual_seed(0)
    model = build_model("resnet20", classes=10)
    names = activation_sites(model, "input")
    quantized(model, *names, bits=2)
    skipped = copy.deepcopy(model)
    skip_relus(skipped)
    rectifying = [name for name, found in quantizers(skipped) if found.rectifies]
    assert rectifying == [f"{name}.input_quantizer" for name in names if "conv2" in name]
    for network in (model, skipped):
        network.train()(images(size=32)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(skipped.get_parameter(name).grad, parameter.grad), name


def test_in_eval_mode_it_is_a_relu() -> None:
    model = quantized(chain(inplace=False), "2")
    skip_relus(model)
    relu = model.eval().get_submodule("1")
    assert isinstance(relu, SkippedReLU)
    assert torch.equal(relu(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
    assert torch.equal(relu.train()(torch.tensor([-1.0, 2.0])), torch.tensor([-1.0, 2.0]))


def test_a_relu_that_changes_something_stays() -> None:
    assert skip_relus(chain()) == []  # nothing is quantized
    assert skip_relus(quantized(chain(), "2", forward_mode="soft")) == []
    assert skip_relus(quantized(chain(), "2", signed=True)) == []
    assert skip_relus(quantized(chain(), "2", thresholds=[-0.1])) == []
    assert skip_relus(nn.Sequential(quantized(chain(), "2"), nn.ReLU())) == ["0.1"]


class Readers(nn.Module):
    """ReLU whose output or input has a second reader."""

    def __init__(self, read: str, inplace: bool) -> None:
        super().__init__()
        self.read = read
        self.relu = nn.ReLU(inplace)
        self.layer = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        if self.read == "a view":
            return self.layer(self.relu(x.view(-1, 4))) + x
        if self.read == "by a layer called twice":
            return self.layer(self.relu(self.other(x))) + self.layer(x)
        y = self.relu(x)
        if self.read == "output":
            return self.layer(y) + y
        if self.read == "input":
            return self.layer(y) + x
        if self.read == "twice":
            return self.layer(y) + self.other(y)
        if self.read == "called twice":
            return self.relu(self.layer(y))
        if self.read == "later changed":
            x += self.layer(y)
            return x
        if self.read == "values":
            return self.layer(y) if x.sum() > 0 else x
        raise AssertionError(self.read)


class AddedInPlace(nn.Module):
    """The ReLU writes to memory that something else reads, though its input has one reader."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.norm, self.relu = nn.BatchNorm1d(4), nn.ReLU(inplace=True)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        out = y
        if self.in_place:
            out += x
        else:
            out = y + x
        return self.layer(self.relu(out)) + y


@pytest.mark.parametrize("in_place", [True, False])
def test_a_sum_in_place_is_not_new_memory(in_place: bool) -> None:
    model = quantized(AddedInPlace(in_place), "layer", bits=2)
    x = torch.randn(8, 4)
    expected = copy.deepcopy(model)(x)
    skip_relus(model)
    assert torch.equal(model(x), expected)


class ReturnsItsInput(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return x


class ReadTwice(nn.Module):
    """Its ReLU writes to what another layer reads too, behind batch norm that gives it back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 4), ReturnsItsInput(4)
        self.relu, self.layer, self.other = nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.layer(self.relu(self.norm(x))) + self.other(x)


def test_a_subclass_of_batch_norm_may_give_back_its_input() -> None:
    model = quantized(ReadTwice(), "layer")
    x = torch.randn(8, 4)
    expected = copy.deepcopy(model)(x)
    assert skip_relus(model) == []
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    "first",
    [
        lambda: parametrizations.weight_norm(nn.Conv2d(3, 3, 1)),
        lambda: nn.SyncBatchNorm(3),
        lambda: insert_quantizers(nn.Conv2d(3, 3, 1), weights={"": quantizer(signed=True)}),
    ],
    ids=["weight norm", "synchronised batch norm", "quantized"],
)
def test_what_a_known_forward_gives_is_new(first: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(first(), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3))
    assert skip_relus(quantized(model, "2")) == ["1"]


class Remembers(nn.Module):
    """Keeps what it computes, in attributes and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.layer = nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4)
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("expanded", torch.zeros(1).expand(4))  # cannot be written to

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.first(x)
        self.calls += 1
        self.level = 0.9 * self.level + 0.1 * x.detach().abs().mean()
        return self.layer(self.relu(self.features))


def test_tracing_leaves_a_network_as_it_was() -> None:
    model = quantized(Remembers(), "layer")
    before = copy.deepcopy(model.state_dict())
    skip_relus(model)
    assert not hasattr(model, "features")
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    model(torch.randn(8, 4)).sum().backward()
    assert model.calls == 1


def test_a_network_that_cannot_be_traced_keeps_its_relus_and_says_so() -> None:
    model = quantized(Readers("values", inplace=True), "layer", "other")
    with pytest.warns(UserWarning, match="cannot be traced .*ReLUs before binary"):
        assert skip_relus(model) == []
    more = quantized(Readers("values", inplace=True), "layer", "other", bits=2)
    assert skip_relus(more) == []  # no warning if it only saves time, or
    assert skip_relus(Readers("values", inplace=True)) == []  # if there is none to skip


@pytest.mark.parametrize("bits", [1, 2])
def test_another_phase_looks_anew(bits: int) -> None:
    model = quantized(chain(), "2", bits=bits)
    assert skip_relus(model) == skip_relus(model) == ["1"]
    ((_, found),) = quantizers(model)
    found.forward_mode = "soft"
    assert skip_relus(model) == []
    assert type(model.get_submodule("1")) is nn.ReLU
    assert not found.rectifies


@pytest.mark.parametrize(
    ("read", "inplace", "bits", "skipped"),
    [
        ("output", False, 1, []),
        ("input", False, 1, []),
        ("input", True, 1, []),  # x itself is changed
        ("twice", True, 1, ["relu"]),
        ("twice", True, 2, ["relu"]),
        ("called twice", True, 1, []),
        ("a view", True, 1, []),  # here too
        ("a view", False, 1, []),
        ("by a layer called twice", False, 1, ["relu"]),
        ("by a layer called twice", False, 2, []),  # x has a gradient below zero
        ("later changed", False, 1, []),
    ],
)
def test_who_reads_it_decides(read: str, inplace: bool, bits: int, skipped: list[str]) -> None:
    model = quantized(Readers(read, inplace), "layer", "other", bits=bits)
    before = copy.deepcopy(model)
    assert skip_relus(model) == skipped
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(2))
    output = model(x)
    assert torch.equal(output, before(x))
    output.sum().backward()


class WithAuxiliary(nn.Module):
    """A second reader of the ReLU, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.main, self.aux = nn.ReLU(), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.main(x) + self.aux(x) if self.training else self.main(x)


@pytest.mark.parametrize("training", [True, False])
def test_a_reader_while_training_counts(training: bool) -> None:
    model = quantized(WithAuxiliary(), "main").train(training)
    assert skip_relus(model) == []
    assert all(module.training is training for module in model.modules())


def test_a_quantizer_whose_beta_is_not_above_zero_needs_the_relu() -> None:
    model = quantized(chain(), "2")
    with torch.no_grad():
        model[2].input_quantizer.beta.fill_(-2.0)
    assert skip_relus(model) == []


class Optional(nn.Module):
    """Network whose shortcut reads the ReLU, unless it is given one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.second = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        y = self.relu(self.conv(x))
        if shortcut is None:
            shortcut = y
        return self.second(y) + shortcut


def test_an_argument_that_is_not_given_has_its_default() -> None:
    model = quantized(Optional(), "second")
    assert skip_relus(model) == []


def test_a_skipped_relu_is_still_a_place_for_a_quantizer() -> None:
    model = quantized(chain(inplace=False), "2")
    assert skip_relus(model) == ["1"]
    assert activation_sites(model, "relu") == ["1"]
    insert_quantizers(model, activations={"1": quantizer()})
    assert type(model.get_submodule("1")) is QuantizedReLU
