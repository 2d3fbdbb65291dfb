"""Latency by percentile: how long the slower and slower shares of uploads took, each size class and mode for itself.

A mean hides the tail and one percentile hides its shape. Percentiles over mixed sizes would show the mix, so there are
none. A curve ends where fewer than 30 samples lie beyond: further out the next run would draw another line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from hdrh.histogram import HdrHistogram

from reports.analysis import histograms
from reports.analysis.evidence import Evidence, Floats
from reports.analysis.histograms import SAMPLES_BEYOND
from reports.run_folder import HistogramsLine
from reports.summary import PhaseSummary

POINTS = 80

Shown = Literal["transaction", "response", "service"]


@dataclass(frozen=True, slots=True)
class PercentileCurve:
    """`values_us[i]` is the time that `beyond[i]` of the uploads, a share from 0.5 downwards, took longer than."""

    mode: str
    size_class: str
    duration: Shown
    beyond: Floats
    values_us: Floats


def percentile_curves(evidence: Evidence, phases: Sequence[PhaseSummary]) -> list[PercentileCurve]:
    """Of the measured phases of each mode. RunFolderError when a histogram is damaged."""
    shown: tuple[Shown, ...] = ("response", "service") if evidence.run.model == "open" else ("transaction",)
    modes = {phase.mode: None for phase in phases if phase.measured}
    found: list[PercentileCurve] = []
    for mode in modes:
        lines = [
            evidence.histograms[phase.name]
            for phase in phases
            if phase.measured and phase.mode == mode and phase.name in evidence.histograms
        ]
        found += [curve for duration in shown for curve in _curves(lines, mode, duration)]
    return found


def _curves(lines: Sequence[HistogramsLine], mode: str, duration: Shown) -> Iterator[PercentileCurve]:
    for size_class, histogram in histograms.by_size(lines, duration).items():
        if histogram.get_total_count() >= 2 * SAMPLES_BEYOND:
            beyond, values_us = _points(histogram)
            yield PercentileCurve(mode, size_class, duration, beyond, values_us)


def _points(histogram: HdrHistogram) -> tuple[Floats, Floats]:
    counts = np.asarray(histogram.counts, dtype=np.float64)
    [taken] = np.nonzero(counts)
    total = counts.sum()
    beyond = np.geomspace(0.5, SAMPLES_BEYOND / total, POINTS)
    ranks = np.searchsorted(np.cumsum(counts[taken]), (1 - beyond) * total, side="left").clip(max=len(taken) - 1)
    values = [histogram.get_highest_equivalent_value(histogram.get_value_from_index(int(taken[r]))) for r in ranks]
    return beyond, np.array(values, dtype=np.float64)
