"""The loop: it learns, it is the same twice, and a run cut short goes on as if it had not been."""

from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from qnet.batch_norm import measure_batch_norm
from qnet.data import Augment, Batches
from qnet.errors import UserError
from qnet.evaluation import Scores
from qnet.layers import insert_quantizers, quantized_weights
from qnet.levels import activation_levels, weight_levels
from qnet.optimizer import set_learning_rate
from qnet.quantizer import Quantizer, quantizers
from qnet.relus import SkippedReLU
from qnet.resume import ResumeFile, optimizer_tensors
from qnet.runtime import Runtime
from qnet.training import Trainer, TrainingData
from qnet.weights import alike
from tests.tiny import network
from tests.waiting import NoWaiting

AB = ("alpha", "beta")
ALPHA, BETA = 0.08, 12.0  # so that the smallest third of the weights becomes 0
CPU = Runtime(torch.device("cpu"), mixed=False)
META = Runtime(torch.device("meta"), mixed=False)  # shapes only: no number of it can be read
WHOLE = Runtime(torch.device("cpu"), mixed=False, compile_network=True)


@pytest.fixture
def data(tiny_info, tiny_split):
    def batches(count, seed, size, augment=None):
        return Batches(
            tiny_split(count, seed), tiny_info, batch_size=size, device="cpu", augment=augment
        )

    return TrainingData(
        batches(96, 0, 16, Augment(pad=1, flip=False)), batches(30, 1, 30), batches(30, 2, 30)
    )


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


def trainer(kind, params, data, runtime=CPU, **options):
    model = model_of(kind)
    annealed = [q for _, q in quantizers(model)]
    return Trainer(model, params, data, runtime, phase="x", seed=0, annealed=annealed, **options)


@pytest.fixture
def params(fp_params, weights_params):
    def section(kind, **changes):
        make = fp_params if kind == "fp" else weights_params
        changes = {"epochs": 4, "warmup_epochs": 1, "lr": 0.05, **changes}
        if kind != "fp":
            changes = {"distillation": 0.0, **changes}
        return make(**changes)

    return section


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["fp", "weights", "activations"])
def test_learns_what_can_be_learned(kind, optimizer, params, data):
    lr = 0.05 if optimizer == "sgd" else 0.01
    run = trainer(kind, params(kind, epochs=12, optimizer=optimizer, lr=lr), data)
    history = run.fit()
    assert max(row["validation_top1"] for row in history.rows) > 85
    assert not run.model.training


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["fp", "weights", "activations"])
@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_run_cut_short_ends_as_an_uninterrupted_one(
    kind, optimizer, killed_after, params, data, tmp_path
):
    settings = params(kind, optimizer=optimizer)
    whole = trainer(kind, settings, data)
    expected = whole.fit()

    def kill(history):
        if len(history.rows) == killed_after:
            raise Killed

    resume = ResumeFile(tmp_path / "run.safetensors")
    with pytest.raises(Killed):
        trainer(kind, settings, data).fit(resume, kill)
    resumed = trainer(kind, settings, data)
    history = resumed.fit(resume)

    assert history == expected
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_scales_that_stay_have_no_part_in_clipping_or_resuming(params, data, tmp_path):
    settings = params("activations", scale_lr=0.0, clip_norm=0.1)
    whole = trainer("activations", settings, data)
    expected = whole.fit()
    fixed = trainer("activations", settings, data)
    for _, quantizer in quantizers(fixed.model):
        quantizer.requires_grad_(False)
    assert fixed.fit() == expected
    resume = ResumeFile(tmp_path / "run.safetensors")

    def kill(history):
        raise Killed

    with pytest.raises(Killed):
        trainer("activations", settings, data).fit(resume, kill)
    assert trainer("activations", settings, data).fit(resume) == expected


def test_a_state_of_another_network_is_not_resumed(params, data, tmp_path):
    resume = ResumeFile(tmp_path / "run.safetensors")
    settings = params("fp", epochs=2)
    expected = trainer("fp", settings, data).fit()
    other = {"model": {"0.weight": torch.zeros(1)}, "best": {"0.weight": torch.zeros(1)}}
    resume.save(other, {"rows": [{"epoch": 1}]})
    assert trainer("fp", settings, data).fit(resume) == expected


