"""Histograms of a network's activations, one for each place to quantize."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qnet.errors import UserError, some
from qnet.histogram import Histogram
from qnet.modes import modes_kept


@torch.no_grad()
def activation_histograms(
    model: nn.Module, sites: Sequence[str], batches: Iterable[Tensor]
) -> dict[str, Histogram]:
    """Histograms of the values at `sites` while `model`, in eval mode, sees `batches`.

    Memory does not grow with the number of images.

    Args:
        model: on the device of the batches.
        sites: names of ReLUs (their outputs), or of other modules, such as convolutions, linear
            layers and quantizers (their inputs).
        batches: what the model is called with, one after another.

    Raises:
        UserError: a site is not a module, or is never called, for example because another module
            uses its weight; a batch is not a tensor, or `batches` is one; or there are no images.
    """
    if isinstance(batches, Tensor):  # its items are single images
        raise UserError(
            "activation_histograms: batches is one tensor; give a list of batches, such as [images]"
        )
    histograms = {site: Histogram(f"activations at {site}") for site in sites}
    modules = dict(model.named_modules(remove_duplicate=False))
    if unknown := [site for site in sites if site not in modules]:
        raise UserError(
            f"activation_histograms: the network has no module {some(unknown)}; give names such as "
            "those of quantizable_layers"
        )
    seen = 0
    with _watched(model, histograms, lambda site, values: histograms[site].update(values)):
        for batch in batches:
            if not isinstance(batch, Tensor):
                raise UserError(
                    f"activation_histograms: a batch is a {type(batch).__name__}; give tensors "
                    "alone, such as (images for images, _ in loader), and wrap a network of "
                    "several inputs in a module that takes one"
                )
            model(batch)
            seen += len(batch)
    if seen == 0:
        raise UserError("activation_histograms: no images; give at least one")
    if unused := [site for site, histogram in histograms.items() if histogram.count == 0]:
        raise UserError(
            f"activation_histograms: the network never calls {some(unused)} (of a layer it may use "
            "the weight alone); leave that out of sites, or add it to keep"
        )
    return histograms


@torch.no_grad()
def check_called(model: nn.Module, sites: Sequence[str], images: Tensor) -> None:
    """Raise a `UserError` if `model`, in eval mode, does not call all `sites` for `images`.

    The message names the parameter to change.
    """
    unused = set(sites)
    with _watched(model, sites, lambda site, values: unused.discard(site)):
        model(images)
    named = some([site for site in sites if site in unused])
    if unused and isinstance(model.get_submodule(next(iter(unused))), nn.ReLU):
        raise UserError(
            f"activations.sites: 'relu' quantizes every nn.ReLU, and the network never calls "
            f"{named}; remove what it does not use from the network, or set activations.sites=input"
        )
    if unused:
        raise UserError(
            f"model.keep: the network never calls {named}, whose weight it may use in a way of its "
            "own, so it cannot be quantized; add the name, or a pattern such as *.attn.*"
        )


@contextmanager
def _watched(
    model: nn.Module, sites: Iterable[str], look: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Inside, `model` is in eval mode and `look` sees the values at each site that is called."""
    modules = dict(model.named_modules(remove_duplicate=False))
    handles = [_watch(modules[site], partial(look, site)) for site in sites]
    try:
        with modes_kept(model):
            model.eval()
            yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(module: nn.Module, look: Callable[[Tensor], None]) -> RemovableHandle:
    """The values are the output of a ReLU, and the input of any other module."""

    def after(module: nn.Module, args: Any, output: Tensor) -> None:
        look(output)

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        look(args[0] if args else kwargs["input"])

    if isinstance(module, nn.ReLU):
        return module.register_forward_hook(after)
    return module.register_forward_pre_hook(before, with_kwargs=True)
