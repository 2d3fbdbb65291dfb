"""What the charts show, as values: which lines, under which names, in which colours. Drawing is drawing.py's.

A chart that shows everything shows nothing: of many processes the costliest get a line each, the rest become a mean
with its range; of many size classes the busiest one's latency is drawn; events of every run get no mark.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from reports import run_folder
from reports.analysis.summarise import Analysis
from reports.analysis.timeline import Band, Curve, LatencyCurves, ProcessCurves, Timeline
from reports.pages.costliest import Family, families
from reports.pages.palette import mode_colour
from reports.summary import ProcessSummary
from reports.texts import percent, plain

MOST_MARKS = 200

# What happens in every run: begins of kinds of events.
ROUTINE = ("phase", "users", "server-", "worker-started", "worker-ready", "run-")

STATE_COLOURS = {"established": "worker-0", "TIME_WAIT": "worker-2", "close-wait": "bad", "syn-received": "warn"}

Dash = Literal["solid", "dashed", "dotted"]


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of a legend, which is HTML: it wraps on a phone."""

    label: str
    colour: str
    """A name of the palette."""
    dash: Dash = "solid"


@dataclass(frozen=True, slots=True)
class Line:
    key: Key
    curve: Curve
    width: float = 1.6
    bands: tuple[Band, ...] = ()
    """Around it, the widest first: the lowest and the highest of what it is the mean of, or higher percentiles."""
    dots: Curve | None = None
    """Values that are known too rarely for the line between them to be one, of the same or of a part of it."""
    part: str = ""
    """What the dots are of, where they are not of the same."""


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    note: str
    lines: list[Line]
    tick_format: str
    """How a value is written, in the words of numeral.js."""
    empty: str
    """Why there is nothing to see, when there is not."""
    log: bool = False

    @property
    def keys(self) -> list[Key]:
        return [line.key for line in self.lines]


@dataclass(frozen=True, slots=True)
class Mark:
    """An event that a reader of the charts should see."""

    at_s: float
    text: str


def charts(analysis: Analysis) -> list[Chart]:
    """All charts in the order of the page; one without lines says why. A recording without a load has no charts of
    one."""
    timeline = analysis.timeline
    load = [_uploads_chart(timeline), _latency_chart(timeline.latency)] if analysis.run.model != "none" else []
    return [
        *load,
        Chart(
            "CPU",
            "per process, as a share of one core",
            _process_lines([ProcessCurve(curves.process, curves.share) for curves in timeline.processes]),
            "0%",
            f"Nothing to draw: {run_folder.PROCESSES} has fewer than two ticks, the recorder did not run.",
        ),
        Chart(
            "Memory",
            "per process in MiB: RSS at each tick (thin), and at the dots USS, what its end would give back",
            _process_lines([_memory(curves) for curves in timeline.processes]),
            "0,0.[0]",
            "Nothing to draw: the memory of no process could be read.",
        ),
        Chart(
            "Connections",
            "at the server's end by state, read at the dots, and all sockets of the machine in TIME_WAIT",
            [
                Line(Key(state, STATE_COLOURS.get(state, "muted"), _dash(state)), curve, dots=curve)
                for state, curve in timeline.connections.items()
            ],
            "0,0",
            "Nothing to draw: the kernel did not tell of the connections of this port.",
        ),
        Chart(
            "Accept queue",
            "connections that wait to be accepted, looked at once a tick",
            [Line(Key("waiting", "worker-0"), timeline.accept_queue)] if len(timeline.accept_queue.t_s) else [],
            "0,0",
            "Nothing to draw: the kernel did not tell of the listening sockets of this port.",
        ),
    ]


def _uploads_chart(timeline: Timeline) -> Chart:
    return Chart(
        "Uploads",
        "acknowledged per second",
        [Line(Key(mode, mode_colour(mode)), curve, 2) for mode, curve in timeline.uploads_per_s.items()],
        "0,0",
        f"Nothing to draw: {run_folder.UPLOADS} counts no upload in a phase of this run.",
    )


def _dash(state: str) -> Dash:
    return "dashed" if state == "TIME_WAIT" else "solid"


def _memory(curves: ProcessCurves) -> "ProcessCurve":
    return ProcessCurve(curves.process, _mebibytes(curves.rss_bytes), _mebibytes(curves.uss_bytes), "USS", 0.8)


def _mebibytes(curve: Curve) -> Curve:
    return Curve(curve.t_s, curve.values / (1 << 20))


def marks(analysis: Analysis) -> list[Mark]:
    events = [event for event in analysis.events if not event.kind.startswith(ROUTINE)]
    return [Mark(analysis.seconds(event), plain(event.text)) for event in events[:MOST_MARKS]]


