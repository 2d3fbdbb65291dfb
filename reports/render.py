"""From an analysis to something people read: report.html, report.md and the summary in the terminal.

The three say the same because they show the same `View`: tables of finished texts. Only the timeline is drawn, and only
for HTML. report.html is one file: bokeh's JavaScript is inside, nothing is fetched, and it works from disk.

- Colours are named once, in PALETTE, as CSS variables. Each model of a chart carries in its tags which property takes
  which variable; a few lines of JavaScript paint them, again whenever the reader's colour scheme changes.
- What strangers chose (labels, file names, failure codes, texts of events) is escaped by Jinja in HTML, by `_markdown`
  in Markdown, and stripped of control characters everywhere.
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from bokeh.core.properties import value
from bokeh.document import Document
from bokeh.embed import components
from bokeh.events import DocumentReady, DoubleTap
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    CrosshairTool,
    CustomJS,
    HoverTool,
    LogTicker,
    NumeralTickFormatter,
    Range1d,
    glyphs,
)
from bokeh.models.annotations import BoxAnnotation, Span
from bokeh.models.renderers import DataRenderer
from bokeh.plotting import figure
from bokeh.resources import INLINE
from markupsafe import Markup

from reports import run_folder
from reports.analysis import (
    SHORTEST_PHASE_S,
    Analysis,
    Curve,
    Latency,
    LatencyCurves,
    ModeSummary,
    PhaseSummary,
    ProcessCurves,
    ProcessSummary,
    Summary,
    analyse,
    percent,
    significant,
)
from reports.run_folder import Event, RunFolderError

TEMPLATES = Path(__file__).parent / "templates"

# name: (light, dark). Every hue keeps a contrast of 3:1 or more to its ground, and families differ in lightness or dash
# as well as in hue, for readers who cannot tell the hues apart.
PALETTE = {
    "ground": ("#ffffff", "#14171a"),
    "panel": ("#f5f6f7", "#1d2125"),
    "ink": ("#1b1f23", "#e4e7ea"),
    "muted": ("#5c6670", "#9aa5b0"),
    "rule": ("#dfe3e7", "#31373d"),
    "good": ("#1a7f4b", "#4fc48a"),
    "warn": ("#9a6700", "#e0b040"),
    "bad": ("#b3261e", "#ff8a80"),
    "long": ("#00796b", "#4dc0b0"),
    "short": ("#c2185b", "#ff7fac"),
    "other-mode": ("#6d5f00", "#d9c34a"),
    "worker-0": ("#08306b", "#d3e6f7"),
    "worker-1": ("#1c5fa8", "#9ecae1"),
    "worker-2": ("#3182bd", "#6baed6"),
    "worker-3": ("#5a9bd0", "#4a90cc"),
    "master": ("#7b3294", "#cfa3e6"),
    "load-0": ("#b85c00", "#f7a653"),
    "load-1": ("#8c4600", "#ffcc99"),
    "recorder": ("#6b6b6b", "#a8a8a8"),
}
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif'

LINES_PER_FAMILY = 6  # a chart shows that many workers and that many others; the rest are one band
MOST_EVENTS = 200
HEADROOM = 1.25  # above the highest value, for the names of the phases
PHONE_PX, LETTER_PX = 300, 7  # width of a plot on a phone, and of a letter in it
NONE = "–"

# What happens in every run; drawn as marks these would hide the rest.
ROUTINE = ("phase", "users", "server-", "worker-started", "worker-ready", "run-")

Dash = Literal["solid", "dashed", "dotted"]


# --- what all three outputs show --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    cells: list[str]
    kind: Literal["main", "part", "ratio"] = "main"


@dataclass(frozen=True, slots=True)
class Table:
    columns: list[Column]
    rows: list[Row]
    note: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """The report as texts."""

    title: str
    subtitle: str
    verdict: str
    reason: str
    sentence: str
    warnings: list[str]
    modes: Table
    phases: Table
    processes: Table
    events: Table
    facts: list[tuple[str, list[tuple[str, str]]]]
    """Headed groups of (name, value): the run, the load, the server, the environment."""
    command: str


def view(analysis: Analysis) -> View:
    run, summary = analysis.run, analysis.summary
    started = datetime.fromtimestamp(run.started_wall_ns / 1e9, UTC)
    return View(
        title=run.label,
        subtitle=f"{started:%d %B %Y, %H:%M} UTC, {run.users} users against {run.host}",
        verdict=summary.verdict,
        reason=summary.reason,
        sentence=sentence(summary),
        warnings=summary.warnings,
        modes=_mode_table(summary),
        phases=_phase_table(summary.phases),
        processes=_process_table(summary),
        events=_event_table(analysis),
        facts=_facts(analysis),
        command=shlex.join(run.command),
    )


def sentence(summary: Summary) -> str:
    """The run in one sentence: rates, workers, p99, CPU, and what short connections cost over long ones."""
    measured = [mode for mode in summary.modes if mode.uploads]
    if not measured:
        return "Nothing was measured."
    workers = summary.server.workers
    who = "The server" if not workers else f"With {workers} worker{'s' if workers > 1 else ''} the server"
    text = f"{who} took {' and '.join(_clause(mode) for mode in measured)}"
    long, short = (next((mode for mode in measured if mode.mode == name), None) for name in ("long", "short"))
    if long and short and long.busy_core_us_per_upload and short.busy_core_us_per_upload:
        ratio = short.busy_core_us_per_upload / long.busy_core_us_per_upload
        text += (
            f"; a short upload cost {significant(ratio)} times the CPU of a long one "
            f"({significant(short.busy_core_us_per_upload)} against "
            f"{significant(long.busy_core_us_per_upload)} busy core-µs)"
        )
    return f"{text}."


def _clause(mode: ModeSummary) -> str:
    details = []
    if mode.transaction_us.p99 is not None:
        details.append(f"99 % of transactions within {significant(mode.transaction_us.p99)} µs")
    if mode.server_core_us_per_upload is not None:
        cores = mode.server_core_us_per_upload * mode.uploads_per_s / 1e6
        details.append(f"server CPU {significant(cores)} cores")
    if mode.at_capacity:
        details.append("at capacity")
    suffix = f" ({', '.join(details)})" if details else ""
    return f"{_rate(mode)} uploads/s over {mode.mode} connections{suffix}".replace(
        "per connection connections", "uploads per connection"
    )


def _rate(mode: ModeSummary, value: float | None = None) -> str:
    """A rate of this mode, by default its uploads a second, with the sign of a lower bound where it is one."""
    return ("≥ " if mode.lower_bound else "") + significant(mode.uploads_per_s if value is None else value)


MODE_COLUMNS = [
    Column("Connections", numeric=False),
    Column("Uploads", "/s"),
    Column("Data", "MB/s"),
    Column("p50", "µs"),
    Column("p95", "µs"),
    Column("p99", "µs"),
    Column("Max", "µs"),
    Column("CPU, all busy", "core-µs/upload"),
    Column("CPU, server", "core-µs/upload"),
    Column("Failed", "by code", numeric=False),
]


def _mode_table(summary: Summary) -> Table:
    rows = []
    for mode in summary.modes:
        rows.append(Row([f"{mode.mode}, all sizes", *_mode_numbers(mode), _failures(mode.failures)]))
        for size in mode.sizes:
            rates = [_rate(mode, size.uploads_per_s), _rate(mode, size.bytes_per_s / 1e6)]
            latency = _latency(size.transaction_us)
            rows.append(Row([size.size_class, *rates, *latency, "", "", _failures(size.failures)], "part"))
    modes = {mode.mode: mode for mode in summary.modes}
    if "long" in modes and "short" in modes:
        rows.append(_ratio_row(modes["short"], modes["long"]))
    note = (
        "Latencies are whole transactions, connect and close included where they happened. "
        "All busy: every core of this machine, minus idle and waiting for disk; server: as the kernel charged its "
        f"processes. {NONE}: fewer than 30 samples lie beyond that percentile, so it would not repeat."
    )
    if any(mode.lower_bound for mode in summary.modes):
        note += " ≥: the load generator was the limit; the server may hold more."
    return Table(MODE_COLUMNS, rows, note)


def _mode_numbers(mode: ModeSummary) -> list[str]:
    costs = (mode.busy_core_us_per_upload, mode.server_core_us_per_upload)
    return [
        _rate(mode),
        _rate(mode, mode.bytes_per_s / 1e6),
        *_latency(mode.transaction_us),
        *("not recorded" if cost is None else significant(cost) for cost in costs),
    ]


def _ratio_row(short: ModeSummary, long: ModeSummary) -> Row:
    bounds = short.lower_bound or long.lower_bound  # what their ratio is then, nobody knows

    def numbers(mode: ModeSummary) -> list[float | None]:
        latency = mode.transaction_us
        return [
            *((None, None) if bounds else (mode.uploads_per_s, mode.bytes_per_s)),
            *(latency.p50, latency.p95, latency.p99, latency.max),
            mode.busy_core_us_per_upload,
            mode.server_core_us_per_upload,
        ]

    pairs = zip(numbers(short), numbers(long), strict=True)
    return Row(["short ÷ long", *(f"{significant(a / b)}×" if a and b else NONE for a, b in pairs), ""], "ratio")


def _latency(latency: Latency) -> list[str]:
    return [_optional(value) for value in (latency.p50, latency.p95, latency.p99, latency.max)]


def _optional(value: float | None, scale: float = 1) -> str:
    return NONE if value is None else significant(value / scale)


def _whole(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _failures(failures: dict[str, int]) -> str:
    return ", ".join(f"{code} {count:,}" for code, count in failures.items()) or "0"


def _phase_table(phases: Sequence[PhaseSummary]) -> Table:
    columns = [
        Column("Phase", numeric=False),
        Column("Kind", numeric=False),
        Column("Connections", numeric=False),
        Column("From", "s"),
        Column("Lasted", "s"),
        Column("Uploads"),
        Column("Uploads", "/s"),
        Column("Opened", "connections"),
        Column("Top worker", "of a core"),
        Column("Top load", "of a core"),
        Column("Failed", "by code", numeric=False),
    ]
    rows = [
        Row(
            [
                phase.name,
                phase.kind,
                phase.mode,
                significant(phase.start_s),
                significant(phase.duration_s),
                _whole(phase.uploads),
                significant(phase.uploads / phase.duration_s) if phase.duration_s >= SHORTEST_PHASE_S else NONE,
                _whole(phase.connections),
                *(NONE if s is None else percent(s) for s in (phase.busiest_worker_share, phase.generator_share)),
                _failures(phase.failures),
            ]
        )
        for phase in phases
    ]
    return Table(columns, rows, "" if rows else f"{run_folder.RUN} names no phase: the run ended before the first.")


ROLE_NAMES = {
    "server-master": "supervisor",
    "server-worker": "worker",
    "server-status": "status page",
    "load-master": "load",
    "load-worker": "load worker",
    "recorder": "recorder",
}


def _process_name(process: ProcessSummary) -> str:
    name = ROLE_NAMES[process.role]
    return name if process.slot is None else f"{name} {process.slot}"


def _process_table(summary: Summary) -> Table:
    columns = [
        Column("Process", numeric=False),
        Column("pid"),
        Column("Alive", "s", numeric=False),
        Column("CPU user", "s"),
        Column("CPU system", "s"),
        Column("Mean share", "of a core"),
        Column("RSS, peak", "MiB"),
        Column("USS, peak", "MiB"),
        Column("Threads"),
        Column("Open files"),
        Column("Switches", "own"),
        Column("Switches", "forced"),
    ]
    rows = [
        Row(
            [
                _process_name(process),
                str(process.pid),
                _alive(process),
                _optional(process.cpu_user_s),
                _optional(process.cpu_system_s),
                NONE if process.share is None else percent(process.share),
                _optional(process.rss_max_bytes, 1 << 20),
                _optional(process.uss_max_bytes, 1 << 20),
                _whole(process.threads),
                _whole(process.fds),
                _whole(process.voluntary_switches),
                _whole(process.involuntary_switches),
            ],
            "part" if process.ended else "main",
        )
        for process in sorted(summary.processes, key=_process_order)
    ]
    if not rows:
        return Table(columns, rows, f"No process was recorded: {run_folder.PROCESSES} is missing or empty.")
    note = "CPU is from each process's birth on; the share is of the measured phases while it lived."
    if summary.server.cpu_total_s is not None:
        note = (
            f"The server as a whole used {significant(summary.server.cpu_total_s)} s of CPU since its birth, "
            f"workers that ended included. {note}"
        )
    return Table(columns, rows, note)


def _process_order(process: ProcessSummary) -> tuple[int, int, float]:
    return list(ROLE_NAMES).index(process.role), -1 if process.slot is None else process.slot, process.started_s


def _alive(process: ProcessSummary) -> str:
    start = "before" if process.started_s <= 0 else significant(process.started_s)
    return f"{start} to {significant(process.last_seen_s)}, ended" if process.ended else f"{start} to end"


def _event_table(analysis: Analysis) -> Table:
    columns = [Column("At", "s"), *(Column(title, numeric=False) for title in ("Source", "Kind", "What happened"))]
    shown = analysis.events[:MOST_EVENTS]
    rows = [Row([f"{analysis.seconds(event):.2f}", event.source, event.kind, event.text]) for event in shown]
    more = len(analysis.events) - len(shown)
    note = f"{more:,} more are in {run_folder.EVENTS}." if more else ""
    return Table(columns, rows, note if rows else f"No event: {run_folder.EVENTS} is missing or empty.")


def _facts(analysis: Analysis) -> list[tuple[str, list[tuple[str, str]]]]:
    run = analysis.run
    ending = "cut off: nobody ended it" if run.ended is None else f"{run.ended.how}: {run.ended.reason}"
    commit = "unknown" if run.git_commit is None else run.git_commit[:12] + (", with changes" if run.git_dirty else "")
    groups = [
        ("Run", [("id", run.id), ("ended", ending), ("target", run.host), ("commit", commit)]),
        ("Load", [("users", str(run.users)), ("seed", str(run.seed)), *_pairs(run.load_options)]),
        ("Machine", _pairs(run.environment)),
    ]
    if run.server is None:
        return [*groups, ("Server", [("recorded", "no")])]
    server = [("command", shlex.join(run.server.command)), ("pid", str(run.server.pid))]
    return [*groups, ("Server", server + _pairs(run.server.options or {}))]


def _pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Names in words, but for those of the kernel's own settings, which have dots."""
    names = [key if "." in key else key.removesuffix("_bytes").replace("_", " ") for key in values]
    return [(name, _fact(key, value)) for name, (key, value) in zip(names, values.items(), strict=True)]


