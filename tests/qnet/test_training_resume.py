"""An interrupted run resumes as if it had not been interrupted."""

import pytest
import torch

from qnet.quantizer import quantizers
from qnet.resume import ResumeFile, optimizer_tensors
from tests.trainers import kill_after, soft_weights, trainer


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("kind", ["fp", "weights", "activations"])
@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_run_cut_short_ends_as_an_uninterrupted_one(
    kind, optimizer, killed_after, params, data, tmp_path
):
    settings = params(kind, optimizer=optimizer)
    whole = trainer(kind, settings, data)
    expected = whole.fit()

    resume = ResumeFile(tmp_path / "run.safetensors")
    kill_after(trainer(kind, settings, data), resume, epochs=killed_after)
    resumed = trainer(kind, settings, data)
    history = resumed.fit(resume)

    assert history == expected
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_dropout_goes_on_as_if_the_run_had_not_been_cut(params, data, tmp_path):
    settings = params("fp", epochs=3, select_on="last")

    def run():
        made = trainer("fp", settings, data)
        made.model[10] = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5))
        return made

    expected = run().fit()
    resume = ResumeFile(tmp_path / "run.safetensors")
    kill_after(run(), resume, epochs=1)
    torch.manual_seed(7)  # other code's random draws make no difference
    assert run().fit(resume) == expected


def test_scales_that_stay_have_no_part_in_clipping_or_resuming(params, data, tmp_path):
    settings = params("activations", scale_lr=0.0, clip_norm=0.1)
    whole = trainer("activations", settings, data)
    expected = whole.fit()
    fixed = trainer("activations", settings, data)
    for _, quantizer in quantizers(fixed.model):
        quantizer.requires_grad_(False)
    assert fixed.fit() == expected
    resume = ResumeFile(tmp_path / "run.safetensors")
    kill_after(trainer("activations", settings, data), resume, epochs=1)
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


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("killed_after", [1, 2, 3, 4])
def test_a_run_cut_short_in_either_phase_ends_the_same(
    optimizer, killed_after, two_phases, data, tmp_path
):
    settings = two_phases(optimizer=optimizer)
    whole = soft_weights(settings, data)
    expected = whole.fit()

    resume = ResumeFile(tmp_path / "run.safetensors")
    kill_after(soft_weights(settings, data), resume, epochs=killed_after)
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
