"""An ImageNet tree is listed completely or refused in one line; only names and sizes are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qnet.data import DatasetInfo, Listing, load_info, prepare_imagenet, save_manifest
from qnet.data.manifest import has_manifest, load_listing
from qnet.errors import UserError
from tests.pictures import WNIDS, write_tree


def listed(root: Path, **changes: Any) -> tuple[DatasetInfo, dict[str, Listing], list[str]]:
    arguments = {"size": None, "channels": None, "validation": 0.25, "seed": 0}
    return prepare_imagenet(root, **{**arguments, **changes})


def names(listing: Listing) -> list[str]:
    return [name.decode() for name in listing.paths]


def refused(root: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        listed(root, **changes)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture(params=[False, True], ids=["folders", "lists"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_tree(tmp_path / "imagenet", flat=request.param)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "imagenet", flat=True)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_both_forms_are_listed_alike(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", None)
    info, splits, notes = listed(tree)
    assert info.classes == WNIDS
    assert (info.name, info.size, info.channels, info.flip) == ("imagenet", 224, 3, True)
    assert info.mean == (0.485, 0.456, 0.406)
    assert info.counts == {"train": 27, "validation": 9, "test": 12}
    assert notes == []
    for name in ("train", "validation"):
        for path, label in zip(names(splits[name]), splits[name].labels, strict=True):
            assert path.startswith(f"train/{WNIDS[label]}/")
        assert splits[name].labels.bincount().tolist() == [info.counts[name] // 3] * 3
    assert not set(names(splits["train"])) & set(names(splits["validation"]))
    assert all(name.startswith("val/") for name in names(splits["test"]))
    assert splits["test"].labels.bincount().tolist() == [4, 4, 4]
    for split in splits.values():
        sizes = [Path(split.path(place)).stat().st_size for place in range(len(split))]
        assert split.sizes.tolist() == sizes


def test_the_seed_chooses(tree: Path) -> None:
    first, again, other = (listed(tree, seed=seed)[1]["train"] for seed in (0, 0, 1))
    assert first.checksum() == again.checksum()
    assert names(first) != names(other)


def test_the_labels_of_the_lists_hold(flat: Path) -> None:
    swap = {"0": "2", "1": "0", "2": "1"}
    for name in ("train.txt", "val.txt"):
        lines = (flat / name).read_text().splitlines()
        (flat / name).write_text("".join(f"{line[:-1]}{swap[line[-1]]}\r\n" for line in lines))
    info, splits, _ = listed(flat)
    assert info.classes == (WNIDS[1], WNIDS[2], WNIDS[0])
    for path, label in zip(names(splits["train"]), splits["train"].labels, strict=True):
        assert path.split("/")[1] == info.classes[label]


def test_without_train_txt_labels_are_the_places_of_the_folders(flat: Path) -> None:
    (flat / "train.txt").unlink()
    info, splits, _ = listed(flat)
    assert info.classes == WNIDS
    assert len(splits["train"]) + len(splits["validation"]) == 36


def test_train_txt_may_leave_pictures_out(flat: Path) -> None:
    lines = (flat / "train.txt").read_text().splitlines()
    (flat / "train.txt").write_text("\n".join(lines[::2]))
    info, _, notes = listed(flat)
    assert info.counts["train"] + info.counts["validation"] == 18
    assert notes == [f"images ignored, as they are not in {flat / 'train.txt'}: 18"]


def test_val_txt_may_leave_pictures_out(flat: Path) -> None:
    (flat / "val" / "left.JPEG").write_bytes(next((flat / "val").iterdir()).read_bytes())
    assert listed(flat)[2] == [f"images ignored, as they are not in {flat / 'val.txt'}: 1"]


def test_lists_beside_class_folders_are_not_used(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    (root / "val.txt").write_text("nonsense")
    assert listed(root)[2] == [f"{root / 'val.txt'} is not used: val has class folders"]


def test_other_files_are_passed_over(tree: Path) -> None:
    (tree / "train" / WNIDS[0] / "list.csv").write_text("x")
    (tree / "train" / WNIDS[0] / "._n01440764_1.JPEG").write_text("x")
    (tree / "train" / ".cache").mkdir()
    (tree / "train" / WNIDS[1] / f"{WNIDS[1]}_0.JPEG").write_bytes(b"")
    info, _, notes = listed(tree)
    assert info.counts["train"] + info.counts["validation"] == 36
    assert [note.split(" are ")[0] for note in notes] == ["1 files", "1 files"]
    assert "list.csv" in notes[0]


def test_progress_reaches_the_end(tree: Path) -> None:
    told: list[tuple[int, int]] = []
    listed(tree, progress=lambda *done: told.append(done))
    assert told[-1] == (48, 48)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_the_root(tmp_path: Path) -> None:
    assert refused(tmp_path / "none").startswith(f"data.root: {tmp_path / 'none'} is not a folder:")
    assert "has no folder train: it must hold train/<wnid>/" in refused(tmp_path)
    (tmp_path / "train").mkdir()
    assert "has no folder val: it must" in refused(tmp_path)
    (tmp_path / "val").mkdir()
    assert "train: has 0 class folders, and at least two are needed" in refused(tmp_path)


def test_gray_is_refused(tree: Path) -> None:
    assert refused(tree, channels=1).startswith("data.channels: 1 is not possible with imagenet")


def test_an_empty_class(tree: Path) -> None:
    (tree / "train" / "n09999999").mkdir()
    if not (tree / "val.txt").exists():
        assert "val: lacks the class folder n09999999" in refused(tree)
        (tree / "val" / "n09999999").mkdir()
    assert "n09999999: holds no images" in refused(tree)


def test_a_class_missing_in_train(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    (root / "val" / "n1").mkdir()
    assert "train: lacks the class folder n1 that" in refused(root)


def test_an_empty_flat_val(flat: Path) -> None:
    for path in (flat / "val").iterdir():
        path.unlink()
    assert "val: holds no images" in refused(flat)
    (flat / "val.txt").unlink()
    assert "val: has no class folders, and" in refused(flat)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("val.txt", "_00000001.JPEG", "_9.JPEG", "line 5 names ILSVRC2012_val_9.JPEG, which is no"),
        ("train.txt", "_1.JPEG", "_99.JPEG", "line 2 names n01440764/n01440764_99.JPEG, which is"),
        (
            "val.txt",
            "00.JPEG 0",
            "00.JPEG 3",
            "line 1 has the label 3: labels are 0 to 2, as train",
        ),
        ("train.txt", "_0.JPEG 0", "_0.JPEG -1", "line 1 has the label -1: labels are 0 to 2, as"),
        ("train.txt", "_0.JPEG 0", "_0.JPEG --1", "_0.JPEG --1': it must be `name label`"),
        ("val.txt", " 0", "", "line 1 is 'ILSVRC2012_val_00000000.JPEG': it must be `name label`"),
        ("val.txt", " 0", " cat", "line 1 is 'ILSVRC2012_val_00000000.JPEG cat': it must be"),
        ("train.txt", "_1.JPEG", "_0.JPEG", "line 2 names n01440764/n01440764_0.JPEG again"),
        ("train.txt", "_1.JPEG 0", "_1.JPEG 1", "label 1 has more than one folder: a class"),
    ],
)
def test_a_bad_line(flat: Path, file: str, old: str, new: str, words: str) -> None:
    edit(flat / file, old, new)
    message = refused(flat)
    assert message.startswith(str(flat / file))
    assert words in message


def test_a_label_with_two_folders(flat: Path) -> None:
    text = (flat / "train.txt").read_text()
    (flat / "train.txt").write_text(text.replace(" 1\n", " 0\n"))
    assert "train.txt: label 0 has more than one folder" in refused(flat)


@pytest.mark.parametrize("file", ["train.txt", "val.txt"])
def test_a_class_or_all_missing_in_a_list(flat: Path, file: str) -> None:
    lines = (flat / file).read_text().splitlines()
    (flat / file).write_text("\n".join(line for line in lines if not line.endswith(" 1")))
    assert f"{file}: names no image of {WNIDS[1]}" in refused(flat)
    (flat / file).write_text("\n")
    assert f"{file}: is empty" in refused(flat)


# The manifest


def test_the_way_back(tree: Path, tmp_path: Path) -> None:
    info, splits, _ = listed(tree, size=32)
    save_manifest(tmp_path / "prepared", info, splits)
    assert has_manifest(tmp_path / "prepared")
    assert load_info(tmp_path / "prepared") == info
    for name, split in splits.items():
        found = load_listing(tmp_path / "prepared", name)
        assert names(found) == names(split)
        assert torch.equal(found.labels, split.labels)
        assert found.sizes.tolist() == split.sizes.tolist()
    for path in (tmp_path / "prepared").glob("*.npy"):
        np.load(path, allow_pickle=False)


def test_the_same_tree_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_manifest(tmp_path / name, *listed(tree)[:2])
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_an_interrupt_leaves_nothing_half_written(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    info, splits, _ = listed(tree)
    monkeypatch.setattr(json, "dumps", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_manifest(tmp_path / "data" / "prepared", info, splits)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_damaged_manifest(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    save_manifest(folder, *listed(tree)[:2])
    sizes = np.load(folder / "train_bytes.npy")
    np.save(folder / "train_bytes.npy", sizes + 1)
    with pytest.raises(UserError, match=r"train files beside it do not match its checksum"):
        load_listing(folder, "train")
    tree.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"data\.root: .* is not there: put it back"):
        load_listing(folder, "test")
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"manifest\.json: missing or damaged"):
        load_listing(folder, "test")


def test_a_link_to_nothing_is_named_and_not_left_out(tree: Path) -> None:
    (tree / "train" / WNIDS[0] / "gone.JPEG").symlink_to("nowhere.JPEG")
    assert "gone.JPEG: cannot be accessed (No such file or directory)" in refused(tree)


def test_a_checksum_depends_on_labels_and_sizes(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "imagenet")
    listing = prepare_imagenet(root, size=32, channels=None, validation=0.25, seed=0)[1]["train"]
    sums = {
        listing.checksum(),
        replace(listing, labels=listing.labels.flip(0)).checksum(),
        replace(listing, sizes=listing.sizes + 1).checksum(),
    }
    assert len(sums) == 3
