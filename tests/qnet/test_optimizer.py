"""The optimizer does what the parameters say: clipping, rates, momentum and decay."""

import math

import pytest
import torch

from qnet.optimizer import build_optimizer, parameter_groups, set_learning_rate
from tests.trainers import model_of, trainer

SCALES = ("alpha", "beta")


def test_a_step_follows_the_clipped_gradient_and_scales_have_their_share_of_the_rate(params, data):
    clip, rate, share = 0.01, 0.5, 0.25
    settings = params(
        "weights", clip_norm=clip, scale_lr=share, momentum=0.0, nesterov=False, weight_decay=0.0
    )
    run = trainer("weights", settings, data)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.learning.begin(0)
    set_learning_rate(run.optimizer, rate)
    run.step(*next(iter(run.data.train.ordered())))
    squares = 0.0
    for name, parameter in run.model.named_parameters():
        gradient = (before[name] - parameter.detach()) / rate
        gradient = gradient / share if name.endswith(SCALES) else gradient
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=2e-5)
        squares += gradient.square().sum().item()
    assert squares**0.5 == pytest.approx(clip, rel=1e-3)


def test_adam_takes_momentum_and_decay_from_the_parameters(params):
    settings = params("weights", optimizer="adam", momentum=0.7, weight_decay=0.03, scale_lr=0.5)
    optimizer = build_optimizer(model_of("weights"), settings)
    found = [(g["weight_decay"], g["lr_factor"], g["betas"]) for g in optimizer.param_groups]
    matrices, vectors, scales = (0.03, 1.0), (0.0, 1.0), (0.0, 0.5)
    assert found == [(*group, (0.7, 0.999)) for group in (matrices, vectors, scales)]


def test_parameters_fall_into_groups_by_how_they_learn() -> None:
    model = model_of("weights")
    frozen = next(model.parameters()).requires_grad_(False)
    groups = parameter_groups(model, lr=0.5, weight_decay=0.1, scale_lr=0.2)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.5, 0.1), (0.5, 0.0), (0.1, 0.0)]
    names = {id(p): name for name, p in model.named_parameters()}
    matrices, vectors, scales = ([names[id(p)] for p in group["params"]] for group in groups)
    assert set(matrices) == {"3.weight", "6.weight", "11.weight"}  # without the frozen 0.weight
    assert set(vectors) == {*(f"{n}.{p}" for n in (1, 4, 7) for p in ("weight", "bias")), "11.bias"}
    assert scales
    assert all(name.endswith(SCALES) for name in scales)
    assert {*matrices, *vectors, *scales} == {*names.values()} - {names[id(frozen)]}


def test_the_rate_changes_with_every_batch(params, data):
    settings = params("fp", epochs=2, warmup_epochs=1, lr=0.6, schedule="cosine")
    run = trainer("fp", settings, data)
    rates = []
    step = run.step

    def recorded(images, labels):
        rates.append(run.optimizer.param_groups[0]["lr"])
        step(images, labels)

    run.step = recorded
    rows = run.fit().rows
    count = len(data.train)
    assert len(set(rates)) == len(rates) == 2 * count
    middles = [(step + 0.5) / count for step in range(count)]
    falling = [0.3 * (1 + math.cos(math.pi * middle)) for middle in middles]
    assert rates == pytest.approx([0.6 * middle for middle in middles] + falling)
    assert [row["lr"] for row in rows] == pytest.approx([0.3, 0.3])


def test_the_rate_of_a_recorded_step_is_changed_in_place() -> None:
    rate = torch.tensor(1.0)  # as on CUDA, where a graph reads it
    group = {"params": [torch.ones(1, requires_grad=True)], "lr": rate, "lr_factor": 0.1}
    optimizer = torch.optim.SGD([group], lr=1.0)
    set_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.05)
