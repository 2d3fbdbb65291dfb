"""The tables of what was recorded: processes, TCP and events."""

from collections.abc import Callable, Sequence

from reports import run_folder
from reports.analysis.summarise import Analysis
from reports.missing_values import mean
from reports.pages.costliest import Family, families
from reports.pages.table import Column, Row, Table, rounded, share, text_column, whole
from reports.summary import ProcessSummary, ServerSummary, Summary, TcpSummary
from reports.texts import significant

MOST_EVENTS = 200


def _mebibytes(value: float | None) -> str:
    return rounded(value, 1 << 20)


# --- processes --------------------------------------------------------------------------------------------------------

_USED: Sequence[tuple[Column, Callable[[ProcessSummary], float | None], Callable[[float | None], str]]] = [
    (Column("CPU user", "s"), lambda process: process.cpu_user_s, rounded),
    (Column("CPU system", "s"), lambda process: process.cpu_system_s, rounded),
    (Column("Mean share", "of a core"), lambda process: process.share, share),
    (Column("RSS, peak", "MiB"), lambda process: process.rss_max_bytes, _mebibytes),
    (Column("USS, peak", "MiB"), lambda process: process.uss_max_bytes, _mebibytes),
    (Column("Threads"), lambda process: process.threads, whole),
    (Column("Open files"), lambda process: process.fds, whole),
    (Column("Switches", "own"), lambda process: process.voluntary_switches, whole),
    (Column("Switches", "forced"), lambda process: process.involuntary_switches, whole),
]
"""What a process used: the column, the value, and how that becomes a cell."""
PROCESS_COLUMNS = [
    text_column("Process"),
    Column("pid"),
    text_column("Alive", "s"),
    *(column for column, _, _ in _USED),
]
PROCESS_NOTE = "CPU is from each process's birth on; the share is of the measured phases while it lived."


def process_table(summary: Summary) -> Table:
    """The costliest, and a row for all others of their kind."""
    if not summary.processes:
        note = f"No process was recorded: {run_folder.PROCESSES} is missing or empty."
        return Table(PROCESS_COLUMNS, [], note)
    found = families(summary.processes)
    shown = sorted(index for family in found for index in family.shown)
    rows = [_process_row(summary.processes[index]) for index in shown]
    rows += [_rest_row(family, summary.processes) for family in found if family.rest]
    return Table(PROCESS_COLUMNS, rows, _process_note(summary.server))


def all_processes_table(summary: Summary) -> Table:
    """Every process; without rows where the other table has them all."""
    if not any(family.rest for family in families(summary.processes)):
        return Table(PROCESS_COLUMNS, [])
    return Table(PROCESS_COLUMNS, [_process_row(process) for process in summary.processes])


def _process_note(server: ServerSummary) -> str:
    note = PROCESS_NOTE
    if server.cpu_total_s is not None:
        note = (
            f"The server as a whole used {significant(server.cpu_total_s)} s of CPU since its birth, "
            f"workers that ended included. {note}"
        )
    if server.uss_per_connection_bytes is not None:
        note += f" Each connection took {significant(server.uss_per_connection_bytes / 1024)} KiB of its USS."
    return note


def _process_row(process: ProcessSummary) -> Row:
    cells = [process.name, str(process.pid), _alive(process), *_process_cells([process])]
    return Row(cells, "part" if process.ended else "main")


def _rest_row(family: Family, processes: Sequence[ProcessSummary]) -> Row:
    cells = _process_cells([processes[index] for index in family.rest])
    return Row([f"{len(family.rest)} more {family.what}", "", "mean of each", *cells], "part")


def _process_cells(processes: Sequence[ProcessSummary]) -> list[str]:
    """What it used, or the mean of several."""
    return [cell(mean(value(process) for process in processes)) for _, value, cell in _USED]


def _alive(process: ProcessSummary) -> str:
    start = "before" if process.started_s <= 0 else significant(process.started_s)
    return f"{start} to {significant(process.last_seen_s)}, ended" if process.ended else f"{start} to end"