def _fact(key: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "unknown", True: "yes", False: "no"}[value]
    if key.endswith("_bytes") and isinstance(value, int | float):
        return f"{significant(value / (1 << 30))} GiB"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- the timeline -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """An entry of a legend, which is HTML: it wraps on a phone."""

    label: str
    colour: str
    dash: Dash = "solid"


@dataclass(frozen=True, slots=True)
class Line:
    key: Key
    curve: Curve
    width: float = 1.6
    band: tuple[Curve, Curve] | None = None
    """Lowest and highest of many that the line is the mean of."""


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    note: str
    lines: list[Line]
    tick_format: str
    empty: str
    """Why there is nothing to see, when there is not."""
    log: bool = False

    @property
    def keys(self) -> list[Key]:
        return [line.key for line in self.lines]


def charts(analysis: Analysis) -> list[Chart]:
    timeline = analysis.timeline
    uss = [
        ProcessCurves(curves.process, curves.share, Curve(curves.uss_bytes.t_s, curves.uss_bytes.values / (1 << 20)))
        for curves in timeline.processes
    ]
    return [
        Chart(
            "Uploads",
            "acknowledged per second",
            [Line(Key(mode, _mode_colour(mode)), curve, 2) for mode, curve in timeline.uploads_per_s.items()],
            "0,0",
            f"Nothing to draw: {run_folder.UPLOADS} counts no upload in a phase of this run.",
        ),
        _latency_chart(timeline.latency),
        Chart(
            "CPU",
            "per process, as a share of one core",
            _process_lines([(curves.process, curves.share) for curves in timeline.processes]),
            "0%",
            f"Nothing to draw: {run_folder.PROCESSES} has fewer than two ticks, the recorder did not run.",
        ),
        Chart(
            "Memory",
            "per process, USS in MiB: what its end would give back",
            _process_lines([(curves.process, curves.uss_bytes) for curves in uss]),
            "0,0.[0]",
            "Nothing to draw: USS of no process could be read.",
        ),
    ]


