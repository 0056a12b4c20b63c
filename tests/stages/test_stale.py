"""Inputs that changed since a stage read them."""

import pytest

from stages.stale import changed_since


def lock(**params):
    return {"stages": {"train_fp": {"params": {"params.yaml": params}}}}


@pytest.mark.parametrize(
    ("read", "now"),
    [(None, "~"), (None, ""), (None, None), (0.1, "1e-1"), (True, "true"), ([1, 2], ["1", "2"])],
)
def test_the_same_value_written_otherwise_is_no_change(read, now):
    assert changed_since(lock(seed=read), {"seed": now}) == []


@pytest.mark.parametrize(("read", "now"), [(None, "none"), (None, 0), (0.1, 0.2), (True, 1)])
def test_another_value_is_named(read, now):
    assert changed_since(lock(seed=read), {"seed": now}) == ["seed"]


def test_a_file_that_another_stage_has_written_since_is_named():
    stages = {
        "prepare": {"outs": [{"path": "data/prepared", "md5": "new"}]},
        "train_fp": {"deps": [{"path": "data/prepared", "md5": "old"}, {"path": "qnet"}]},
    }
    assert changed_since({"stages": stages}, {}) == ["data/prepared"]
