"""Whether two groups of repeats differ: numbers in, numbers out."""

import math

import numpy as np
import pytest
import scipy  # .stats when it is first used: no process that only collects tests has to wait for it
from hypothesis import given
from hypothesis import strategies as st

from reports.comparison.significance import holm, independent_change, median_interval, paired_change, spread

positive = st.floats(min_value=0.1, max_value=1e6)


def test_pairs_share_their_drift():
    """Groups that overlap entirely differ clearly, pair by pair."""
    baseline = [100.0 * 1.3**n for n in range(6)]
    candidate = [value * ratio for value, ratio in zip(baseline, (1.09, 1.10, 1.11, 1.10, 1.09, 1.11), strict=True)]
    found = paired_change(list(zip(baseline, candidate, strict=True)))
    assert found.ratio == pytest.approx(1.10, abs=0.001)
    assert 1.08 < found.low < found.ratio < found.high < 1.12
    assert found.p < 0.001
    assert independent_change(baseline, candidate).p > 0.5


@given(st.lists(st.tuples(positive, positive), min_size=2, max_size=12))
def test_in_turned_order_a_ratio_is_turned(pairs):
    there, back = paired_change(pairs), paired_change([(candidate, baseline) for baseline, candidate in pairs])
    assert back.ratio == pytest.approx(1 / there.ratio)
    assert back.p == pytest.approx(there.p, abs=1e-9)
    assert there.low <= there.ratio * (1 + 1e-9) and there.ratio <= there.high * (1 + 1e-9)


@given(st.lists(positive, min_size=2, max_size=12), st.floats(min_value=0.01, max_value=100))
def test_no_unit_changes_an_answer(values, factor):
    other = [value * 1.5 for value in reversed(values)]
    one = independent_change(values, other)
    same = independent_change([value * factor for value in values], [value * factor for value in other])
    assert same.ratio == pytest.approx(one.ratio)
    assert same.p == pytest.approx(one.p, abs=1e-6)


def test_repeats_without_scatter_are_sure_of_themselves():
    assert paired_change([(5, 5)] * 6).p == 1
    assert independent_change([5] * 6, [5] * 6).p == 1
    for found in paired_change([(4, 5)] * 6), independent_change([4] * 6, [5] * 6):
        assert (found.ratio, found.low, found.high, found.p) == (pytest.approx(1.25), found.ratio, found.ratio, 0)


def test_a_spell_of_the_machine_hides_nothing():
    """One pair of ten with a candidate that took three times as long: a t-test of these finds nothing."""
    ratios = [1.09, 1.12, 1.10, 3.0, 1.08, 1.11, 1.13, 1.07, 1.10, 1.09]
    assert scipy.stats.ttest_1samp(np.log(ratios), 0).pvalue > 0.05
    found = paired_change([(1.0, ratio) for ratio in ratios])
    assert found.ratio == pytest.approx(1.10, abs=0.02)
    assert found.p < 0.05
    steady = paired_change([(1.0, ratio) for ratio in ratios if 1 < ratio < 2])
    assert 1.08 < steady.low < steady.high < 1.13
    assert steady.p == pytest.approx(2 / 2**9)


@pytest.mark.parametrize("number", [8, 9, 12, 20])
def test_ranks_as_scipy_has_them(number):
    logs = np.random.default_rng(number).normal(0.05, 0.1, number)
    expected = scipy.stats.wilcoxon(logs, method="exact").pvalue
    assert paired_change([(1.0, math.exp(log)) for log in logs]).p == pytest.approx(expected)


@pytest.mark.parametrize("number", [8, 9, 10, 15])
def test_an_interval_says_what_its_test_says(number):
    """It leaves out a ratio exactly when a test against that ratio would find a difference."""
    logs = np.random.default_rng(number).normal(0.1, 0.1, number)
    found = paired_change([(1.0, math.exp(log)) for log in logs])
    for end, inwards in ((found.low, 1e-9), (found.high, -1e-9)):
        assert scipy.stats.wilcoxon(logs - math.log(end) - inwards).pvalue > 0.05
        assert scipy.stats.wilcoxon(logs - math.log(end) + inwards).pvalue <= 0.05


def test_groups_by_ranks():
    chance = np.random.default_rng(1)
    before, after = chance.lognormal(0, 0.05, 10), 1.2 * chance.lognormal(0, 0.05, 12)
    found = independent_change(list(before), list(after))
    assert 1.1 < found.low < 1.2 < found.high < 1.3
    assert found.p < 0.001


def test_holm_in_its_own_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(min_value=0, max_value=1), max_size=12))
def test_holm_never_makes_surer_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    for p, found in zip(p_values, corrected, strict=True):
        assert p <= found <= 1
    ranked = sorted(zip(p_values, corrected, strict=True))
    assert [found for _, found in ranked] == sorted(corrected)


def test_a_median_has_an_interval_from_six_values_on():
    assert median_interval([3, 1, 2, 5, 4]) is None
    assert median_interval([]) is None
    assert median_interval([6, 1, 2, 5, 4, 3]) == (1, 6)


@pytest.mark.parametrize("number", [6, 7, 8, 9, 10, 17, 40, 100])
def test_the_interval_of_a_median_covers_it_as_promised(number):
    """As scipy finds it, which takes ten times as long."""
    values = list(np.random.default_rng(number).lognormal(size=number))
    expected = scipy.stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    assert median_interval(values) == (expected.low, expected.high)


def test_spread_is_of_the_middle_half():
    assert spread([100.0] * 8) == 0
    assert spread([90, 100, 110]) == pytest.approx(0.1)
    assert spread([100] * 6 + [900]) == 0, "one of many is no spread"
    assert math.isclose(spread([1, 2, 3]), spread([10, 20, 30]))
