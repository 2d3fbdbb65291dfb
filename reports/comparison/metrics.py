"""What two runs are compared by: three primary metrics of each mode, which are tested, and the rest, which is context.

Three, because each further metric that is tested makes every other one harder to find. They are what a user of a server
feels (uploads a second, the slowest in a hundred) and what its owner pays (CPU of the whole machine an upload).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from reports.missing_values import most
from reports.summary import Latency, ModeSummary, Summary

MIB = 1 << 20

OfRun = Callable[[Summary], float | None]


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    unit: str
    less_is_better: bool
    of: OfRun
    is_bound: Callable[[Summary], bool] = lambda _: False


def modes(summaries: Iterable[Summary]) -> list[str]:
    """That all of them measured, in the order of the first."""
    first, *others = summaries
    measured = [{mode.mode for mode in summary.modes if mode.uploads} for summary in (first, *others)]
    return [mode.mode for mode in first.modes if all(mode.mode in known for known in measured)]


def primary(mode: str, summaries: Sequence[Summary]) -> list[Metric]:
    """What is tested of one mode. Latency is that of the size class with most uploads over all runs, since percentiles
    of mixed sizes say what was mixed; response in the open model, transaction in the closed, which has no response."""
    size_class = next(iter(_sizes(mode, summaries)), "")
    duration = _duration(summaries)
    rate = _of_mode(mode, lambda found: found.uploads_per_s)
    return [
        Metric("rate", "uploads/s", False, rate, lambda run: any(m.lower_bound for m in run.modes if m.mode == mode)),
        *([_latency(mode, size_class, duration, "p99")] if size_class and duration else []),
        Metric("CPU, all busy", "core-µs/upload", True, _of_mode(mode, lambda found: found.busy_core_us_per_upload)),
    ]


def context(mode: str, summaries: Sequence[Summary]) -> list[Metric]:
    """What is shown of one mode, but not tested."""
    duration = _duration(summaries)
    found = [
        Metric("data", "MB/s", False, _of_mode(mode, lambda found: found.bytes_per_s / 1e6)),
        Metric("CPU, server", "core-µs/upload", True, _of_mode(mode, lambda found: found.server_core_us_per_upload)),
        Metric("CPU, server", "core-s/GiB", True, _of_mode(mode, lambda found: found.server_core_s_per_gib)),
        Metric("busiest worker", "% of a core", True, _of_mode(mode, lambda m: _times(100, m.busiest_worker_share))),
        Metric("failed", "% of uploads", True, _of_mode(mode, _failed_percent)),
    ]
    for size_class in _sizes(mode, summaries):
        if duration:
            found += [_latency(mode, size_class, duration, percentile) for percentile in ("p50", "p95", "p99")]
        found.append(_latency(mode, size_class, "service", "p50"))
    known = {metric.name for metric in primary(mode, summaries)}
    return [metric for metric in found if metric.name not in known]


def of_whole_runs() -> list[Metric]:
    """What belongs to no mode."""
    return [
        Metric("memory of the server, peak", "MiB", True, lambda run: _times(1 / MIB, run.server.memory_peak_bytes)),
        Metric("busiest load process", "% of a core", True, _busiest_load),
    ]


def _of_mode(mode: str, value: Callable[[ModeSummary], float | None]) -> OfRun:
    def of(summary: Summary) -> float | None:
        return next((value(found) for found in summary.modes if found.mode == mode and found.uploads), None)

    return of


def _latency(mode: str, size_class: str, duration: str, percentile: str) -> Metric:
    def latency(run: Summary) -> Latency | None:
        sizes = (size for found in run.modes if found.mode == mode and found.uploads for size in found.sizes)
        return next((getattr(size, f"{duration}_us") for size in sizes if size.size_class == size_class), None)

    def value(run: Summary) -> float | None:
        known: float | None = getattr(latency(run), percentile, None)
        return known

    def is_bound(run: Summary) -> bool:
        found, known = latency(run), value(run)
        return found is not None and known is not None and found.is_bound(known)

    return Metric(f"{percentile} {duration} {size_class}", "µs", True, value, is_bound)


def _duration(summaries: Sequence[Summary]) -> str:
    """Empty where runs are of different models: their latencies are different things."""
    models = {summary.model for summary in summaries}
    return {frozenset({"closed"}): "transaction", frozenset({"open"}): "response"}.get(frozenset(models), "")


def _sizes(mode: str, summaries: Sequence[Summary]) -> list[str]:
    """Size classes with the most uploads first."""
    uploads: Counter[str] = Counter()
    for summary in summaries:
        for found in summary.modes:
            if found.mode == mode:
                uploads.update({size.size_class: size.uploads for size in found.sizes})
    return [size_class for size_class, _ in uploads.most_common()]


def _failed_percent(mode: ModeSummary) -> float | None:
    failed = sum(mode.failures.values())
    return 100 * failed / (failed + mode.uploads)


def failed_share(summaries: Iterable[Summary]) -> float:
    """The share of uploads in measured phases that failed, over all these runs."""
    found = [mode for summary in summaries for mode in summary.modes]
    failed = sum(sum(mode.failures.values()) for mode in found)
    attempts = failed + sum(mode.uploads for mode in found)
    return failed / attempts if attempts else 0.0


def _busiest_load(run: Summary) -> float | None:
    return _times(100, most(phase.generator_share for phase in run.phases if phase.measured))


def _times(factor: float, value: float | None) -> float | None:
    return None if value is None else value * factor
