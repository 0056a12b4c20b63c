"""The data sets by name, without a network."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets

from qnet.data import load_source
from qnet.errors import UserError


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.name: 'imagenet' is unknown, .*cifar10"):
        load_source("imagenet", tmp_path, size=None, channels=None)


def test_digits(tmp_path: Path) -> None:
    raw = load_source("digits", tmp_path / "unused", size=None, channels=None)
    assert raw.train.images.shape == (1438, 1, 16, 16)
    assert raw.test.images.shape == (359, 1, 16, 16)
    assert raw.train.labels.bincount().min() >= 139
    assert raw.test.labels.bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert raw.classes == tuple("0123456789")
    assert raw.flip is False
    again = load_source("digits", tmp_path, size=None, channels=None)
    assert torch.equal(raw.test.images, again.test.images)


def test_digits_at_their_own_size_use_the_whole_range(tmp_path: Path) -> None:
    raw = load_source("digits", tmp_path, size=8, channels=3)
    assert raw.train.images.shape == (1438, 3, 8, 8)
    assert raw.train.images.min() == 0
    assert raw.train.images.max() == 255
    assert len(raw.train.images.unique()) == 17
    assert torch.equal(raw.train.images[:, 0], raw.train.images[:, 2])


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    content = header + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, suffix: str = "") -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 30), ("t10k", 10)):
        arrays[f"{part}-images-idx3-ubyte"] = generator.integers(
            256, size=(count, 28, 28), dtype=np.uint8
        )
        arrays[f"{part}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        write_idx(folder / f"{name}{suffix}", array)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST/raw"),
        ("mnist", ""),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("fashion_mnist", ""),
    ],
)
def test_mnist_where_it_lies(tmp_path: Path, name: str, folder: str, suffix: str) -> None:
    arrays = write_mnist(tmp_path / folder, suffix)
    raw = load_source(name, tmp_path, size=None, channels=None)
    assert np.array_equal(raw.train.images[:, 0].numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal(raw.test.images[:, 0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert raw.train.labels.tolist() == [*range(10)] * 3
    assert raw.test.labels.tolist() == [*range(10)]
    assert raw.flip is (name == "fashion_mnist")
    assert raw.classes[9] == ("Ankle boot" if name == "fashion_mnist" else "9")


@pytest.mark.parametrize(
    ("name", "other", "first"),
    [
        ("mnist", "fashion_mnist", [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
        ("fashion_mnist", "mnist", [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]),
    ],
)
def test_files_of_the_other_mnist_are_refused(
    tmp_path: Path, name: str, other: str, first: list[int]
) -> None:
    labels = write_mnist(tmp_path)["train-labels-idx1-ubyte"]
    labels[:10] = first
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    assert (
        load_source(other, tmp_path, size=None, channels=None).train.labels[:10].tolist() == first
    )
    with pytest.raises(UserError, match=f"belongs to {other}, .* set data.name to {other}"):
        load_source(name, tmp_path, size=None, channels=None)


def test_mnist_at_another_size(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    raw = load_source("mnist", tmp_path, size=32, channels=3)
    assert raw.train.images.shape == (30, 3, 32, 32)
    assert raw.test.images.shape == (10, 3, 32, 32)


def test_mnist_is_downloaded_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(self: datasets.MNIST) -> None:
        write_mnist(Path(self.raw_folder))

    monkeypatch.setattr(datasets.MNIST, "download", download)
    assert len(load_source("mnist", tmp_path, size=None, channels=None).train) == 30


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("fashion_mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-py/data_batch_1"),
        ("cifar100", "cifar-100-python/train"),
    ],
)
def test_no_files_and_no_network(tmp_path: Path, name: str, looked_for: str) -> None:
    with pytest.raises(UserError, match="no network") as caught:
        load_source(name, tmp_path / "raw", size=None, channels=None)
    message = str(caught.value)
    assert message.startswith(f"data.root: {name} is not available: {tmp_path}/raw/{looked_for} is")
    assert "not there" in message
    assert "internet, or put the published files in" in message
    assert "\n" not in message


def test_a_missing_mnist_file_is_named(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST/raw")
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte is not there"):
        load_source("mnist", tmp_path, size=None, channels=None)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("kept", [0, 3, 6, 30, -1])
def test_a_truncated_mnist_file_is_named(tmp_path: Path, suffix: str, kept: int) -> None:
    write_mnist(tmp_path, suffix)
    path = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="damaged") as caught:
        load_source("mnist", tmp_path, size=None, channels=None)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("train-images-idx3-ubyte", np.zeros((30, 32, 32), np.uint8)),
        ("train-images-idx3-ubyte", np.zeros((29, 28, 28), np.uint8)),
        ("train-images-idx3-ubyte", np.zeros(30, np.uint8)),
        ("train-labels-idx1-ubyte", np.full(30, 10, np.uint8)),
    ],
)
def test_mnist_files_that_do_not_fit(tmp_path: Path, name: str, array: np.ndarray) -> None:
    write_mnist(tmp_path)
    write_idx(tmp_path / name, array)
    with pytest.raises(UserError, match="train-"):
        load_source("mnist", tmp_path, size=None, channels=None)


def write_pickle(path: Path, content: dict[str, object]) -> str:
    """Write a file in CIFAR's format and return its MD5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, np.ndarray]:
    """A small CIFAR in the published format, whose MD5s torchvision accepts."""
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[request.param]
    folder = tmp_path / kind.base_folder
    pixels = np.random.default_rng(0).integers(256, size=(30, 3 * 32 * 32), dtype=np.uint8)
    labels = {"cifar10": "labels", "cifar100": "fine_labels"}[request.param]
    train = {"data": pixels[:20], labels: [*range(10)] * 2}
    test = {"data": pixels[20:], labels: [*range(10)]}
    names = [f"thing {number}" for number in range(10)]
    meta = {**kind.meta, "md5": write_pickle(folder / "meta", {kind.meta["key"]: names})}
    meta["filename"] = "meta"
    monkeypatch.setattr(kind, "train_list", [["one", write_pickle(folder / "one", train)]])
    monkeypatch.setattr(kind, "test_list", [["two", write_pickle(folder / "two", test)]])
    monkeypatch.setattr(kind, "meta", meta)
    return request.param, folder, pixels.reshape(-1, 3, 32, 32)


def test_cifar_where_it_lies(cifar: tuple[str, Path, np.ndarray]) -> None:
    name, folder, pixels = cifar
    raw = load_source(name, folder.parent, size=None, channels=None)
    assert np.array_equal(raw.train.images.numpy(), pixels[:20])
    assert np.array_equal(raw.test.images.numpy(), pixels[20:])
    assert raw.train.labels.tolist() == [*range(10)] * 2
    assert raw.test.labels.tolist() == [*range(10)]
    assert raw.classes[3] == "thing 3"
    assert raw.flip is True


def test_cifar_in_gray_and_small(cifar: tuple[str, Path, np.ndarray]) -> None:
    name, folder, _ = cifar
    raw = load_source(name, folder.parent, size=16, channels=1)
    assert raw.train.images.shape == (20, 1, 16, 16)


@pytest.mark.parametrize("file", ["two", "meta"])
def test_damaged_cifar_is_named(cifar: tuple[str, Path, np.ndarray], file: str) -> None:
    name, folder, _ = cifar
    (folder / file).write_bytes((folder / file).read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{file} is damaged"):
        load_source(name, folder.parent, size=None, channels=None)
