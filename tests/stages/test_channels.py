"""Gray images: one channel with a first layer for it, or repeated to three channels."""

import numpy as np
import pytest
import torch

from qnet.checkpoint import load_checkpoint
from tests.pipeline import refused, run, write_params
from tests.tiny import network

QUICK = {f"{section}__epochs": 1 for section in ("fp", "weights", "activations")}


@pytest.mark.parametrize(("given", "channels"), [("auto", 1), (1, 1), (3, 3)])
def test_gray_images_through_all_stages(given, channels, tmp_path):
    write_params(tmp_path, **QUICK, data__channels=given)
    for stage in ("prepare", "train_fp", "cluster", "train_weights", "train_activations"):
        run(stage, tmp_path)
    images = np.load(tmp_path / "data" / "prepared" / "test_images.npy")
    assert images.shape[1] == channels
    assert (images == images[:, :1]).all()
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "activations.safetensors")
    assert checkpoint.model.get_parameter("0.weight").shape[1] == channels
    assert checkpoint.dataset.channels == channels
    assert "top-1" in run("evaluate", tmp_path, "checkpoints/activations.safetensors")


@pytest.mark.parametrize(("theirs", "ours"), [(3, "auto"), (1, 3)])
def test_pretrained_for_another_number_of_channels(theirs, ours, tmp_path):
    torch.save(network(10, theirs, 8).state_dict(), tmp_path / "weights.pth")
    changes = {"model__pretrained": "weights.pth", "fp__epochs": 0}
    write_params(tmp_path, **changes, data__channels=ours)
    run("prepare", tmp_path)
    message = refused("train_fp", tmp_path)
    assert message.startswith("error: model.pretrained: weights.pth does not fit")
    assert f"set data.channels to {theirs} (" in message

    write_params(tmp_path, **changes, data__channels=theirs)
    run("prepare", tmp_path)
    assert "starts with the weights of weights.pth" in run("train_fp", tmp_path)
