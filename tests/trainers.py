"""A tiny network of each phase, and a trainer for it."""

import pytest
import torch
from torch import nn

from qnet.insertion import insert_quantizers
from qnet.layers import quantized_weights
from qnet.levels import activation_levels, weight_levels
from qnet.quantizer import Quantizer
from qnet.runtime import Runtime
from qnet.training import Trainer
from tests.tiny import network

AB = ("alpha", "beta")
ALPHA, BETA = 0.08, 12.0  # so that the smallest third of the weights becomes 0
CPU = Runtime(torch.device("cpu"), mixed=False)
META = Runtime(torch.device("meta"), mixed=False)  # shapes only: its numbers cannot be read
WHOLE = Runtime(torch.device("cpu"), mixed=False, compile_network=True)


def model_of(kind: str, bits: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model = network(3, 1, 8)
    if kind != "fp":
        insert_quantizers(
            model,
            weights={n: Quantizer(weight_levels(2), alpha=ALPHA, beta=BETA) for n in ("3", "6")},
        )
    if kind == "activations":
        insert_quantizers(
            model,
            activations={
                n: Quantizer(activation_levels(bits), alpha=0.5, beta=2.0) for n in ("3", "6")
            },
        )
    return model


def trainer_of(model, params, data, runtime=CPU, **options):
    return Trainer(model, params, data, runtime, phase="x", seed=0, **options)


def trainer(kind, params, data, runtime=CPU, **options):
    return trainer_of(model_of(kind), params, data, runtime, **options)


class _Killed(BaseException):
    """Stand-in for the end of a process."""


def kill_after(run, resume, epochs):
    """Train for this many epochs and end, as a process does that is killed."""

    def kill(history):
        if len(history.rows) == epochs:
            raise _Killed

    with pytest.raises(_Killed):
        run.fit(resume, kill)


def soft_weights(settings, data):
    """Trainer with soft weights whose gradient follows T: everything that freezing must undo."""
    model = model_of("activations")
    for *_, quantizer in quantized_weights(model):
        quantizer.backward_temperature = "exact"
    settings = settings.model_copy(update={"weights": "soft", "weight_scales": True})
    return trainer_of(model, settings, data)


def weight_parameters(run):
    """Copies of the quantized weights, alpha and beta; copies of the rest of the network."""
    names = [f"{n}.{p}" for n in "36" for p in ("weight", *map("weight_quantizer.".__add__, AB))]
    parameters = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    return {name: parameters.pop(name) for name in names}, parameters
