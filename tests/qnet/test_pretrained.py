"""Pretrained weights are loaded completely or not at all, with notes or one error."""

from argparse import Namespace
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from qnet.checkpoint import Checkpoint, load_model, save_checkpoint
from qnet.errors import UserError
from qnet.insertion import insert_quantizers
from qnet.levels import weight_levels
from qnet.models import build_model
from qnet.models.pretrained import TORCHVISION_ALIKE, is_file, load_pretrained
from qnet.quantizer import Quantizer
from tests.pipeline import run, write_params
from tests.tiny import network

TINY = "tests.tiny:network"


def tiny(seed: int, classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(seed)
    return network(classes, 1, 8)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def refuse(model, source, message, name=TINY):
    """Check that `source` is refused in one line, and that `model` stays as it was."""
    before = state_of(model)
    with pytest.raises(UserError, match=message) as caught:
        load_pretrained(model, str(source), name=name)
    assert str(caught.value).startswith("model.pretrained")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert same(before, model.state_dict())


def test_none_leaves_the_model_alone():
    model = tiny(0)
    before = state_of(model)
    assert load_pretrained(model, "none", name=TINY) == []
    assert same(before, model.state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".th"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict(suffix, prefix, tmp_path):
    wanted, model, path = state_of(tiny(1)), tiny(2), tmp_path / f"weights{suffix}"
    content = {f"{prefix}{name}": tensor for name, tensor in wanted.items()}
    (save_file if suffix == ".safetensors" else torch.save)(content, path)
    assert load_pretrained(model, str(path), name=TINY) == [f"starts with the weights of {path}"]
    assert same(wanted, model.state_dict())


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_in_a_training_checkpoint(key, tmp_path):
    wanted, model, path = tiny(1), tiny(2), tmp_path / "weights.pth"
    optimizer = torch.optim.SGD(wanted.parameters(), lr=0.1)
    content = {"epoch": 3, key: wanted.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, path)
    load_pretrained(model, str(path), name=TINY)
    assert same(wanted.state_dict(), model.state_dict())


def test_a_checkpoint_of_our_own(tiny_info, tmp_path):
    wanted, model, path = tiny(1), tiny(2), tmp_path / "fp.safetensors"
    save_checkpoint(path, Checkpoint(wanted, TINY, tiny_info))
    load_pretrained(model, str(path), name=TINY)
    assert same(wanted.state_dict(), model.state_dict())


def test_a_quantized_checkpoint_of_our_own_is_refused(tiny_info, tmp_path):
    quantized, path = tiny(1), tmp_path / "weights.safetensors"
    insert_quantizers(quantized, weights={"3": Quantizer(weight_levels(1))})
    save_checkpoint(path, Checkpoint(quantized, TINY, tiny_info))
    refuse(tiny(2), path, "is a quantized network; give one of full precision")


@pytest.mark.parametrize("classifier", ["linear", "fc"])
def test_a_published_cifar_resnet(classifier, tmp_path):
    """Like akamaster's: nn.DataParallel, PyTorch's old format, no count of batches."""
    published = build_model("resnet20", classes=10)
    path = tmp_path / "resnet20-12fca82f.th"
    state = {
        f"module.{name.replace('linear', classifier)}": tensor
        for name, tensor in published.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    content = {"state_dict": state, "best_prec1": 91.73}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    model = build_model("resnet20", classes=10)
    load_pretrained(model, str(path), name="resnet20")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), published.eval()(images))


def test_another_number_of_classes_starts_a_new_head(tmp_path):
    wanted, model, path = state_of(tiny(1, classes=7)), tiny(2), tmp_path / "weights.pth"
    torch.save(wanted, path)
    head = state_of(model[11])
    notes = load_pretrained(model, str(path), name=TINY)
    assert notes[1:] == [f"11 starts from random weights: {path} has 7 classes, the data 3"]
    assert same(head, model[11].state_dict())
    body = {name: tensor for name, tensor in wanted.items() if not name.startswith("11.")}
    assert same(body, {name: model.state_dict()[name] for name in body})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("3.weight"), r"does not fit tests.tiny:network: 3.weight is missing;"),
        (lambda s: s.update(extra=torch.ones(1)), "extra is unknown; nothing was loaded"),
        (
            lambda s: s.update({"0.weight": torch.ones(8, 3, 3, 3)}),
            r"0.weight is \[8, 3, 3, 3\] instead of \[8, 1, 3, 3\]; .* data.channels",
        ),
        (lambda s: s.update({"11.weight": torch.ones(3, 9)}), r"11.weight is \[3, 9\]"),
        (lambda s: s.pop("11.weight"), "11.weight is missing"),
        (lambda s: [s.pop(name) for name in list(s)], r"1.weight is missing.* \(and \d+ more\)"),
    ],
)
@pytest.mark.parametrize("classes", [3, 7])
def test_what_does_not_fit_is_named(change, message, classes, tmp_path):
    state = state_of(tiny(1, classes))
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    refuse(tiny(2), tmp_path / "weights.pth", message)


