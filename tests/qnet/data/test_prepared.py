"""Prepared data is read as it was written, completely or not at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qnet.data.dataset import DatasetInfo, Split
from qnet.data.prepared import SPLITS, load_info, load_split, save_prepared
from qnet.errors import UserError

INFO = DatasetInfo(
    name="image_folder",
    classes=("chat", "être", "犬"),
    size=5,
    channels=3,
    mean=(0.1, 1 / 3, 0.9),
    std=(0.2, 0.25, 1 / 7),
    counts={"train": 12, "validation": 4, "test": 6},
    flip=True,
)


def some_splits(info: DatasetInfo = INFO, seed: int = 0) -> dict[str, Split]:
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> Split:
        shape = (count, info.channels, info.size, info.size)
        return Split(
            torch.randint(256, shape, generator=generator, dtype=torch.uint8),
            torch.randint(len(info.classes), (count,), generator=generator),
        )

    return {name: split(info.counts[name]) for name in SPLITS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_prepared(tmp_path / "data" / "prepared", INFO, some_splits())
    return tmp_path / "data" / "prepared"


def test_round_trip(folder: Path) -> None:
    assert load_info(folder) == INFO
    for name, split in some_splits().items():
        loaded = load_split(folder, name)
        assert torch.equal(loaded.images, split.images)
        assert torch.equal(loaded.labels, split.labels)
        assert loaded.images.dtype == torch.uint8
        assert loaded.labels.dtype == torch.int64
        assert len(loaded) == INFO.counts[name]


def test_nothing_else_is_left(folder: Path) -> None:
    assert [path.name for path in folder.parent.iterdir()] == ["prepared"]
    arrays = {f"{name}_{kind}.npy" for name in SPLITS for kind in ("images", "labels")}
    assert {path.name for path in folder.iterdir()} == arrays | {"dataset.json"}


def test_same_splits_same_bytes_whatever_their_layout(folder: Path, tmp_path: Path) -> None:
    strided = {
        name: Split(split.images.contiguous(memory_format=torch.channels_last), split.labels)
        for name, split in some_splits().items()
    }
    save_prepared(tmp_path / "again", INFO, strided)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_an_old_folder_is_replaced(folder: Path) -> None:
    (folder / "stale.npy").write_bytes(b"old")
    save_prepared(folder, INFO, some_splits(seed=1))
    assert not (folder / "stale.npy").exists()
    assert torch.equal(load_split(folder, "test").images, some_splits(seed=1)["test"].images)


def test_an_interrupted_write_keeps_the_old_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    save = np.save

    def stop_halfway(path: Path, array: np.ndarray) -> None:
        if path.name.startswith("test"):
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(np, "save", stop_halfway)
    with pytest.raises(KeyboardInterrupt):
        save_prepared(folder, INFO, some_splits(seed=1))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["prepared"]


def test_an_old_folder_that_cannot_be_replaced_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError("busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(UserError, match="cannot be written"):
        save_prepared(folder, INFO, some_splits(seed=1))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["prepared"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        save_prepared(tmp_path / "file" / "prepared", INFO, some_splits())


@pytest.mark.parametrize("name", ["dataset.json", "train_images.npy", "train_labels.npy"])
@pytest.mark.parametrize(
    "damage", ["missing", "empty", "truncated", "header", "noise", "archive", "bracket", "key"]
)
def test_damaged_files_are_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        kept = {
            "empty": b"",
            "truncated": content[:-3],
            "header": content[:20],
            "noise": b"\x93NU",
            "archive": b"PK\x03\x04" + content[4:],
            "bracket": content.replace(b"}", b"(", 1),
            "key": content.replace(b"'descr'", b"1234567", 1).replace(b"{", b"[", 1),
        }
        path.write_bytes(kept[damage])
    with pytest.raises(UserError) as caught:
        load_split(folder, "train")
    message = str(caught.value)
    assert str(path) in message
    assert "dvc repro prepare" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("train_images.npy", np.zeros((12, 3, 5, 5), np.float32)),
        ("train_images.npy", np.zeros((12, 3, 5, 4), np.uint8)),
        ("train_images.npy", np.zeros((11, 3, 5, 5), np.uint8)),
        ("train_labels.npy", np.zeros(12, np.int32)),
        ("train_labels.npy", np.zeros((12, 1), np.int64)),
        ("train_labels.npy", np.full(12, 3)),
        ("train_labels.npy", np.full(12, -1)),
    ],
)
def test_arrays_that_do_not_fit(folder: Path, name: str, array: np.ndarray) -> None:
    np.save(folder / name, array)
    with pytest.raises(UserError, match=rf"{name}: holds .*dvc repro prepare"):
        load_split(folder, "train")


def test_nothing_is_unpickled(folder: Path) -> None:
    np.save(folder / "train_labels.npy", np.array([{}] * 12, dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="train_labels"):
        load_split(folder, "train")


def test_an_archive_is_not_an_array(folder: Path) -> None:
    with (folder / "train_images.npy").open("wb") as file:
        np.savez(file, a=np.zeros(1), b=np.zeros(1))
    with pytest.raises(UserError, match="several arrays"):
        load_split(folder, "train")


def test_unknown_split(folder: Path) -> None:
    with pytest.raises(UserError, match="has no split 'dev', only train, validation, test"):
        load_split(folder, "dev")


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", "large"), ("counts", None), ("mean", [0.5]), ("std", [1, 1]), ("classes", 3)],
)
def test_descriptions_that_are_wrong(folder: Path, field: str, value: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), field: value}))
    with pytest.raises(UserError, match=r"dataset\.json.*dvc repro prepare"):
        load_info(folder)


def test_a_description_that_lacks_a_field() -> None:
    fields = INFO.to_dict()
    del fields["flip"]
    with pytest.raises(ValueError, match="flip"):
        DatasetInfo.from_dict(fields)


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        ("std", [0.0], r"std \(0\.0,\) must be above zero"),
        ("classes", ["a", "a"], r"classes \('a', 'a'\) must have different names"),
    ],
)
def test_an_impossible_description(field: str, values: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DatasetInfo.from_dict(
            {**INFO.to_dict(), "channels": 1, "mean": [0.5], "std": [0.5]} | {field: values}
        )


units = st.floats(min_value=0, max_value=1, allow_subnormal=True)
above_zero = st.floats(min_value=0, max_value=1, exclude_min=True, allow_subnormal=True)


@given(
    classes=st.lists(st.text(), min_size=1, max_size=4, unique=True).map(tuple),
    statistics=st.lists(st.tuples(units, above_zero), min_size=1, max_size=3),
    flip=st.booleans(),
)
def test_info_survives_json_exactly(
    classes: tuple[str, ...], statistics: list[tuple[float, float]], flip: bool
) -> None:
    info = dataclasses.replace(
        INFO,
        classes=classes,
        channels=len(statistics),
        mean=tuple(mean for mean, _ in statistics),
        std=tuple(std for _, std in statistics),
        flip=flip,
    )
    assert DatasetInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
