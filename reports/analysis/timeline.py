"""A run over time: the curves that the charts show, as arrays. Nothing is drawn here.

A curve of uploads or latencies is broken between phases: what joined the end of one to the start of another, perhaps
across phases of another mode, would be a claim about a time in which nothing of its kind ran.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from reports import run_folder
from reports.analysis.accounts import Track
from reports.analysis.evidence import LONGEST_GAP, Evidence, Floats, Span, interval_s, spans
from reports.analysis.histograms import Shown, shown
from reports.run_folder import Percentiles, Phase
from reports.summary import ProcessSummary

SHORTEST_SPAN_S = 0.2  # less gives a wild rate
SHORTEST_STEP = 0.5  # of the usual one, between two ticks

# name of a line -> phase -> its points there: the stretch of time that one or more values are of
_Pieces = dict[str, dict[str, list[tuple[Span, *tuple[float, ...]]]]]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one line, in order of time; NaN breaks it."""

    t_s: Floats
    values: Floats


Band = tuple[Curve, Curve]
"""The area between two curves, which have the same times."""


@dataclass(frozen=True, slots=True)
class LatencyCurves:
    """Percentiles, about a second each, of one duration of one name, in microseconds."""

    duration: Shown
    mode: str
    size_class: str
    uploads: int
    p50: Curve
    p95: Curve
    p99: Curve


@dataclass(frozen=True, slots=True)
class ProcessCurves:
    process: ProcessSummary
    share: Curve
    rss_bytes: Curve
    uss_bytes: Curve


@dataclass(frozen=True, slots=True)
class Timeline:
    end_s: float
    uploads_per_s: dict[str, Curve]
    """A curve for each mode."""
    latency: list[LatencyCurves]
    processes: list[ProcessCurves]
    connections: dict[str, Curve]
    """Number by state: connections at the server's end, and all sockets of the machine in TIME_WAIT."""
    accept_queue: Curve
    """Connections that wait to be accepted, over all sockets of the port."""


def timeline(evidence: Evidence, tracks: Sequence[Track], processes: Sequence[ProcessSummary]) -> Timeline:
    """`processes` are those of `tracks`, in the same order."""
    return Timeline(
        end_s=_end_s(evidence),
        uploads_per_s=_upload_curves(evidence),
        latency=[curves for duration in shown(evidence) for curves in _latency_curves(evidence, duration)],
        processes=[
            ProcessCurves(process, _share_curve(track), _known(track, "rss_bytes"), _known(track, "uss_bytes"))
            for process, track in zip(processes, tracks, strict=True)
        ],
        connections=_connection_curves(evidence),
        accept_queue=_curve(
            (evidence.s(tick.mono_ns), sum(queue.waiting for queue in tick.accept_queues))
            for tick in evidence.host
            if tick.accept_queues is not None
        ),
    )


def _end_s(evidence: Evidence) -> float:
    ends = [lines[-1].mono_ns for lines in (evidence.seconds, evidence.ticks) if lines]
    ends += [phase.end_ns for phase in evidence.run.phases if phase.end_ns is not None]
    return max((evidence.s(mono_ns) for mono_ns in ends), default=0.0)


# --- uploads and their latency ----------------------------------------------------------------------------------------


def _upload_curves(evidence: Evidence) -> dict[str, Curve]:
    """Uploads a second by mode."""
    pieces: _Pieces = defaultdict(lambda: defaultdict(list))
    for phase, span in _drawable(evidence):
        uploads = sum(second.count for second in span.line.names.values())
        pieces[phase.mode][phase.name].append((span, uploads / span.duration_s))
    return {mode: _broken(found.values())[0] for mode, found in pieces.items()}


def _latency_curves(evidence: Evidence, duration: Shown) -> list[LatencyCurves]:
    """Percentiles as they were written: those of two names or two lines cannot be merged."""
    pieces: _Pieces = defaultdict(lambda: defaultdict(list))
    uploads: Counter[str] = Counter()
    for phase, span in _drawable(evidence):
        for name, second in span.line.names.items():
            uploads[name] += second.count
            written: Percentiles | None = getattr(second, f"{duration}_us")
            if written is not None:
                pieces[name][phase.name].append((span, written.p50, written.p95, written.p99))
    return [
        LatencyCurves(duration, *run_folder.split_name(name), uploads[name], *_broken(found.values()))
        for name, found in pieces.items()
        if uploads[name]
    ]


