"""Level sets: the table of the method, what is refused, and the messages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnet.clustering import cluster
from qnet.errors import UserError
from qnet.levels import LevelSet, activation_levels, weight_levels
from qnet.quantizer import Quantizer

WEIGHTS = {
    "1": ((-1, 1), 1),
    "2": ((-1, 0, 1), 2),
    "3pm2": ((-2, -1, 0, 1, 2), 3),
    "3": ((-3, -2, -1, 0, 1, 2, 3), 3),
    "3pm4": ((-4, -2, -1, 0, 1, 2, 4), 3),
    "4": (tuple(range(-7, 8)), 4),
    "8": (tuple(range(-127, 128)), 8),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight_sets_are_those_of_the_method(name: str) -> None:
    levels = weight_levels(name)
    values, bits = WEIGHTS[name]
    assert (levels.name, levels.values, levels.bits) == (name, values, bits)
    assert levels.offset == sum(levels.steps) / 2  # the paper's o
    assert levels.max_abs == values[-1]


@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_and_their_text_are_the_same(bits: int) -> None:
    assert weight_levels(np.int64(bits)) == weight_levels(bits)
    assert activation_levels(np.int64(bits)) == activation_levels(bits)
    assert weight_levels(bits) == weight_levels(str(bits))
    assert activation_levels(bits) == activation_levels(str(bits))
    assert weight_levels(bits).bits == bits


@pytest.mark.parametrize("bits", range(1, 9))
def test_activation_sets_start_at_zero(bits: int) -> None:
    levels = activation_levels(bits)
    assert levels == LevelSet(f"a{bits}", tuple(range(2**bits)))
    assert (levels.offset, levels.bits, levels.max_abs) == (0.0, bits, 2**bits - 1)
    assert set(levels.steps) == {1}


@pytest.mark.parametrize("bits", range(1, 9))
def test_signed_activations_use_the_sets_of_weights(bits: int) -> None:
    assert activation_levels(bits, signed=True) == weight_levels(bits)


def test_full_is_no_quantization() -> None:
    assert weight_levels("full") is None
    assert activation_levels("full") is None
    assert activation_levels("full", signed=True) is None


def test_steps_may_differ() -> None:
    assert weight_levels("3pm4").steps == (2, 1, 1, 1, 1, 2)


def test_a_list_is_a_set_and_keeps_the_name_of_a_known_one() -> None:
    listed = weight_levels([-4, -1, 0, 1, 4])
    assert (listed.name, listed.values, listed.bits) == (
        "[-4, -1, 0, 1, 4]",
        (-4, -1, 0, 1, 4),
        3,
    )
    assert weight_levels([-1, 0, 1]) is weight_levels(2)
    assert weight_levels((-4, -2, -1, 0, 1, 2, 4)).name == "3pm4"


@given(st.sets(st.integers(1, 2**15 - 1), min_size=1, max_size=20), st.booleans())
def test_any_symmetric_list_is_a_set(positive: set[int], zero: bool) -> None:
    values = sorted(positive | {-value for value in positive} | ({0} if zero else set()))
    levels = weight_levels(values)
    assert levels.values == tuple(values)
    assert levels.values[0] + sum(levels.steps) == levels.values[-1] == levels.max_abs
    assert 2 ** (levels.bits - 1) < len(values) <= 2**levels.bits


@pytest.mark.parametrize("spec", ["0", "9", 0, 9, -1, 32, "two", "", True, 2.0, None, "3PM2", "a2"])
def test_unknown_weight_levels_are_named(spec: object) -> None:
    with pytest.raises(UserError, match=r"weights\.levels .*use 1 \.\.\. 8") as caught:
        weight_levels(spec)
    assert repr(spec) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["0", "9", 0, 9, "3pm2", "", True, 2.0, None, [0, 1], "a2", "٣"])
@pytest.mark.parametrize("signed", [False, True])
def test_unknown_activation_bits_are_named(spec: object, signed: bool) -> None:
    with pytest.raises(UserError, match=r"activations\.bits .*use 1 \.\.\. 8") as caught:
        activation_levels(spec, signed)
    assert repr(spec) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ([], "at least two"),
        ([-1], "at least two"),
        ([-1, 1, 1], "strictly increasing"),
        ([-1, 1, 0], "strictly increasing"),
        ([-2, 0, 1], "symmetric"),
        ([0, 1, 2], "symmetric"),
        ([1, 2], "symmetric"),
        ([-1.5, 1.5], "integers"),
        ([False, True], "integers"),
        ([-(2**15), 2**15], "no larger"),
    ],
)
def test_bad_lists_are_refused(spec: list[int], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        weight_levels(spec)
    assert str(spec) in str(caught.value)


def test_a_list_of_numpys_integers() -> None:
    assert weight_levels(list(np.array([-1, 1]))) == weight_levels(1)


def test_a_level_set_checks_itself() -> None:
    with pytest.raises(UserError, match="symmetric about zero, or starting at zero"):
        LevelSet("mine", (1, 2))


@pytest.mark.parametrize("levels", [None, 2, "2"])
def test_what_is_no_level_set_is_refused_where_one_is_taken(levels):
    with pytest.raises(
        UserError, match=rf"^weights: levels {levels!r} are not a level set; make one"
    ):
        cluster([1.0, 2.0], levels, name="weights")
    with pytest.raises(UserError, match=rf"^Quantizer: levels {levels!r} are not a level set"):
        Quantizer(levels)


@pytest.mark.parametrize("values", [(-0.5, 0.5), (-1.5, 0, 1.5), (0, True), [-1, 1]])
def test_a_set_is_a_tuple_of_whole_numbers(values) -> None:
    with pytest.raises(UserError, match="a level set needs a tuple of whole numbers"):
        LevelSet("mine", values)