@pytest.mark.parametrize("name", ["none.pth", "none.safetensors", "none.bin"])
def test_a_missing_file(name, tmp_path):
    refuse(tiny(0), tmp_path / name, "does not exist; give a file that does")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_folder(suffix, tmp_path):
    (tmp_path / f"folder{suffix}").mkdir()
    refuse(tiny(0), tmp_path / f"folder{suffix}", "is a folder")


def test_another_kind_of_file(tmp_path):
    (tmp_path / "weights.onnx").touch()
    refuse(tiny(0), tmp_path / "weights.onnx", "must end in .safetensors, .pth, .pt, .th; rename")


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "old.pth"])
def test_a_truncated_file(kind, keep, tmp_path):
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(state_of(tiny(1)), path)
    else:
        torch.save(tiny(1).state_dict(), path, _use_new_zipfile_serialization=kind == "pth")
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    refuse(tiny(2), path, "is not a complete .*; download or copy it again")


class Mine:
    """Object that can be unpickled only where this class is defined."""


@pytest.mark.parametrize(
    ("extra", "word"), [(Namespace(lr=1), "argparse.Namespace"), (Mine(), "test_pretrained.Mine")]
)
def test_nothing_but_tensors_is_unpickled(extra, word, tmp_path):
    torch.save({"state_dict": tiny(1).state_dict(), "args": extra}, tmp_path / "weights.pth")
    refuse(tiny(2), tmp_path / "weights.pth", rf"holds more than tensors \(.*{word}\)")


@pytest.mark.parametrize(
    "content", [[1, 2], torch.ones(3), {"epoch": 3}, {1: torch.ones(1)}, {"state_dict": {"a": 1}}]
)
def test_no_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "weights.pth")
    refuse(tiny(0), tmp_path / "weights.pth", "holds no state dict")


# torchvision


@pytest.fixture
def published(monkeypatch):
    """Set what torchvision downloads, `published(state)`, or an error; collect the addresses."""
    asked: list[str] = []

    def publish(result):
        def download(url, **options):
            assert options["weights_only"]
            asked.append(url)
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", download)
        return asked

    return publish


def test_torchvisions_weights_with_their_own_head(published):
    theirs = torchvision.models.resnet18(weights=None)
    published(theirs.state_dict())
    model = build_model("resnet18", classes=1000, size=64)
    notes = load_pretrained(model, "torchvision", name="resnet18")
    assert notes == ["starts with the weights of ResNet18_Weights.IMAGENET1K_V1 of torchvision"]
    assert same(theirs.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("source", "chosen"),
    [("torchvision", "V2"), ("torchvision/IMAGENET1K_V1", "V1"), ("torchvision/DEFAULT", "V2")],
)
def test_torchvisions_weights_by_name(source, chosen, published):
    theirs = torchvision.models.resnet50(weights=None)
    asked = published(theirs.state_dict())
    model = build_model("resnet50", classes=1000, size=64)
    notes = load_pretrained(model, source, name="resnet50")
    weights = torchvision.models.ResNet50_Weights[f"IMAGENET1K_{chosen}"]
    assert notes == [f"starts with the weights of {weights} of torchvision"]
    assert asked == [weights.url]
    assert same(theirs.state_dict(), model.state_dict())