# --- latency ----------------------------------------------------------------------------------------------------------


def _latency_chart(latency: Sequence[LatencyCurves]) -> Chart:
    """Percentiles of different names cannot be merged: the size class with most uploads is drawn alone."""
    uploads: Counter[str] = Counter()
    for curves in latency:
        uploads[curves.size_class] += curves.uploads if curves.duration != "service" else 0
    busiest = max(uploads, key=lambda size_class: uploads[size_class], default="")
    lines = [line for curves in latency if curves.size_class == busiest for line in _latency_lines(curves)]
    is_open = any(curves.duration == "response" for curves in latency)
    what = "responses, and the server's part of them (service)," if is_open else "transactions"
    note = f"{what} of {busiest} only, each second, in µs, log scale"
    if len(uploads) > 1:
        note += f" ({percent(uploads[busiest] / uploads.total())} of uploads)"
    return Chart("Latency", note, lines, "0,0", "Nothing to draw: no second had an acknowledged upload.", log=True)


def _latency_lines(curves: LatencyCurves) -> list[Line]:
    """The median in its bands. The service has only a p99, which is what a load that waits for its replies would have
    shown."""
    colour = mode_colour(curves.mode)
    what = f"{curves.mode}," if curves.duration == "transaction" else f"{curves.mode}, {curves.duration}"
    if curves.duration == "service":
        return [Line(Key(f"{what} p99", colour, "dotted"), curves.p99, 1.4)]
    bands = ((curves.p50, curves.p99), (curves.p50, curves.p95))
    return [Line(Key(f"{what} p50, in bands up to p95 and p99", colour), curves.p50, 2, bands)]


# --- processes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProcessCurve:
    """What is drawn of one process, see Line."""

    process: ProcessSummary
    curve: Curve
    dots: Curve | None = None
    part: str = ""
    width: float = 1.6

    def line(self, key: Key) -> Line:
        return Line(key, self.curve, self.width, (), self.dots, self.part)


def _process_lines(curves: Sequence[ProcessCurve]) -> list[Line]:
    """Workers, then others."""
    drawable = [each for each in curves if len(each.curve.t_s)]
    workers, others = families([each.process for each in drawable])
    shown = [drawable[index] for index in workers.shown]
    lines = [each.line(_worker_key(each.process, number)) for number, each in enumerate(shown)]
    lines += _rest(workers, drawable, "worker-3")
    loads = 0
    for each in (drawable[index] for index in others.shown):
        lines.append(each.line(_key(each.process, loads)))
        loads += each.process.role.startswith("load-")
    return lines + _rest(others, drawable, "load-1")


def _label(process: ProcessSummary) -> str:
    return f"{process.name} ({process.pid})"


def _worker_key(process: ProcessSummary, number: int) -> Key:
    return Key(_label(process), f"worker-{number % 4}", "solid" if number < 4 else "dashed")


def _key(process: ProcessSummary, loads: int) -> Key:
    """The key of a process that is no worker; `loads` load processes were drawn before it."""
    if process.role.startswith("load-"):
        return Key(_label(process), f"load-{loads % 2}")
    if process.role in ("recorder", "hiccup-meter"):
        return Key(_label(process), "recorder", "dotted")
    return Key(_label(process), "master", "dashed")


def _rest(family: Family, drawable: Sequence[ProcessCurve], colour: str) -> list[Line]:
    """One line for all that are not shown, if there are any: their mean, in a band from the lowest to the highest."""
    if not family.rest:
        return []
    rest = [drawable[index] for index in family.rest]
    mean, extent = _mean([each.curve for each in rest])
    dots = [each.dots for each in rest if each.dots is not None and len(each.dots.t_s)]  # some were never read
    key = Key(f"{len(rest)} more {family.what}: mean and range", colour, "dotted")
    return [Line(key, mean, rest[0].width, (extent,), _mean(dots)[0] if dots else None, rest[0].part)]


def _mean(curves: Sequence[Curve]) -> tuple[Curve, Band]:
    """Of curves of different times, with the lowest and the highest of them."""
    t_s = np.unique(np.concatenate([curve.t_s for curve in curves]))
    rows = [np.interp(t_s, curve.t_s, curve.values, left=np.nan, right=np.nan) for curve in curves]
    values = np.ma.masked_invalid(np.array(rows))
    lowest, highest, mean = (found.filled(np.nan) for found in (values.min(0), values.max(0), values.mean(0)))
    return Curve(t_s, mean), (Curve(t_s, lowest), Curve(t_s, highest))