def _mode_colour(mode: str) -> str:
    return mode if mode in ("long", "short") else "other-mode"


def _latency_chart(latency: Sequence[LatencyCurves]) -> Chart:
    """One-second percentiles of different names cannot be merged: the size class with most uploads is drawn alone."""
    uploads: dict[str, int] = {}
    for curves in latency:
        uploads[curves.size_class] = uploads.get(curves.size_class, 0) + curves.uploads
    busiest = max(uploads, key=lambda size_class: uploads[size_class], default="")
    lines = []
    for curves in (found for found in latency if found.size_class == busiest):
        colour = _mode_colour(curves.mode)
        lines.append(Line(Key(f"{curves.mode}, p50", colour), curves.p50, 2))
        lines.append(Line(Key(f"{curves.mode}, p99", colour, "dashed"), curves.p99, 1.4))
    note = f"transactions of {busiest} only, percentiles of each second in µs, log scale"
    if len(uploads) > 1:
        note += f" ({percent(uploads[busiest] / max(1, sum(uploads.values())))} of uploads)"
    return Chart("Latency", note, lines, "0,0", "Nothing to draw: no second had an acknowledged upload.", log=True)


def _process_lines(curves: Sequence[tuple[ProcessSummary, Curve]]) -> list[Line]:
    """Workers and others, the costliest of each as lines; what is left of the workers becomes a mean in its range."""
    drawable = [(process, curve) for process, curve in curves if len(curve.t_s)]
    workers = [pair for pair in drawable if pair[0].role == "server-worker"]
    others = [pair for pair in drawable if pair[0].role != "server-worker"]
    kept, rest = _costliest(workers)
    lines = [Line(Key(f"{_process_name(p)} ({p.pid})", f"worker-{i % 4}"), curve) for i, (p, curve) in enumerate(kept)]
    if rest:
        lines.append(_rest(f"{len(rest)} more workers: mean and range", "worker-3", [curve for _, curve in rest]))
    kept, rest = _costliest(others)
    loads = 0
    for process, curve in kept:
        colour, dash = _role_colour(process, loads)
        loads += process.role.startswith("load-")
        lines.append(Line(Key(f"{_process_name(process)} ({process.pid})", colour, dash), curve))
    if rest:
        lines.append(_rest(f"{len(rest)} more processes: mean and range", "load-1", [curve for _, curve in rest]))
    return lines


