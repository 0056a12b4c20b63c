"""W/A as named in all tables."""

import pytest

from stages.pairs import Pair, pairs


@pytest.mark.parametrize(
    ("levels", "bits", "quantized"),
    [
        (1, 2, {"weights": Pair("1/32", 1, 32), "activations": Pair("1/2", 1, 2)}),
        ("3pm4", "full", {"weights": Pair("3pm4/32", 3, 32)}),
        (
            [-4, -2, -1, 0, 1, 2, 4],
            "4",
            {"weights": Pair("3pm4/32", 3, 32), "activations": Pair("3pm4/4", 3, 4)},
        ),
        ("full", 2, {"activations": Pair("32/2", 32, 2)}),
        ("full", "full", {}),
    ],
)
def test_the_pair_of_each_stage_that_quantizes(levels, bits, quantized):
    assert pairs(levels, bits) == {
        "train_fp": Pair("32/32", 32, 32),
        **{f"train_{section}": pair for section, pair in quantized.items()},
    }
