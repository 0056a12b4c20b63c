"""Checks that refuse, before hours of training, what later stages would refuse."""

from __future__ import annotations

import torch
from torch import nn

from qnet.calibration import check_called
from qnet.data import DatasetInfo
from qnet.errors import UserError
from qnet.learning import check_batch_norm
from qnet.params import Params
from qnet.sites import activation_sites, quantizable_layers
from stages.data import check_batch_size


def check_ahead(params: Params, model: nn.Module, info: DatasetInfo, *sections: str) -> None:
    """Check parameters of stages to come against the network's layers and the number of images.

    Args:
        params: all of params.yaml.
        model: the network, not quantized.
        info: the data set.
        sections: those whose training is still to come, of fp, weights and activations.

    Raises:
        UserError: the network is not in float32; `model.keep` or `model.quantize` fits no layer or
            leaves none; nothing is at `activations.sites`, or it is never called; or a batch is
            larger than the training set, or has a single image where batch norm needs more; or a
            layer to quantize has a forward of its own.
    """
    types = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if types:
        raise UserError(
            f"model.name: {params.model.name!r} returned a network in {types.pop()}; return it in "
            "torch.float32: runtime.precision sets the type it is computed in"
        )
    keep, quantize = params.model.keep, params.model.quantize
    bits = {"weights": params.weights.levels, "activations": params.activations.bits}
    quantized = [section for section, found in bits.items() if found != "full"]
    trained = [section for section in sections if section not in bits or section in quantized]
    check_batch_size(params, *trained)
    for section in trained:
        check_batch_norm(model, getattr(params, section), section)
    sites = activation_sites(model, params.activations.sites, keep, quantize)
    layers = quantizable_layers(model, keep, quantize) if "weights" in quantized else []
    for name in [*layers, *(sites if "activations" in quantized else [])]:
        if "forward" in vars(model.get_submodule(name)):
            raise UserError(
                f"model.name: {name!r} has a forward that was set on it and would not quantize; "
                "give it a class of its own or, if it is no ReLU, add its name to model.keep"
            )
    device = next(parameter.device for parameter in model.parameters())
    images = torch.zeros(2, info.channels, info.size, info.size, device=device)
    check_called(model, sites, images)
