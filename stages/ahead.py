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


def check_ahead(params: Params, model: nn.Module, info: DatasetInfo) -> None:
    """Check later stages' parameters against the network's layers and the number of images.

    Raises:
        UserError: the network is not in float32; `model.keep` or `model.quantize` fits no layer or
            leaves none; nothing is at `activations.sites`, or it is never called; or a batch is
            larger than the training set, or has a single image where batch norm needs more.
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
    check_batch_size(params, "fp", *quantized)
    for section in quantized:
        check_batch_norm(model, getattr(params, section), section)
    sites = activation_sites(model, params.activations.sites, keep, quantize)
    layers = quantizable_layers(model, keep, quantize) if "weights" in quantized else []
    for name in {*sites, *layers}:
        if "forward" in vars(model.get_submodule(name)):
            raise UserError(
                f"model.name: {name!r} has a forward that was set on it and would not quantize; "
                "give it a class of its own, or add its name to model.keep"
            )
    device = next(parameter.device for parameter in model.parameters())
    images = torch.zeros(2, info.channels, info.size, info.size, device=device)
    check_called(model, sites, images)