def _costliest(pairs: Sequence[tuple[ProcessSummary, Curve]]) -> tuple[list[Any], list[Any]]:
    """(those to draw, in the order of the process table; the rest). Who came or went during the run comes first, then
    who used most CPU. One more than the limit is drawn too: a mean of one would say less in the same room."""

    def rank(pair: tuple[ProcessSummary, Curve]) -> tuple[bool, float]:
        process = pair[0]
        stayed = process.started_s <= 0 and not process.ended
        return stayed, -((process.cpu_user_s or 0) + (process.cpu_system_s or 0))

    ranked = sorted(pairs, key=rank)
    limit = LINES_PER_FAMILY if len(ranked) > LINES_PER_FAMILY + 1 else len(ranked)
    return sorted(ranked[:limit], key=lambda pair: _process_order(pair[0])), ranked[limit:]


def _role_colour(process: ProcessSummary, loads: int) -> tuple[str, Dash]:
    if process.role.startswith("load-"):
        return f"load-{loads % 2}", "solid"
    return ("recorder", "dotted") if process.role == "recorder" else ("master", "dashed")


def _rest(label: str, colour: str, curves: Sequence[Curve]) -> Line:
    t_s = np.unique(np.concatenate([curve.t_s for curve in curves]))
    values = np.array([np.interp(t_s, curve.t_s, curve.values, left=np.nan, right=np.nan) for curve in curves])
    low, high = Curve(t_s, np.nanmin(values, axis=0)), Curve(t_s, np.nanmax(values, axis=0))
    return Line(Key(label, colour, "dotted"), Curve(t_s, np.nanmean(values, axis=0)), band=(low, high))


