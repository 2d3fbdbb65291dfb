"""What a connection costs, in three ways, each where the run carries it.

Contrast: short connections against long ones. A run of plan `compare` goes long, short, short, long: two blocks of one
phase each, in turned order, so that what drifts over the run weighs on both modes alike. A ratio is formed within each
block. The spread of these ratios is what a single number would hide: the lowest and the highest of n blocks surround
the true median with a probability of 1 - 2^(1-n), since each lies below it with a chance of one half, and only when all
lie on one side it is not surrounded.

Sweep: over uploads per connection K, t(K) = t_request + t_connection / K. Each connection is paid for once and shared
by its K uploads, so the mean transaction (and its twin, busy core-µs an upload) is a line over 1/K; connections without
an end are at 1/K = 0. Phases in which something was at its limit are left out: a queue is not a cost of the connection.

Memory: from a run in which the number of connections changed, USS of the server = fixed + each · N. With a number that
hardly changes, whatever else grew would be charged to them. It is the server's own count of its connections, so a
server that shows none has no such number.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from statistics import correlation, linear_regression, mean, median
from typing import TypeVar

from reports.analysis.evidence import Evidence
from reports.missing_values import total
from reports.summary import Contrast, LineFit, PhaseSummary, Ratio, SweepFit

LEAST_VALUES = 4  # of K: any line fits two, and three leave one to doubt it by
UNSATURATED = 0.8  # the busiest worker may use at most so much of a core
LEAST_RANGE = 100  # connections, between the fewest and the most
LEAST_TICKS = 5
LEAST_R_SQUARED = 0.9

T = TypeVar("T")
Measure = Callable[[PhaseSummary], float | None]


# --- contrast ---------------------------------------------------------------------------------------------------------


def contrast(phases: Sequence[PhaseSummary], one: str, other: str) -> Contrast | None:
    """What mode `one` is to mode `other`; None without a block of both."""
    blocks = neighbours([(phase.mode, phase) for phase in phases if phase.measured], one, other)
    if not blocks:
        return None
    return Contrast(
        one=one,
        other=other,
        blocks=len(blocks),
        coverage=1 - 2.0 ** (1 - len(blocks)),
        uploads_per_s=_ratio(blocks, _uploads_per_s),
        transaction_us=_ratio(blocks, lambda phase: phase.transaction_mean_us),
        busy_core_us=_ratio(blocks, lambda phase: phase.busy_core_us_per_upload),
    )


def neighbours(ordered: Sequence[tuple[str, T]], one: str, other: str) -> list[tuple[T, T]]:
    """Pairs of things next to each other in time, one of either name, as (thing of `one`, thing of `other`); each thing
    is in one pair at most, and other names are passed over. `ordered` has (name, thing)."""
    found: list[tuple[T, T]] = []
    rest = [(name, thing) for name, thing in ordered if name in (one, other)]
    while len(rest) > 1:
        (name, first), (next_name, second) = rest[:2]
        if name == next_name:
            rest = rest[1:]
            continue
        found.append((first, second) if name == one else (second, first))
        rest = rest[2:]
    return found


def _ratio(blocks: Sequence[tuple[PhaseSummary, PhaseSummary]], measure: Measure) -> Ratio | None:
    """The ratio of what is measured; None where a phase does not know it."""
    pairs = [(measure(one), measure(other)) for one, other in blocks]
    ratios = [a / b for a, b in pairs if a and b]
    if len(ratios) < len(blocks):
        return None
    return Ratio(median=median(ratios), lowest=min(ratios), highest=max(ratios))


def _uploads_per_s(phase: PhaseSummary) -> float | None:
    """Unknown where something else than the server was the limit: of a bound there is no ratio."""
    return None if phase.limited else phase.acknowledged / phase.duration_s


# --- sweep ------------------------------------------------------------------------------------------------------------


def sweep_fit(phases: Sequence[PhaseSummary]) -> SweepFit | None:
    """What a request and what a connection costs; None where the data do not carry it."""
    usable = [phase for phase in phases if phase.measured and phase.uploads and not _is_saturated(phase)]
    if len({phase.uploads_per_connection for phase in usable}) < LEAST_VALUES:
        return None
    return SweepFit(
        uploads_per_connection=sorted({phase.uploads_per_connection for phase in usable}),
        transaction_us=_fit(usable, lambda phase: phase.transaction_mean_us),
        busy_core_us=_fit(usable, lambda phase: phase.busy_core_us_per_upload),
    )


def _is_saturated(phase: PhaseSummary) -> bool:
    return phase.limited or (phase.busiest_worker_share or 0) > UNSATURATED


def _fit(phases: Sequence[PhaseSummary], measure: Measure) -> LineFit | None:
    """Over the means of each K, so that a K that was measured twice weighs as much as others."""
    values: dict[int, list[float]] = defaultdict(list)
    for phase in phases:
        if (value := measure(phase)) is not None:
            values[phase.uploads_per_connection].append(value)
    if len(values) < LEAST_VALUES:
        return None
    slope, intercept, r_squared = _line([1 / k if k else 0.0 for k in values], [mean(v) for v in values.values()])
    return LineFit(request=intercept, connection=slope, r_squared=r_squared)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """(slope, intercept, share of the scatter that it explains) of the line with the least squares."""
    slope, intercept = linear_regression(x, y)
    return slope, intercept, correlation(x, y) ** 2 if min(y) < max(y) else 1.0


# --- memory -----------------------------------------------------------------------------------------------------------


def uss_per_connection(evidence: Evidence) -> float | None:
    """What a connection takes of the server's memory, in bytes; None where the data do not carry it."""
    points = list(_connections_and_uss(evidence))
    if len(points) < LEAST_TICKS:
        return None
    connections, uss = zip(*points, strict=True)
    if max(connections) - min(connections) < LEAST_RANGE or min(uss) == max(uss):
        return None
    slope, _, r_squared = _line(connections, uss)
    return slope if r_squared >= LEAST_R_SQUARED and slope > 0 else None


def _connections_and_uss(evidence: Evidence) -> Iterator[tuple[int, int]]:
    """Both of the whole server, at each tick that knows both."""
    connections = {
        tick.mono_ns: sum(slot.connections_now for slot in tick.scoreboard)
        for tick in evidence.host
        if tick.scoreboard is not None
    }
    for tick in evidence.ticks:
        uss = total(sample.uss_bytes for sample in tick.processes if sample.role.startswith("server-"))
        if uss is not None and tick.mono_ns in connections:
            yield connections[tick.mono_ns], uss
