"""What learns while a network is trained, and what is frozen."""

from itertools import pairwise

import pytest
import torch

from qnet.errors import UserError
from qnet.layers import quantized_weights
from qnet.quantizer import quantizers
from tests.trainers import (
    ALPHA,
    BETA,
    model_of,
    soft_weights,
    trainer,
    trainer_of,
    weight_parameters,
)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weights_are_frozen_at_first_and_learn_afterwards(optimizer, two_phases, data):
    run = soft_weights(two_phases(optimizer=optimizer, select_on="last"), data)
    seen = [weight_parameters(run)]
    history = run.fit(on_epoch=lambda _: seen.append(weight_parameters(run)))
    for epoch, ((weights, others), (weights_after, others_after)) in enumerate(pairwise(seen)):
        for name, before in weights.items():
            assert torch.equal(before, weights_after[name]) == (epoch < 2), (name, epoch)
        for name, before in others.items():
            assert not torch.equal(before, others_after[name]), (name, epoch)
    assert len(history.rows) == 4


def test_frozen_epochs_are_those_of_frozen_weights(two_phases, data):
    settings = two_phases(schedule="constant")
    run = soft_weights(settings, data)
    rows = run.fit().rows
    model = model_of("activations")
    settings = settings.model_copy(update={"frozen_epochs": 0, "epochs": 2, "weights": "frozen"})
    frozen = trainer_of(model, settings, data)
    of_both = [{**row, "validation_soft_top1": None} for row in rows[:2]]  # weights follow T too
    assert of_both == [{**row, "validation_soft_top1": None} for row in frozen.fit().rows]


def test_alpha_and_beta_learn_unless_their_rate_is_zero(params, data):
    for scale_lr, moves in ((0.1, True), (0.0, False)):
        run = trainer("weights", params("weights", scale_lr=scale_lr, epochs=2), data)
        run.fit()
        for _, quantizer in quantizers(run.model):
            assert (quantizer.alpha != ALPHA).item() == moves
            assert (quantizer.beta != BETA).item() == moves


@pytest.mark.parametrize("kind", ["weights", "activations"])
def test_no_scale_falls_to_zero_however_fast_it_learns(kind, params, data):
    run = trainer(kind, params(kind, scale_lr=1.0), data)
    scales = [scale for _, q in quantizers(run.model) for scale in (q.alpha, q.beta)]
    before = [scale.item() for scale in scales]
    run.optimizer.param_groups[-1]["lr"] = 1e4
    run.learning.begin(0)
    run.step(*next(iter(run.data.train.ordered())))
    shares = [scale.item() / start for scale, start in zip(scales, before, strict=True)]
    assert min(shares) == pytest.approx(0.01)
    assert all(share > 0 for share in shares)


def test_a_scale_below_zero_stays_there(params, data):
    model = model_of("weights")
    quantizer = model.get_submodule("3.weight_quantizer")
    with torch.no_grad():
        quantizer.alpha.neg_(), quantizer.beta.neg_()
    trainer_of(model, params("weights", epochs=1), data).fit()
    assert quantizer.alpha.item() == pytest.approx(-ALPHA, rel=0.2)
    assert quantizer.beta.item() == pytest.approx(-BETA, rel=0.2)


def test_a_network_of_which_nothing_may_learn(params, data):
    model = model_of("fp").requires_grad_(False)
    with pytest.raises(UserError, match=r"x\.epochs is 3, and no parameter .* may learn"):
        trainer_of(model, params("fp", epochs=3), data)
    assert trainer_of(model, params("fp", epochs=0), data).fit().rows == []


def test_a_network_of_which_nothing_may_learn_at_first(two_phases, data):
    model = model_of("activations").requires_grad_(False)
    for _, weight, _ in quantized_weights(model):
        weight.requires_grad_(True)
    settings = two_phases(scale_lr=0.0, freeze_bn_affine=True)
    with pytest.raises(UserError, match="no parameter of the network may learn"):
        trainer_of(model, settings, data)


def test_after_training_all_may_learn_that_could_before(params, data):
    run = trainer("activations", params("activations", weights="frozen", epochs=1), data)
    run.fit()
    assert all(parameter.requires_grad for parameter in run.model.parameters())
