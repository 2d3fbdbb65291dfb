"""Long curves in few points: nothing that sticks out is lost."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reports import envelope
from reports.envelope import MOST_POINTS
from reports.timeline import Curve


def curve(values):
    return Curve(np.arange(len(values), dtype=np.float64), np.array(values, dtype=np.float64))


def test_a_short_curve_stays_as_it_is():
    short = curve(range(MOST_POINTS))
    assert envelope.reduce(short, None) == (short, None)


@given(st.integers(MOST_POINTS + 1, 5000), st.integers(0, 2**32))
def test_the_extremes_are_in_the_band(number, seed):
    long = curve(np.random.default_rng(seed).normal(size=number))
    mean, (low, high) = envelope.reduce(long, None)
    assert len(mean.t_s) == len(low.t_s) == len(high.t_s) <= MOST_POINTS
    assert (low.values.min(), high.values.max()) == (long.values.min(), long.values.max())
    assert (low.values <= mean.values + 1e-9).all() and (mean.values <= high.values + 1e-9).all()
    assert (mean.t_s[0], mean.t_s[-1]) >= (0.0, 0.0) and mean.t_s[-1] <= number - 1


def test_a_band_that_was_there_stays_around_it():
    long = curve(np.zeros(3000))
    band = (curve(np.full(3000, -1.0)), curve(np.full(3000, 2.0)))
    _, (low, high) = envelope.reduce(long, band)
    assert (set(low.values), set(high.values)) == ({-1.0}, {2.0})


def test_a_break_stays_a_break():
    values = np.ones(3000)
    values[1500] = np.nan
    mean, _ = envelope.reduce(curve(values), None)
    assert np.isnan(mean.values).sum() == 1
