"""The recorder: a process of its own that writes down, tick by tick, what every process of a run costs.

`python -m reports record --port 12345 --out DIR` finds the server by the port it listens on and follows its workers as
they come and go, the load's processes beside them, and itself. Any listening server will do; one of ours also shows
its slots, its counters and its events.

Why it is built so:
- A process of its own neither slows the load nor is counted as either side, and it outlives both. For the same
  reason it imports little: no numpy, no bokeh, no Locust.
- One loop on an absolute schedule. A late tick does not shift the others, and a missed one is reported, not made up.
- Only cumulative counters are stored. Nothing is averaged here, and nothing is kept but the present: memory stays the
  same however long a run is.
- A parent is read before its children. A worker that is reaped in between is then missing from this tick, whereas the
  other way round its CPU would be there twice: as its own and as its parent's `children_*`.
- A process is (pid, create_time). What could not be read is None, never 0.
"""

import errno
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import psutil

from reports.run_folder import (
    EVENTS,
    HOST,
    PROCESSES,
    Appender,
    CoreTimes,
    Event,
    HostTick,
    ProcessSample,
    ProcessTick,
    Role,
    RunFolderError,
    ServerInfo,
    SlotCounters,
    now_ns,
)
from server.ports import listening_root
from server.scoreboard import Scoreboard, SlotView, read_state, start_ticks

_SECOND_NS = 1_000_000_000
_LOOK_EVERY_NS = _SECOND_NS
"""Between two looks for a server that is not there: who owns a socket is found by walking all of /proc."""
_MEMORY_EVERY_NS = 2 * _SECOND_NS
"""Between two readings of USS and PSS, for which the kernel walks all pages of a process (over 1 ms each)."""

_CHUNK_BYTES = 64 << 10
_LINE_LIMIT_BYTES = 1 << 20
"""A line that grows longer than this is no line of ours: the rest of it is dropped, so that memory stays bounded."""

_FIELDS = [
    "cpu_times",
    "memory_info",
    "num_threads",
    "num_ctx_switches",
    *(["io_counters"] if hasattr(psutil.Process, "io_counters") else []),  # a kernel may lack I/O accounting
]

_DESCENDANT_ROLE: dict[Role, Role] = {"server-master": "server-worker", "load-master": "load-worker"}
"""Role of the descendants of a root; those of any other root have its own role."""


def record(out: Path, *, host: str, port: int, load_pid: int | None, interval_s: float, control: int | None) -> None:
    """Record into the run folder `out` (made when missing) until SIGTERM, SIGINT or the end of `control`.

    `control` is a file descriptor that orders come from, one JSON line each: `{"follow": PID, "role": ROLE}`. When the
    first sample is on disk, one JSON line is printed: `{"recorder_pid": PID, "server": ServerInfo or null}`.
    Raises RunFolderError when the folder cannot be written, vanishes, or its disk is full.
    """
    with (
        closing(_Lines(out)) as lines,
        _Orders(control) as orders,
        closing(Recorder(lines, host=host, port=port, load_pid=load_pid)) as recorder,
    ):
        _run(recorder, orders, round(interval_s * _SECOND_NS))


def _run(recorder: "Recorder", orders: "_Orders", interval_ns: int) -> None:
    due = time.monotonic_ns()
    memory_due = due + _MEMORY_EVERY_NS
    recorder.tick(with_memory=True)
    _announce(recorder.server_info)
    while True:
        due, missed = next_due(due, time.monotonic_ns(), interval_ns)
        if missed:
            recorder.report("recorder-missed-ticks", f"{missed} ticks missed: the recorder was late", missed=missed)
        for order in orders.until(due):
            recorder.obey(order)
        if orders.finished:
            break
        with_memory = due >= memory_due
        if with_memory:
            memory_due = due + _MEMORY_EVERY_NS
        recorder.tick(with_memory=with_memory)
    recorder.tick(with_memory=True)


def next_due(due_ns: int, now_ns: int, interval_ns: int) -> tuple[int, int]:
    """(when the tick after the one due at `due_ns` is due, how many were missed by whole intervals and left out)."""
    following = due_ns + interval_ns
    missed = max(0, now_ns - following) // interval_ns
    return following + missed * interval_ns, missed