def _paint(model: Any, **colours: str) -> Any:
    """Give these properties of a model a colour of PALETTE, now and, through its tags, in either colour scheme."""
    model.update(**{name: PALETTE[colour][0] for name, colour in colours.items()})
    model.tags = [f"{name}={colour}" for name, colour in colours.items()]
    return model


def draw(analysis: Analysis, drawn: Sequence[Chart]) -> tuple[str, list[str]]:
    """(script, one <div> a chart) for the charts that have data, all in one document on one x axis."""
    end_s = analysis.timeline.end_s or 1.0
    x_range = Range1d(start=0, end=end_s, bounds=(0, end_s), min_interval=min(1.0, end_s))
    crosshair = _paint(Span(dimension="height", line_width=1), line_color="muted")
    figures = [_figure(analysis, chart, x_range, crosshair) for chart in drawn]
    if not figures:
        return "", []
    figures[-1].xaxis.axis_label = "seconds since the start of the run"
    document = Document()
    with document.models.freeze():  # or every figure would have all models counted anew
        for each in figures:
            document.add_root(each)
    document.js_on_event(DocumentReady, CustomJS(code="socketswarmPaint()"))
    script, divs = components(figures)
    return script, list(divs)


def _figure(analysis: Analysis, chart: Chart, x_range: Range1d, crosshair: Span) -> figure:
    plot = figure(
        height=210,
        sizing_mode="stretch_width",
        x_range=x_range,
        y_axis_type="log" if chart.log else "linear",
        toolbar_location=None,
        tools=[],
        min_border_left=64,
        min_border_right=8,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_alpha=0,
    )
    _style_axes(plot, chart)
    _shade_phases(plot, analysis, chart)
    drawn = [_draw_line(plot, line) for line in chart.lines]
    tooltips = [("what", "$name"), ("is", f"@y{{{chart.tick_format}}}"), ("at", "@x{0,0.0} s")]
    plot.add_tools(HoverTool(renderers=drawn, tooltips=tooltips, line_policy="nearest"))
    _mark_events(plot, analysis)
    plot.add_tools(CrosshairTool(overlay=crosshair))
    zoom = BoxZoomTool(dimensions="width")
    plot.add_tools(zoom)
    plot.toolbar.active_drag = zoom
    plot.js_on_event(DoubleTap, CustomJS(args={"range": x_range}, code="range.reset()"))
    return plot


