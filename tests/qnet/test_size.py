from __future__ import annotations

import pytest
import torch
from torch import nn

from qnet.errors import UserError
from qnet.insertion import insert_quantizers
from qnet.levels import activation_levels, weight_levels
from qnet.models import build_model
from qnet.packing import packed_state
from qnet.quantizer import Quantizer
from qnet.sites import quantizable_layers
from qnet.size import full_precision_bytes, model_bytes


def test_full_precision_is_four_bytes_for_each_value() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    values = (3 * 4 * 9 + 4) + 4 * 4 + (4 * 2 + 2)  # no counter of batches
    assert full_precision_bytes(model) == model_bytes(model) == 4 * values


@pytest.mark.parametrize(
    ("bits", "weight_bytes"), [(1, 6), (2, 12), ("3pm2", 17), ("3pm4", 17), (4, 23), (8, 45)]
)
def test_weights_are_packed(bits: int | str, weight_bytes: int) -> None:
    model = nn.Linear(9, 5)
    insert_quantizers(model, weights={"": Quantizer(weight_levels(bits))})
    assert model_bytes(model) == weight_bytes + 4 * 1 + 4 * 5  # α and the biases
    assert full_precision_bytes(model) == 4 * (45 + 5)


def test_every_alpha_of_a_channel_counts() -> None:
    model = nn.Conv2d(4, 6, 2, bias=False)
    alpha = torch.ones(6, 1, 1, 1)
    insert_quantizers(model, weights={"": Quantizer(weight_levels(1), alpha=alpha, beta=alpha)})
    assert model_bytes(model) == 6 * 4 * 4 // 8 + 4 * 6


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_activation_quantizers_count_alpha_beta_and_thresholds(bits: int) -> None:
    levels = activation_levels(bits)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    before = model_bytes(model)
    insert_quantizers(model, activations={"0": Quantizer(levels), "1": Quantizer(levels)})
    assert model_bytes(model) - before == 2 * 4 * (1 + 1 + (2**bits - 1))
    assert full_precision_bytes(model) == before


def test_shared_tensors_count_once() -> None:
    one, two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    two.weight = one.weight
    model = nn.Sequential(one, two, one)
    assert full_precision_bytes(model) == model_bytes(model) == 4 * 16


def test_a_quantized_weight_that_something_else_reads_too_is_not_packed() -> None:
    embedding, linear = nn.Embedding(4, 4), nn.Linear(4, 4, bias=False)
    linear.weight = embedding.weight
    model = nn.Sequential(embedding, linear)
    insert_quantizers(model, weights={"1": Quantizer(weight_levels(2))})
    assert model_bytes(model) == 4 * 16 + 4
    with pytest.raises(UserError, match=r"0\.weight and 1\.weight are one weight"):
        packed_state(model)


def test_buffers_count_if_they_are_stored() -> None:
    model = nn.Linear(2, 2, bias=False)
    model.register_buffer("stored", torch.zeros(3))
    model.register_buffer("derived", torch.zeros(5), persistent=False)
    assert full_precision_bytes(model) == 4 * (4 + 3)


def test_binary_resnet20() -> None:
    model = build_model("resnet20", classes=10)
    full = full_precision_bytes(model)
    assert full == 4 * (269_722 + 1_376)  # parameters, means and variances
    names = quantizable_layers(model)
    insert_quantizers(model, weights={name: Quantizer(weight_levels(1)) for name in names})
    quantized = 267_264
    assert model_bytes(model) == full - 4 * quantized + quantized // 8 + 4 * len(names)
    assert full / model_bytes(model) > 20


def test_whole_numbers_take_what_they_take() -> None:
    model = nn.Linear(9, 5)
    model.register_buffer("places", torch.arange(3))
    assert full_precision_bytes(model) == model_bytes(model) == 4 * 50 + 8 * 3
