"""The report's tables, as finished texts.

All three outputs print these cells, none formats a number again: so they cannot disagree. A number that is not known is
a dash, or `not recorded` where a cost is what the reader came for; it is never 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reports import run_folder
from reports.analysis import Analysis
from reports.summary import Latency, ModeSummary, PhaseSummary, ProcessSummary, Summary
from reports.texts import percent, significant

MOST_EVENTS = 200
NONE = "–"


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


def _words(title: str, unit: str = "") -> Column:
    return Column(title, unit, numeric=False)


def _optional(value: float | None, scale: float = 1) -> str:
    return NONE if value is None else significant(value / scale)


def _whole(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _share(value: float | None) -> str:
    return NONE if value is None else percent(value)


def _failures(failures: dict[str, int]) -> str:
    return ", ".join(f"{code} {count:,}" for code, count in failures.items()) or "0"


# --- long against short -----------------------------------------------------------------------------------------------

MODE_COLUMNS = [
    _words("Connections"),
    Column("Uploads", "/s"),
    Column("Data", "MB/s"),
    Column("p50", "µs"),
    Column("p95", "µs"),
    Column("p99", "µs"),
    Column("Max", "µs"),
    Column("CPU, all busy", "core-µs/upload"),
    Column("CPU, server", "core-µs/upload"),
    _words("Failed", "by code"),
]

MODE_NOTE = (
    "Latencies are whole transactions, connect and close included where they happened. "
    "All busy: every core of this machine, minus idle and waiting for disk; server: as the kernel charged its "
    f"processes. {NONE}: fewer than 30 samples lie beyond that percentile, so it would not repeat."
)


def mode_table(summary: Summary) -> Table:
    """Each mode, then its size classes; at the end what a short upload is to a long one."""
    rows = [row for mode in summary.modes for row in (_mode_row(mode), *_size_rows(mode))]
    modes = {mode.mode: mode for mode in summary.modes}
    if "long" in modes and "short" in modes:
        rows.append(_ratio_row(modes["short"], modes["long"]))
    bounds = any(mode.lower_bound for mode in summary.modes)
    note = MODE_NOTE + (" ≥: the load generator was the limit; the server may hold more." if bounds else "")
    return Table(MODE_COLUMNS, rows, note)


def rate(mode: ModeSummary, value: float) -> str:
    """A rate of this mode, with the sign of a lower bound where it is one."""
    return ("≥ " if mode.lower_bound else "") + significant(value)


def _mode_row(mode: ModeSummary) -> Row:
    rates = [rate(mode, mode.uploads_per_s), rate(mode, mode.bytes_per_s / 1e6)]
    costs = (mode.busy_core_us_per_upload, mode.server_core_us_per_upload)
    shown = ["not recorded" if cost is None else significant(cost) for cost in costs]
    return Row([f"{mode.mode}, all sizes", *rates, *_latency(mode.transaction_us), *shown, _failures(mode.failures)])


def _size_rows(mode: ModeSummary) -> list[Row]:
    """Without costs: CPU cannot be told apart by size."""
    rows = []
    for size in mode.sizes:
        rates = [rate(mode, size.uploads_per_s), rate(mode, size.bytes_per_s / 1e6)]
        cells = [size.size_class, *rates, *_latency(size.transaction_us), "", "", _failures(size.failures)]
        rows.append(Row(cells, "part"))
    return rows


def _ratio_row(short: ModeSummary, long: ModeSummary) -> Row:
    pairs = list(zip(_numbers(short), _numbers(long), strict=True))
    if short.lower_bound or long.lower_bound:
        pairs[:2] = [(None, None)] * 2  # the ratio of a bound to something, nobody knows
    return Row(["short ÷ long", *(f"{significant(a / b)}×" if a and b else NONE for a, b in pairs), ""], "ratio")


def _numbers(mode: ModeSummary) -> list[float | None]:
    latency = mode.transaction_us
    return [
        *(mode.uploads_per_s, mode.bytes_per_s),
        *(latency.p50, latency.p95, latency.p99, latency.max),
        *(mode.busy_core_us_per_upload, mode.server_core_us_per_upload),
    ]


def _latency(latency: Latency) -> list[str]:
    return [_optional(value) for value in (latency.p50, latency.p95, latency.p99, latency.max)]


# --- phases -----------------------------------------------------------------------------------------------------------

PHASE_COLUMNS = [
    _words("Phase"),
    _words("Kind"),
    _words("Connections"),
    Column("From", "s"),
    Column("Lasted", "s"),
    Column("Uploads"),
    Column("Uploads", "/s"),
    Column("Opened", "connections"),
    Column("Top worker", "of a core"),
    Column("Top load", "of a core"),
    _words("Failed", "by code"),
]


def phase_table(phases: Sequence[PhaseSummary]) -> Table:
    if not phases:
        return Table(PHASE_COLUMNS, [], f"{run_folder.RUN} names no phase: the run ended before the first.")
    return Table(PHASE_COLUMNS, [_phase_row(phase) for phase in phases])


def _phase_row(phase: PhaseSummary) -> Row:
    return Row(
        [
            phase.name,
            phase.kind,
            phase.mode,
            significant(phase.start_s),
            significant(phase.duration_s),
            _whole(phase.uploads),
            significant(phase.uploads / phase.duration_s) if phase.long_enough else NONE,
            _whole(phase.connections),
            _share(phase.busiest_worker_share),
            _share(phase.generator_share),
            _failures(phase.failures),
        ]
    )


# --- processes --------------------------------------------------------------------------------------------------------

PROCESS_COLUMNS = [
    _words("Process"),
    Column("pid"),
    _words("Alive", "s"),
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


def process_table(summary: Summary) -> Table:
    if not summary.processes:
        note = f"No process was recorded: {run_folder.PROCESSES} is missing or empty."
        return Table(PROCESS_COLUMNS, [], note)
    note = "CPU is from each process's birth on; the share is of the measured phases while it lived."
    if summary.server.cpu_total_s is not None:
        note = (
            f"The server as a whole used {significant(summary.server.cpu_total_s)} s of CPU since its birth, "
            f"workers that ended included. {note}"
        )
    return Table(PROCESS_COLUMNS, [_process_row(process) for process in summary.processes], note)


def _process_row(process: ProcessSummary) -> Row:
    return Row(
        [
            process.name,
            str(process.pid),
            _alive(process),
            _optional(process.cpu_user_s),
            _optional(process.cpu_system_s),
            _share(process.share),
            _optional(process.rss_max_bytes, 1 << 20),
            _optional(process.uss_max_bytes, 1 << 20),
            _whole(process.threads),
            _whole(process.fds),
            _whole(process.voluntary_switches),
            _whole(process.involuntary_switches),
        ],
        "part" if process.ended else "main",
    )


def _alive(process: ProcessSummary) -> str:
    start = "before" if process.started_s <= 0 else significant(process.started_s)
    return f"{start} to {significant(process.last_seen_s)}, ended" if process.ended else f"{start} to end"


# --- events -----------------------------------------------------------------------------------------------------------

EVENT_COLUMNS = [Column("At", "s"), _words("Source"), _words("Kind"), _words("What happened")]


def event_table(analysis: Analysis) -> Table:
    if not analysis.events:
        return Table(EVENT_COLUMNS, [], f"No event: {run_folder.EVENTS} is missing or empty.")
    shown = analysis.events[:MOST_EVENTS]
    rows = [Row([f"{analysis.seconds(event):.2f}", event.source, event.kind, event.text]) for event in shown]
    more = len(analysis.events) - len(shown)
    return Table(EVENT_COLUMNS, rows, f"{more:,} more are in {run_folder.EVENTS}." if more else "")
