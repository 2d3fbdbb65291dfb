"""Long against short: all measure phases of one mode as one.

A mode is how many uploads a connection carries. Its phases are pooled: their uploads over their time, their CPU over
their uploads. Other phases (warm-up, drain, those too short) never enter.

A rate is of uploads that were acknowledged while their phase went on, and so are costs. What came later belongs to the
phase nevertheless: its latency is in the percentiles, which would otherwise lack the slowest.
"""

from collections import defaultdict
from collections.abc import Sequence

from hdrh.histogram import HdrHistogram

from reports import run_folder
from reports.analysis import histograms
from reports.analysis.evidence import Count, Evidence, count
from reports.analysis.histograms import Samples
from reports.missing_values import mean, most, total
from reports.run_folder import UploadsLine
from reports.summary import Latency, ModeSummary, PhaseSummary, SizeSummary


def mode_summaries(evidence: Evidence, phases: Sequence[PhaseSummary]) -> list[ModeSummary]:
    """Every mode that was measured, in the order of its first phase. RunFolderError when a histogram is damaged."""
    pools: dict[str, list[PhaseSummary]] = defaultdict(list)
    for phase in phases:
        if phase.measured:
            pools[phase.mode].append(phase)
    return [_mode(evidence, mode, pool) for mode, pool in pools.items()]


Durations = dict[str, dict[str, HdrHistogram]]
"""Histograms of one mode, by the name of the duration and the size class."""


def _mode(evidence: Evidence, mode: str, pool: Sequence[PhaseSummary]) -> ModeSummary:
    names = {phase.name for phase in pool}
    lines = [line for line in evidence.seconds if line.phase in names]
    duration_s = sum(phase.duration_s for phase in pool)
    counted = count(lines)
    written = [line for name, line in evidence.histograms.items() if name in names]
    shown = ("service", "transaction", *(("response", "unanswered") if evidence.run.model == "open" else ()))
    durations = {duration: histograms.by_size(written, duration) for duration in shown}
    busy_s, server_s = total(phase.busy_core_s for phase in pool), total(phase.server_cpu_s for phase in pool)
    return ModeSummary(
        mode=mode,
        phases=[phase.name for phase in pool],
        duration_s=duration_s,
        uploads=counted.uploads,
        bytes=counted.bytes,
        uploads_per_s=counted.in_time / duration_s,
        bytes_per_s=_bytes_per_s(counted, duration_s),
        offered_per_s=_per(total(phase.offered for phase in pool), duration_s),
        achieved_share=_per(counted.in_time, total(phase.offered or None for phase in pool)),
        lower_bound=any(phase.limited for phase in pool),
        at_capacity=all(phase.at_capacity for phase in pool),
        response_us=_response(durations),
        service_us=_latency(durations, "service"),
        transaction_us=_latency(durations, "transaction"),
        busy_core_us_per_upload=_per(busy_s, counted.in_time, 1e6),
        server_core_us_per_upload=_per(server_s, counted.in_time, 1e6),
        busy_core_s_per_gib=_per(busy_s, counted.bytes, 1 << 30),
        server_core_s_per_gib=_per(server_s, counted.bytes, 1 << 30),
        busiest_worker_share=most(phase.busiest_worker_share for phase in pool),
        mean_worker_share=mean(phase.mean_worker_share for phase in pool),
        failures=counted.failures,
        sizes=_sizes(lines, duration_s, durations),
    )


def _per(amount: float | None, number: float | None, scale: float = 1) -> float | None:
    """The amount for each of this number; None where one of the two is not known, or there is none."""
    return None if amount is None or not number else amount / number * scale


def _bytes_per_s(counted: Count, duration_s: float) -> float:
    """Those of uploads in time. Of late ones only the number is known: they are taken to be as large as the others."""
    return counted.bytes * (1 - counted.late / counted.uploads) / duration_s if counted.uploads else 0.0


def _sizes(lines: Sequence[UploadsLine], duration_s: float, durations: Durations) -> list[SizeSummary]:
    """The size classes that were tried, smallest first."""
    tried = {run_folder.split_name(name)[1] for line in lines for name in line.names}
    found = []
    for size_class in (known for known in run_folder.SIZE_CLASSES if known in tried):
        counted = count(lines, size_class)
        found.append(
            SizeSummary(
                size_class=size_class,
                uploads=counted.uploads,
                uploads_per_s=counted.in_time / duration_s,
                bytes_per_s=_bytes_per_s(counted, duration_s),
                response_us=_response(durations, size_class),
                service_us=_latency(durations, "service", size_class),
                transaction_us=_latency(durations, "transaction", size_class),
                failures=counted.failures,
            )
        )
    return found


# --- latencies --------------------------------------------------------------------------------------------------------


def _latency(durations: Durations, name: str, size_class: str | None = None) -> Latency:
    return histograms.latency(Samples(_picked(durations[name], size_class)))


def _response(durations: Durations, size_class: str | None = None) -> Latency | None:
    """None in the closed model. Those that never came are included, or a server that hangs would look faster."""
    if "response" not in durations:
        return None
    answered, unanswered = (_picked(durations[name], size_class) for name in ("response", "unanswered"))
    return histograms.latency(histograms.with_unanswered(answered, unanswered))


def _picked(by_size: dict[str, HdrHistogram], size_class: str | None) -> HdrHistogram:
    """One size class, or all together."""
    if size_class is None:
        return histograms.added(by_size.values())
    return by_size.get(size_class, histograms.empty())
