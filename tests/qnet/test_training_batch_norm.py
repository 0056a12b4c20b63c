"""Batch norm in training, and measured when the weights are final."""

import pytest
import torch
from torch import Tensor, nn

from qnet.batch_norm import is_plain, synchronise_batch_norm
from qnet.bn_statistics import measure_batch_norm
from qnet.data import Batches
from qnet.errors import UserError
from qnet.runtime import Runtime
from qnet.training import TrainingData
from tests.trainers import model_of, trainer, trainer_of


def test_frozen_batch_norm_stays_as_it_is(params, data):
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
    none = trainer("weights", params("weights", bn_images=1000, epochs=0), data)
    none.fit()
    assert none.model.state_dict()["1.num_batches_tracked"] == 0
    assert frozen.model.state_dict()["1.num_batches_tracked"] == 0


def test_measured_batch_norm_is_the_average_over_the_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2, momentum=0.3), nn.BatchNorm1d(2)).train()
    batches = [torch.randn(5, 2) * 3 + 1 for _ in range(4)]
    for norm in (model[1], model[2]):  # its previous value does not count
        norm.num_batches_tracked.fill_(1000)
        norm.running_mean.fill_(5)
    measure_batch_norm(model, iter(batches))
    first = model[1]
    for name, moment in (("running_mean", Tensor.mean), ("running_var", Tensor.var)):
        expected = torch.stack([moment(batch, dim=0) for batch in batches]).mean(dim=0)
        torch.testing.assert_close(getattr(first, name), expected)
    assert first.momentum == 0.3
    assert not any(module.training for module in model.modules())


def test_batch_norm_that_is_not_called_keeps_its_statistics():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.only_in_training = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.norm(x)

    model = Auxiliary()
    model.only_in_training(torch.randn(5, 2) + 3)
    before = {name: value.clone() for name, value in model.only_in_training.state_dict().items()}
    measure_batch_norm(model, [torch.randn(5, 2)])
    torch.testing.assert_close(model.only_in_training.state_dict(), before, rtol=0, atol=0)
    assert model.norm.num_batches_tracked == 1


class KeepsStatistics(nn.Module):
    """A network whose own `train` keeps its first batch norm in eval mode."""

    def __init__(self):
        super().__init__()
        self.layers = model_of("weights")

    def forward(self, images):
        return self.layers(images)

    def train(self, mode=True):
        super().train(mode)
        self.layers[1].eval()
        return self


def test_batch_norm_that_the_network_keeps_in_eval_mode_is_not_measured(params, data):
    run = trainer_of(KeepsStatistics(), params("weights", bn_images=1000), data)
    kept, learns = run.model.layers[1], run.model.layers[4]
    before = kept.running_mean.clone(), learns.running_mean.clone()
    run.fit()
    assert kept.num_batches_tracked == 0
    assert torch.equal(kept.running_mean, before[0])
    assert not torch.equal(learns.running_mean, before[1])


def test_several_processes_refuse_batch_norm_with_a_forward_of_its_own():
    class Activated(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    with pytest.raises(UserError, match=r"runtime\.processes: 1 \(Activated\)"):
        synchronise_batch_norm(nn.Sequential(nn.BatchNorm2d(3), Activated(3)))


def test_several_processes_take_synchronised_batch_norm_of_torch():
    model = nn.Sequential(nn.SyncBatchNorm(3))
    synchronise_batch_norm(model)
    synchronise_batch_norm(model)  # a second time changes nothing
    assert is_plain(model[0])
    assert model.eval()(torch.ones(1, 3, 2, 2)).shape == (1, 3, 2, 2)


def test_batch_norm_is_measured_in_float32_on_no_fewer_images(params, data, monkeypatch):
    mixed = Runtime(torch.device("cpu"), mixed=True)
    measure, seen = measure_batch_norm, []

    def watched(model, batches):
        hook = model[3].register_forward_hook(
            lambda layer, inputs, output: seen.append((output.dtype, len(output)))
        )
        measure(model, batches)
        hook.remove()

    monkeypatch.setattr("qnet.training.measure_batch_norm", watched)
    trainer("weights", params("weights", epochs=1, bn_images=40), data, mixed).fit()
    assert seen == [(torch.float32, 16)] * 3
