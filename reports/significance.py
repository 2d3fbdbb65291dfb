"""Whether two groups of repeated runs differ, by how much, and how sure that is. Numbers in, numbers out.

What is compared is a ratio, so all of it happens on logarithms: there a doubling and a halving are equally far from no
change, and the scatter of rates and times, which is multiplicative, is near enough to normal for Student's t.

Rank tests would ask for less, but cannot give an answer here: with 6 pairs the smallest p that a sign-flip test can
reach is 2 ÷ 2^6 = 0.031, which no correction for several metrics lets pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Change:
    """A ratio with its confidence interval, and the probability that chance alone makes it so far from 1."""

    ratio: float
    low: float
    high: float
    p: float


def paired_change(pairs: Sequence[tuple[float, float]]) -> Change:
    """Of (baseline, candidate) pairs, at least 2, all above 0: the mean of their ratios, by a paired t-test."""
    logs = np.log([candidate / baseline for baseline, candidate in pairs])
    if np.ptp(logs) == 0:
        return _without_scatter(float(logs[0]))
    return _change(float(np.mean(logs)), stats.ttest_1samp(logs, 0.0))


def independent_change(baseline: Sequence[float], candidate: Sequence[float]) -> Change:
    """Of two groups, each at least 2, all above 0: the ratio of their geometric means, by Welch's t-test."""
    before, after = np.log(baseline), np.log(candidate)
    if np.ptp(before) == np.ptp(after) == 0:
        return _without_scatter(float(after[0] - before[0]))
    return _change(float(np.mean(after) - np.mean(before)), stats.ttest_ind(after, before, equal_var=False))


def _change(log_ratio: float, test: "stats._stats_py.TtestResult") -> Change:
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
    rank = int(stats.binom.ppf((1 - CONFIDENCE) / 2, len(ordered), 0.5))  # 0: even the whole range covers less
    return (ordered[rank - 1], ordered[-rank]) if rank else None


def spread(values: Sequence[float]) -> float:
    """How wide the middle half of them is, relative to their median."""
    lower, middle, upper = np.percentile(values, [25, 50, 75])
    return float((upper - lower) / middle)
