"""The recorder: a process of its own that writes down, tick by tick, what every process of a run costs.

`python -m reports record --port 12345 --out DIR` finds the server by the port it listens on and follows its workers as
they come and go, the load's processes beside them, and itself; `--pid` names the server, `-- COMMAND` starts it. Any
server will do; one of ours also shows its slots, its counters and its events.

Why it is built so:
- A process of its own neither slows the load nor is counted as either side, and it outlives both. For the same
  reason it imports little: no numpy, no bokeh, no Locust.
- One loop on an absolute schedule. A late tick does not shift the others, and a missed one is reported, not made up.
- Only cumulative counters are stored. Nothing is averaged here, and nothing is kept but the present: memory stays the
  same however long a run is.
- A parent is read before its children. A worker that is reaped in between is then missing from this tick, whereas the
  other way round its CPU would be there twice: as its own and as its parent's `children_*`.
- psutil reads all that it has, from `Process` objects that are kept: a process is (pid, create_time). What could not
  be read is None, never 0.
"""

import errno
import gc
import math
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import psutil

from reports import signals
from reports.json_lines import UNDECODABLE
from reports.recording.census import Census, Member, process_of
from reports.recording.control_groups import ControlGroups
from reports.recording.observed_server import CHUNK_BYTES, Server, is_local, split_lines, why_unseen
from reports.recording.sampling import Footprint, footprint, sample_host, sample_process, untold
from reports.run_folder import (
    EVENTS,
    HOST,
    PROCESSES,
    RUN_FAILED,
    Appender,
    Event,
    HostTick,
    ProcessTick,
    Role,
    RunFolderError,
    ServerInfo,
    now_ns,
)
from server.ports.holders import listening_root

FILES = (PROCESSES, HOST, EVENTS)
"""What the recorder writes, of a run folder."""

_SECOND_NS = 1_000_000_000
_LOOK_EVERY_NS = _SECOND_NS
"""Time between two looks for a server that is not there: who owns a socket is found by walking all of /proc."""
_SLOW_EVERY_NS = 20 * _SECOND_NS
"""Time between two readings of what nobody follows from tick to tick, the kernel's many counters, and the states of
connections, for which it walks all sockets. What begins a phase has it read as well."""
_MEMORY_EVERY_NS = 2 * _SECOND_NS
_MEMORY_SHARE = 0.00025
"""The share of a core that reading USS and PSS may take: for these the kernel walks all pages of a process, in 0.2 to
1 ms each. Of many or large processes they are read less often than every `_MEMORY_EVERY_NS`."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The server to record: who listens on `port` of `host`; or, with a `pid`, that process until it ends. `port` is
    then only for what the kernel tells of it."""

    host: str
    port: int | None
    pid: int | None = None

    def __str__(self) -> str:
        return f"process {self.pid}" if self.pid is not None else f"port {self.port}"


def record(
    out: Path,
    subject: Subject,
    *,
    load_pid: int | None,
    interval_s: float,
    control: int | None,
    started: Callable[[ServerInfo | None], None],
    on_first_signal: Callable[[int, FrameType | None], bool] = lambda *_: False,
) -> ServerInfo | None:
    """Record into the run folder `out` (made when missing) until one of `signals.ending()`, or the end of `control`;
    without one, of the process that the subject names. Returns the server that was seen last, if any.

    `control` is a file descriptor that orders come from, one JSON line each: see `Follow` and `Whole`.
    `started` is called when the first sample is on disk. `on_first_signal` may ask for the recording to go on until
    the next one. Raises RunFolderError when the folder cannot be written, vanishes, or its disk is full.
    """
    gc.freeze()  # what was imported needs no looking through at every few ticks
    with (
        closing(_Lines(out)) as lines,
        _Orders(control, on_first_signal) as orders,
        closing(Recorder(lines, subject, load_pid=load_pid)) as recorder,
    ):
        try:
            _run(recorder, orders, round(interval_s * _SECOND_NS), started, outlives=control is not None)
        except RunFolderError as error:
            with suppress(RunFolderError):  # where one more line finds room, a report can say why there are no others
                recorder.report(RUN_FAILED, str(error))
            raise
        return recorder.last_seen


def _run(
    recorder: "Recorder",
    orders: "_Orders",
    interval_ns: int,
    started: Callable[[ServerInfo | None], None],
    *,
    outlives: bool,
) -> None:
    due = time.monotonic_ns()
    recorder.tick(whole=True)
    started(recorder.last_seen)
    while outlives or not recorder.over:
        due, missed = next_due(due, time.monotonic_ns(), interval_ns)
        if missed:
            recorder.report("recorder-missed-ticks", f"{missed} ticks missed: the recorder was late", missed=missed)
        for order in orders.until(due):
            recorder.obey(order)
        if orders.finished:
            break
        recorder.tick()
    recorder.tick(whole=True)


