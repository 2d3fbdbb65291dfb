"""What running servers do, read from outside: `python -m server status`, and the status page.

It only reads what a server shows anyway (see `scoreboard`): its state file, its shared counters, its events. The server
is not asked, so it is not disturbed, and one that starts, drains or hangs is seen as well as any other. One that ends
meanwhile takes its files along and then simply is not there. Counters are those of the slots: they go on over restarts.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime

import msgspec

from server import scoreboard
from server.printing import one_line
from server.scoreboard import Scoreboard, ServerState, SlotView
from server.units import format_age, format_size

SCHEMA_VERSION = 1
SILENT_S = 5.0
"""A worker beats twice a second: one that has been silent for so long does not serve."""
_EVENTS_SHOWN = 8
_TAIL_BYTES = 64 << 10  # a server that replaces workers for months has a long list of events: only its end is read
_ROUTINE = frozenset({"server-started", "status-started", "worker-started", "worker-ready", "worker-replaced"})
_IN_ORDER = "ended with exit code 0"


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to the server or a worker, as `events.jsonl` has it."""

    wall_ns: int
    kind: str
    text: str = ""
    slot: int | None = None
    pid: int | None = None
    how: str | None = None
    """How a worker ended, and who ended it."""


class SlotStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker slot. `pid`, `uptime_s` and `silent_s` are those of the worker in it, None while it is empty."""

    slot: int
    pid: int | None
    state: str
    """empty, starting, ready or draining"""
    uptime_s: float | None
    silent_s: float | None
    """Since its event loop turned last."""
    restarts: int
    last_end: Event | None
    """How the last of its workers ended that did not end in order; None where the last events know of none."""
    connections_now: int
    connections_accepted: int
    uploads_stored: int
    bytes_stored: int
    failures: dict[str, int]
    """Failed uploads by code; codes that did not happen are left out."""
    retiring: tuple[int, ...]
    """Pids of workers that had the slot before a reload and still drain."""


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    restarts: int
    connections_now: int
    connections_accepted: int
    uploads_stored: int
    bytes_stored: int
    failures: dict[str, int]


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One server. `workers` is how many it should have; `events` are the last that were not routine, oldest first."""

    pid: int
    addresses: list[str]
    port: int
    page: str | None
    """Where its status page is; None when it has none."""
    started_wall_ns: int
    uptime_s: float
    draining: bool
    workers: int
    store: str | None
    options: dict[str, str]
    slots: list[SlotStatus]
    totals: Totals
    events: list[Event]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """All that `--json` prints. The version rises when a reader of the last one would err."""

    schema_version: int = SCHEMA_VERSION
    servers: list[ServerStatus]


# ── Reading ──


def read_servers(*, pid: int | None = None, port: int | None = None) -> list[ServerStatus]:
    """The running servers of this user, or those of them with this pid or port, in the order of their pids."""
    states = (scoreboard.read_state(number) for number in (_server_pids() if pid is None else [pid]))
    wanted = (state for state in states if state is not None and (port is None or _listens_on(state, port)))
    return [status for state in wanted if (status := read_server(state)) is not None]


def _listens_on(state: ServerState, port: int) -> bool:
    ports = (address.rpartition(":")[2] for address in state.addresses if not address.startswith("unix:"))
    return str(port) in ports


def _server_pids() -> list[int]:
    try:
        names = [path.name for path in scoreboard.runtime_root(os.geteuid()).iterdir()]
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isdecimal())


def read_server(state: ServerState) -> ServerStatus | None:
    """What this server does now; None when it has just ended."""
    try:
        with open(state.events, "rb") as events, closing(Scoreboard.open(state.scoreboard)) as board:
            return describe(state, board, events.fileno())
    except (OSError, ValueError):
        return None


def describe(state: ServerState, board: Scoreboard, events: int) -> ServerStatus:
    """What this server does now, by its open scoreboard and a descriptor of its events file. OSError as from pread."""
    tail = _read_tail(events)
    ends = {event.slot: event for event in tail if event.kind == "worker-ended" and not _is_routine(event)}
    now_ns = time.monotonic_ns()
    slots = [_slot_status(view, ends.get(view.slot), now_ns) for view in board.read()]
    return ServerStatus(
        pid=state.pid,
        addresses=state.addresses,
        port=state.port,
        page=state.page,
        started_wall_ns=state.started_wall_ns,
        uptime_s=time.clock_gettime(time.CLOCK_BOOTTIME) - state.start_ticks / os.sysconf("SC_CLK_TCK"),
        draining=state.draining,
        workers=state.workers,
        store=state.store,
        options=state.options,
        slots=slots,
        totals=_totals(slots),
        events=[event for event in tail if not _is_routine(event)][-_EVENTS_SHOWN:],
    )


def _slot_status(view: SlotView, last_end: Event | None, now_ns: int) -> SlotStatus:
    return SlotStatus(
        slot=view.slot,
        pid=view.pid or None,
        state=view.state,
        uptime_s=_seconds_since(view.started_ns, now_ns) if view.pid else None,
        silent_s=_seconds_since(view.heartbeat_ns, now_ns) if view.pid else None,
        restarts=view.births - 1,
        last_end=last_end,
        connections_now=view.connections_now,
        connections_accepted=view.connections_accepted,
        uploads_stored=view.uploads_stored,
        bytes_stored=view.bytes_stored,
        failures=view.failures,
        retiring=view.retiring,
    )