def _style_axes(plot: figure, chart: Chart) -> None:
    for axis in plot.axis:
        axis.update(
            axis_line_alpha=0,
            minor_tick_line_alpha=0,
            major_tick_line_alpha=0,
            major_label_text_font=FONT,
            major_label_text_font_size="11px",
            axis_label_text_font=FONT,
            axis_label_text_font_size="11px",
            axis_label_text_font_style="normal",
        )
        _paint(axis, major_label_text_color="muted", axis_label_text_color="muted")
    plot.xgrid.grid_line_alpha = 0
    for grid in plot.ygrid:
        _paint(grid, grid_line_color="rule")
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0.[0]")
    plot.yaxis.formatter = NumeralTickFormatter(format=chart.tick_format)
    if chart.log:
        plot.yaxis.ticker = LogTicker(mantissas=[1, 2, 5], num_minor_ticks=0)
    top = HEADROOM * _highest(chart)
    plot.y_range = Range1d(start=_lowest(chart) / HEADROOM if chart.log else 0, end=top)


def _lowest(chart: Chart) -> float:
    """Of a logarithmic axis; only what is above 0 can be shown there."""
    values = np.concatenate([line.curve.values for line in chart.lines])
    return float(np.min(values[values > 0], initial=_highest(chart)))


def _shade_phases(plot: figure, analysis: Analysis, chart: Chart) -> None:
    """Measure phases in the colour of their mode, others grey; named at the top where the name fits on a phone too."""
    top = HEADROOM * _highest(chart)
    for phase in analysis.summary.phases:
        colour = _mode_colour(phase.mode) if phase.kind == "measure" else "muted"
        box = BoxAnnotation(left=phase.start_s, right=phase.end_s, fill_alpha=0.08, line_alpha=0, level="underlay")
        plot.add_layout(_paint(box, fill_color=colour))
        edge = Span(location=phase.start_s, dimension="height", line_width=1, line_alpha=0.35, level="underlay")
        plot.add_layout(_paint(edge, line_color=colour))
        if phase.duration_s / (analysis.timeline.end_s or 1) * PHONE_PX < LETTER_PX * len(phase.name):
            continue
        source = ColumnDataSource({"x": [phase.start_s], "y": [top], "text": [_plain(phase.name)]})
        name = glyphs.Text(text_font=value(FONT), text_font_size="11px", text_baseline="top", x_offset=4, y_offset=4)
        plot.add_glyph(source, _paint(name, text_color=colour))


def _highest(chart: Chart) -> float:
    return max((float(np.nanmax(line.curve.values)) for line in chart.lines), default=1.0) or 1.0