# --- TCP --------------------------------------------------------------------------------------------------------------

TCP_COLUMNS = [text_column("TCP"), Column("Number"), text_column("What it means")]
TCP_NOTE = (
    "As the kernel counted. Queue and states are of the server's port, looked at once a tick; all else is of the whole "
    "machine during the run, whoever caused it."
)
_COUNTERS = {
    "PassiveOpens": "connections accepted",
    "ActiveOpens": "connections opened",
    "ListenDrops": "connections that any listening socket had no room for",
    "ListenOverflows": "of those, because the accept queue was full",
    "TCPSynRetrans": "connection attempts sent again, after 1, 3, 7 s",
    "AttemptFails": "connection attempts that were refused or given up",
    "RetransSegs": "segments sent again",
    "TCPTimeouts": "times that an answer did not come in time",
    "EstabResets": "connections that ended by a reset",
    "OutRsts": "resets sent",
    "TCPAbortOnData": "connections closed with data unread, which their client sees as a reset",
    "TCPBacklogDrop": "segments dropped because a socket's owner was too slow",
    "TCPRcvQDrop": "segments dropped because a receive queue was full",
    "PruneCalled": "times that a receive buffer was full",
    "TCPReqQFullDrop": "connection attempts dropped because too many were under way",
    "TCPAbortOnMemory": "connections ended for lack of memory",
    "TCPTimeWaitOverflow": "connections that found no place in TIME_WAIT",
}
_ALWAYS_TOLD = ("PassiveOpens", "ActiveOpens", "ListenDrops", "RetransSegs")


def tcp_table(tcp: TcpSummary | None) -> Table:
    """Counters that did not move are left out, but for those that a reader looks for."""
    if tcp is None:
        return Table(TCP_COLUMNS, [], f"Nothing is known: {run_folder.HOST} has fewer than two ticks.")
    rows = []
    if tcp.queue_waiting is not None:
        is_full = bool(tcp.queue_limit) and tcp.queue_waiting >= (tcp.queue_limit or 0)
        most = f"most connections that waited in an accept queue, of {whole(tcp.queue_limit)} that may"
        rows.append(Row(["accept queue", whole(tcp.queue_waiting), most], "bad" if is_full else "main"))
    if tcp.dropped is not None:
        lost = "connections that the server's sockets had no room for; each costs its client a second or more"
        rows.append(Row(["dropped", whole(tcp.dropped), lost], "bad" if tcp.dropped else "main"))
    rows += [Row([state, whole(number), "most connections in this state"]) for state, number in tcp.states.items()]
    rows.append(Row(["TIME_WAIT", whole(tcp.time_wait), "most sockets of the machine in this state"]))
    for name, meaning in _COUNTERS.items():
        number = tcp.counters.get(name, 0)
        if number or (name in _ALWAYS_TOLD and name in tcp.counters):
            rows.append(Row([name, whole(number), meaning]))
    rows += [
        Row([interface, rounded(sent, 1e6), "MB sent over this interface"])
        for interface, sent in tcp.sent_bytes.items()
        if sent
    ]
    return Table(TCP_COLUMNS, rows, TCP_NOTE)


# --- events -----------------------------------------------------------------------------------------------------------

EVENT_COLUMNS = [Column("At", "s"), text_column("Source"), text_column("Kind"), text_column("What happened")]


def event_table(analysis: Analysis) -> Table:
    if not analysis.events:
        return Table(EVENT_COLUMNS, [], f"No event: {run_folder.EVENTS} is missing or empty.")
    shown = analysis.events[:MOST_EVENTS]
    rows = [Row([f"{analysis.seconds(event):,.2f}", event.source, event.kind, event.text]) for event in shown]
    more = len(analysis.events) - len(shown)
    return Table(EVENT_COLUMNS, rows, f"{more:,} more are in {run_folder.EVENTS}." if more else "")