def _announce(server: ServerInfo | None) -> None:
    """Tell the caller that recording goes on. Written past sys.stdout, whose buffer would make the process fail at
    its exit when nobody reads any more."""
    if sys.stdout is None:
        return  # started with standard output closed: its number may be one of our own files by now
    line = msgspec.json.encode({"recorder_pid": os.getpid(), "server": server}) + b"\n"
    try:
        os.write(sys.stdout.fileno(), line)
    except OSError:
        pass  # the caller is gone; whether that ends the recording is up to `control`


# ---------------------------------------------------------------- in and out


class _Lines:
    """The three files of the run folder that the recorder appends to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._appenders: dict[str, Appender] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (PROCESSES, HOST, EVENTS):
                self._appenders[name] = Appender(folder / name)
        except OSError as error:
            self.close()
            raise self._failed(error) from error

    def append(self, name: str, line: msgspec.Struct) -> None:
        try:
            if not (self._folder / name).exists():  # writing to a removed file is no error to the kernel
                raise FileNotFoundError(errno.ENOENT, "it has vanished")
            self._appenders[name].append(line)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> RunFolderError:
        return RunFolderError(f"cannot record into {self._folder}: {error.strerror}")

    def close(self) -> None:
        for appender in self._appenders.values():
            appender.close()


class Order(msgspec.Struct, frozen=True):
    """A line from `control`: record this process too, and its descendants."""

    follow: int
    role: Role


class _Orders:
    """Waits for the next tick, for orders and for the end, whichever comes first.

    Signals arrive through a wake-up pipe, because Python goes on waiting after a handler has run (PEP 475).
    """

    def __init__(self, control: int | None) -> None:
        self.finished = False
        self._control = control
        self._pending = b""

    def __enter__(self) -> "_Orders":
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._old_waker = signal.set_wakeup_fd(self._waker)
        self._old_handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_waker)
        os.close(self._wake)
        os.close(self._waker)

    def _stop(self, *_: Any) -> None:
        self.finished = True

    def until(self, due_ns: int) -> Iterator[bytes]:
        """Lines as they come, until CLOCK_MONOTONIC is `due_ns` or `finished` is set."""
        fds = [self._wake] if self._control is None else [self._wake, self._control]
        while not self.finished:
            # Rounded up to whole milliseconds, or the last one would be spent polling.
            left_s = math.ceil(max(0, due_ns - time.monotonic_ns()) / 1_000_000) / 1000
            readable, _, _ = select.select(fds, [], [], left_s)
            if self._control is not None and self._control in readable:
                yield from self._read(self._control)
            if time.monotonic_ns() >= due_ns:
                return

    def _read(self, control: int) -> list[bytes]:
        try:
            chunk = os.read(control, _CHUNK_BYTES)
        except OSError:  # a terminal that hung up
            chunk = b""
        self.finished = self.finished or not chunk
        lines, self._pending = _split(self._pending + chunk)
        return lines


def _split(data: bytes) -> tuple[list[bytes], bytes]:
    """(whole lines, the start of the next one)."""
    *lines, rest = data.split(b"\n")
    return lines, rest[:_LINE_LIMIT_BYTES]


# ---------------------------------------------------------------- the server


class Server:
    """A server that was found: its root process and, when it is one of ours, its scoreboard and events.

    Raises psutil.NoSuchProcess when the process ended meanwhile.
    """

    def __init__(self, root: psutil.Process) -> None:
        self.root = root
        self._start_ticks = start_ticks(root.pid)
        self.info = ServerInfo(pid=root.pid, create_time=root.create_time(), command=_command(root))
        self._scoreboard: Scoreboard | None = None
        self._events: EventTail | None = None

    @property
    def is_ours(self) -> bool:
        return self._scoreboard is not None

    def is_alive(self) -> bool:
        """Whether it still runs: neither ended, nor a zombie, nor another process with its pid."""
        return self._start_ticks is not None and start_ticks(self.root.pid) == self._start_ticks

    def attach(self, events_after_ns: int) -> bool:
        """Open what it shows of itself. False when it does not, or not yet: it may listen before its state is out."""
        state = read_state(self.root.pid)
        if state is None:
            return False
        try:
            self._events = EventTail(state.events, events_after_ns)
            self._scoreboard = Scoreboard.open(state.scoreboard)
        except (OSError, ValueError):
            self.close()
            return False
        self.info = msgspec.structs.replace(self.info, options=state.options)
        return True

    def slots(self) -> list[SlotView] | None:
        return list(self._scoreboard.read()) if self._scoreboard else None

    def new_events(self) -> Iterator[Event]:
        if self._events:
            yield from self._events.read()

    def close(self) -> None:
        if self._scoreboard:
            self._scoreboard.close()
        if self._events:
            self._events.close()
        self._scoreboard = self._events = None


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.AccessDenied, psutil.ZombieProcess):
        return []


class EventTail:
    """A server's events file, read on as it grows. The descriptor is kept, so that what is written just before the
    file is removed is still read. OSError as from open()."""

    def __init__(self, path: Path | str, after_ns: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._after_ns = after_ns
        self._pending = b""

    def read(self) -> Iterator[Event]:
        """What was written since the last call, without what is older than `after_ns`."""
        while chunk := os.read(self._fd, _CHUNK_BYTES):
            lines, self._pending = _split(self._pending + chunk)
            for line in lines:
                event = _server_event(line)
                if event and event.mono_ns >= self._after_ns:
                    yield event

    def close(self) -> None:
        os.close(self._fd)


def _server_event(line: bytes) -> Event | None:
    """A line of a server's events file as one of ours: the fields that we have no name for are its details."""
    try:
        fields = msgspec.json.decode(line, type=dict[str, Any])
        named = {name: fields.pop(name) for name in ("mono_ns", "wall_ns", "kind")}
        named["text"] = fields.pop("text", "")
        return msgspec.convert({**named, "source": "server", "details": fields}, Event)
    except (msgspec.MsgspecError, KeyError):
        return None