def test_torchvisions_weights_by_a_wrong_name(published):
    asked = published(AssertionError("nothing is downloaded"))
    refuse(
        build_model("resnet50", classes=1000, size=64),
        "torchvision/resnet50",
        r"model\.pretrained is torchvision/resnet50, and torchvision's weights for resnet50 are "
        r"IMAGENET1K_V1, IMAGENET1K_V2; set it to torchvision/IMAGENET1K_V1, or to torchvision for "
        r"the best of them \(IMAGENET1K_V2\)",
        "resnet50",
    )
    assert asked == []


def test_what_is_a_file():
    assert not any(map(is_file, ("none", "torchvision", "torchvision/IMAGENET1K_V1")))
    assert all(map(is_file, ("a.pth", "torchvision/mine.safetensors", "/torchvision/mine.th")))


def test_torchvisions_weights_with_a_new_head(published):
    published(torchvision.models.squeezenet1_1(weights=None).state_dict())
    model = build_model("torchvision/squeezenet1_1", classes=10, size=64)
    notes = load_pretrained(model, "torchvision", name="torchvision/squeezenet1_1")
    assert notes[1].startswith("classifier.1 starts from random weights: SqueezeNet1_1_Weights")
    assert notes[1].endswith("has 1000 classes, the data 10")


def test_torchvisions_densenet_with_its_old_names(published):
    def old(name: str) -> str:
        for kind in ("norm", "conv"):
            for number in ("1", "2"):
                name = name.replace(f".{kind}{number}.", f".{kind}.{number}.")
        return name

    theirs = torchvision.models.densenet121(weights=None).state_dict()
    published({old(name): tensor for name, tensor in theirs.items()})
    model = build_model("torchvision/densenet121", classes=1000, size=32)
    load_pretrained(model, "torchvision", name="torchvision/densenet121")
    assert same(theirs, model.state_dict())


def test_torchvision_without_a_network(published, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published(URLError("Name or service\nnot known"))
    model = build_model("torchvision/squeezenet1_1", classes=10, size=64)
    refuse(
        model,
        "torchvision",
        r"could not be downloaded \(<urlopen error Name or service not known>\); run it again "
        r"while online, or put https://\S+\.pth into \S+/checkpoints",
        "torchvision/squeezenet1_1",
    )


def test_torchvision_has_no_weights_for_our_own_models():
    message = "no weights for tests.tiny:network, only for resnet18, resnet34, resnet50, alexnet"
    refuse(tiny(0), "torchvision", message)


@pytest.mark.parametrize("name", TORCHVISION_ALIKE)
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        ours = build_model(name, classes=1000, size=64).state_dict()
        theirs = torchvision.models.get_model(name, weights=None).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


# The stage


def test_train_fp_with_no_epochs_passes_pretrained_weights_on(tmp_path):
    torch.manual_seed(1)
    wanted = network(10, 1, 8)
    torch.save(wanted.state_dict(), tmp_path / "weights.pth")
    write_params(tmp_path, model__pretrained="weights.pth", fp__epochs=0)
    run("prepare", tmp_path)
    assert run("train_fp", tmp_path) == "train_fp: starts with the weights of weights.pth\n"
    found = load_model(tmp_path / "checkpoints" / "fp.safetensors")
    assert same(wanted.state_dict(), found.state_dict())


def test_train_fp_names_what_is_wrong_before_it_starts(tmp_path):
    write_params(tmp_path, model__pretrained="weights.pth")
    run("prepare", tmp_path)
    message = run("train_fp", tmp_path, status=2)
    assert message.startswith("error: model.pretrained: weights.pth does not exist")


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.to(torch.int8),
        lambda weight: weight.to(torch.complex64),
        lambda weight: weight.fill_(torch.nan),
        lambda weight: weight.to_sparse(),
        lambda weight: weight.double().fill_(1e300),
    ],
    ids=["int8", "complex", "nan", "sparse", "infinite in float32"],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_what_cannot_be_a_weight_is_named(change, tmp_path):
    state = tiny(1).state_dict()
    state["3.weight"] = change(state["3.weight"])
    torch.save(state, tmp_path / "odd.pth")
    refuse(tiny(2), str(tmp_path / "odd.pth"), r"model\.pretrained: 3\.weight of .* is torch\.")
