"""What training stages train on, what they resume, and from whom they learn."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import qnet.resume
import stages.data
import stages.training
from qnet.checkpoint import Checkpoint, load_checkpoint, load_model, save_checkpoint
from qnet.data import Augment, save_prepared
from qnet.params import load_params
from qnet.runtime import Runtime
from stages.training import TrainingStage
from tests.pipeline import chdir, run, write_params
from tests.tiny import INFO, network, split
from tests.trainers import CPU


def key(folder: Path, mixed: bool = False, **changes: object) -> str:
    """The name of the state from which this run of train_weights resumes."""
    write_params(folder, **changes)
    with chdir(folder):
        checkpoint = Checkpoint(network(3, 1, 8), "tests.tiny:network", INFO)
        runtime = Runtime(torch.device("cpu"), mixed=mixed)
        stage = TrainingStage("weights", load_params(), checkpoint, runtime, Path("w"))
        return stage._key([Path("fp"), Path("clusters")])


def test_a_run_is_named_after_all_that_it_depends_on(tmp_path, monkeypatch):
    files = ("fp", "clusters", "data/prepared/x")
    (tmp_path / "data/prepared").mkdir(parents=True)
    for name in files:
        (tmp_path / name).write_text("1")
    keys = [key(tmp_path)]
    assert key(tmp_path, runtime__threads=2, fp__lr=0.3) == keys[0]  # not read
    for change in ({"weights__lr": 0.3}, {"seed": 1}, {"augment__pad": 0}, {"mixed": True}):
        keys.append(key(tmp_path, **change))
    for name in files:
        (tmp_path / name).write_text("2")
        keys.append(key(tmp_path))
    monkeypatch.setattr(torch, "__version__", "0")
    keys.append(key(tmp_path))
    code = Path(shutil.copytree(Path(qnet.resume.__file__).parent, tmp_path / "qnet"))
    monkeypatch.setattr(qnet.resume, "__file__", str(code / "resume.py"))
    assert key(tmp_path) == keys[-1]
    (code / "fused.py").write_text("#")
    keys.append(key(tmp_path))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("pad", "flip", "expected"),
    [
        ("auto", "auto", Augment(1, False)),
        (3, True, Augment(3, True)),
        (0, False, Augment(0, False)),
    ],
)
def test_images_are_augmented_for_training_only(pad, flip, expected, tmp_path):
    splits = {name: split(count, count) for name, count in INFO.counts.items()}
    splits["validation"] = split(30, 9)
    write_params(
        tmp_path, augment__pad=pad, augment__flip=flip, cluster__images=20, fp__batch_size=10
    )
    save_prepared(tmp_path / "data/prepared", INFO, splits)
    with chdir(tmp_path):
        params = load_params()
        data = stages.data.training_data(params, "fp", INFO, CPU)
        assert data.train.augment == expected
        assert data.test is None

        def sample(params):
            [(images, _)] = stages.data.sample_images(params, INFO, CPU).ordered()
            return images

        images, plain = sample(params), (splits["train"].images / 255 - 0.5) / 0.25
        places = [(plain - image).abs().amax((1, 2, 3)).argmin().item() for image in images]
        assert len(set(places)) == 20
        torch.testing.assert_close(images, plain[places])
        assert torch.equal(sample(params), images)
        assert not torch.equal(sample(params.model_copy(update={"seed": 1})), images)


@pytest.mark.parametrize("stage", ["train_weights", "train_activations"])
def test_the_teacher_is_the_full_precision_network(stage, workspace, monkeypatch):
    teachers, real = [], stages.training.Trainer

    def watched(*arguments, teacher=None, **options):
        teachers.append({name: value.clone() for name, value in teacher.state_dict().items()})
        return real(*arguments, teacher=teacher, **options)

    monkeypatch.setattr(stages.training, "Trainer", watched)
    run(stage, workspace)
    expected = load_model(workspace / "checkpoints/fp.safetensors").state_dict()
    torch.testing.assert_close(teachers, [expected], rtol=0, atol=0)


def test_a_teacher_of_other_images_is_refused(workspace):
    path = workspace / "checkpoints/fp.safetensors"
    taught = load_checkpoint(path)
    other = replace(taught.dataset, size=2 * taught.dataset.size)
    save_checkpoint(path, replace(taught, dataset=other))
    output = run("train_activations", workspace, status=2).strip()
    assert "they differ in size; set data to what it was trained on" in output
    assert "\n" not in output
