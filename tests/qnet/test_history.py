"""Choice of the epoch that is kept."""

import pytest

from qnet.history import History


def row(top1, loss):
    return {"validation_top1": top1, "validation_loss": loss}


@pytest.mark.parametrize(
    ("select_on", "rows", "kept"),
    [
        ("validation", [row(50.0, 1.0)], [True]),
        ("validation", [row(50.0, 1.0), row(60.0, 2.0), row(55.0, 0.1)], [True, True, False]),
        ("validation", [row(50.0, 1.0), row(50.0, 0.9), row(50.0, 0.95)], [True, True, False]),
        ("validation", [row(50.0, 1.0), row(50.0, 1.0)], [True, False]),
        ("last", [row(50.0, 1.0), row(40.0, 2.0), row(45.0, 3.0)], [True, True, True]),
    ],
    ids=["the first", "the highest", "of equal ones the lowest loss", "of those the first", "last"],
)
def test_the_epoch_that_is_kept(select_on, rows, kept):
    history = History()
    assert [history.add(one, select_on) for one in rows] == kept
    assert history.rows == rows
    assert history.best_epoch == max(i for i, better in enumerate(kept, 1) if better)


def test_a_run_that_has_not_begun_keeps_the_network_as_it_was_given():
    assert History().best_epoch == 0
