"""Has the run failed? What was measured beside each of its thresholds, and what a command that judges it exits with.

A condition is looked at in each mode, and one mode that breaks it breaks it. Failures are looked at in the whole run
besides, warm-up included, and memory only there.

Nothing unknown passes: a condition that cannot be evaluated is broken, and says why. So is one whose value is only a
lower bound that stays on the good side of the limit, for the value itself may lie beyond.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reports.analysis import histograms
from reports.analysis.evidence import Evidence
from reports.analysis.histograms import Samples
from reports.missing_values import total
from reports.run_folder import Ending
from reports.summary import LoadSummary, ModeSummary, PhaseSummary, ServerSummary, ThresholdResult, Verdict
from reports.texts import at_least, duration, mebibytes, percent, significant
from reports.thresholds import OPEN_MODEL_ONLY, Threshold, ThresholdError, parse


@dataclass(frozen=True, slots=True)
class Measured:
    """All that conditions are compared with."""

    evidence: Evidence
    modes: Sequence[ModeSummary]
    phases: Sequence[PhaseSummary]
    server: ServerSummary
    load: LoadSummary


@dataclass(frozen=True, slots=True)
class _Value:
    """What was measured of one thing; `value` is None where it is not known, which `unknown` explains."""

    of: str
    value: float | None
    text: str = ""
    unknown: str = ""
    is_bound: bool = False
    """The true value is at least this."""


def results(measured: Measured) -> list[ThresholdResult]:
    """What became of every condition in run.json, in their order."""
    return [_result(measured, text) for text in measured.evidence.run.thresholds]


def exit_code(verdict: Verdict, thresholds: Sequence[ThresholdResult], load: LoadSummary, ended: Ending | None) -> int:
    """See Summary.exit_code, the worst first. A run that was cut off (`ended` is None) is judged as far as it went."""
    if verdict in ("INVALID", "NOISY"):  # the numbers say nothing, whatever they are
        return 4
    if any(result.broken for result in thresholds):
        return 3
    if ended is not None and ended.how == "failed":
        return 1
    # An upload that failed does not fail the run where a threshold, which was kept, says how many may.
    allowed = any(result.condition.startswith("failures ") for result in thresholds)
    return 1 if load.failures and not allowed else 0


def _result(measured: Measured, text: str) -> ThresholdResult:
    try:
        threshold = parse(text)
    except ThresholdError as error:  # of a version that knew other metrics
        return ThresholdResult(condition=text, measured="–", broken=True, why=str(error))
    values = list(_values(measured, threshold))
    whys = [why for value in values if (why := _why(threshold, value))]
    if not values:
        whys = ["nothing was measured"]
    shown = ", ".join(f"{value.of} {value.text}" for value in values if value.text)
    return ThresholdResult(condition=threshold.text, measured=shown or "–", broken=bool(whys), why="; ".join(whys))


def _why(threshold: Threshold, value: _Value) -> str:
    """Why this value breaks the condition; empty when it does not."""
    if value.value is None:
        return f"{value.of}: {value.unknown}"
    broken = threshold.broken_by(value.value)
    if value.is_bound and broken != threshold.wants_less:
        return f"{value.of}: {value.text} is a lower bound, which cannot show that the limit was kept"
    return f"{value.of}: {value.text}" if broken else ""


def _values(measured: Measured, threshold: Threshold) -> Iterator[_Value]:
    match threshold.metric:
        case "latency":
            return _latencies(measured, threshold)
        case "failures":
            return _failures(measured)
        case "failed share":
            return _failed_shares(measured)
        case "uploads/s":
            return _rates(measured)
        case "cpu":
            return _cores(measured)
        case "memory":
            return _memory(measured)


def _latencies(measured: Measured, threshold: Threshold) -> Iterator[_Value]:
    """Percentiles of however few samples: who names a limit wants an answer, also of a short run."""
    name = threshold.duration
    for mode in measured.modes:
        if measured.evidence.run.model == "closed" and name in OPEN_MODEL_ONLY:
            instead = f"; use {OPEN_MODEL_ONLY[name]}" if OPEN_MODEL_ONLY[name] else ""
            yield _Value(mode.mode, None, unknown=f"there is no {name} in the closed model{instead}")
        else:
            yield _latency(measured.evidence, mode, threshold)


def _latency(evidence: Evidence, mode: ModeSummary, threshold: Threshold) -> _Value:
    lines = [line for phase, line in evidence.histograms.items() if phase in mode.phases]
    samples = Samples(histograms.of_all(lines, threshold.duration))
    if threshold.duration == "response":
        samples = histograms.with_unanswered(samples.histogram, histograms.of_all(lines, "unanswered"))
    value_us = samples.at(threshold.percentile)
    if value_us is None:
        return _Value(mode.mode, None, unknown=f"no {threshold.duration} was recorded")
    is_bound = samples.is_bound(value_us)
    return _Value(mode.mode, value_us, at_least(duration(value_us), is_bound), is_bound=is_bound)


def _failures(measured: Measured) -> Iterator[_Value]:
    for of, failures, _ in _attempts(measured):
        yield _Value(of, failures, f"{failures:,}")


def _failed_shares(measured: Measured) -> Iterator[_Value]:
    for of, failures, uploads in _attempts(measured):
        if failures + uploads:
            share = failures / (failures + uploads)
            yield _Value(of, share, percent(share))
        else:
            yield _Value(of, None, unknown="nothing was uploaded")


def _attempts(measured: Measured) -> Iterator[tuple[str, int, int]]:
    """(of what, failures, acknowledged uploads)"""
    for mode in measured.modes:
        yield mode.mode, sum(mode.failures.values()), mode.uploads
    yield "whole run", sum(measured.load.failures.values()), measured.load.uploads


def _rates(measured: Measured) -> Iterator[_Value]:
    for mode in measured.modes:
        text = at_least(f"{significant(mode.uploads_per_s)}/s", mode.lower_bound)
        yield _Value(mode.mode, mode.uploads_per_s, text, is_bound=mode.lower_bound)


def _cores(measured: Measured) -> Iterator[_Value]:
    for mode in measured.modes:
        cpu_s = total(phase.server_cpu_s for phase in measured.phases if phase.name in mode.phases)
        if cpu_s is None:
            yield _Value(mode.mode, None, unknown="the server's CPU was not recorded")
        else:
            cores = cpu_s / mode.duration_s
            yield _Value(mode.mode, cores, f"{significant(cores)} cores")


def _memory(measured: Measured) -> Iterator[_Value]:
    peak, kind = measured.server.memory_peak_bytes, measured.server.memory_kind
    if peak is None:
        yield _Value("whole run", None, unknown="the server's memory was not recorded")
    else:
        yield _Value("whole run", peak, f"{mebibytes(peak)} {kind}")
