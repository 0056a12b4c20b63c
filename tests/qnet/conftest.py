"""Fixtures for tests of the library: data and parameters of a tiny network, a fresh compiler."""

import pytest
import torch

from qnet.data import UNCHANGED, Augment, Batches
from qnet.training import TrainingData


@pytest.fixture
def data(tiny_info, tiny_split):
    def batches(count, seed, size, augment=UNCHANGED):
        return Batches(
            tiny_split(count, seed), tiny_info, batch_size=size, device="cpu", augment=augment
        )

    return TrainingData(
        batches(96, 0, 16, Augment(pad=1, flip=False)), batches(30, 1, 30), batches(30, 2, 30)
    )


@pytest.fixture
def params(fp_params, weights_params, activations_params):
    sections = {"fp": fp_params, "weights": weights_params, "activations": activations_params}

    def section(kind, **changes):
        make = sections[kind]
        changes = {"epochs": 4, "warmup_epochs": 1, "lr": 0.05, **changes}
        if kind != "fp":
            changes = {"distillation": 0.0, **changes}
        return make(**changes)

    return section


@pytest.fixture
def two_phases(activations_params):
    """Two epochs with frozen weights and two with soft ones, whose gradient is exact."""

    def section(**changes):
        changes = {"epochs": 4, "frozen_epochs": 2, "warmup_epochs": 1, "lr": 0.05, **changes}
        return activations_params(distillation=0.0, **changes)

    return section


@pytest.fixture
def fresh_compiler():
    """Reset `torch.compile`, which keeps few versions of a function, counted over all tests."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