def _draw_line(plot: figure, line: Line) -> DataRenderer:
    if line.band:
        low, high = line.band
        area = ColumnDataSource({"x": low.t_s, "y1": low.values, "y2": high.values})
        plot.add_glyph(area, _paint(glyphs.VArea(fill_alpha=0.25), fill_color=line.key.colour))
    source = ColumnDataSource({"x": line.curve.t_s, "y": line.curve.values})
    glyph = glyphs.Line(line_width=line.width, line_dash=line.key.dash, line_join="round")
    drawn = plot.add_glyph(source, _paint(glyph, line_color=line.key.colour))
    drawn.name = line.key.label
    return drawn


def _mark_events(plot: figure, analysis: Analysis) -> None:
    events = [event for event in analysis.events if _is_mark(event)][:MOST_EVENTS]
    if not events:
        return
    source = ColumnDataSource({"x": [analysis.seconds(e) for e in events], "text": [_plain(e.text) for e in events]})
    marks = plot.add_glyph(source, _paint(glyphs.VSpan(line_width=1.2, line_dash=[2, 3]), line_color="bad"))
    tooltips = [("what", "@text"), ("at", "@x{0,0.0} s")]
    plot.add_tools(HoverTool(renderers=[marks], tooltips=tooltips))


def _is_mark(event: Event) -> bool:
    return not event.kind.startswith(ROUTINE)


# --- the files --------------------------------------------------------------------------------------------------------


def _plain(text: object) -> str:
    """Without control characters, which would move a terminal's cursor or end a table's row."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def _markdown(text: object) -> str:
    """For Markdown, cells of tables included: characters that mean something there are escaped."""
    return "".join(f"\\{c}" if c in r"\`*_[]<>|#~" else c for c in _plain(text))


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = _markdown
    environment.filters["plain"] = _plain
    return environment


def html(analysis: Analysis) -> str:
    found = charts(analysis)
    script, divs = draw(analysis, [chart for chart in found if chart.lines])
    remaining = iter(divs)
    library = INLINE.clone(components=["bokeh"])
    return (
        _templates()
        .get_template("report.html.j2")
        .render(
            view=view(analysis),
            charts=[(chart, Markup(next(remaining)) if chart.lines else None) for chart in found],
            marks=any(_is_mark(event) for event in analysis.events),
            library=Markup(library.render_js() if divs else ""),
            script=Markup(script),
            palette=PALETTE,
            font=FONT,
        )
    )


def markdown(analysis: Analysis) -> str:
    return _templates().get_template("report.md.j2").render(view=view(analysis))


def terminal(analysis: Analysis, report: Path) -> str:
    """Verdict, sentence, what to be wary of, the modes without their size classes, and where the report is."""
    shown = view(analysis)
    lines = [f"{shown.verdict}: {shown.reason}", "", shown.sentence, ""]
    lines += [f"warning: {warning}" for warning in shown.warnings] + [""] * bool(shown.warnings)
    rows = [row.cells for row in shown.modes.rows if row.kind != "part"]
    if rows:
        columns = shown.modes.columns
        lines += [*_aligned([[c.title for c in columns], [c.unit for c in columns], *rows], columns), ""]
    return "\n".join([_plain(line) for line in lines] + [str(report)])


def _aligned(rows: Sequence[Sequence[str]], columns: Sequence[Column]) -> Iterable[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        cells = zip(row, widths, columns, strict=True)
        yield "  ".join(cell.rjust(w) if column.numeric else cell.ljust(w) for cell, w, column in cells).rstrip()


def build(folder: Path) -> str:
    """Write summary.json, report.html and report.md of a run folder, from that folder alone, each whole or not at all.

    Returns what a terminal should show, which ends with the path of report.html. RunFolderError as from `analyse`, and
    when the folder cannot be written.
    """
    analysis = analyse(folder)
    page, text = html(analysis), markdown(analysis)
    try:
        run_folder.write_whole(folder / run_folder.SUMMARY, analysis.summary)
        _write_text(folder / run_folder.REPORT_MD, text)
        _write_text(folder / run_folder.REPORT_HTML, page)
    except OSError as error:
        raise RunFolderError(f"the report cannot be written into {folder}: {error.strerror}") from error
    return terminal(analysis, folder / run_folder.REPORT_HTML)


def _write_text(path: Path, text: str) -> None:
    """As run_folder.write_whole: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)