def _drawable(evidence: Evidence) -> Iterator[tuple[Phase, Span]]:
    """Every line that a rate can be read from, with its phase and the part of it that the line speaks of. What came in
    after a phase's end is not drawn: it has no time of its own there."""
    phases = {phase.name: phase for phase in evidence.run.phases}
    for span in spans(evidence):
        phase = phases.get(span.line.phase)
        if phase is None:
            continue
        if phase.end_ns is not None:
            span = replace(span, end_s=min(span.end_s, evidence.s(phase.end_ns)))
        if span.duration_s >= SHORTEST_SPAN_S:
            yield phase, span


def _broken(pieces: Iterable[Sequence[tuple[Span, *tuple[float, ...]]]]) -> list[Curve]:
    """One curve for each value of a point, with a break before each piece. What is alone in its piece would make no
    line: it is drawn as long as the stretch of time that it is of."""
    rows: list[tuple[float, ...]] = []
    for points in pieces:
        drawn = [(span.middle_s, *values) for span, *values in points]
        if len(points) == 1:
            [(span, *values)] = points
            drawn = [(span.start_s, *values), (span.end_s, *values)]
        rows += [(drawn[0][0], *(math.nan for _ in drawn[0][1:])), *drawn]
    t_s, *columns = np.array(rows, dtype=np.float64).T
    return [Curve(t_s, values) for values in columns]


# --- processes --------------------------------------------------------------------------------------------------------


def _share_curve(track: Track) -> Curve:
    """Share of one core from tick to tick, at the middle of each pair. Without pairs much closer than usual, such as
    the last two: the kernel counts CPU in steps of 10 ms, which are no small part of them."""
    t_s, cpu_s = track.account.t_s[1:], track.account.cpu_s[1:]  # without its birth
    share = np.where(_is_gap(t_s), math.nan, np.diff(cpu_s) / np.diff(t_s))
    usual = np.diff(t_s) >= SHORTEST_STEP * interval_s(t_s)
    if np.isnan(share[usual]).all():  # there is nothing else
        usual[:] = True
    return Curve(((t_s[1:] + t_s[:-1]) / 2)[usual], share[usual])


def _known(track: Track, field: str) -> Curve:
    """A field of the samples, where it was read: not at each tick."""
    values = zip(track.t_s, map(attrgetter(field), track.samples), strict=True)
    return _curve([(t_s, value) for t_s, value in values if value is not None], np.asarray(track.t_s))


def _curve(points: Iterable[tuple[float, float]], ticks_s: Floats | None = None) -> Curve:
    """The points as a curve, with a break where nothing was recorded for a while: between two ticks, or two points
    where each tick has one."""
    t_s, values = np.array(list(points), dtype=np.float64).reshape(-1, 2).T
    ticks_s = t_s if ticks_s is None else ticks_s
    gaps = np.flatnonzero(_is_gap(ticks_s))
    breaks = (ticks_s[gaps] + ticks_s[gaps + 1]) / 2
    places = np.searchsorted(t_s, breaks)
    return Curve(np.insert(t_s, places, breaks), np.insert(values, places, math.nan))


def _is_gap(t_s: Floats) -> NDArray[np.bool_]:
    """For each pair of neighbours, whether ticks are missing in between."""
    return np.diff(t_s) > LONGEST_GAP * interval_s(t_s)


# --- connections ------------------------------------------------------------------------------------------------------


def _connection_curves(evidence: Evidence) -> dict[str, Curve]:
    """Connections over time by state, without states that never were."""
    told = [(evidence.s(tick.mono_ns), tick.tcp_states) for tick in evidence.host if tick.tcp_states is not None]
    ticks_s = np.array([evidence.s(tick.mono_ns) for tick in evidence.host])
    states = {state: None for _, numbers in told for state in numbers}  # in the order of appearance, each once
    curves = {state: _curve([(t_s, numbers.get(state, 0)) for t_s, numbers in told], ticks_s) for state in states}
    waiting = [(evidence.s(tick.mono_ns), tick.tcp_time_wait or 0) for tick in evidence.host]
    if any(number for _, number in waiting):
        curves["TIME_WAIT"] = _curve(waiting)
    return curves
