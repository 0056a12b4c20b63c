"""Every pair of weight levels and activation bits trains, and ends with exactly its levels."""

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from qnet import (
    Quantizer,
    activation_histograms,
    activation_levels,
    cluster,
    insert_quantizers,
    quantizable_layers,
    weight_levels,
)
from tests.tiny import network

WEIGHTS = (1, 2, 3, 4, 5, "3pm2", "3pm4", "full")
ACTIVATIONS = (1, 2, 3, 4, 8, "full")

pytestmark = pytest.mark.grid


@pytest.mark.parametrize(("weights", "bits"), list(product(WEIGHTS, ACTIVATIONS)))
def test_a_pair_trains_and_is_exact(weights, bits, tiny_split):
    torch.manual_seed(0)
    model = network(3, 1, 8)
    split = tiny_split(24, 0)
    images, labels = split.images.float() / 255, split.labels
    layers = quantizable_layers(model)
    if (levels := weight_levels(weights)) is not None:
        insert_quantizers(
            model,
            weights={
                name: Quantizer.from_clusters(
                    cluster(model.get_parameter(f"{name}.weight"), levels)
                )
                for name in layers
            },
        )
    if (levels := activation_levels(bits)) is not None:
        seen = activation_histograms(model, layers, [images])
        insert_quantizers(
            model,
            activations={
                name: Quantizer.from_clusters(cluster(seen[name], levels)) for name in layers
            },
        )

    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()

    model.eval()
    found = {}
    for name in layers:
        layer = model.get_submodule(name)
        if weights != "full":
            quantizer = layer.weight_quantizer
            integers = quantizer.integers(layer.weight)
            assert set(integers.unique().tolist()) <= set(quantizer.level_set.values)
            assert torch.equal(quantizer.alpha * integers, quantizer(layer.weight))
        if bits != "full":
            layer.input_quantizer.register_forward_hook(
                lambda module, inputs, output, name=name: found.update({name: output})
            )
    with torch.no_grad():
        model(images)
    assert found.keys() == (set() if bits == "full" else set(layers))
    for name, output in found.items():
        assert len(output.unique()) <= 2**bits, name
