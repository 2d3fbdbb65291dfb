"""The tables of what the load got, what that cost, and what failed: by mode, by phase, by code of failure."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from reports import run_folder
from reports.pages.table import NONE, Column, Columns, Row, Table, rounded, share, table_of, text_column, whole
from reports.summary import (
    GENERATOR_LIMIT,
    HICCUP_LIMIT_US,
    RUN_DELAY_LIMIT,
    Contrast,
    Latency,
    LineFit,
    ModeSummary,
    PhaseSummary,
    Ratio,
    SizeSummary,
    Summary,
    SweepFit,
    ThresholdResult,
)
from reports.texts import at_least, duration, percent, significant
from server.failure_codes import failure_of


def _failed(failures: dict[str, int]) -> str:
    return whole(sum(failures.values()))


# --- long against short -----------------------------------------------------------------------------------------------

_TRANSACTION_COLUMNS = [Column("p50", "µs"), Column("p95", "µs"), Column("p99", "µs"), Column("Max", "µs")]
_RESPONSE_COLUMNS = [
    *(Column("Response", f"{what}, µs") for what in ("p50", "p95", "p99", "max")),
    *(Column("Service", f"{what}, µs") for what in ("p50", "p99")),
]

MODE_NOTE = (
    "All busy: every core of this machine, minus idle and waiting for disk; server: as the kernel charged its "
    f"processes. {NONE}: fewer than 30 samples lie beyond that percentile, so it would not repeat."
)
CLOSED_NOTE = (
    "Latencies are whole transactions, connect and close included where they happened. A closed model has no response "
    "time: a user waits for its reply, so what a stalled server holds up is not sent meanwhile, and no percentile here "
    "shows it (coordinated omission)."
)
OPEN_NOTE = (
    "Response: from when an upload was due until it was acknowledged; service: the server's part of that. What lies "
    "between them is what a load that waits for its replies hides."
)
UNANSWERED_NOTE = "≥ before a response: uploads without an answer are among the samples, with the time they waited."


def mode_table(summary: Summary) -> Table:
    """Each mode, then its size classes; at the end what a short upload is to a long one."""
    latencies = _RESPONSE_COLUMNS if summary.model == "open" else _TRANSACTION_COLUMNS
    columns = [
        *(text_column("Connections"), Column("Uploads", "/s"), Column("Data", "MB/s")),
        *latencies,
        *(Column("CPU, all busy", "core-µs/upload"), Column("CPU, server", "core-µs/upload")),
        Column("Failed"),
    ]
    rows = [row for mode in summary.modes for row in (_mode_row(mode), *(_size_row(mode, s) for s in mode.sizes))]
    if summary.contrast is not None:
        rows.append(_contrast_row(summary.contrast, len(latencies)))
    return Table(columns, rows, _mode_note(summary))


def _mode_note(summary: Summary) -> str:
    parts = [OPEN_NOTE if summary.model == "open" else CLOSED_NOTE, MODE_NOTE]
    if summary.contrast is not None:
        parts.append(_contrast_note(summary.contrast))
    if any(mode.response_us is not None and mode.response_us.bound_from is not None for mode in summary.modes):
        parts.append(UNANSWERED_NOTE)
    if any(mode.lower_bound for mode in summary.modes):
        parts.append("≥ before a rate: the load or the machine was the limit; the server may hold more.")
    return " ".join(parts)


def _contrast_note(contrast: Contrast) -> str:
    what = f"{contrast.one} ÷ {contrast.other}"
    if contrast.blocks == 1:
        return f"{what}: of one block of neighbouring phases."
    return (
        f"{what}: the median of {contrast.blocks} blocks of neighbouring phases, in brackets their lowest and highest, "
        f"which surround the true one in {percent(contrast.coverage)} of runs."
    )


def rate(mode: ModeSummary, value: float) -> str:
    """A rate of this mode, with the sign of a lower bound where it is one."""
    return at_least(significant(value), mode.lower_bound)


def _mode_row(mode: ModeSummary) -> Row:
    rates = [rate(mode, mode.uploads_per_s), rate(mode, mode.bytes_per_s / 1e6)]
    costs = (mode.busy_core_us_per_upload, mode.server_core_us_per_upload)
    unknown = "not recorded" if mode.uploads_per_s else "no uploads"  # to divide it by
    shown = [unknown if cost is None else significant(cost) for cost in costs]
    latencies = _latency_cells(mode)
    if len(mode.sizes) > 1:  # a percentile over mixed sizes says what was mixed
        latencies = [""] * len(latencies)
    return Row([f"{mode.mode}, all sizes", *rates, *latencies, *shown, _failed(mode.failures)])


def _size_row(mode: ModeSummary, size: SizeSummary) -> Row:
    """A size class of a mode, without costs: CPU cannot be told apart by size."""
    rates = [rate(mode, size.uploads_per_s), rate(mode, size.bytes_per_s / 1e6)]
    return Row([size.size_class, *rates, *_latency_cells(size), "", "", _failed(size.failures)], "part")


def _contrast_row(contrast: Contrast, latencies: int) -> Row:
    """Ratios with their spread over the blocks. Data follow from the rate, and mixed sizes have no percentiles."""
    rates, cost = (_ratio(ratio, contrast.blocks) for ratio in (contrast.uploads_per_s, contrast.busy_core_us))
    cells = [rates, "", *[""] * latencies, cost, "", ""]
    return Row([f"{contrast.one} ÷ {contrast.other}", *cells], "ratio")


def _ratio(ratio: Ratio | None, blocks: int) -> str:
    if ratio is None:
        return NONE
    spread = f" ({significant(ratio.lowest)} to {significant(ratio.highest)})" if blocks > 1 else ""
    return f"{significant(ratio.median)}×{spread}"


def _latency_cells(row: ModeSummary | SizeSummary) -> list[str]:
    """In the order of the columns."""
    latency, service = row.response_us or row.transaction_us, row.service_us
    cells = [_bounded(latency, value) for value in (latency.p50, latency.p95, latency.p99, latency.max)]
    return (
        cells if row.response_us is None else [*cells, _bounded(service, service.p50), _bounded(service, service.p99)]
    )


def _bounded(latency: Latency, value: float | None) -> str:
    return NONE if value is None else at_least(significant(value), latency.is_bound(value))


# --- costs ------------------------------------------------------------------------------------------------------------

COST_COLUMNS: Columns[ModeSummary] = [
    (text_column("Connections"), lambda mode: mode.mode),
    (Column("CPU, all busy", "core-µs/upload"), lambda mode: rounded(mode.busy_core_us_per_upload)),
    (Column("CPU, server", "core-µs/upload"), lambda mode: rounded(mode.server_core_us_per_upload)),
    (Column("CPU, all busy", "core-s/GiB"), lambda mode: rounded(mode.busy_core_s_per_gib)),
    (Column("CPU, server", "core-s/GiB"), lambda mode: rounded(mode.server_core_s_per_gib)),
    (Column("Workers, mean", "of a core each"), lambda mode: share(mode.mean_worker_share)),
    (Column("Top worker", "of a core"), lambda mode: share(mode.busiest_worker_share)),
    (Column("Balance", "top ÷ mean"), lambda mode: _balance(mode.busiest_worker_share, mode.mean_worker_share)),
]
COST_NOTE = (
    "All busy: every core of this machine, minus idle and waiting for disk; server: as the kernel charged its "
    "processes. Balance: 1 is even; kernels hash connections over the workers' sockets, so few connections are uneven."
)


def cost_table(summary: Summary) -> Table:
    """What an upload costs, and how evenly the workers share it."""
    return table_of(COST_COLUMNS, [mode for mode in summary.modes if mode.uploads], COST_NOTE)


def _balance(busiest: float | None, mean: float | None) -> str:
    return NONE if not busiest or not mean else significant(busiest / mean)


SWEEP_COLUMNS: Columns[tuple[str, LineFit]] = [
    (text_column("What"), lambda named: named[0]),
    (Column("A request", "µs"), lambda named: rounded(named[1].request)),
    (Column("A connection", "µs"), lambda named: rounded(named[1].connection)),
    (Column("Explained", "of the scatter"), lambda named: share(named[1].r_squared)),
]


def sweep_table(fit: SweepFit | None) -> Table:
    """What a request and what a connection costs; without rows where no sweep carries it."""
    if fit is None:
        return table_of(SWEEP_COLUMNS, [])
    fits = (("transaction, mean", fit.transaction_us), ("CPU, all busy", fit.busy_core_us))
    values = ", ".join(str(k) if k else "no end" for k in fit.uploads_per_connection)
    note = f"Least squares of request + connection ÷ K over K = {values} uploads per connection, of unsaturated phases."
    return table_of(SWEEP_COLUMNS, [(name, line) for name, line in fits if line is not None], note)


# --- thresholds -------------------------------------------------------------------------------------------------------

THRESHOLD_COLUMNS = [text_column("Fails if"), text_column("Result"), text_column("Measured"), text_column("Why")]


def threshold_table(results: Sequence[ThresholdResult]) -> Table:
    return Table(THRESHOLD_COLUMNS, [_threshold_row(result) for result in results])


def _threshold_row(result: ThresholdResult) -> Row:
    cells = [result.condition, "failed" if result.broken else "passed", result.measured, result.why]
    return Row(cells, "bad" if result.broken else "main")


# --- the load ---------------------------------------------------------------------------------------------------------

OFFERED_COLUMNS: Columns[PhaseSummary] = [
    (text_column("Phase"), lambda phase: phase.name),
    (text_column("Connections"), lambda phase: phase.mode),
    (Column("Offered", "/s"), lambda phase: rounded(phase.offered_per_s)),
    (Column("Achieved", "/s"), lambda phase: rounded(phase.acknowledged, phase.duration_s)),
    (Column("Achieved", "of offered"), lambda phase: share(phase.achieved_share)),
    (Column("Late"), lambda phase: whole(phase.late)),
    (Column("Unanswered"), lambda phase: whole(phase.unanswered)),
    (Column("Dropped"), lambda phase: whole(phase.dropped)),
    (Column("Schedule lag", "p99, µs"), lambda phase: _p99(phase.schedule_lag_us)),
    (Column("Pool wait", "p99, µs"), lambda phase: _p99(phase.pool_wait_us)),
]
OFFERED_NOTE = (
    "Achieved: acknowledged before the phase was over; late: only after it. Dropped: due while the most uploads were "
    "in flight, never sent. Schedule lag: from when an upload was due until the load woke to it; pool wait: from there "
    "until a connection was free for it. Both are part of the response."
)


def offered_table(summary: Summary) -> Table:
    """What was due and what became of it; no rows in the closed model, where nothing is due."""
    phases = [phase for phase in summary.phases if phase.measured and summary.model == "open"]
    return table_of(OFFERED_COLUMNS, phases, OFFERED_NOTE)


def _p99(latency: Latency | None) -> str:
    return NONE if latency is None else rounded(latency.p99)


LOAD_COLUMNS: Columns[PhaseSummary] = [
    (text_column("Phase"), lambda phase: phase.name),
    (Column("Top process", "of a core"), lambda phase: share(phase.generator_share)),
    (Column("Kept waiting", "of the time"), lambda phase: share(phase.generator_run_delay_share)),
    (Column("Hiccups", "p50, µs"), lambda phase: rounded(phase.hiccup_us.p50)),
    (Column("Hiccups", "p99, µs"), lambda phase: rounded(phase.hiccup_us.p99)),
    (Column("Hiccups", "max, µs"), lambda phase: rounded(phase.hiccup_us.max)),
    (Column("Steal", "of all cores"), lambda phase: share(phase.steal_share)),
]
SCHEDULE_LAG: Columns[PhaseSummary] = OFFERED_COLUMNS[-2:-1]  # of the open model only
LOAD_NOTE = (
    "Top process: the load process that used most CPU, limit of the rates above "
    f"{percent(GENERATOR_LIMIT)}. Kept waiting: ready to run but without a CPU, of the process that waited most. "
    "Hiccups: how late a sleeper of 1 ms beside the load woke. Steal: time that the hypervisor gave to others. All but "
    "the first measure the machine: above "
    f"{percent(RUN_DELAY_LIMIT)} of waiting or a hiccup p99 of {duration(HICCUP_LIMIT_US)} a run is NOISY."
)


def load_table(summary: Summary) -> Table:
    """How the load generator itself fared; without rows when nothing was measured."""
    columns = [*LOAD_COLUMNS, *(SCHEDULE_LAG if summary.model == "open" else [])]
    return table_of(columns, [phase for phase in summary.phases if phase.measured], LOAD_NOTE)


# --- phases -----------------------------------------------------------------------------------------------------------

PHASE_COLUMNS: Columns[PhaseSummary] = [
    (text_column("Phase"), lambda phase: phase.name),
    (text_column("Kind"), lambda phase: phase.kind),
    (text_column("Connections"), lambda phase: phase.mode),
    (Column("From", "s"), lambda phase: significant(phase.start_s)),
    (Column("Lasted", "s"), lambda phase: significant(phase.duration_s)),
    (Column("Uploads"), lambda phase: whole(phase.uploads)),
    (
        Column("Uploads", "/s"),
        lambda phase: rounded(phase.acknowledged, phase.duration_s) if phase.long_enough else NONE,
    ),
    (Column("Opened", "connections"), lambda phase: whole(phase.connections)),
    (Column("Top worker", "of a core"), lambda phase: share(phase.busiest_worker_share)),
    (Column("Top load", "of a core"), lambda phase: share(phase.generator_share)),
    (Column("Failed"), lambda phase: _failed(phase.failures)),
]


def phase_table(phases: Sequence[PhaseSummary]) -> Table:
    found = table_of(PHASE_COLUMNS, phases)
    return found if phases else replace(found, note=f"{run_folder.RUN} names no phase: the run ended before the first.")


# --- failures ---------------------------------------------------------------------------------------------------------

FAILURE_COLUMNS = [
    text_column("Connections"),
    text_column("Code"),
    Column("Uploads"),
    Column("Share", "of all attempted"),
    text_column("Stored?"),
    text_column("What it means"),
]
FAILURE_NOTE = (
    "Stored: whether the file may be on the server nevertheless. An answer can be lost after the file was stored; a "
    "refusal leaves nothing."
)


def failure_table(summary: Summary) -> Table:
    """Each mode's codes, then those outside of the measured phases, the most frequent first."""
    if not summary.load.failures:
        return Table(FAILURE_COLUMNS, [], "No upload failed, in no phase.")
    rows: list[Row] = []
    uploads, failures = summary.load.uploads, Counter(summary.load.failures)
    for mode in summary.modes:
        rows += _failure_rows(mode.mode, mode.uploads, Counter(mode.failures))
        uploads -= mode.uploads
        failures -= Counter(mode.failures)
    rows += _failure_rows("not measured", uploads, failures)
    return Table(FAILURE_COLUMNS, rows, FAILURE_NOTE)


def _failure_rows(where: str, uploads: int, failures: Counter[str]) -> Iterator[Row]:
    attempts = uploads + failures.total()
    for code, number in failures.most_common():
        failure = failure_of(code)
        yield Row([where, code, whole(number), percent(number / attempts), failure.stored, failure.meaning])
