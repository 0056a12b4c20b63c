"""A checkpoint describes itself and is read back the same; a wrong one is refused in one line."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import qnet
from qnet.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from qnet.errors import UserError
from qnet.insertion import insert_quantizers
from qnet.levels import activation_levels, weight_levels
from qnet.models import build_model
from qnet.quantizer import Quantizer, quantizers
from tests.files import rewrite
from tests.tiny import network

NAME = "tests.tiny:network"


@pytest.fixture
def checkpoint(tiny_info):
    torch.manual_seed(0)
    model = network(3, 1, 8)
    insert_quantizers(
        model,
        weights={"3": Quantizer(weight_levels("3pm4"), alpha=0.3, beta=30.0, forward_mode="soft")},
        activations={"6": Quantizer(activation_levels(2), thresholds=[0.1, 0.7, 3], alpha=0.7)},
    )
    return Checkpoint(model.eval(), NAME, tiny_info)


@pytest.fixture
def path(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "model.safetensors", checkpoint)
    return tmp_path / "model.safetensors"


def test_round_trip(path, checkpoint):
    loaded = load_checkpoint(path)
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(loaded.model(images), checkpoint.model(images))
    assert loaded.dataset == checkpoint.dataset
    assert loaded.architecture == NAME
    assert not loaded.model.training
    described = dict(quantizers(loaded.model))
    for name, quantizer in quantizers(checkpoint.model):
        assert described[name].level_set == quantizer.level_set
        assert described[name].forward_mode == quantizer.forward_mode


def test_load_model_gives_the_network_alone(path):
    assert isinstance(qnet.load_model(path), torch.nn.Module)


def test_a_loaded_network_is_exported_as_any_module(path):
    model, images = load_model(path), torch.randn(4, 1, 8, 8)
    any_number = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (images,), dynamic_shapes=any_number).module()
    for count in (4, 1, 9):
        images = torch.randn(count, 1, 8, 8)
        assert torch.equal(exported(images), model(images))


def test_levels_are_read_back_exactly(path, checkpoint):
    layer = load_model(path).get_submodule("3")
    integers = layer.weight_quantizer.integers(layer.weight)
    assert set(integers.unique().tolist()) <= set(weight_levels("3pm4").values)
    assert torch.equal(
        layer.weight_quantizer.alpha * integers, layer.weight_quantizer(layer.weight)
    )


def test_the_same_network_gives_the_same_bytes(path, checkpoint, tmp_path):
    save_checkpoint(tmp_path / "again", load_checkpoint(path))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_weight_with_two_names(tiny_info, tmp_path, monkeypatch):
    def tied(*name, **images):
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
        model[2].weight = model[1].weight
        return model

    monkeypatch.setattr("qnet.checkpoint.build_model", tied)
    model, x = tied(), torch.randn(2, 1, 8, 8)
    save_checkpoint(
        tmp_path / "tied.safetensors", Checkpoint(model, "tests.tiny:network", tiny_info)
    )
    loaded = load_model(tmp_path / "tied.safetensors")
    assert loaded[1].weight is loaded[2].weight
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (torch.compile, r"_orig_mod\.\S+' is not an nn\.Conv2d"),
        (nn.Sequential, r"'0\.3' is not an nn\.Conv2d"),
        (lambda model: model.append(nn.Linear(2, 2)), r"another network .* is unknown.*; give the"),
        (lambda model: model.append(Quantizer(weight_levels(2))), "activations: '' is not an"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(
    checkpoint, tiny_info, tmp_path, changed, message
):
    wrong = Checkpoint(changed(checkpoint.model), NAME, tiny_info)
    with pytest.raises(UserError, match=rf"a\.safetensors could not be read again: .*{message}"):
        save_checkpoint(tmp_path / "a.safetensors", wrong)
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_a_wrapped_network_is_not_written(wrap, checkpoint, tmp_path):
    wrapped = replace(checkpoint, model=wrap(checkpoint.model))
    with pytest.raises(UserError, match="; give the network itself, not compiled, averaged or oth"):
        save_checkpoint(tmp_path / "wrapped.safetensors", wrapped)


@pytest.mark.parametrize(
    ("place", "module"),
    [("8", nn.SiLU()), ("9", nn.AdaptiveAvgPool2d((4, 1))), ("4", nn.BatchNorm2d(8, eps=0.1))],
)
def test_a_network_that_computes_something_else_is_not_written(place, module, checkpoint, tmp_path):
    setattr(checkpoint.model, place, module)
    checkpoint.model.train()
    with pytest.raises(UserError, match=r"network with these weights that computes something else"):
        save_checkpoint(tmp_path / "a.safetensors", checkpoint)
    assert all(part.training for part in checkpoint.model.modules())


def test_a_network_that_diverged_is_written(checkpoint, tmp_path):
    with torch.no_grad():
        checkpoint.model[-1].weight.fill_(torch.nan)
    save_checkpoint(tmp_path / "a.safetensors", checkpoint)
    assert load_model(tmp_path / "a.safetensors")[-1].weight.isnan().all()


def test_a_network_without_its_description_is_not_written(checkpoint, tmp_path):
    with pytest.raises(UserError, match=r"got a Sequential; give a qnet\.Checkpoint"):
        save_checkpoint(tmp_path / "a.safetensors", checkpoint.model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": (0, 1, 2)}, r"dataset: classes\.0: Input should be a valid string; fix it"),
        ({"classes": "abc"}, "dataset: classes: Input should be a valid tuple"),
        ({"counts": None}, "dataset: counts: Input should be a valid dict"),
    ],
)
def test_a_data_set_that_could_not_be_read_again_is_not_written(
    changes, message, checkpoint, tmp_path
):
    wrong = replace(checkpoint, dataset=replace(checkpoint.dataset, **changes))
    with pytest.raises(UserError, match=message):
        save_checkpoint(tmp_path / "a.safetensors", wrong)


@pytest.mark.parametrize("mean", [(np.float32(0.5),), tuple(torch.tensor([0.5]))])
def test_numbers_of_other_libraries_become_numbers(mean, checkpoint, tmp_path):
    given = replace(checkpoint, dataset=replace(checkpoint.dataset, mean=mean))
    save_checkpoint(tmp_path / "a.safetensors", given)
    assert load_checkpoint(tmp_path / "a.safetensors").dataset == checkpoint.dataset


class Counts(nn.Module):
    """A network that changes a buffer in eval mode too."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images):
        self.seen += len(images)
        return self.layer(images.flatten(1))


