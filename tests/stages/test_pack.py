"""`python -m stages.pack`: a file of the size in the metrics, loaded like any checkpoint."""

import pytest
import torch

from qnet.checkpoint import Checkpoint, load_model, save_checkpoint
from qnet.insertion import insert_quantizers
from qnet.levels import weight_levels
from qnet.quantizer import Quantizer
from qnet.size import model_bytes
from tests.pipeline import refused, run, write_params
from tests.tiny import network

TRAINED, PACKED = "checkpoints/weights.safetensors", "checkpoints/packed.safetensors"


@pytest.fixture
def trained(tmp_path, tiny_info):
    """Network with quantized weights, whose checkpoint is in a project with params.yaml."""
    model = network(3, 1, 8).eval()
    insert_quantizers(model, weights={"3": Quantizer(weight_levels(2), alpha=0.1, beta=10.0)})
    write_params(tmp_path)
    save_checkpoint(tmp_path / TRAINED, Checkpoint(model, "tests.tiny:network", tiny_info))
    return model


def test_the_packed_file_computes_the_same(trained, tmp_path):
    output = run("pack", tmp_path, TRAINED, PACKED)
    size, length = model_bytes(trained), (tmp_path / PACKED).stat().st_size
    assert output.startswith(f"{PACKED}: {size:,} bytes of network, ")
    assert output.endswith(f"plus {length - size:,} bytes of metadata\n")
    images = torch.randn(8, 1, 8, 8)
    assert torch.equal(load_model(tmp_path / PACKED)(images), trained(images))


def test_what_cannot_be_packed_is_named(trained, tmp_path, tiny_info):
    full = Checkpoint(network(3, 1, 8).eval(), "tests.tiny:network", tiny_info)
    save_checkpoint(tmp_path / "fp.safetensors", full)
    message = "error: fp.safetensors: no weight is quantized: nothing to pack"
    assert refused("pack", tmp_path, "fp.safetensors", PACKED) == message
    assert not (tmp_path / PACKED).exists()
    assert "none does not exist; " in refused("pack", tmp_path, "none", PACKED)
    assert "the following arguments are required: " in refused("pack", tmp_path, TRAINED)


def test_where_it_cannot_be_written(trained, tmp_path):
    (tmp_path / "file").touch()
    assert "file/packed could not be written (" in refused("pack", tmp_path, TRAINED, "file/packed")


def test_only_a_packed_file_is_overwritten(trained, tmp_path):
    run("pack", tmp_path, TRAINED, PACKED)
    run("pack", tmp_path, TRAINED, PACKED)
    for name in ("params.yaml", TRAINED):
        before = (tmp_path / name).read_bytes()
        message = f"error: {name} exists and is not a packed checkpoint; give another name"
        assert message in refused("pack", tmp_path, PACKED, name)
        assert (tmp_path / name).read_bytes() == before


def test_the_checkpoint_itself_is_not_overwritten(trained, tmp_path):
    before = (tmp_path / TRAINED).read_bytes()
    assert f"{TRAINED} is the checkpoint itself" in refused("pack", tmp_path, TRAINED, TRAINED)
    (tmp_path / "link.safetensors").symlink_to(TRAINED)
    assert "link.safetensors is the checkpoint" in refused(
        "pack", tmp_path, TRAINED, "link.safetensors"
    )
    assert (tmp_path / TRAINED).read_bytes() == before


def test_a_mistake_in_the_output_names_the_output(trained, tmp_path):
    (tmp_path / "folder").mkdir()
    assert refused("pack", tmp_path, TRAINED, "folder").startswith("error: folder is a folder; ")