def is_local(host: str) -> bool:
    """Whether `host` is an address of this machine: only then is the process behind its port to be found here."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # unknown, or no name at all
        return False
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return True
        except OSError:
            continue
    return False


# ---------------------------------------------------------------- the tick


class Recorder:
    """Knows which processes to record, and writes one tick of them when told to."""

    def __init__(self, lines: _Lines, *, host: str, port: int, load_pid: int | None) -> None:
        self._lines = lines
        self._port = port
        self._here = is_local(host)
        self._started_ns = time.monotonic_ns()
        self._look_due_ns = 0
        self._server: Server | None = None
        self._roots: list[tuple[psutil.Process, Role]] = [(psutil.Process(), "recorder")]
        self._known: dict[psutil.Process, psutil.Process] = {}
        if not self._here:
            self.report("server-elsewhere", f"{host} is not this machine: no process of the server is recorded")
        if load_pid is not None:
            self.follow(load_pid, "load-master")

    def close(self) -> None:
        if self._server:
            self._server.close()

    @property
    def server_info(self) -> ServerInfo | None:
        return self._server.info if self._server else None

    def report(self, kind: str, text: str, **details: Any) -> None:
        """Append an event of the recorder's own."""
        event = Event(**now_ns(), source="recorder", kind=kind, text=text, details=details)
        self._lines.append(EVENTS, event)

    def obey(self, line: bytes) -> None:
        """Carry out one line from `control`. What cannot be carried out becomes an event."""
        try:
            order = msgspec.json.decode(line, type=Order)
        except msgspec.MsgspecError as error:
            self.report("recorder-bad-order", f"not an order: {line[:200]!r}: {error}")
        else:
            self.follow(order.follow, order.role)

    def follow(self, pid: int, role: Role) -> None:
        """Record one more process and its descendants, for as long as it lives. Roles once given stay."""
        try:
            process = psutil.Process(pid)
        except (psutil.NoSuchProcess, ValueError):
            self.report("recorder-no-such-process", f"no process {pid} to follow as {role}", pid=pid, role=role)
            return
        if all(process != known for known, _ in self._roots):
            self._roots.append((process, role))

    def tick(self, *, with_memory: bool) -> None:
        """Write a line of processes and a line of the host, and copy the server's new events."""
        self._look_for_server()
        processes = self._processes()
        # What is slow comes first, so that all counters are read right after the clock.
        footprints = {process: footprint(process) for process, _ in processes} if with_memory else {}
        stamp = now_ns()
        slots = self._server.slots() if self._server else None
        slot_of = {view.pid: view.slot for view in slots or () if view.pid}
        samples = [
            sample
            for process, role in processes
            if (sample := sample_process(process, role, slot_of.get(process.pid), footprints.get(process)))
        ]
        self._lines.append(PROCESSES, ProcessTick(**stamp, processes=samples))
        self._lines.append(HOST, sample_host(stamp, slots))
        self._copy_server_events()
        if self._server and not self._server.is_alive():
            self._lose(self._server)

    def _look_for_server(self) -> None:
        now = time.monotonic_ns()
        if not self._here or now < self._look_due_ns or (self._server and self._server.is_ours):
            return
        self._look_due_ns = now + _LOOK_EVERY_NS
        if self._server is None:
            self._server = self._find()
        elif self._server.attach(self._started_ns):
            info = self._server.info
            self.report("server-attached", f"pid {info.pid} now shows its slots", pid=info.pid, options=info.options)

    def _find(self) -> Server | None:
        pid = listening_root(self._port)
        if pid is None:
            return None
        try:
            server = Server(psutil.Process(pid))
        except psutil.NoSuchProcess:
            return None
        server.attach(self._started_ns)
        info = server.info
        text = f"server on port {self._port}: pid {pid} ({' '.join(info.command)[:200] or 'unknown command'})"
        self.report("server-found", text, pid=pid, command=info.command, options=info.options)
        return server

    def _lose(self, server: Server) -> None:
        self._copy_server_events()  # its last words may have come after the copy of this tick
        server.close()
        self.report("server-gone", f"server on port {self._port}: pid {server.info.pid} is gone", pid=server.info.pid)
        self._server = None
        self._look_due_ns = 0

    def _copy_server_events(self) -> None:
        if self._server:
            for event in self._server.new_events():
                self._lines.append(EVENTS, event)

    def _processes(self) -> list[tuple[psutil.Process, Role]]:
        self._roots = [(process, role) for process, role in self._roots if process.is_running()]
        server: list[tuple[psutil.Process, Role]] = [(self._server.root, "server-master")] if self._server else []
        # The objects of the last tick are kept: psutil derives create_time from the wall clock once an object, and a
        # process must not change its identity when that clock is set.
        found = [(self._known.get(process, process), role) for process, role in census([*server, *self._roots])]
        self._known = {process: process for process, _ in found}
        return found


