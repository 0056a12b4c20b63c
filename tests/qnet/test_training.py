"""The loop: it learns, phase by phase, and keeps the best epoch."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from qnet.data import Augment, Batches
from qnet.errors import UserError
from qnet.optimizer import set_learning_rate
from qnet.quantizer import quantizers
from qnet.relus import SkippedReLU
from qnet.runtime import Runtime
from qnet.training import Trainer, TrainingData
from qnet.weights import weight_groups
from tests.qnet.test_teacher import Asking
from tests.tiny import network
from tests.trainers import (
    CPU,
    META,
    WHOLE,
    model_of,
    trainer,
    trainer_of,
)
from tests.waiting import NoWaiting


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["fp", "weights", "activations"])
def test_learns_what_can_be_learned(kind, optimizer, params, data):
    lr = 0.05 if optimizer == "sgd" else 0.01
    run = trainer(kind, params(kind, epochs=12, optimizer=optimizer, lr=lr), data)
    history = run.fit()
    assert max(row["validation_top1"] for row in history.rows) > 85
    assert not run.model.training


@pytest.mark.parametrize("select_on", ["validation", "test"])
def test_the_best_epoch_is_kept_by_top1_then_loss(select_on, params, data):
    run = trainer("fp", params("fp", select_on=select_on), data)
    history = run.fit()
    scores = [(row[f"{select_on}_top1"], -row[f"{select_on}_loss"]) for row in history.rows]
    assert history.best_epoch == 1 + scores.index(max(scores))
    assert ("test_top1" in history.rows[0]) == (select_on == "test")


def test_last_keeps_the_last_epoch(params, data):
    history = trainer("fp", params("fp", select_on="last"), data).fit()
    assert history.best_epoch == 4


@pytest.mark.parametrize("best", [1, 2, 4])
def test_the_model_ends_with_the_selected_epochs_weights(best, params, data, monkeypatch):
    tops = iter([90.0 if epoch == best else 50.0 for epoch in range(1, 5)])
    score = {"validation_loss": 1.0}
    monkeypatch.setattr(Trainer, "_score", lambda self: score | {"validation_top1": next(tops)})
    states = []
    run = trainer("fp", params("fp"), data)
    history = run.fit(
        on_epoch=lambda h: states.append({k: v.clone() for k, v in run.model.state_dict().items()})
    )
    assert history.best_epoch == best
    assert not torch.equal(states[0]["0.weight"], states[1]["0.weight"])
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, states[best - 1][name]), name


def test_the_seed_and_the_phase_decide_and_nothing_else(params, data):
    first, again, other_seed, other_phase = (
        Trainer(model_of("fp"), params("fp", epochs=1), data, CPU, phase=phase, seed=seed)
        .fit()
        .rows
        for phase, seed in (("x", 0), ("x", 0), ("x", 1), ("y", 0))
    )
    assert first == again
    assert first != other_seed
    assert first != other_phase
    assert other_seed != other_phase


def test_every_epoch_has_an_order_of_its_own(params, data):
    run = trainer("fp", params("fp", epochs=2), data)
    orders, step = [], run.step

    def recorded(images, labels):
        orders.append(labels.tolist())
        step(images, labels)

    run.step = recorded
    run.fit()
    steps = len(data.train)
    assert len(orders) == 2 * steps
    assert orders[:steps] != orders[steps:]


def test_a_loss_that_is_not_finite_names_the_learning_rate(params, data):
    run = trainer("fp", params("fp", lr=1e30, clip_norm=0.0), data)
    with pytest.raises(UserError, match=r"x\.lr is 1e\+30: the loss is .* in epoch"):
        run.fit()


def test_a_weight_that_is_not_finite_is_found_behind_hard_quantizers(params, data):
    run = trainer("activations", params("activations", clip_norm=0.0), data)
    with torch.no_grad():
        run.model.get_parameter("0.weight").fill_(torch.nan)
    with pytest.raises(UserError, match=r"x\.lr is .*: the largest weight is nan in epoch 1"):
        run.fit()


def test_a_parameter_without_elements_is_no_matter(params, data):
    model = model_of("fp")
    model.register_parameter("empty", torch.nn.Parameter(torch.zeros(0)))
    run = trainer_of(model, params("fp"), data)
    assert len(run.fit().rows) == params("fp").epochs


class Recomputed(torch.nn.Sequential):
    """Network that recomputes its activations in the backward pass."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def test_activations_may_be_computed_again_in_the_backward_pass(params, data):
    settings = params("weights", epochs=2)
    plain, recomputed = (trainer("weights", settings, data) for _ in range(2))
    recomputed.model.__class__ = Recomputed
    assert weight_groups(recomputed.model)
    losses = [[row["train_loss"] for row in run.fit().rows] for run in (plain, recomputed)]
    assert losses[0] == losses[1]


