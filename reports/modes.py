"""Long against short: all measure phases of one mode as one.

A mode is how many uploads a connection carries. Its phases are pooled: their uploads over their time, their CPU over
their uploads. Other phases (warm-up, drain, those too short) never enter.

Percentiles are read from added HDR histograms, never averaged: the p95 of two size classes together is not to be had
from the p95 of each. One is given only where at least 30 samples lie beyond it; with fewer, the next run would show
another number.
"""

import binascii
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

from hdrh.codec import HdrCookieException, HdrLengthException
from hdrh.histogram import HdrHistogram

from reports import run_folder
from reports.evidence import Evidence, count
from reports.run_folder import HistogramsLine, RunFolderError, UploadsLine
from reports.summary import Latency, ModeSummary, PhaseSummary, SizeSummary

SAMPLES_BEYOND = 30  # that a percentile needs

_UNREADABLE = (KeyError, ValueError, TypeError, binascii.Error, zlib.error, HdrCookieException, HdrLengthException)


def mode_summaries(evidence: Evidence, phases: Sequence[PhaseSummary]) -> list[ModeSummary]:
    """Every mode that was measured, in the order of its first phase. RunFolderError when a histogram is damaged."""
    pools: dict[str, list[PhaseSummary]] = defaultdict(list)
    for phase in phases:
        if phase.measured:
            pools[phase.mode].append(phase)
    return [_mode(evidence, mode, pool) for mode, pool in pools.items()]


def _mode(evidence: Evidence, mode: str, pool: Sequence[PhaseSummary]) -> ModeSummary:
    names = {phase.name for phase in pool}
    lines = [line for line in evidence.seconds if line.phase in names]
    duration_s = sum(phase.duration_s for phase in pool)
    total = count(lines)
    histograms = _histograms(line for name, line in evidence.histograms.items() if name in names)
    return ModeSummary(
        mode=mode,
        phases=[phase.name for phase in pool],
        duration_s=duration_s,
        uploads=total.uploads,
        bytes=total.bytes,
        uploads_per_s=total.uploads / duration_s,
        bytes_per_s=total.bytes / duration_s,
        lower_bound=any(phase.generator_limited for phase in pool),
        at_capacity=all(phase.at_capacity for phase in pool),
        transaction_us=_latency(histograms.values()),
        busy_core_us_per_upload=_per_upload_us([phase.busy_core_s for phase in pool], total.uploads),
        server_core_us_per_upload=_per_upload_us([phase.server_cpu_s for phase in pool], total.uploads),
        failures=total.failures,
        sizes=_sizes(lines, duration_s, histograms),
    )


def _per_upload_us(costs_s: Sequence[float | None], uploads: int) -> float | None:
    """Core-microseconds an upload; None where nothing was uploaded or a phase was not recorded."""
    known = [cost_s for cost_s in costs_s if cost_s is not None]
    return sum(known) / uploads * 1e6 if uploads and len(known) == len(costs_s) else None


def _sizes(lines: Sequence[UploadsLine], duration_s: float, histograms: dict[str, HdrHistogram]) -> list[SizeSummary]:
    """The size classes that were tried, smallest first."""
    tried = {run_folder.split_name(name)[1] for line in lines for name in line.names}
    found = []
    for size_class in (known for known in run_folder.SIZE_CLASSES if known in tried):
        total = count(lines, size_class)
        found.append(
            SizeSummary(
                size_class=size_class,
                uploads=total.uploads,
                uploads_per_s=total.uploads / duration_s,
                bytes_per_s=total.bytes / duration_s,
                transaction_us=_latency([histograms[size_class]] if size_class in histograms else []),
                failures=total.failures,
            )
        )
    return found


def _new_histogram() -> HdrHistogram:
    return HdrHistogram(1, 3_600_000_000, 3)  # as the load writes them: microseconds up to an hour, 3 digits


def _histograms(lines: Iterable[HistogramsLine]) -> dict[str, HdrHistogram]:
    """The transactions of these phases by size class, added up."""
    found: dict[str, HdrHistogram] = defaultdict(_new_histogram)
    for line in lines:
        for name, durations in line.names.items():
            try:
                found[run_folder.split_name(name)[1]].decode_and_add(durations["transaction"])
            except _UNREADABLE:
                raise RunFolderError(
                    f"{run_folder.UPLOADS} has a histogram of {name!r} in phase {line.phase!r} that cannot be decoded"
                ) from None
    return found


def _latency(histograms: Iterable[HdrHistogram]) -> Latency:
    merged = _new_histogram()
    for histogram in histograms:
        merged.add(histogram)
    samples = merged.get_total_count()

    def value(percentile: int) -> float | None:
        if samples * (100 - percentile) < 100 * SAMPLES_BEYOND:
            return None
        return float(merged.get_value_at_percentile(percentile))

    return Latency(
        samples=samples,
        p50=value(50),
        p95=value(95),
        p99=value(99),
        max=float(merged.get_max_value()) if samples else None,
    )
