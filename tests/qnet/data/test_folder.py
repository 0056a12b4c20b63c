"""A tree of image files: what is read, in what order, and what is refused."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qnet.data import Raw, load_source
from qnet.data.folder import list_class_folders
from qnet.errors import UserError


def write(path: Path, value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    """Write an image file of uniform gray; `size` is width, height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path)


def load(root: Path, size: int | None = None, channels: int | None = None) -> Raw:
    return load_source("image_folder", root, size=size, channels=channels)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Classes cat and dog; train: 3 and 2 images, test: 1 and 2; gray values number them."""
    root = tmp_path / "pets"
    names = ["train/cat/b.png", "train/cat/a.png", "train/cat/c.png", "train/dog/1.png"]
    names += ["train/dog/0.png", "test/cat/x.png", "test/dog/y.png", "test/dog/z.png"]
    for number, name in enumerate(names):
        write(root / name, number)
    return root


def values(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_classes_and_files_come_in_order_of_their_names(tree: Path) -> None:
    raw = load(tree)
    assert raw.classes == ("cat", "dog")
    assert values(raw.train.images) == [1, 0, 2, 4, 3]
    assert raw.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert values(raw.test.images) == [5, 6, 7]
    assert raw.test.labels.tolist() == [0, 1, 1]
    assert raw.train.images.shape == (5, 3, 8, 8)
    assert raw.train.images.dtype == torch.uint8
    assert raw.train.labels.dtype == torch.int64
    assert raw.flip is True
    assert raw.notes == []


def test_progress_reaches_the_end(tree: Path) -> None:
    told: list[tuple[int, int]] = []
    load_source(
        "image_folder", tree, size=None, channels=None, progress=lambda *done: told.append(done)
    )
    assert told[-1] == (8, 8)


def test_val_stands_in_for_test(tree: Path) -> None:
    expected = load(tree)
    (tree / "test").rename(tree / "val")
    assert torch.equal(load(tree).test.images, expected.test.images)
    shutil.copytree(tree / "val", tree / "test")
    assert "val is not used" in load(tree).notes[0]


def test_hidden_and_nested_files(tree: Path) -> None:
    write(tree / "train/cat/deeper/still/d.png", 99)
    write(tree / "train/cat/.thumbnails/e.png", 100)
    write(tree / "train/.cache/f.png", 101)
    (tree / "train/cat/.DS_Store").write_bytes(b"\0")
    (tree / "train/loose.txt").write_text("not in a class folder")
    raw = load(tree)
    assert values(raw.train.images) == [1, 0, 2, 99, 4, 3]
    assert raw.notes == []


def test_files_that_are_no_images_are_passed_over_with_a_note(tree: Path) -> None:
    (tree / "train/cat/boxes.txt").write_text("1 2 3 4")
    assert load(tree).notes == [
        f"ignored, as they are not named like images: {tree}/train/cat/boxes.txt"
    ]


def test_links_to_folders_are_noted(tree: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    write(more / "x.png", 1)
    (tree / "train/cat/more").symlink_to(more, target_is_directory=True)
    assert load(tree).notes == [
        f"ignored, as links to folders are not followed: {tree}/train/cat/more"
    ]


def test_every_kind_of_file(tree: Path) -> None:
    write(tree / "train/cat/d.JPG", 200)
    write(tree / "train/cat/e.gif", 201, mode="P")
    write(tree / "train/cat/f.webp", 202)
    write(tree / "train/cat/g.bmp", 203)
    write(tree / "train/cat/h.png", 204, mode="RGBA")
    write(tree / "train/cat/i.png", 205, mode="LA")
    write(tree / "train/cat/j.png", 206, mode="1")
    Image.fromarray(np.full((8, 8), 207 * 257, np.uint16)).save(tree / "train/cat/k.png")
    Image.fromarray(np.full((8, 8), 208 * 257, np.uint16)).save(tree / "train/cat/l.tif")
    raw = load(tree)
    expected = [200, 201, 202, 203, 204, 205, 255, 207, 208]
    assert np.abs(np.subtract(values(raw.train.images)[3:12], expected)).max() <= 2  # lossy


def test_the_most_common_size_in_train(tree: Path) -> None:
    write(tree / "train/dog/2.png", 9, size=(12, 20))
    write(tree / "test/dog/w.png", 9, size=(7, 7))
    raw = load(tree)
    assert raw.train.images.shape[2:] == (8, 8)
    assert raw.notes[0].startswith("2 of 10 images are not 8×8")
    assert load(tree, size=7).notes[0].startswith("9 of 10 images are not 7×7")


def test_an_oblong_most_common_size_gives_its_shorter_side(tree: Path) -> None:
    for number in range(4):
        write(tree / f"train/cat/wide{number}.png", size=(10, 6))
        write(tree / f"train/cat/high{number}.png", size=(6, 10))
    assert load(tree).train.images.shape[2:] == (6, 6)


def test_a_most_common_size_that_is_too_small_is_refused(tree: Path) -> None:
    for path in tree.rglob("*.png"):
        write(path, size=(2, 2))
    with pytest.raises(
        UserError, match=r"data\.size is auto, and .* 2 pixels to a side; set it, f"
    ):
        load(tree)


def test_gray_only_if_every_training_image_is(tree: Path) -> None:
    for path in tree.rglob("*.png"):
        write(path, mode="L")
    write(tree / "test/dog/y.png", mode="RGB")
    assert load(tree).train.images.shape[1] == 1
    assert load(tree, channels=3).train.images.shape[1] == 3
    write(tree / "train/cat/z.png", mode="RGB")
    assert load(tree).train.images.shape[1] == 3


def test_photographs_are_turned_upright(tree: Path) -> None:
    left_half = np.zeros((8, 8), np.uint8)
    left_half[:, :4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    Image.fromarray(left_half).save(tree / "train/cat/0.jpg", exif=exif, quality=100)
    image = load(tree).train.images[0, 0]
    assert image[:4].min() > 200
    assert image[4:].max() < 50


@pytest.mark.parametrize("name", ["train/cat/b.png", "test/dog/z.png"])
@pytest.mark.parametrize("damage", ["text", "empty", "truncated"])
def test_an_unreadable_image_is_named(tree: Path, name: str, damage: str) -> None:
    path = tree / name
    noise = np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes({"text": b"hello", "empty": b"", "truncated": content[:90]}[damage])
    with pytest.raises(UserError, match="replace or remove it") as caught:
        load(tree)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_an_image_is_not_blamed_for_the_machine(tree: Path, error: Exception, monkeypatch) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("qnet.data.folder.to_pixels", fail)
    with pytest.raises(type(error)) as caught:
        load(tree)
    assert caught.value is error


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("", "pets is not a folder"),
        ("train", "no folder train"),
        ("test", "no folder test or val"),
        ("test/dog", "test: lacks the class folder dog that .*train has"),
        ("train/cat", "train: lacks the class folder cat that .*test has"),
    ],
)
def test_folders_that_are_missing(tree: Path, remove: str, message: str) -> None:
    shutil.rmtree(tree / remove)
    with pytest.raises(UserError, match=message):
        load(tree)


def test_folders_that_are_empty(tree: Path) -> None:
    for path in (tree / "test/cat").iterdir():
        path.unlink()
    (tree / "test/cat/.hidden.png").write_bytes(b"")
    with pytest.raises(UserError, match="test/cat: holds no images"):
        load(tree)
    shutil.rmtree(tree / "test/cat")
    shutil.rmtree(tree / "test/dog")
    with pytest.raises(UserError, match="test: has no class folders"):
        load(tree)


def test_a_class_whose_name_is_not_utf_8_is_refused(tree: Path) -> None:
    Path(os.fsdecode(os.fsencode(tree / "train") + b"/caf\xe9")).mkdir()
    with pytest.raises(UserError, match=r"train: the name of the class folder 'caf.* rename it"):
        load(tree)


def test_one_class_is_not_enough(tree: Path) -> None:
    shutil.rmtree(tree / "train/dog")
    shutil.rmtree(tree / "test/dog")
    with pytest.raises(UserError, match="at least two"):
        load(tree)


def test_float_images_are_refused(tree: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tree / "train/cat/f.tiff")
    with pytest.raises(UserError, match=r"f\.tiff: cannot be read \(float pixels"):
        load(tree)


def test_a_link_to_nothing_is_named_and_not_left_out(tree: Path) -> None:
    (tree / "train/cat/d.png").symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"train/cat/d\.png: cannot be read .*replace or remove it"):
        load(tree)
    with pytest.raises(UserError, match=r"train/cat/d\.png: cannot be accessed \(No such file"):
        list_class_folders(tree / "train", ["cat", "dog"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
@pytest.mark.parametrize("locked", ["train", "train/cat", "train/cat/deeper"])
def test_a_folder_that_cannot_be_looked_into_is_named(tree: Path, locked: str) -> None:
    write(tree / "train/cat/deeper/e.png")
    (tree / locked).chmod(0)
    try:
        with pytest.raises(UserError, match=rf"{locked}.*: cannot be accessed \(Permission"):
            load(tree)
    finally:
        (tree / locked).chmod(0o700)


def test_a_folder_that_cannot_be_listed_is_named(tree: Path, monkeypatch) -> None:
    def fail(folder: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(UserError, match=r"train: cannot be accessed \(Permission denied\): fix it"):
        load(tree)