def test_nesterov_without_momentum_is_plain(params, data):
    settings = params("fp", epochs=0, momentum=0.0, nesterov=True)
    assert trainer("fp", settings, data).fit().rows == []


def test_distillation_needs_a_teacher_and_follows_it(params, data):
    settings = params("weights", distillation=1.0, epochs=8)
    with pytest.raises(ValueError, match="no teacher"):
        trainer("weights", settings, data)
    teacher = trainer("fp", params("fp", epochs=12), data)
    teacher.fit()
    history = trainer("weights", settings, data, teacher=teacher.model).fit()
    assert history.rows[-1]["train_loss"] < history.rows[0]["train_loss"]
    assert history.rows[-1]["validation_top1"] > 80


def test_relus_before_quantized_activations_are_left_out_only_while_training(params, data):
    for bits in (1, 2):
        model = model_of("activations", bits)
        settings = params("activations", epochs=2)
        trainer_of(model, settings, data).fit()
        found = [name for name, module in model.named_modules() if isinstance(module, SkippedReLU)]
        assert found == ["2", "5"]
        deployed = model_of("activations", bits).eval()
        deployed.load_state_dict(model.state_dict())
        images, _ = next(iter(data.validation.ordered()))
        assert torch.equal(model(images), deployed(images))


def test_mixed_is_bfloat16_in_the_network_and_float32_in_the_loss(params, data):
    mixed = Runtime(torch.device("cpu"), mixed=True)
    run = trainer("activations", params("activations"), data, mixed)
    seen = []
    run.model[3].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    run.scores.add = lambda logits, labels, loss: seen.extend([logits.dtype, loss.dtype])
    run.learning.begin(0)
    run.step(*next(iter(run.data.train.ordered())))
    assert seen == [torch.bfloat16, torch.float32, torch.float32]


def test_soft_and_hard_accuracy_stand_side_by_side(params, data):
    row = trainer("weights", params("weights"), data).fit().rows[-1]
    assert {"validation_top1", "validation_soft_top1", "temperature"} <= row.keys()
    assert "validation_soft_top1" not in trainer("fp", params("fp"), data).fit().rows[-1]


@pytest.mark.parametrize("kind", ["fp", "weights", "activations"])
def test_between_batches_the_host_never_waits_for_the_device(
    kind, params, tiny_info, tiny_split, monkeypatch
):
    monkeypatch.setattr(Runtime, "autocast", lambda self: nullcontext())  # META has none
    batches = Batches(
        tiny_split(32, 0), tiny_info, batch_size=8, device=META.device,
        augment=Augment(pad=1, flip=True),
    )  # fmt: skip
    settings = params(kind) if kind == "fp" else params(kind, distillation=0.5)
    model, teacher = model_of(kind), network(3, 1, 8).to(META.device)
    together = weight_groups(model)
    run = trainer_of(model, settings, TrainingData(batches, batches), META, teacher=teacher)
    run.weight_groups = together
    for step, (images, labels) in enumerate(batches.epoch(torch.Generator())):
        with NoWaiting():
            set_learning_rate(run.optimizer, 0.1 / (step + 1))
            run.step(images, labels)
    assert run.scores.sums.device == META.device


