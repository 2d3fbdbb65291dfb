"""Histograms and their percentiles: what is said of them is what hdrh says, only sooner."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slow import examples

from reports.analysis import histograms
from reports.analysis.histograms import _points
from reports.analysis.summarise import analyse
from tests.unit.reports import run_folders


@examples(25)  # hdrh takes its time
@given(st.lists(st.integers(0, 3_600_000_000)))
def test_mean_and_percentiles_are_hdrhs_own(values_us):
    histogram = histograms.empty()
    for value_us in values_us:
        histogram.record_value(value_us)
    assert histograms.mean(histogram) == pytest.approx(histogram.get_mean_value(), rel=1e-12)
    for percentile in (50, 95, 99, 100):
        expected = histogram.get_value_at_percentile(percentile) if values_us else None
        assert histograms.Samples(histogram).at(percentile) == expected


def test_a_curve_for_each_mode_and_size_class(tmp_path):
    closed = analyse(run_folders.write(tmp_path / "closed")).percentiles
    assert {curve.duration for curve in closed} == {"transaction"}
    assert {curve.mode for curve in closed} == {"long", "short"}
    assert len({(curve.mode, curve.size_class) for curve in closed}) == len(closed) == 4
    opened = analyse(run_folders.write(tmp_path / "open", model="open")).percentiles
    assert {curve.duration for curve in opened} == {"response", "service"}


def test_points_are_hdrhs_percentiles_up_to_thirty_samples_beyond():
    histogram = histograms.empty()
    for value in range(1, 10_001):
        histogram.record_value(value)
    beyond, values_us = _points(histogram)
    assert (beyond[0], beyond[-1]) == (0.5, pytest.approx(0.003))
    for share, value in zip(beyond, values_us, strict=True):
        assert value == pytest.approx(histogram.get_value_at_percentile(100 - share * 100), rel=0.002)


def test_few_samples_have_no_curve(tmp_path):
    nothing = run_folders.Rate(0, 0, 0, 0, 1)
    assert analyse(run_folders.write(tmp_path / "run", long=nothing, short=nothing)).percentiles == []
