"""`python -m stages.visualize`: an image of the inputs and outputs of each quantizer."""

import os
from dataclasses import replace

import pytest
import torch

import stages.visualize
from qnet.checkpoint import Checkpoint, save_checkpoint
from qnet.data import save_prepared
from qnet.insertion import insert_quantizers
from qnet.levels import activation_levels, weight_levels
from qnet.quantizer import Quantizer
from tests.pipeline import refused, run, write_params
from tests.tiny import network

WEIGHTS, ACTIVATIONS = (f"checkpoints/{name}.safetensors" for name in ("weights", "activations"))
LEVELS = {"3": weight_levels("3pm4"), "6": weight_levels(8)}


@pytest.fixture
def fill(tmp_path, tiny_info, tiny_split):
    """Write params.yaml, prepared data and both checkpoints of a tiny network."""
    torch.manual_seed(0)
    model = network(3, 1, 8).eval()
    checkpoint = Checkpoint(model, "tests.tiny:network", tiny_info)
    write_params(tmp_path, cluster__images=50)
    splits = {name: tiny_split(count, count) for name, count in tiny_info.counts.items()}
    save_prepared(tmp_path / "data" / "prepared", tiny_info, splits)
    save_checkpoint(tmp_path / "checkpoints/fp.safetensors", checkpoint)
    weights = {name: Quantizer(levels, alpha=0.1, beta=10.0) for name, levels in LEVELS.items()}
    insert_quantizers(model, weights=weights)
    save_checkpoint(tmp_path / WEIGHTS, checkpoint)
    # The input of a layer, and the output of a ReLU.
    insert_quantizers(
        model,
        activations={
            "6": Quantizer(activation_levels(1), alpha=0.5, beta=2.0),
            "8": Quantizer(activation_levels(2), alpha=torch.ones(8, 1, 1), beta=2.0),
        },
    )
    save_checkpoint(tmp_path / ACTIVATIONS, checkpoint)
    os.utime(tmp_path / WEIGHTS, (0, 0))
    return checkpoint


def drawn(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*.*")}


def test_every_quantizer_has_a_picture(fill, tmp_path):
    output = run("visualize", tmp_path)
    assert output == f"{ACTIVATIONS}: 5 images in pictures\n"
    weights, activations = {"weights/3.png", "weights/6.png"}, {"activations/6.png"}
    activations |= {"activations/8.png"}
    assert drawn(tmp_path / "pictures") == weights | activations | {"overview.png"}
    for name in drawn(tmp_path / "pictures"):
        assert (tmp_path / "pictures" / name).read_bytes().startswith(b"\x89PNG")


def test_weights_need_no_images(fill, tmp_path):
    (tmp_path / "data/prepared/dataset.json").unlink()
    run("visualize", tmp_path, WEIGHTS, "-o", "a/b")
    assert drawn(tmp_path / "a/b") == {"weights/3.png", "weights/6.png", "overview.png"}


def test_the_newer_checkpoint_is_the_default(fill, tmp_path):
    os.utime(tmp_path / ACTIVATIONS, (0, 0))
    os.utime(tmp_path / WEIGHTS)
    assert run("visualize", tmp_path).startswith(WEIGHTS)


def test_what_is_drawn_is_what_the_network_does(fill, tmp_path, tiny_split, monkeypatch):
    write_params(tmp_path)  # all 60 training images
    found = {}

    def draw(path, title, values, layer, shares):
        found[values, path.stem] = title, layer, torch.tensor(shares)

    monkeypatch.setattr(stages.visualize, "draw_quantizer", draw)
    run("visualize", tmp_path)
    assert found["weights", "3"][0] == "3: weights (3 bits)"
    assert found["activations", "6"][0] == "6: activations (1 bit)"

    seen = {}
    for name, layer in fill.model.named_modules():
        if isinstance(layer, Quantizer):
            layer.register_forward_hook(
                lambda module, inputs, output, name=name: seen.update({name: (inputs[0], output)})
            )
    images = tiny_split(60, 60).images
    mean, std = (torch.tensor(values) for values in (fill.dataset.mean, fill.dataset.std))
    fill.model((images / 255 - mean) / std)
    for (kind, site), (_, layer, shares) in found.items():
        slot = "weight" if kind == "weights" else "output" if site == "8" else "input"
        values, output = seen[f"{site}.{slot}_quantizer"]
        quantizer = fill.model.get_submodule(f"{site}.{slot}_quantizer")
        levels = torch.tensor(quantizer.level_set.values)
        expected = [(output == quantizer.alpha * level).float().mean() for level in levels]
        torch.testing.assert_close(shares, torch.tensor(expected), atol=1e-3, rtol=0)
        assert shares.sum() == pytest.approx(1)
        assert list(layer.clusters.levels.values) == levels.tolist()
        rest = values.numel() * (1 - layer.histogram.zeros)
        assert sum(layer.histogram.counts) == pytest.approx(rest, rel=0.05)


def test_other_prepared_data_are_refused(fill, tmp_path):
    save_checkpoint(tmp_path / "x", replace(fill, dataset=replace(fill.dataset, size=16)))
    assert "they differ in size; set data to what it was trained on" in refused(
        "visualize", tmp_path, "x"
    )


def test_a_packed_checkpoint_has_no_weights_to_show(fill, tmp_path):
    save_checkpoint(tmp_path / "packed", fill, packed=True)
    assert "packed is packed, without its unquantized weights" in refused(
        "visualize", tmp_path, "packed"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.safetensors"], "nowhere.safetensors does not exist; train the network first"),
        (["params.yaml"], "params.yaml is not a checkpoint, or not a complete one"),
        (["checkpoints/fp.safetensors"], "checkpoints/fp.safetensors has no quantizers; give"),
        ([WEIGHTS, "-o", "params.yaml"], "params.yaml is not a writable folder ("),
        (["a", "b"], "unrecognized arguments: b; see python -m stages.visualize --help"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, fill, tmp_path):
    assert words in refused("visualize", tmp_path, *arguments)


def test_what_is_missing_is_named(fill, tmp_path):
    (tmp_path / "data/prepared/dataset.json").unlink()
    assert "dataset.json" in refused("visualize", tmp_path)
    for path in (WEIGHTS, ACTIVATIONS):
        (tmp_path / path).unlink()
    assert f"{ACTIVATIONS} does not exist" in refused("visualize", tmp_path)


def test_help(tmp_path):
    write_params(tmp_path)
    output = run("visualize", tmp_path, "--help")
    assert output.startswith("usage: python -m stages.visualize ")
    assert "--output" in output
