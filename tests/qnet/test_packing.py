"""A packed network has the stated size and computes the same as the trained one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from qnet.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from qnet.errors import UserError
from qnet.insertion import insert_quantizers
from qnet.levels import activation_levels, weight_levels
from qnet.packing import pack, packed_state, training_only, unpack
from qnet.quantizer import Quantizer
from qnet.sites import quantizable_layers
from qnet.size import model_bytes
from tests.files import rewrite
from tests.tiny import network

SETS = ["1", "2", "3", "3pm2", "3pm4", "8", [-300, -4, 4, 300]]


@given(st.sampled_from(SETS), st.lists(st.integers(0, 2**20), max_size=40))
def test_levels_come_back(spec, numbers):
    levels = weight_levels(spec)
    integers = torch.tensor([levels.values[n % len(levels.values)] for n in numbers]).long()
    packed = pack(integers, levels)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((len(numbers) * levels.bits + 7) // 8,)
    assert torch.equal(unpack(packed, levels, len(numbers)), integers)


@given(st.integers(2, 700), st.data())
def test_more_levels_than_a_byte_tells_apart(half, data):
    levels = weight_levels([*range(-half, 0), *range(1, half + 1)])
    numbers = data.draw(st.lists(st.integers(0, 2 * half - 1), min_size=1, max_size=20))
    integers = torch.tensor([levels.values[number] for number in numbers])
    assert torch.equal(unpack(pack(integers, levels), levels, len(numbers)), integers)


def test_bits_follow_each_other_from_the_least():
    binary = pack(torch.tensor([-1, 1, 1, -1, -1, -1, -1, 1, 1]), weight_levels(1))
    assert binary.tolist() == [0b10000110, 0b1]
    eight = pack(torch.tensor([[-3, 3], [0, 1], [-2, 2], [3, -3]]), weight_levels(3))
    places = [0, 6, 3, 4, 1, 5, 6, 0]
    assert eight.tolist() == list(
        sum(p << 3 * i for i, p in enumerate(places)).to_bytes(3, "little")
    )


@pytest.fixture(params=SETS, ids=str)
def checkpoint(request, tiny_info):
    torch.manual_seed(0)
    model = network(3, 1, 8)
    levels, names = weight_levels(request.param), quantizable_layers(model)
    alpha = torch.rand(8, 1, 1, 1) + 0.1
    insert_quantizers(
        model,
        weights={
            names[0]: Quantizer(levels, alpha=0.03, beta=30.0),
            names[1]: Quantizer(levels, alpha=alpha, beta=1 / alpha),
        },
        activations={
            name: Quantizer(activation_levels(2), thresholds=[0.1, 0.7, 3], alpha=0.7, beta=2.0)
            for name in names
        },
    )
    model(torch.randn(16, 1, 8, 8))  # batch norm learns
    return Checkpoint(model.eval(), "tests.tiny:network", tiny_info)


def test_outputs_are_the_same_to_the_last_bit(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "packed", checkpoint, packed=True)
    loaded = load_checkpoint(tmp_path / "packed").model
    images = torch.randn(32, 1, 8, 8)
    assert torch.equal(loaded(images), checkpoint.model(images))


def test_the_tensors_take_what_size_counts(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "packed", checkpoint, packed=True)
    tensors = load_file(tmp_path / "packed").values()
    assert sum(tensor.nbytes for tensor in tensors) == model_bytes(checkpoint.model)


def test_packing_again_gives_the_same_file(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "packed", checkpoint, packed=True)
    save_checkpoint(tmp_path / "again", load_checkpoint(tmp_path / "packed"), packed=True)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "packed").read_bytes()


def test_a_packed_network_is_not_saved_as_a_trained_one(checkpoint, tmp_path):
    save_checkpoint(tmp_path / "packed", checkpoint, packed=True)
    with pytest.raises(UserError, match="its weights are bare levels; save it with packed=True"):
        save_checkpoint(tmp_path / "again", load_checkpoint(tmp_path / "packed"))
    assert not (tmp_path / "again").exists()


def test_a_network_in_full_precision():
    with pytest.raises(UserError, match="no weight is quantized: nothing to pack"):
        packed_state(network(3, 1, 8))


@pytest.mark.parametrize("both", [True, False])
def test_a_weight_with_two_names(both):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    names = ["0", "1"] if both else ["1"]
    insert_quantizers(model, weights={name: Quantizer(weight_levels(2)) for name in names})
    message = r"^0\.weight and 1\.weight are one weight, which cannot be packed; keep it in full pr"
    with pytest.raises(UserError, match=message):
        packed_state(model)


def test_what_has_two_names_is_left_out_under_both():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu)
    sites = {"1": Quantizer(activation_levels(2))}
    insert_quantizers(model, weights={"2": Quantizer(weight_levels(2))}, activations=sites)
    assert not any(name.endswith("temperature") for name in packed_state(model))


def test_a_network_that_is_one_layer():
    model = nn.Linear(9, 5)
    insert_quantizers(model, weights={"": Quantizer(weight_levels(2))})
    assert {name: tuple(tensor.shape) for name, tensor in packed_state(model).items()} == {
        "weight": (12,),
        "bias": (5,),
        "weight_quantizer.alpha": (),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({"3.weight": t["3.weight"] | 0xFF}),
            "3.weight holds codes without a level",
        ),
        (lambda t: t.update({"3.weight": torch.zeros(8, 8, 3, 3)}), "3.weight is torch.float"),
        (lambda t: t.update({"3.weight": t["3.weight"][:-1]}), r"3.weight is \[143\] instead of"),
        (lambda t: t.update({"3.weight": t["3.weight"].float()}), "instead of packed levels"),
        (lambda t: t.pop("3.weight"), "3.weight is missing"),
        (lambda t: t.pop("3.weight_quantizer.alpha"), "3.weight_quantizer.alpha is missing"),
        (lambda t: t.pop("4.running_mean"), "4.running_mean is missing"),
    ],
)
@pytest.mark.parametrize("checkpoint", ["2"], indirect=True)
def test_a_damaged_file(checkpoint, change, message, tmp_path):
    path = tmp_path / "packed"
    save_checkpoint(path, checkpoint, packed=True)
    rewrite(path, lambda tensors, description: change(tensors))
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_only_what_is_called_weight_quantizer_quantizes_a_weight() -> None:
    model = nn.Module()
    model.act_weight_quantizer = Quantizer(activation_levels(2))
    assert training_only(model) == {"act_weight_quantizer.temperature"}
