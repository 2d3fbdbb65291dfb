"""Histograms: what is said of them is what hdrh says, only sooner."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.analysis import histograms


@settings(max_examples=25, deadline=None)  # hdrh takes its time
@given(st.lists(st.integers(0, 3_600_000_000)))
def test_the_mean_is_hdrhs_own(values_us):
    histogram = histograms.empty()
    for value_us in values_us:
        histogram.record_value(value_us)
    assert histograms.mean(histogram) == pytest.approx(histogram.get_mean_value(), rel=1e-12)
