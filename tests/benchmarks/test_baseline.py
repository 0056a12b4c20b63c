"""The textbook baseline computes the same as the library, so that comparing speeds is fair."""

import pytest
import torch
from torch import nn

from benchmarks import textbook
from qnet import Quantizer, activation_levels, cluster, weight_levels

x = torch.randn(200, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def clusters():
    return cluster(x.relu(), activation_levels(3))


def test_its_soft_function_is_the_library_s(clusters):
    theirs = textbook.SoftQuantizer(clusters)
    ours = Quantizer.from_clusters(clusters, forward_mode="soft", backward_temperature="exact")
    ours.set_temperature(textbook.TEMPERATURE)
    found = []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        (y * x).sum().backward()
        found.append((y, leaf.grad, module.alpha.grad, module.beta.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hard", [True, False])
def test_its_weights_have_the_library_s_gradients(hard):
    weight = nn.Parameter(x.clone())
    clusters = cluster(weight, weight_levels(2))
    quantized = textbook.QuantizedWeights([(weight, clusters)], hard)
    quantized.save_and_quantize()
    y = weight.detach().clone()
    weight.grad = x.square()  # the gradient of the quantized weight
    quantized.restore()
    assert torch.equal(weight.detach(), x)

    ours = Quantizer.from_clusters(
        clusters, forward_mode="hard" if hard else "soft", backward_temperature="exact"
    )
    ours.set_temperature(textbook.TEMPERATURE)
    leaf = x.clone().requires_grad_()
    expected = ours(leaf)
    expected.backward(x.square())
    torch.testing.assert_close(y, expected.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weight.grad, leaf.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(quantized.betas[0].grad, ours.beta.grad, rtol=1e-4, atol=1e-4)
    if not hard:  # for the hard function, the published code uses the soft one's gradient
        torch.testing.assert_close(quantized.alphas[0].grad, ours.alpha.grad, rtol=1e-4, atol=1e-4)


def test_it_learns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    images = torch.randn(16, 3, 2, 2)
    labels = (images[:, 0, 0, 0] > 0).long()
    before = nn.functional.cross_entropy(model(images), labels).item()
    weights = {"1": cluster(model[1].weight, weight_levels(2))}
    activations = {"2": cluster(model[:3](images), activation_levels(2))}
    training = textbook.Training(model, weights, activations)
    scales = training.weights.alphas[0].clone()
    training.train([(images, labels)] * 200)
    assert nn.functional.cross_entropy(model(images), labels).item() < before
    assert not torch.equal(training.weights.alphas[0], scales)
