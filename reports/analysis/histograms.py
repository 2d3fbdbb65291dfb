"""Percentiles, from HDR histograms that are added and never averaged: the p95 of two size classes together is not to be
had from the p95 of each.

A percentile is given only where at least 30 samples lie beyond it; with fewer, the next run would show another number.
So a curve, the latency of ever slower shares of the uploads, ends there too. One is drawn for each size class and mode,
since percentiles over mixed sizes would show the mix.

Uploads that were never answered have a time too, which is as long as anyone waited. They are added to those that were,
and what is as large as the shortest such time is a lower bound.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from hdrh.codec import HdrCookieException, HdrLengthException
from hdrh.histogram import HdrHistogram

from reports import run_folder
from reports.analysis.evidence import Evidence, Floats
from reports.run_folder import HistogramsLine, RunFolderError
from reports.summary import Latency, PhaseSummary

SAMPLES_BEYOND = 30  # that a percentile needs
POINTS = 80  # of a curve

Shown = Literal["transaction", "response", "service"]


def shown(evidence: Evidence) -> tuple[Shown, ...]:
    """The durations that charts show."""
    return ("response", "service") if evidence.run.model == "open" else ("transaction",)


_UNREADABLE = (ValueError, TypeError, zlib.error, HdrCookieException, HdrLengthException)


def empty() -> HdrHistogram:
    return HdrHistogram(1, 3_600_000_000, 3)  # as the load writes them: microseconds up to an hour, 3 digits


def added(histograms: Iterable[HdrHistogram]) -> HdrHistogram:
    total = empty()
    for histogram in histograms:
        total.add(histogram)
    return total


def mean(histogram: HdrHistogram) -> float:
    """The mean of its values, each the middle of its bucket; 0 without any. As the library's own, which visits all
    23,000 buckets and so takes longer than the rest of the analysis; this visits those that have samples."""
    counts = np.asarray(histogram.counts)
    [taken] = np.nonzero(counts)
    middles = [histogram.get_value_from_index(int(bucket)) for bucket in taken]
    middles = [(low + histogram.get_highest_equivalent_value(low) + 1) // 2 for low in middles]
    return float(np.average(middles, weights=counts[taken])) if middles else 0.0


def by_size(lines: Iterable[HistogramsLine], duration: str) -> dict[str, HdrHistogram]:
    """One duration by size class, over the phases of these lines. RunFolderError when a histogram is damaged."""
    found: dict[str, HdrHistogram] = defaultdict(empty)
    for line in lines:
        for name, durations in line.names.items():
            if duration in durations:
                size_class = run_folder.split_name(name)[1]
                _decode(found[size_class], durations[duration], f"{duration} of {name!r}", line)
    return found


def of_all(lines: Iterable[HistogramsLine], duration: str) -> HdrHistogram:
    """One duration over all size classes. RunFolderError as above."""
    return added(by_size(lines, duration).values())


def hiccups(lines: Iterable[HistogramsLine]) -> HdrHistogram:
    """How late sleepers of 1 ms woke on the load processes' cores in these phases. RunFolderError as above."""
    found = empty()
    for line in lines:
        if line.hiccups is not None:
            _decode(found, line.hiccups, "hiccups", line)
    return found


def _decode(into: HdrHistogram, encoded: str, what: str, line: HistogramsLine) -> None:
    try:
        into.decode_and_add(encoded)
    except _UNREADABLE:
        raise RunFolderError(
            f"{run_folder.UPLOADS} has a histogram of {what} in phase {line.phase!r} that cannot be decoded"
        ) from None


@dataclass(frozen=True, slots=True)
class Samples:
    """What is known of a duration; from `bound_from` on, values are lower bounds."""

    histogram: HdrHistogram
    bound_from: float | None = None

    @property
    def number(self) -> int:
        return int(self.histogram.get_total_count())

    def at(self, percentile: float) -> float | None:
        """This percentile in microseconds, the maximum for 100; None without samples. As the library's own, which adds
        up the buckets one by one."""
        if not self.number:
            return None
        rank = self.histogram.get_target_count_at_percentile(percentile)
        bucket = np.searchsorted(np.cumsum(np.asarray(self.histogram.counts)), rank)
        return float(_longest(self.histogram, int(bucket)))

    def is_bound(self, value_us: float) -> bool:
        return self.bound_from is not None and value_us >= self.bound_from


def _longest(histogram: HdrHistogram, bucket: int) -> int:
    """The largest value that is counted in this bucket."""
    return int(histogram.get_highest_equivalent_value(histogram.get_value_from_index(bucket)))


def with_unanswered(answered: HdrHistogram, unanswered: HdrHistogram) -> Samples:
    """`unanswered` has the times after which uploads were given up."""
    if not unanswered.get_total_count():
        return Samples(answered)
    return Samples(added([answered, unanswered]), float(unanswered.get_min_value()))


def latency(samples: Samples) -> Latency:
    """What is said of a duration, without percentiles that would not repeat."""

    def value(percentile: int) -> float | None:
        return samples.at(percentile) if samples.number * (100 - percentile) >= 100 * SAMPLES_BEYOND else None

    return Latency(
        samples=samples.number,
        p50=value(50),
        p95=value(95),
        p99=value(99),
        max=samples.at(100),
        bound_from=samples.bound_from,
    )


# --- curves -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PercentileCurve:
    """`values_us[i]` is the time that `beyond[i]` of the uploads, a share from 0.5 downwards, took longer than."""

    mode: str
    size_class: str
    duration: Shown
    beyond: Floats
    values_us: Floats


def percentile_curves(evidence: Evidence, phases: Sequence[PhaseSummary]) -> list[PercentileCurve]:
    """Curves of each mode, over its measured phases. RunFolderError when a histogram is damaged."""
    modes: dict[str, list[HistogramsLine]] = defaultdict(list)
    for phase in phases:
        if phase.measured and phase.name in evidence.histograms:
            modes[phase.mode].append(evidence.histograms[phase.name])
    durations = shown(evidence)
    return [
        curve for mode, lines in modes.items() for duration in durations for curve in _curves(lines, mode, duration)
    ]


def _curves(lines: Sequence[HistogramsLine], mode: str, duration: Shown) -> Iterator[PercentileCurve]:
    for size_class, histogram in by_size(lines, duration).items():
        if histogram.get_total_count() >= 2 * SAMPLES_BEYOND:
            beyond, values_us = _points(histogram)
            yield PercentileCurve(mode, size_class, duration, beyond, values_us)


def _points(histogram: HdrHistogram) -> tuple[Floats, Floats]:
    counts = np.asarray(histogram.counts, dtype=np.float64)
    [taken] = np.nonzero(counts)
    total = counts.sum()
    beyond = np.geomspace(0.5, SAMPLES_BEYOND / total, POINTS)
    ranks = np.searchsorted(np.cumsum(counts[taken]), (1 - beyond) * total, side="left").clip(max=len(taken) - 1)
    return beyond, np.array([_longest(histogram, int(taken[rank])) for rank in ranks], dtype=np.float64)