def test_saving_does_not_change_the_network(tiny_info, tmp_path, monkeypatch):
    own = types.ModuleType("counting")
    own.network = lambda classes, channels, size: Counts()
    monkeypatch.setitem(sys.modules, "counting", own)
    model = Counts()
    save_checkpoint(
        tmp_path / "model.safetensors", Checkpoint(model, "counting:network", tiny_info)
    )
    assert model.seen == 0
    assert load_model(tmp_path / "model.safetensors").seen == 0


def test_saving_draws_no_random_numbers(checkpoint, tmp_path):
    state = torch.get_rng_state()
    save_checkpoint(tmp_path / "model.safetensors", checkpoint)
    assert torch.equal(torch.get_rng_state(), state)


def first_of(description):
    return next(iter(description["quantizers"].values()))


def refuse(path, message):
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    refuse(tmp_path / "none", "does not exist")
    refuse(tmp_path, "is a folder; give a file in it")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    refuse(path, "is not a checkpoint, or not a complete one")


def test_a_foreign_file(path):
    save_file({"weight": torch.zeros(2)}, path)
    refuse(path, "not written by qnet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: t.pop("0.weight"), "0.weight is missing"),
        (lambda t, d: t.update(extra=torch.zeros(1)), "extra is unknown"),
        (lambda t, d: t.update({"0.weight": torch.zeros(1)}), r"0.weight is \[1\] instead of"),
        (lambda t, d: d.update(format=99), "has format 99"),
        (lambda t, d: d.pop("dataset"), "incomplete description"),
        (lambda t, d: d["dataset"].pop("mean"), r"incomplete description \(mean: Field required"),
        (lambda t, d: t["3.weight_quantizer.thresholds"].fill_(torch.nan), "is damaged: .*nan"),
        (
            lambda t, d: t.update({"0.weight": t["0.weight"].int()}),
            "damaged: 0.weight is torch",
        ),
        (lambda t, d: d.update(quantizers=3), "incomplete description"),
        (lambda t, d: d.update(architecture="resnet21"), "resnet21"),
        (lambda t, d: d.update(quantizers={}), "is unknown"),
        (lambda t, d: d["dataset"].update(classes=["a", "b"]), "instead of"),
        (lambda t, d: d.update(architecture="not_there:net"), r"cannot be built: .*not_there"),
        (lambda t, d: first_of(d).update(temperature=10**400), "incomplete description"),
        (lambda t, d: first_of(d).update(alpha_shape=[-1]), "incomplete description"),
    ],
)
def test_a_file_that_does_not_fit(path, change, message):
    rewrite(path, change)
    refuse(path, message)


def test_a_description_that_nests_without_end(path):
    save_file({"weight": torch.zeros(2)}, path, metadata={"qnet": "[" * 100_000})
    refuse(path, "damaged description")


def test_a_full_disk_leaves_the_old_file(path, checkpoint, monkeypatch):
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"model\.safetensors could not be written \(No space left"):
        save_checkpoint(path, checkpoint)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device is gpu; it must be cpu, mps, cuda"),
        ("cuda:99", "device is cuda:99, and this machine has"),
    ],
)
def test_a_device_that_is_not_there(device, message, path):
    with pytest.raises(UserError, match=message):
        load_model(path, device)


@pytest.mark.parametrize("name", [".", ""])
def test_a_folder_in_place_of_a_file_to_write(name, checkpoint):
    with pytest.raises(UserError, match=r"^\. is a folder; give the name of a file$"):
        save_checkpoint(name, checkpoint)


def test_a_network_whose_state_has_a_version(tmp_path, tiny_info):
    info = replace(tiny_info, size=32)
    model = build_model("torchvision/mnasnet0_5", classes=3, channels=1, size=32).eval()
    path = tmp_path / "mnasnet.safetensors"
    save_checkpoint(path, Checkpoint(model, "torchvision/mnasnet0_5", info))
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(load_model(path)(images), model(images))
