"""The split is stratified and complete; the statistics are those of the training part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qnet.data.dataset import Split
from qnet.data.raw import Raw
from qnet.data.splits import channel_statistics, prepare, stratified_holdout
from qnet.errors import UserError


def some_raw(per_class: tuple[int, ...] = (30, 20, 10), channels: int = 2) -> Raw:
    """Images sorted by class, all different, as the first pixels encode their number."""
    labels = torch.repeat_interleave(torch.arange(len(per_class)), torch.tensor(per_class))
    generator = torch.Generator().manual_seed(0)
    shape = (len(labels), channels, 4, 4)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(len(labels)) % 256
    images[:, 0, 0, 1] = torch.arange(len(labels)) // 256
    test = Split(images[:3].clone(), labels[:3].clone())
    return Raw("digits", tuple("abcdef"[: len(per_class)]), Split(images, labels), test, flip=False)


def numbers(split: Split) -> list[int]:
    first = split.images[:, 0, 0, :2].long()
    return (first[:, 0] + 256 * first[:, 1]).tolist()


def test_every_image_is_in_one_split_with_its_label() -> None:
    raw = some_raw()
    info, splits = prepare(raw, validation=0.1, seed=0)
    assert sorted(numbers(splits["train"]) + numbers(splits["validation"])) == list(range(60))
    for split in (splits["train"], splits["validation"]):
        assert torch.equal(split.labels, raw.train.labels[numbers(split)])
        assert torch.equal(split.images, raw.train.images[numbers(split)])
    assert torch.equal(splits["test"].images, raw.test.images)
    assert info.counts == {"train": 54, "validation": 6, "test": 3}
    assert splits["validation"].labels.bincount().tolist() == [3, 2, 1]
    assert (info.name, info.classes, info.size, info.channels) == ("digits", ("a", "b", "c"), 4, 2)
    assert info.flip is False


def test_the_seed_decides() -> None:
    first, again, other = (prepare(some_raw(), validation=0.2, seed=seed) for seed in (1, 1, 2))
    assert first[0] == again[0]
    for name in first[1]:
        assert torch.equal(first[1][name].images, again[1][name].images)
        assert torch.equal(first[1][name].labels, again[1][name].labels)
    assert set(numbers(first[1]["validation"])) != set(numbers(other[1]["validation"]))


def test_the_first_training_images_are_a_sample_of_all_classes() -> None:
    _, splits = prepare(some_raw((200, 200, 200)), validation=0.1, seed=0)
    assert splits["train"].labels[:60].bincount(minlength=3).min() >= 10


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    share=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**32),
)
def test_holdout_is_stratified(sizes: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    kept, held = stratified_holdout(labels, share=share, generator=np.random.default_rng(seed))
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    for label, size in enumerate(sizes):
        count = int((labels[held] == label).sum())
        if size == 1:
            assert count == 0
        else:
            assert 1 <= count < size
            assert count in (1, size - 1) or abs(count - share * size) <= 0.5


def test_holdout_draws_each_image_equally_often() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    times = np.zeros(20)
    for _ in range(500):
        times[stratified_holdout(labels, share=0.3, generator=generator)[1]] += 1
    assert np.abs(times / 500 - 0.3).max() < 0.1  # five standard deviations


@pytest.mark.parametrize("share", [-0.1, 1.0, 7.0, float("nan")])
def test_shares_out_of_range(share: float) -> None:
    with pytest.raises(UserError, match=r"data\.validation: .*at least 0 and below 1"):
        prepare(some_raw(), validation=share, seed=0)


def test_a_share_that_leaves_no_validation_images() -> None:
    with pytest.raises(UserError, match=r"data\.validation: 0\.0 of 60 .*raise it"):
        prepare(some_raw(), validation=0.0, seed=0)
    with pytest.raises(UserError, match=r"data\.validation: 0\.5 of 2 .*no class has two: add"):
        prepare(some_raw((1, 1)), validation=0.5, seed=0)


def test_no_test_images() -> None:
    raw = some_raw()
    empty = Split(raw.test.images[:0], raw.test.labels[:0])
    with pytest.raises(UserError, match="no test images"):
        prepare(Raw("digits", raw.classes, raw.train, empty, False), validation=0.1, seed=0)


def test_statistics_are_of_the_training_part_alone() -> None:
    info, splits = prepare(some_raw(), validation=0.3, seed=0)
    train = splits["train"].images.double() / 255
    expected = train.mean((0, 2, 3)), train.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(info.mean, dtype=torch.float64), expected[0])
    torch.testing.assert_close(torch.tensor(info.std, dtype=torch.float64), expected[1])


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), channels=st.integers(1, 3))
def test_statistics_do_not_depend_on_the_order(seed: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (7, channels, 3, 3), generator=generator, dtype=torch.uint8)
    assert channel_statistics(images) == channel_statistics(images.flip(0))


def test_a_constant_channel_has_a_positive_std() -> None:
    images = torch.full((5, 2, 3, 3), 51, dtype=torch.uint8)
    means, stds = channel_statistics(images)
    assert means == pytest.approx((0.2, 0.2))
    assert stds == (1 / 255, 1 / 255)


def test_validation_images_are_shuffled_too() -> None:
    _, splits = prepare(some_raw((200, 200, 200)), validation=0.5, seed=0)
    assert splits["validation"].labels[:60].bincount(minlength=3).min() >= 10
