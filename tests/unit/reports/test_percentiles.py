"""Latency by percentile: the curve is what hdrh says, and ends where it would not repeat."""

import pytest

from reports.analysis import histograms
from reports.analysis.percentiles import _points
from reports.analysis.summarise import analyse
from tests.unit.reports import run_folders


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