def next_due(due_ns: int, now_ns: int, interval_ns: int) -> tuple[int, int]:
    """(when the tick after the one due at `due_ns` is due, how many were missed by whole intervals and left out)."""
    following = due_ns + interval_ns
    missed = max(0, now_ns - following) // interval_ns
    return following + missed * interval_ns, missed


def announce(server: ServerInfo | None) -> None:
    """Tell who started us that recording goes on, as one JSON line: `{"recorder_pid": PID, "server": ServerInfo or
    null}`. Past sys.stdout, whose buffer would make us fail at our exit when nobody reads any more."""
    line = msgspec.json.encode({"recorder_pid": os.getpid(), "server": server}) + b"\n"
    with suppress(OSError):  # the caller is gone; whether that ends the recording is up to `control`
        os.write(sys.stdout.fileno(), line)


# ---------------------------------------------------------------- in and out


class _Lines:
    """The three files of the run folder that the recorder appends to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._appenders: dict[str, Appender] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                self._appenders[name] = Appender(folder / name)
        except OSError as error:
            self.close()
            raise self._failed(error) from error

    def append(self, name: str, line: msgspec.Struct) -> None:
        try:
            appender = self._appenders[name]
            if appender.is_removed():  # writing to it would be no error to the kernel
                raise FileNotFoundError(errno.ENOENT, "it has vanished")
            appender.append(line)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> RunFolderError:
        return RunFolderError(f"cannot record into {self._folder}: {error.strerror}")

    def close(self) -> None:
        for appender in self._appenders.values():
            appender.close()


class Follow(msgspec.Struct, frozen=True, tag_field="order", tag="follow"):
    """A line from `control`, `{"order": "follow", "pid": PID, "role": ROLE}`: record it too, and its descendants."""

    pid: int
    role: Role


class Whole(msgspec.Struct, frozen=True, tag_field="order", tag="whole"):
    """A line from `control`, `{"order": "whole"}`: the next tick has all figures, for a phase begins. It is not a tick
    of its own, since CPU is counted in steps of 10 ms: rates between two ticks that are close would be noise."""


class _Orders:
    """Waits for the next tick, for orders and for the end, whichever comes first. Signals arrive through a wake-up
    pipe, because Python goes on waiting after a handler has run (PEP 475)."""

    def __init__(self, control: int | None, on_first_signal: Callable[[int, FrameType | None], bool]) -> None:
        self.finished = False
        self._control = control
        self._on_signal = on_first_signal
        self._pending = b""

    def __enter__(self) -> "_Orders":
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._old_waker = signal.set_wakeup_fd(self._waker)
        self._old_handlers = {number: signal.signal(number, self._stop) for number in signals.ending()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_waker)
        os.close(self._wake)
        os.close(self._waker)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.finished = not self._on_signal(number, frame)
        self._on_signal = lambda *_: False

    def until(self, due_ns: int) -> Iterator[bytes]:
        """Lines as they come, until CLOCK_MONOTONIC is `due_ns` or `finished` is set."""
        fds = [self._wake] if self._control is None else [self._wake, self._control]
        while not self.finished:
            # Rounded up to whole milliseconds, or the last one would be spent polling.
            left_s = math.ceil(max(0, due_ns - time.monotonic_ns()) / 1_000_000) / 1000
            readable, _, _ = select.select(fds, [], [], left_s)
            if self._wake in readable:
                os.read(self._wake, CHUNK_BYTES)  # the signal's handler has run; or select would not wait any more
            if self._control is not None and self._control in readable:
                yield from self._read(self._control)
            if time.monotonic_ns() >= due_ns:
                return

    def _read(self, control: int) -> list[bytes]:
        try:
            chunk = os.read(control, CHUNK_BYTES)
        except OSError:  # a terminal that hung up
            chunk = b""
        self.finished = self.finished or not chunk
        lines, self._pending = split_lines(self._pending + chunk)
        return lines


# ---------------------------------------------------------------- the tick


class Recorder:
    """Knows which processes to record, and writes one tick of them when told to."""

    def __init__(self, lines: _Lines, subject: Subject, *, load_pid: int | None) -> None:
        self._lines = lines
        self._subject = subject
        self._here = subject.pid is not None or is_local(subject.host)
        self._started_ns = time.monotonic_ns()
        self._look_due_ns = 0
        self._server: Server | None = None
        self._census = Census()
        self._control_groups = ControlGroups()
        self._roots: list[Member] = []
        self.last_seen: ServerInfo | None = None
        self.over = False
        """Whether the process that the subject names has ended: there is no server left to record."""
        self._slow_due_ns = self._memory_due_ns = 0
        self._told_unseen = self._told_untold = False
        if not self._here:
            self.report("server-elsewhere", f"{subject.host} is not this machine: no process of the server is recorded")
        self.follow(os.getpid(), "recorder")
        if load_pid is not None:
            self.follow(load_pid, "load-master")

    def close(self) -> None:
        if self._server:
            self._server.close()

    def report(self, kind: str, text: str, **details: Any) -> None:
        """Append an event of the recorder's own."""
        event = Event(**now_ns(), source="recorder", kind=kind, text=text, details=details)
        self._lines.append(EVENTS, event)

    def obey(self, line: bytes) -> None:
        """Carry out one line from `control`. What cannot be carried out becomes an event."""
        try:
            order = msgspec.json.decode(line, type=Follow | Whole)
        except UNDECODABLE as error:
            self.report("recorder-bad-order", f"not an order: {line[:200]!r}: {error}")
            return
        if isinstance(order, Follow):
            self.follow(order.pid, order.role)
        else:
            self._slow_due_ns = self._memory_due_ns = 0

    def follow(self, pid: int, role: Role) -> None:
        """Record one more process and its descendants, for as long as it lives. Roles once given stay."""
        process = process_of(pid)
        if process is None:
            self.report("recorder-no-such-process", f"no process {pid} to follow as {role}", pid=pid, role=role)
        elif all(process != root.process for root in self._roots):
            self._roots.append(Member(process, role))

    def tick(self, *, whole: bool = False) -> None:
        """Write a line of processes, a line of the host and new events; all figures if `whole`, else what is due."""
        now = time.monotonic_ns()
        if slow := whole or now >= self._slow_due_ns:
            self._slow_due_ns = now + _SLOW_EVERY_NS
        self._look_for_server()
        server = self._server
        ended = server is not None and server.has_ended  # asked first: what is read from now on is final
        # Memory comes before the clock, so that all counters are read right after it.
        roots = [*([Member(server.process, "server-master")] if server else []), *self._roots]
        there = self._census.take(roots, identities=slow)
        footprints = self._footprints(there) if whole or now >= self._memory_due_ns else {}
        slots = server.slots() if server else None
        slot_of = {pid: view.slot for view in slots or () for pid in (view.pid, *view.retiring) if pid}
        if server:
            there = [server.recognised(member, slot_of.get(member.process.pid)) for member in there]
        stamp = now_ns()
        host = sample_host(stamp, self._subject.port if self._here else None, slots, slow=slow)
        self._report_untold(host)
        samples = [
            sample_process(member, slot_of.get(member.process.pid), footprints.get(member.process), slow=slow)
            for member in there
        ]
        present = [sample for sample in samples if sample is not None]
        if slow:
            host = msgspec.structs.replace(host, control_groups=self._control_groups.limiting(there))
        self._lines.append(PROCESSES, ProcessTick(**stamp, processes=present))
        self._lines.append(HOST, host)
        self._copy_server_events()
        if server and ended:
            self._lose(server)

    def _report_untold(self, host: HostTick) -> None:
        """Once, what /proc does not have here."""
        if not self._told_untold and (names := untold(host)):
            self.report("recorder-untold", f"this machine does not tell {', '.join(names)}: that stays unknown")
        self._told_untold = True

    def _footprints(self, members: list[Member]) -> dict[psutil.Process, Footprint | None]:
        start_ns = time.thread_time_ns()
        found = {member.process: footprint(member.process) for member in members}
        pause_ns = max(_MEMORY_EVERY_NS, round((time.thread_time_ns() - start_ns) / _MEMORY_SHARE))
        self._memory_due_ns = time.monotonic_ns() + pause_ns
        return found

    def _look_for_server(self) -> None:
        now = time.monotonic_ns()
        found = self._server is not None and self._server.is_ours
        if not self._here or self.over or now < self._look_due_ns or found:
            return
        self._look_due_ns = now + _LOOK_EVERY_NS
        if self._server is None:
            self._server = self._find()
        elif self._server.attach(self._started_ns):
            info = self.last_seen = self._server.info
            self.report("server-attached", f"pid {info.pid} now shows its slots", pid=info.pid, options=info.options)

    def _find(self) -> Server | None:
        subject = self._subject
        pid = subject.pid if subject.port is None or subject.pid is not None else listening_root(subject.port)
        if pid is None:
            self._report_unseen()
            return None
        server = Server.of(pid)
        if server is None:
            self.over = subject.pid is not None
            return None
        server.attach(self._started_ns)
        info = self.last_seen = server.info
        text = f"server ({subject}): pid {pid} ({' '.join(info.command)[:200] or 'unknown command'})"
        self.report("server-found", text, pid=pid, command=info.command, options=info.options)
        return server

    def _report_unseen(self) -> None:
        """Once, that somebody listens whose processes this user may not look into."""
        if not self._told_unseen and self._subject.port is not None and (why := why_unseen(self._subject.port)):
            self.report("server-unseen", why)
            self._told_unseen = True

    def _lose(self, server: Server) -> None:
        self._copy_server_events()  # its last words may have come after the copy of this tick
        server.close()
        self.report("server-gone", f"server ({self._subject}): pid {server.info.pid} is gone", pid=server.info.pid)
        self._server = None
        self._look_due_ns = 0
        self.over = self._subject.pid is not None

    def _copy_server_events(self) -> None:
        if self._server:
            for event in self._server.new_events():
                self._lines.append(EVENTS, event)
