"""Learning rate and temperature as functions of time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnet.params import TemperatureParams
from qnet.schedules import learning_rate, temperature_at


def test_warm_up_rises_linearly_to_lr(fp_params):
    params = fp_params(lr=0.4, warmup_epochs=4, epochs=10, schedule="constant")
    assert [learning_rate(params, t) for t in (0, 1, 2, 4, 9)] == [0, 0.1, 0.2, 0.4, 0.4]


def test_cosine_ends_at_zero_and_is_half_in_the_middle(fp_params):
    params = fp_params(lr=1.0, warmup_epochs=2, epochs=12, schedule="cosine")
    assert learning_rate(params, 7) == pytest.approx(0.5)
    assert learning_rate(params, 12) == pytest.approx(0, abs=1e-12)


def test_step_multiplies_at_each_decay_epoch(fp_params):
    params = fp_params(lr=1.0, warmup_epochs=0, epochs=200, schedule="step", decay_epochs=[22, 100])
    rates = [learning_rate(params, t) for t in (0, 21.99, 22, 99.9, 100, 199)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@given(time=st.floats(0, 30), schedule=st.sampled_from(["cosine", "constant"]))
def test_rate_stays_between_zero_and_lr(fp_params, time, schedule):
    rate = learning_rate(fp_params(epochs=30, schedule=schedule), time)
    assert 0 <= rate <= fp_params().lr
    assert math.isfinite(rate)


@pytest.fixture
def temperatures(params):
    """T of some epochs of a run, given its number of epochs and its temperature."""

    def find(at, epochs, **temperature):
        run = params("weights", epochs=epochs, temperature=TemperatureParams(**temperature))
        return [temperature_at(run, epoch) for epoch in at]

    return find


def test_temperature_is_the_published_one(temperatures):
    published = {"per_epoch": 5.0, "end": "none", "cap": 2000.0}
    assert temperatures((0, 1, 199), 200, **published) == [5, 10, 1000]
    assert temperatures((900,), 1000, **published) == [2000]


def test_temperature_stays_where_its_first_value_is_its_cap(temperatures):
    assert temperatures(range(3), 3, per_epoch=4.0, end="none", cap=4.0) == [4, 4, 4]


def test_temperature_reaches_its_own_end_in_a_short_run(temperatures):
    assert temperatures(range(4), 4, per_epoch=5.0, end=100.0, cap=2000.0) == [25, 50, 75, 100]


def test_in_full_precision_there_is_no_temperature(fp_params):
    assert temperature_at(fp_params(), 0) is None