def census(roots: Sequence[tuple[psutil.Process, Role]]) -> Iterator[tuple[psutil.Process, Role]]:
    """Each root with its descendants, parents first, every process once.

    A root inside another root's tree is no part of that tree, nor are its descendants; of two roots with one pid the
    first counts. The recorder's own children are nobody's.
    """
    taken = {process.pid for process, _ in roots}
    seen: set[int] = set()
    for root, role in roots:
        if root.pid in seen:
            continue
        seen.add(root.pid)
        yield root, role
        if role == "recorder":
            continue
        for process in _descendants(root, taken):
            if process.pid not in seen:
                seen.add(process.pid)
                yield process, _DESCENDANT_ROLE.get(role, role)


def _descendants(root: psutil.Process, without: set[int]) -> Iterator[psutil.Process]:
    """The processes under `root`, parents first, without the trees of the pids in `without`."""
    if _KERNEL_LISTS_CHILDREN:
        yield from _listed_descendants(root.pid, without)
        return
    cut = without - {root.pid}
    try:
        below = root.children(recursive=True)
    except psutil.Error:
        return
    for process in below:
        if process.pid in cut or _parent_pid(process) in cut:
            cut.add(process.pid)
        else:
            yield process


def _listed_descendants(pid: int, without: set[int]) -> Iterator[psutil.Process]:
    for child in children_pids(pid):
        if child in without:
            continue
        try:
            yield psutil.Process(child)
        except psutil.NoSuchProcess:
            continue
        yield from _listed_descendants(child, without)


