"""`python -m stages.evaluate`: the same figures from a split, a folder and the library."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from qnet import Quantizer, activation_levels, insert_quantizers, weight_levels
from qnet.checkpoint import Checkpoint, save_checkpoint
from qnet.data import Batches, save_prepared
from qnet.evaluation import evaluate_classes
from tests.pipeline import refused, run, write_params
from tests.tiny import network
from tests.trainers import CPU

CHECKPOINT = "checkpoints/fp.safetensors"


@pytest.fixture
def fill(tmp_path, tiny_info, tiny_split):
    """Write params.yaml, prepared data and a network for `classes` to a folder."""

    def fill(classes=("a", "b", "c"), seed=0):
        torch.manual_seed(seed)
        info = replace(tiny_info, classes=classes)
        splits = {name: tiny_split(count, count) for name, count in info.counts.items()}
        splits["validation"] = tiny_split(30, 7)
        checkpoint = Checkpoint(network(len(classes), 1, 8).eval(), "tests.tiny:network", info)
        write_params(tmp_path)
        save_prepared(tmp_path / "data" / "prepared", info, splits)
        save_checkpoint(tmp_path / CHECKPOINT, checkpoint)
        return checkpoint, splits

    return fill


def write_images(folder: Path, split, classes) -> None:
    for number, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        path = folder / classes[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_is_scored_as_the_library_does(split, fill, tmp_path):
    checkpoint, splits = fill()
    output = run("evaluate", tmp_path, CHECKPOINT, "--split", split, "--json", "out/scores.json")
    found = json.loads((tmp_path / "out" / "scores.json").read_text())
    batches = Batches(splits[split], checkpoint.dataset, batch_size=500, device="cpu")
    scores, actual, predicted = evaluate_classes(checkpoint.model, batches, CPU)
    for name, value in scores.items():
        assert found[name] == pytest.approx(value, rel=1e-5)
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    for pair in zip(actual, predicted, strict=True):
        confusion[pair] += 1
    assert found["confusion"] == confusion.tolist()
    assert found["images"] == len(splits[split])
    assert found["data"] == f"data/prepared, {split}"
    assert found["classes"]["b"]["images"] == len(splits[split]) // 3
    right = 100 * confusion[1, 1] / confusion[1].sum()
    assert found["classes"]["b"]["top1"] == pytest.approx(right.item(), rel=1e-5)
    assert f"data/prepared, {split}: {len(splits[split])} images" in output


def test_it_scores_in_float32_whatever_it_trained_in(fill, tmp_path):
    fill()
    found = []
    for precision in ("float32", "bfloat16"):
        write_params(tmp_path, runtime__precision=precision)
        run("evaluate", tmp_path, CHECKPOINT, "--split", "test", "--json", "scores.json")
        found.append(json.loads((tmp_path / "scores.json").read_text()))
    assert found[0] == found[1]


def test_in_integers_it_scores_the_same(fill, tmp_path):
    checkpoint, _ = fill()
    insert_quantizers(
        checkpoint.model,
        weights={"3": Quantizer(weight_levels(2), alpha=0.1, beta=10.0)},
        activations={"3": Quantizer(activation_levels(2), alpha=0.3, beta=3.0)},
    )
    save_checkpoint(tmp_path / CHECKPOINT, checkpoint)
    expected = run("evaluate", tmp_path, CHECKPOINT).splitlines()
    found = run("evaluate", tmp_path, CHECKPOINT, "--int8").splitlines()
    assert found[0] == f"{expected[0]}, in 8-bit integers"
    assert found[1:] == expected[1:]


def test_full_precision_has_no_integers(fill, tmp_path):
    fill()
    assert "error: to_int8: no layer of the network has" in refused(
        "evaluate", tmp_path, CHECKPOINT, "--int8"
    )


def test_the_table_is_aligned(fill, tmp_path):
    fill(("ant", "a very long name", "bee"))
    blocks = [block.splitlines() for block in run("evaluate", tmp_path, CHECKPOINT).split("\n\n")]
    title, scores, classes, confusion = blocks
    assert title[0] == "checkpoints/fp.safetensors: tests.tiny:network, 3 classes"
    assert title[1] == "data/prepared, test: 30 images"
    assert [line.split()[0] for line in scores] == ["loss", "top-1", "top-5"]
    assert len({line.index(".") for line in scores[1:]}) == 1
    assert len({len(line) for line in classes}) == 1
    assert classes[2].startswith("1 a very long name       10  ")
    assert confusion[0] == "confusion: a row for each true class, a column for each predicted one"
    assert len({len(line) for line in confusion[1:]}) == 1
    assert [sum(map(int, line.split()[-3:])) for line in confusion[2:]] == [10, 10, 10]


def test_many_classes_show_the_most_frequent_confusions(fill, tmp_path):
    fill(tuple(f"class{number}" for number in range(25)))
    output = run("evaluate", tmp_path, CHECKPOINT, "--json", "scores.json")
    confusion = torch.tensor(json.loads((tmp_path / "scores.json").read_text())["confusion"])
    wrong = confusion.fill_diagonal_(0)
    title, head, *lines = output.split("\n\n")[-1].splitlines()
    assert title == f"the most frequent of {(wrong > 0).sum()} confusions"
    counts = [int(line.split()[4]) for line in lines]
    assert (
        counts
        == wrong.flatten().sort(descending=True).values[:10].clamp(min=0).tolist()[: len(counts)]
    )
    assert len(counts) == min(10, (wrong > 0).sum())
    first = divmod(int(wrong.argmax()), 25)
    assert lines[0].split()[:4:2] == [str(number) for number in first]
    assert len({len(line) for line in [head, *lines]}) == 1
    empty = next(line for line in output.splitlines() if "class24" in line)
    assert empty.split() == ["24", "class24", "0", "-"]  # no image, no share


@pytest.mark.parametrize("classes", [("a", "b", "c"), ("c", "a", "b")])
def test_a_folder_gives_what_its_images_give_as_a_split(classes, fill, tmp_path):
    _, splits = fill(classes)
    write_images(tmp_path / "images", splits["test"], classes)
    run("evaluate", tmp_path, CHECKPOINT, "--json", "split.json")
    run("evaluate", tmp_path, CHECKPOINT, "--folder", "images", "--json", "folder.json")
    split, folder = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("split", "folder"))
    assert folder.pop("data") == "images"
    assert folder.pop("loss") == pytest.approx(split.pop("loss"), rel=1e-5)
    del split["data"]
    assert folder == split


def test_images_of_a_folder_become_what_the_network_takes(fill, tmp_path):
    fill()
    for name in "abc":
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (20, 10), "red").save(tmp_path / "images" / name / "1.jpg")
    (tmp_path / "images" / "a" / "notes.txt").touch()
    output = run("evaluate", tmp_path, CHECKPOINT, "--folder", "images")
    assert "evaluate: 3 of 3 images are not 8×8: scaled to it" in output
    assert "not named like images: images/a/notes.txt" in output
    assert "images: 3 images" in output


def test_class_folders_that_differ_are_named(fill, tmp_path):
    fill()
    for name in ("a", "c", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
    message = refused("evaluate", tmp_path, CHECKPOINT, "--folder", "images")
    assert "images: lacks b and also has dog: it must hold one folder for each" in message
    assert "nowhere: is not a folder" in refused(
        "evaluate", tmp_path, CHECKPOINT, "--folder", "nowhere"
    )
    (tmp_path / "images" / "dog").rename(tmp_path / "images" / "b")
    assert "images/a: holds no images" in refused(
        "evaluate", tmp_path, CHECKPOINT, "--folder", "images"
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [({"classes": ("a", "c", "b")}, "classes"), ({"size": 16}, "size"), ({"name": "x"}, "")],
)
def test_other_prepared_data_are_refused(change, word, fill, tmp_path):
    checkpoint, _ = fill()
    other = replace(checkpoint, dataset=replace(checkpoint.dataset, **change))
    save_checkpoint(tmp_path / CHECKPOINT, other)
    if word:
        message = refused("evaluate", tmp_path, CHECKPOINT)
        assert f"they differ in {word}; " in message
    else:
        run("evaluate", tmp_path, CHECKPOINT)


def test_a_split_that_was_drawn_otherwise_is_told(fill, tmp_path):
    checkpoint, _ = fill()
    note = "is split differently than when this network was trained: validation may include images"
    assert note not in run("evaluate", tmp_path, CHECKPOINT, "--split", "validation")
    other = replace(checkpoint, dataset=replace(checkpoint.dataset, mean=(0.25,)))
    save_checkpoint(tmp_path / CHECKPOINT, other)
    assert note in run("evaluate", tmp_path, CHECKPOINT, "--split", "validation")
    assert "split differently" not in run("evaluate", tmp_path, CHECKPOINT)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: checkpoint; see python -m stages.evaluate --h"),
        (["a", "b"], "unrecognized arguments: b"),
        (["a", "--split", "tset"], "argument --split: invalid choice: 'tset'"),
        (["a", "--split", "test", "--folder", "b"], "argument --folder: not allowed with"),
        (["nowhere.safetensors"], "nowhere.safetensors does not exist"),
        (["params.yaml"], "params.yaml is not a checkpoint, or not a complete one"),
        (["."], ". is a folder; give a file in it"),
        ([CHECKPOINT, "--json", "params.yaml/x"], "params.yaml is not a writable folder ("),
        ([CHECKPOINT, "--json", "params.yaml"], "--json: params.yaml does not end in .json"),
        ([CHECKPOINT, "--json", "checkpoints"], "checkpoints is a folder; give the name of a file"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, words, fill, tmp_path):
    fill()
    assert words in refused("evaluate", tmp_path, *arguments)  # before any work