def _seconds_since(then_ns: int, now_ns: int) -> float:
    return max(0, now_ns - then_ns) / 1e9


def _read_tail(events: int) -> list[Event]:
    start = max(0, os.fstat(events).st_size - _TAIL_BYTES)
    lines = os.pread(events, _TAIL_BYTES, start).splitlines()
    return [event for line in lines if (event := _event(line)) is not None]


def _event(line: bytes) -> Event | None:
    try:
        return msgspec.json.decode(line, type=Event)
    except msgspec.DecodeError:  # the line in which the tail begins
        return None


def _is_routine(event: Event) -> bool:
    """What a reload of many workers would fill the list with."""
    return event.kind in _ROUTINE or event.how == _IN_ORDER


def _totals(slots: Sequence[SlotStatus]) -> Totals:
    failures: Counter[str] = Counter()
    for slot in slots:
        failures.update(slot.failures)
    return Totals(
        restarts=sum(slot.restarts for slot in slots),
        connections_now=sum(slot.connections_now for slot in slots),
        connections_accepted=sum(slot.connections_accepted for slot in slots),
        uploads_stored=sum(slot.uploads_stored for slot in slots),
        bytes_stored=sum(slot.bytes_stored for slot in slots),
        failures=dict(failures),
    )


def why_not_ready(server: ServerStatus) -> list[str]:
    """Why nobody should be sent to it now, a line for each reason; empty when it is ready."""
    if server.draining:
        return ["draining"]
    slots = {slot.slot: slot for slot in server.slots}
    return [why for number in range(server.workers) if (why := _why_not(number, slots.get(number)))]


def _why_not(number: int, slot: SlotStatus | None) -> str | None:
    """Why one worker that there should be does not serve; None when it does."""
    if slot is None:
        return f"worker {number} has not started yet"
    if slot.state == "starting":
        return f"worker {number} is starting"
    if slot.state != "ready":
        return f"worker {number} is down" + (f": the last one {slot.last_end.how}" if slot.last_end else "")
    if slot.silent_s is not None and slot.silent_s > SILENT_S:
        return f"worker {number} hangs: its loop has not turned for {slot.silent_s:.0f} s"
    return None


# ── Telling ──


def as_json(servers: list[ServerStatus]) -> str:
    return msgspec.json.format(msgspec.json.encode(Status(servers=servers)), indent=2).decode()


def as_text(servers: list[ServerStatus]) -> str:
    """The status for people: a block for each server, with a line for each worker."""
    return "\n\n".join("\n".join(_block(server)) for server in servers)


def _block(server: ServerStatus) -> Iterator[str]:
    yield one_line(_headline(server))
    yield one_line("  " + ", ".join(_options(server)))
    yield from _aligned([_HEADS, *map(_slot_cells, server.slots), _total_cells(server.totals)])
    for event in server.events:
        when = datetime.fromtimestamp(event.wall_ns / 1e9, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        yield one_line(f"  {when}  {event.text or event.kind}")


def _headline(server: ServerStatus) -> str:
    ready = sum(slot.state == "ready" for slot in server.slots)
    state = "draining" if server.draining else f"{ready} of {server.workers} workers ready"
    store = "discarded" if server.store is None else server.store
    where = ", ".join(server.addresses)
    page = f", page: {server.page}" if server.page else ""
    return f"{where}: pid {server.pid}, up {format_age(server.uptime_s)}, {state}{page}, store: {store}"


def _options(server: ServerStatus) -> Iterator[str]:
    """Those that decide what clients meet."""
    for name in ("accept", "collision", "durability"):
        if name in server.options:
            yield f"{name} {server.options[name]}"
    for name, text in (("max_file_size", "files up to"), ("drain_timeout", "drain timeout")):
        if name in server.options:
            yield f"{text} {server.options[name]}"


_HEADS = ("SLOT", "PID", "STATE", "UPTIME", "OPEN", "ACCEPTED", "UPLOADS", "BYTES", "RESTARTS", "FAILURES")


def _slot_cells(slot: SlotStatus) -> tuple[str, ...]:
    pid = "-" if slot.pid is None else str(slot.pid)
    uptime = "-" if slot.uptime_s is None else format_age(slot.uptime_s)
    state = slot.state + (f" +{len(slot.retiring)} retiring" if slot.retiring else "")
    return (str(slot.slot), pid, state, uptime, *_count_cells(slot))


def _total_cells(totals: Totals) -> tuple[str, ...]:
    return ("all", "", "", "", *_count_cells(totals))


def _count_cells(of: SlotStatus | Totals) -> tuple[str, ...]:
    counts = (of.connections_now, of.connections_accepted, of.uploads_stored)
    failures = ", ".join(f"{count:,} {code}" for code, count in sorted(of.failures.items()))
    return (*(f"{count:,}" for count in counts), format_size(of.bytes_stored), str(of.restarts), failures or "none")


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Numbers to the right under their heads; the last column, which has any length, to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield one_line("  " + "  ".join([*cells, row[-1]]))