def _parent_pid(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.NoSuchProcess:
        return None


def children_pids(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """Children of a process from /proc/PID/task/*/children: 18 µs, where psutil has to read every process of the
    machine (over 1 ms). Only kernels with CONFIG_PROC_CHILDREN have these files."""
    pids: list[int] = []
    for text in _of_threads(pid, "children", proc):
        pids += map(int, text.split())
    return pids


_KERNEL_LISTS_CHILDREN = Path("/proc/thread-self/children").exists()


def _of_threads(pid: int, name: str, proc: Path = Path("/proc")) -> Iterator[bytes]:
    """What one file says of every thread of a process, without threads that end meanwhile."""
    tasks = f"{proc}/{pid}/task"
    try:
        threads = os.listdir(tasks)  # noqa: PTH208 - several times as fast as Path.iterdir, on every tick
    except OSError:
        return
    for thread in threads:
        try:
            with open(f"{tasks}/{thread}/{name}", "rb", buffering=0) as file:
                yield file.read()
        except OSError:
            continue


# ---------------------------------------------------------------- one sample


def sample_process(
    process: psutil.Process, role: Role, slot: int | None = None, memory: tuple[int | None, int | None] | None = None
) -> ProcessSample | None:
    """One process now; None when it is gone. Of a zombie the CPU counters are left, and they are final.

    `memory` is its `footprint`, on the ticks that have one.
    """
    try:
        fields: dict[str, Any] = process.as_dict(_FIELDS)
        create_time = process.create_time()
    except (psutil.NoSuchProcess, OSError):
        return None
    cpu, switches, io = fields["cpu_times"], fields["num_ctx_switches"], fields.get("io_counters")
    # The kernel says 0 when the process has already given its memory back; a living one always has some.
    rss = (fields["memory_info"] and fields["memory_info"].rss) or None
    uss, pss = memory or (None, None)
    return ProcessSample(
        pid=process.pid,
        create_time=create_time,
        role=role,
        slot=slot,
        cpu_user_s=cpu and cpu.user,
        cpu_system_s=cpu and cpu.system,
        children_user_s=cpu and cpu.children_user,
        children_system_s=cpu and cpu.children_system,
        rss_bytes=rss,
        uss_bytes=uss,
        pss_bytes=pss,
        threads=fields["num_threads"],
        fds=_open_files(process) if rss else None,
        voluntary_switches=switches and switches.voluntary,
        involuntary_switches=switches and switches.involuntary,
        read_bytes=io and io.read_bytes,
        write_bytes=io and io.write_bytes,
        run_delay_ns=run_delay_ns(process.pid),
    )


def footprint(process: psutil.Process) -> tuple[int | None, int | None]:
    """(USS, PSS) in bytes. 0 stands for a process that has already given its memory back."""
    try:
        full = process.memory_full_info()
    except (psutil.Error, OSError):
        return None, None
    return getattr(full, "uss", 0) or None, getattr(full, "pss", 0) or None


def _open_files(process: psutil.Process) -> int | None:
    """Number of open descriptors. Since Linux 6.2 the size of /proc/PID/fd is that number (3 µs); before, it is 0 and
    they must be counted one by one."""
    try:
        return os.stat(f"/proc/{process.pid}/fd").st_size or process.num_fds()  # noqa: PTH116 - twice as fast
    except (psutil.Error, OSError):
        return None


def run_delay_ns(pid: int, proc: Path = Path("/proc")) -> int | None:
    """How long the living threads of a process were runnable but waited for a CPU, since each was born.

    The second number of /proc/PID/task/*/schedstat (Documentation/scheduler/sched-stats.rst). A thread that ends takes
    its share with it. None when no thread could be read, or the kernel does not count (it then says `0 0 0`).
    """
    threads = [text.split() for text in _of_threads(pid, "schedstat", proc)]
    delays = [int(delay) for _, delay, times_run in threads if times_run != b"0"]
    return sum(delays) if delays else None


def sample_host(stamp: dict[str, int], slots: Iterable[SlotView] | None) -> HostTick:
    """The whole machine now, with the server's slots as they were read."""
    memory = psutil.virtual_memory()
    tcp = tcp_sockets()
    return HostTick(
        **stamp,
        cores=[
            CoreTimes(**{name: getattr(core, name) for name in CoreTimes.__struct_fields__})
            for core in psutil.cpu_times(percpu=True)
        ],
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        load_1min=os.getloadavg()[0],
        tcp_in_use=tcp.get("inuse"),
        tcp_time_wait=tcp.get("tw"),
        scoreboard=None if slots is None else msgspec.convert(list(slots), list[SlotCounters], from_attributes=True),
    )


def tcp_sockets(path: Path = Path("/proc/net/sockstat")) -> dict[str, int]:
    """The TCP line of /proc/net/sockstat: `inuse` (IPv4), `orphan`, `tw` (TIME_WAIT), `alloc`, and `mem` in pages.
    Empty when it cannot be read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    for line in lines:
        name, _, rest = line.partition(":")
        if name == "TCP":
            words = rest.split()
            return dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return {}
