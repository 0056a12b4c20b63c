"""Histograms of activations, and layers that the network never calls."""

from typing import Any

import pytest
import torch
from torch import nn

from qnet import UserError, activation_histograms, quantizable_layers
from qnet.calibration import check_called


class Borrower(nn.Module):
    """Uses the weight of a layer without calling it, as attention often does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.called = nn.Linear(2, 2), nn.Linear(2, 2)
        self.borrowed, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.called(self.first(x))
        return self.last(nn.functional.linear(x, self.borrowed.weight))


def test_a_layer_that_is_never_called_is_named() -> None:
    model = Borrower()
    sites = quantizable_layers(model)
    assert sites == ["called", "borrowed"]
    message = "activation_histograms: the network never calls borrowed .*; leave"
    with pytest.raises(UserError, match=message):
        activation_histograms(model, sites, [torch.ones(3, 2)])


def test_it_is_named_before_there_is_anything_to_look_at() -> None:
    model = Borrower().train()
    with pytest.raises(UserError, match=r"model\.keep: the network never calls borrowed, whose"):
        check_called(model, ["called", "borrowed"], torch.ones(3, 2))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    check_called(model, ["called"], torch.ones(3, 2))


def test_what_is_called_is_seen() -> None:
    found = activation_histograms(Borrower(), ["called"], [torch.ones(3, 2), torch.ones(1, 2)])
    assert found["called"].count == 8


def test_a_layer_that_is_called_by_keyword_is_seen() -> None:
    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(input=x)

    found = activation_histograms(Caller(), ["layer"], [torch.ones(3, 2)])
    assert found["layer"].count == 6


def test_a_relu_that_is_never_called_has_a_remedy_of_its_own() -> None:
    model = Borrower()
    model.relu = nn.ReLU()
    with pytest.raises(UserError, match=r"never calls relu; .* activations\.sites=input"):
        check_called(model, ["relu"], torch.ones(3, 2))


def test_a_site_that_is_no_module_is_named_and_no_hook_stays() -> None:
    model = Borrower()
    with pytest.raises(UserError, match="no module cald, gone; give names"):
        activation_histograms(model, ["called", "cald", "gone"], [torch.ones(3, 2)])
    assert not model.called._forward_pre_hooks


@pytest.mark.parametrize("batches", [[], [torch.ones(0, 2)]])
def test_calibration_without_images_is_refused(batches: list[torch.Tensor]) -> None:
    with pytest.raises(UserError, match="no images; give at least one"):
        activation_histograms(Borrower(), ["called"], batches)


def test_batches_with_labels() -> None:
    loader: list[Any] = [[torch.ones(3, 2), torch.ones(3)]]
    with pytest.raises(UserError, match=r"a batch is a list; give tensors alone, such as \(images"):
        activation_histograms(Borrower(), ["called"], loader)


def test_one_batch_in_place_of_a_list_of_batches() -> None:
    with pytest.raises(UserError, match=r"batches is one tensor; give a list .* \[images\]"):
        activation_histograms(Borrower(), ["called"], torch.ones(3, 2))


def test_calibrating_changes_no_batch_norm() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    activation_histograms(model, ["1"], [torch.ones(3, 2) * 7])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_modes_are_as_before() -> None:
    model = Borrower().train()
    model.last.eval()
    activation_histograms(model, ["called"], [torch.ones(3, 2)])
    assert model.training
    assert not model.last.training
