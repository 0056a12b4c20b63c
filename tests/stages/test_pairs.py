"""W/A as all tables name it."""

import pytest

from stages.pairs import Pair, pairs


@pytest.mark.parametrize(
    ("levels", "bits", "weights", "activations"),
    [
        (1, 2, Pair("1/32", 1, 32), Pair("1/2", 1, 2)),
        ("3pm4", "full", Pair("3pm4/32", 3, 32), Pair("3pm4/32", 3, 32)),
        ([-4, -2, -1, 0, 1, 2, 4], "4", Pair("3pm4/32", 3, 32), Pair("3pm4/4", 3, 4)),
        ("full", 2, Pair("32/32", 32, 32), Pair("32/2", 32, 2)),
    ],
)
def test_the_pair_of_each_stage(levels, bits, weights, activations):
    assert pairs(levels, bits) == {
        "train_fp": Pair("32/32", 32, 32),
        "train_weights": weights,
        "train_activations": activations,
    }
