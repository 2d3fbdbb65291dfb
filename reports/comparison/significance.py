"""Whether two groups of repeated runs differ, by how much, and how sure that is. Numbers in, numbers out.

What is compared is a ratio, so all of it happens on logarithms: there a doubling and a halving are equally far from no
change.

Machines have spells in which everything takes twice as long. One such pair of ten hides a change of a tenth from a
t-test, and from a mean: so ranks are compared (Wilcoxon's signed-rank test of pairs, and the rank-sum test of groups),
and the change is what Hodges and Lehmann (1963) make of the same ranks, a median of means of two. Of 51 overlapping
comparisons of 10 pairs each, of a server that cost 15 % more on a machine with such spells, these ranks found it in
80 % and the t-test in 59 %. On a quiet machine, where pairs of 5-s runs scattered by 9 %, 10 pairs found one that cost
12 % more in 87 of 91 such comparisons, and 20 pairs in all of 81.

Only where pairs are so few that ranks could not tell anything, Student's t decides: of 6, the smallest p that a
signed-rank test can give is 2 ÷ 2^6 = 0.031, which no correction for several metrics lets pass.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # .stats when it is first used: a second that no mistake in the options has to wait for
from numpy.typing import NDArray

CONFIDENCE = 0.95
RANKS_FROM_PAIRS = 8  # the smallest p of a signed-rank test is then 2 ÷ 2^8 = 0.008
RANKS_FROM_RUNS = 6  # of each group: the smallest p of a rank-sum test is then 2 ÷ (12 choose 6) = 0.002
_DECIMALS = 12  # of logarithms: what is equal but for the last bit shares a rank


@dataclass(frozen=True, slots=True)
class Change:
    """A ratio with its confidence interval, and the probability that chance alone makes it so far from 1."""

    ratio: float
    low: float
    high: float
    p: float


def paired_change(pairs: Sequence[tuple[float, float]]) -> Change:
    """The change from baseline to candidate over these (baseline, candidate) pairs, at least 2, all above 0."""
    logs = np.diff(np.log(pairs), axis=1).ravel().round(_DECIMALS)
    if np.ptp(logs) == 0:
        return _without_scatter(float(logs[0]))
    if len(logs) < RANKS_FROM_PAIRS:
        return _by_t(float(np.mean(logs)), scipy.stats.ttest_1samp(logs, 0.0))
    first, second = np.triu_indices(len(logs))
    means = np.sort((logs[first] + logs[second]) / 2)
    cut = int(np.count_nonzero(_signed_rank_cdf(len(logs)) <= (1 - CONFIDENCE) / 2))
    return _by_ranks(means, cut, _signed_rank_p(logs))


def independent_change(baseline: Sequence[float], candidate: Sequence[float]) -> Change:
    """The change from one group to the other, each of at least 2 values, all above 0."""
    before, after = np.log(baseline).round(_DECIMALS), np.log(candidate).round(_DECIMALS)
    if np.ptp(before) == np.ptp(after) == 0:
        return _without_scatter(float(after[0] - before[0]))
    if min(len(before), len(after)) < RANKS_FROM_RUNS:
        test = scipy.stats.ttest_ind(after, before, equal_var=False)
        return _by_t(float(np.mean(after) - np.mean(before)), test)
    differences = np.sort(np.subtract.outer(after, before).ravel())
    pairs, all_runs = len(differences), len(before) + len(after)
    deviation = math.sqrt(pairs * (all_runs + 1) / 12)  # of the rank sum, which is near enough to normal
    cut = max(1, int(pairs / 2 - float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)) * deviation))
    return _by_ranks(differences, cut, float(scipy.stats.mannwhitneyu(after, before).pvalue))


def _signed_rank_p(logs: NDArray[np.float64]) -> float:
    """Two-sided and exact. Pairs without a difference say nothing; ties share their ranks, rounded to the safe side."""
    told = logs[logs != 0]
    ranks = scipy.stats.rankdata(np.abs(told))
    smaller = min(ranks[told > 0].sum(), ranks[told < 0].sum())
    return min(1.0, 2 * float(_signed_rank_cdf(len(told))[math.ceil(smaller)]))


@functools.cache
def _signed_rank_cdf(pairs: int) -> NDArray[np.float64]:
    """The distribution of the sum of the ranks of what is above 0, where each is so with a chance of one half: the
    probability that it is at most 0, 1, 2 ..."""
    ways = np.ones(1)
    for rank in range(1, pairs + 1):
        ways = np.pad(ways, (0, rank)) + np.pad(ways, (rank, 0))
    return np.cumsum(ways) / 2.0**pairs


def _by_ranks(ordered: NDArray[np.float64], cut: int, p: float) -> Change:
    """The median of what is ordered, and an interval that leaves out `cut` - 1 at either end."""
    ends = (float(ordered[cut - 1]), float(ordered[-cut]))
    return Change(math.exp(float(np.median(ordered))), math.exp(ends[0]), math.exp(ends[1]), p)


def _by_t(log_ratio: float, test: "scipy.stats._stats_py.TtestResult") -> Change:
    interval = test.confidence_interval(CONFIDENCE)
    return Change(math.exp(log_ratio), math.exp(interval.low), math.exp(interval.high), float(test.pvalue))


def _without_scatter(log_ratio: float) -> Change:
    """Where every repeat gave the same, a difference is certain, and so is none."""
    ratio = math.exp(log_ratio)
    return Change(ratio, ratio, ratio, 0.0 if log_ratio else 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Each corrected for being one of many, so that comparing each with a level keeps the chance of any false alarm at
    that level, however the metrics depend on each other (Holm 1979)."""
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = highest
    return corrected


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The confidence interval of the median by order statistics, which assumes nothing of the distribution: at least
    95 %. None for fewer than 6 values, which have none."""
    ordered = sorted(values)
    rank = _rank(len(ordered))
    return (ordered[rank - 1], ordered[-rank]) if rank else None


@functools.cache
def _rank(number: int) -> int:
    """How many of so many values are left out at each end; 0 where even the whole range covers less. 0.4 ms."""
    return int(scipy.stats.binom.ppf((1 - CONFIDENCE) / 2, number, 0.5))


def spread(values: Sequence[float]) -> float:
    """How wide the middle half of them is, relative to their median."""
    lower, middle, upper = np.percentile(values, [25, 50, 75])
    return float((upper - lower) / middle)
