"""Long curves in few points: nothing that sticks out is lost."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reports.analysis.timeline import Curve
from reports.pages import envelope
from reports.pages.envelope import MOST_POINTS


def curve(values):
    return Curve(np.arange(len(values), dtype=np.float64), np.array(values, dtype=np.float64))


def test_a_short_curve_stays_as_it_is():
    short = curve(range(MOST_POINTS))
    assert envelope.reduce(short, ()) == (short, ())


@given(st.integers(MOST_POINTS + 1, 5000), st.integers(0, 2**32))
def test_the_extremes_are_in_the_band(number, seed):
    long = curve(np.random.default_rng(seed).normal(size=number))
    mean, [(low, high)] = envelope.reduce(long, ())
    assert len(mean.t_s) == len(low.t_s) == len(high.t_s) <= MOST_POINTS
    assert (low.values.min(), high.values.max()) == (long.values.min(), long.values.max())
    assert (low.values <= mean.values + 1e-9).all() and (mean.values <= high.values + 1e-9).all()
    assert (mean.t_s[0], mean.t_s[-1]) >= (0.0, 0.0) and mean.t_s[-1] <= number - 1


def test_bands_that_were_there_stay_around_it():
    long = curve(np.zeros(3000))
    wide, narrow = ((curve(np.full(3000, -x)), curve(np.full(3000, 2 * x))) for x in (2.0, 1.0))
    _, bands = envelope.reduce(long, (wide, narrow))
    assert [(set(low.values), set(high.values)) for low, high in bands] == [({-2.0}, {4.0}), ({-1.0}, {2.0})]


def test_a_break_stays_a_break():
    values = np.ones(3000)
    values[1500] = np.nan
    mean, _ = envelope.reduce(curve(values), ())
    assert np.isnan(mean.values).sum() == 1


def test_an_area_has_no_height_across_a_break():
    nan = float("nan")
    low, high = curve([nan, 1, 1, nan, nan, 2, nan, 3, 3]), curve([nan, 9, 8, nan, nan, 7, nan, 6, 5])
    found = {name: values.tolist() for name, values in envelope.area(low, high).items()}
    assert found == {
        "x": [1, 1, 2, 2, 5, 5, 5, 7, 7, 8, 8],
        "y1": [1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3],
        "y2": [1, 9, 8, 1, 2, 7, 2, 3, 6, 5, 3],
    }