def test_the_state_is_kept_after_every_so_many_epochs_and_the_last(params, data, tmp_path):
    resume = ResumeFile(tmp_path / "run.safetensors")
    kept = []

    def look(history):
        saved = resume.load()
        kept.append(len(saved[1]["rows"]) if saved else 0)

    trainer("fp", params("fp", epochs=5), data).fit(resume, look, save_every=2)
    assert kept == [0, 2, 2, 4, 5]


@pytest.fixture
def two_phases(activations_params):
    """Two epochs with frozen weights and two with soft ones, whose gradient is exact."""

    def section(**changes):
        changes = {"epochs": 4, "frozen_epochs": 2, "warmup_epochs": 1, "lr": 0.05, **changes}
        return activations_params(distillation=0.0, **changes)

    return section


def soft_weights(settings, data):
    """A trainer with soft weights whose gradient follows T: all that freezing has to undo."""
    run = trainer("activations", settings, data)
    for quantizer in run.weight_quantizers:
        quantizer.forward_mode, quantizer.backward_temperature = "soft", None
    return run


def weight_parameters(run):
    """Copies of the quantized weights, their alpha and beta; the rest of the network."""
    names = [f"{n}.{p}" for n in "36" for p in ("weight", *map("weight_quantizer.".__add__, AB))]
    parameters = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    return {name: parameters.pop(name) for name in names}, parameters


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
    for weight, quantizer in quantized_weights(model):
        weight.requires_grad_(False)
        quantizer.requires_grad_(False)
    settings = settings.model_copy(update={"frozen_epochs": 0, "epochs": 2})
    annealed = [q for _, q in quantizers(model)]
    frozen = Trainer(model, settings, data, CPU, phase="x", seed=0, annealed=annealed)
    assert rows[:2] == frozen.fit().rows


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("killed_after", [1, 2, 3, 4])
def test_a_run_cut_short_in_either_phase_ends_the_same(
    optimizer, killed_after, two_phases, data, tmp_path
):
    settings = two_phases(optimizer=optimizer)
    whole = soft_weights(settings, data)
    expected = whole.fit()

    def kill(history):
        if len(history.rows) == killed_after:
            raise Killed

    resume = ResumeFile(tmp_path / "run.safetensors")
    with pytest.raises(Killed):
        soft_weights(settings, data).fit(resume, kill)
    resumed = soft_weights(settings, data)

    assert resumed.fit(resume) == expected
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    ours, theirs = (optimizer_tensors(run.optimizer) for run in (whole, resumed))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_damaged_resume_file_is_a_fresh_start(params, data, tmp_path):
    resume = ResumeFile(tmp_path / "run.safetensors")
    resume.path.write_bytes(b"\x10\x00\x00\x00")
    assert trainer("fp", params("fp"), data).fit(resume) == trainer("fp", params("fp"), data).fit()


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


def test_the_model_ends_with_the_selected_epochs_weights(params, data):
    states = []
    run = trainer("fp", params("fp"), data)
    history = run.fit(
        on_epoch=lambda h: states.append({k: v.clone() for k, v in run.model.state_dict().items()})
    )
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, states[history.best_epoch - 1][name])


def test_a_loss_that_is_not_finite_names_the_learning_rate(params, data):
    run = trainer("fp", params("fp", lr=1e30, clip_norm=0.0), data)
    with pytest.raises(UserError, match=r"x\.lr is 1e\+30: the loss is .* in epoch"):
        run.fit()


def test_frozen_batch_norm(params, data):
    run = trainer("weights", params("weights", freeze_bn_affine=True, freeze_bn_stats=True), data)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.fit()
    after = run.model.state_dict()
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["0.weight"], after["0.weight"])


def test_batch_norm_needs_more_than_one_image(params, tiny_info, tiny_split):
    one = Batches(tiny_split(3, 0), tiny_info, batch_size=1, device="cpu")
    settings = params("weights", epochs=1, warmup_epochs=0, batch_size=1)
    with pytest.raises(UserError, match=r"x\.batch_size is 1; batch norm needs .* at least 2"):
        trainer("weights", settings, TrainingData(one, one))
    kept = settings.model_copy(update={"freeze_bn_stats": True})
    assert len(trainer("weights", kept, TrainingData(one, one)).fit().rows) == 1