def test_a_network_is_compiled_once_whatever_t_is(params, data, monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    # A small rate: at a large one a rounding error grows a thousandfold per epoch.
    settings = params("activations", weights="soft", lr=0.005)

    def soft(runtime):
        model = model_of("activations")
        for _, quantizer in quantizers(model):
            quantizer.forward_mode, quantizer.backward_temperature = "soft", "exact"
        return trainer_of(model, settings, data, runtime)

    compilations = []
    rows = soft(WHOLE).fit(on_epoch=lambda _: compilations.append(counter.frame_count)).rows
    assert compilations[0] > 0
    assert len(set(compilations)) == 1
    for mine, theirs in zip(rows, soft(CPU).fit().rows, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


def test_a_network_that_cannot_be_compiled_is_trained_as_it_is(params, data, monkeypatch):
    def broken(network):
        def compiled(images):
            raise RuntimeError("no compiler")

        return compiled

    monkeypatch.setattr(torch, "compile", broken)
    settings = params("weights", epochs=2)
    with pytest.warns(UserWarning, match="the network could not be compiled .* no compiler") as all:
        rows = trainer("weights", settings, data, WHOLE).fit().rows
    assert len(all) == 1
    assert rows == trainer("weights", settings, data).fit().rows


def test_the_loss_is_the_mean_of_labels_and_teacher(params, data):
    """Check the loss in docs/method.md in float64: Hinton et al. (2015), Szegedy et al. (2016)."""
    share, softness, smoothing, classes = 0.3, 3.0, 0.2, 3
    settings = params(
        "weights",
        distillation=share,
        distillation_temperature=softness,
        label_smoothing=smoothing,
        clip_norm=0.0,
    )
    torch.manual_seed(1)
    teacher = network(classes, 1, 8).eval()
    run = trainer("weights", settings, data, teacher=teacher)
    images, labels = next(iter(data.train.ordered()))
    run.model.train()
    losses = []
    run.scores.add = lambda logits, labels, loss: losses.append((logits.detach(), loss.detach()))
    run.step(images, labels)
    [(logits, loss)] = losses

    logits, taught = logits.double(), teacher(images).detach().double()
    hot = torch.nn.functional.one_hot(labels, classes).double()
    targets = (1 - smoothing) * hot + smoothing / classes
    of_labels = -(targets * logits.log_softmax(1)).sum(1).mean()
    p, q = (taught / softness).softmax(1), (logits / softness).softmax(1)
    of_teacher = (p * (p.log() - q.log())).sum(1).mean()
    expected = (1 - share) * of_labels + share * softness**2 * of_teacher
    assert of_teacher > 1e-3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


class Versioned(nn.Identity):
    """Module that refuses a state of unknown version, like some networks of torchvision."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        assert local_metadata["version"] == 2
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Volume(nn.Module):
    """Network with a five-dimensional weight besides those for images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x):
        return self.conv(x.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("module", [Versioned, Volume])
def test_networks_with_modules_of_other_kinds(module, params, data):
    model = nn.Sequential(module(), model_of("fp"))
    trainer_of(model, params("fp", epochs=1), data).fit()


def test_old_gradients_do_not_count(params, data):
    states = []
    for left_over in (0.0, 1e6):
        model = model_of("fp")
        model[0].requires_grad_(False)
        model[0].weight.grad = torch.full_like(model[0].weight, left_over)
        trainer_of(model, params("fp", epochs=1, clip_norm=0.1), data).fit()
        states.append(model.state_dict())
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_loss_on_validation_that_is_not_finite_ends_the_run(params, data, monkeypatch):
    scores = {"validation_top1": 0.0, "validation_loss": float("nan")}
    monkeypatch.setattr(Trainer, "_score", lambda run: scores)
    with pytest.raises(UserError, match="the loss on validation is nan in epoch 1"):
        trainer("fp", params("fp", epochs=1), data).fit()


def test_a_teacher_that_folding_would_change_teaches_as_it_is(params, data):
    class Gray(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Asking()

        def forward(self, x):
            return self.body(x.expand(-1, 3, -1, -1))[:, :3]

    run = trainer("weights", params("weights", distillation=0.5, epochs=1), data, teacher=Gray())
    assert run.teacher.ready is not run.teacher.original
    run.fit()
    assert run.teacher.ready is run.teacher.original


def test_training_leaves_no_gradients_and_no_recorded_step(params, data):
    class Recorded:
        forgotten = False

        def __call__(self, images, labels):
            run.step(images, labels)

        def forget(self):
            self.forgotten = True

    run = trainer("fp", params("fp", epochs=1), data)
    run.graph = Recorded()
    run.fit()
    assert run.graph.forgotten
    assert all(parameter.grad is None for parameter in run.model.parameters())