def test_nesterov_without_momentum_is_plain(params, data):
    settings = params("fp", epochs=0, momentum=0.0, nesterov=True)
    assert trainer("fp", settings, data).fit().rows == []


def test_batch_norm_is_measured_when_the_weights_are_final(params, data):
    states = []
    for images in (0, 16, 1000):
        run = trainer("weights", params("weights", bn_images=images), data)
        run.fit()
        assert not any(module.training for module in run.model.modules())
        states.append(run.model.state_dict())
    kept, once, many = states
    for name, tensor in kept.items():
        measured = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(tensor, many[name]) != measured, name
    assert not torch.equal(once["1.running_mean"], many["1.running_mean"])
    frozen = trainer("weights", params("weights", bn_images=1000, freeze_bn_stats=True), data)
    frozen.fit()
    assert frozen.model.state_dict()["1.num_batches_tracked"] == 0


def test_measured_batch_norm_is_the_average_over_the_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2, momentum=0.3), nn.BatchNorm1d(2)).train()
    batches = [torch.randn(5, 2) * 3 + 1 for _ in range(4)]
    measure_batch_norm(model, iter(batches))
    first = model[1]
    for name, moment in (("running_mean", Tensor.mean), ("running_var", Tensor.var)):
        expected = torch.stack([moment(batch, dim=0) for batch in batches]).mean(dim=0)
        torch.testing.assert_close(getattr(first, name), expected)
    assert first.momentum == 0.3
    assert not any(module.training for module in model.modules())


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
    run._train_mode(0)
    run._step(*next(iter(run.data.train.ordered())), Scores())
    shares = [scale.item() / start for scale, start in zip(scales, before, strict=True)]
    assert min(shares) == pytest.approx(0.01)
    assert all(share > 0 for share in shares)


def test_distillation_needs_a_teacher_and_follows_it(params, data):
    settings = params("weights", distillation=1.0, epochs=8)
    with pytest.raises(ValueError, match="no teacher"):
        trainer("weights", settings, data)
    teacher = trainer("fp", params("fp", epochs=12), data)
    teacher.fit()
    history = trainer("weights", settings, data, teacher=teacher.model).fit()
    assert history.rows[-1]["train_loss"] < history.rows[0]["train_loss"]
    assert history.rows[-1]["validation_top1"] > 80


def test_relus_before_binary_activations_are_left_out_only_while_training(params, data):
    for bits, skipped in ((1, ["2", "5"]), (2, [])):
        model = model_of("activations", bits)
        settings = params("activations", epochs=2)
        Trainer(model, settings, data, CPU, phase="x", seed=0).fit()
        found = [name for name, module in model.named_modules() if isinstance(module, SkippedReLU)]
        assert found == skipped
        deployed = model_of("activations", bits).eval()
        deployed.load_state_dict(model.state_dict())
        images, _ = next(iter(data.validation.ordered()))
        assert torch.equal(model(images), deployed(images))


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
    together = alike(model)
    run = Trainer(
        model, settings, TrainingData(batches, batches), META, phase="x", seed=0, teacher=teacher
    )
    run.together = together
    scores = Scores()
    for step, (images, labels) in enumerate(batches.epoch(torch.Generator())):
        with NoWaiting():
            set_learning_rate(run.optimizer, 0.1 / (step + 1))
            run._step(images, labels, scores)
    assert scores.count == 32
    assert scores.sums.device == META.device


def test_a_network_is_compiled_once_whatever_t_is(params, data, monkeypatch):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    # A small rate: a rounding error grows a thousandfold an epoch at a large one.
    settings = params("activations", forward="soft", backward_temperature="exact", lr=0.005)

    def soft(runtime):
        run = trainer("activations", settings, data, runtime)
        for quantizer in run.annealed:
            quantizer.forward_mode, quantizer.backward_temperature = "soft", None
        return run

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
