"""The run folder: everything that is known about one test run, as files.

Nothing is handed over in memory between the load, the recorder and the report. The folder is the contract: this file
holds its schema, its readers and its writers, and is the only place that knows the names of its files. A report can
therefore be rebuilt, compared or moved to another machine long after the run. RUN_FOLDER.md tells people of all of it.

Counters are stored cumulative, rates are derived by the reader. What could not be read is null, never 0. After a kill
at any moment at most the last line of a file is torn, and the readers here skip it.
"""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from reports.json_lines import UNDECODABLE, decoded
from reports.json_lines import Appender as Appender  # this and the next are part of this file for the load
from reports.json_lines import write_whole as write_whole
from server.units import format_size

T = TypeVar("T")

SCHEMA_VERSION = 1
ROOM_BYTES = 2 << 20  # for a minute of two workers and its report

RUN = "run.json"  # what was run, on what, with which phases, and how it ended; rewritten whole
PROCESSES = "processes.jsonl"  # a line a tick: every process with its cumulative costs
HOST = "host.jsonl"  # a line a tick: CPU per core, sockets, the server's scoreboard
UPLOADS = "uploads.jsonl"  # a line a second, and now and then the histograms so far
LOAD = "load.jsonl"  # a line a second of each load process: its own CPU, delays and what waits in it
EVENTS = "events.jsonl"  # what happened, as it happens
ROOM = ".room"  # on the disk, kept while a run goes on: its last words must fit
SUMMARY = "summary.json"  # the report's numbers
REPORT_HTML = "report.html"
REPORT_MD = "report.md"

RUN_FAILED = "run-failed"  # the kind of event that says why a run could not go on

Role = Literal[
    "server-master", "server-worker", "server-status", "load-master", "load-worker", "hiccup-meter", "recorder"
]
PhaseKind = Literal["warm-up", "measure", "drain"]

# The durations of one upload, in microseconds, each with a histogram of its own. From `connect` to `close` they are its
# parts, in order; only the open model intends an upload for a time.
DURATIONS = (
    "schedule_lag",  # open model: intended until the load process woke to it
    "pool_wait",  # open model: from there until a connection was free to start it
    "connect",  # a TLS handshake is part of it
    "handshake",  # TCP: the kernel's own SYN to SYN-ACK time, within `connect` (tcp_info.tcpi_rtt right after it)
    "send",
    "wait",  # for the reply, until it was in the kernel; over a unix socket, where the kernel does not say, until read
    "read_lag",  # from there until it was read; not over a unix socket
    "close",
    "service",  # connected, or first byte sent on a reused connection, until the reply was in the kernel
    "transaction",  # start until acknowledged, connect and close included where they happened
    "response",  # open model: intended until acknowledged
    "unanswered",  # open model: intended until given up, of UNANSWERED uploads: their response took at least that long
    "think",  # closed model: the pause after an upload
)


class RunFolderError(Exception):
    """A run folder is missing, incomplete or of another schema; the text says which file and what to do."""


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One stretch of a run. `uploads_per_connection` 0 means no end: long connections; 1: short ones."""

    name: str
    kind: PhaseKind
    uploads_per_connection: int
    start_ns: int
    end_ns: int | None = None
    offered: int | None = None
    """Open model: the arrivals that were due between start and end. None in the closed model, and until it ends."""

    @property
    def mode(self) -> str:
        return mode_of(self.uploads_per_connection)


class ServerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The server as the recorder found it. `options` is its state file's, if it is one of ours."""

    pid: int
    create_time: float
    command: list[str]
    options: dict[str, str] | None = None


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended: `completed` (its plan was over), `stopped` (by a person or a signal) or `failed`."""

    how: Literal["completed", "stopped", "failed"]
    reason: str


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """run.json. `ended` is None while the run goes on, and for ever if it was killed."""

    schema_version: int = SCHEMA_VERSION
    id: str
    label: str
    command: list[str]
    host: str
    users: int
    """Closed model: the most users at a time. 0 in the open model."""
    model: Literal["closed", "open", "none"] = "closed"
    """`none`: a recording of costs, without a load of ours."""
    thresholds: list[str] = []
    """Conditions under which the run has failed, such as `p99(response) > 20ms`; see reports/thresholds.py."""
    load_options: dict[str, str | int | float | bool | None]
    seed: int
    git_commit: str | None
    git_dirty: bool | None
    environment: dict[str, str | int | float | None]
    started_mono_ns: int
    started_wall_ns: int
    server: ServerInfo | None = None
    phases: list[Phase] = []
    ended: Ending | None = None


class ProcessSample(msgspec.Struct, frozen=True, kw_only=True):
    """One process at one tick. All counters are cumulative since its birth."""

    pid: int
    create_time: float
    role: Role
    slot: int | None = None
    cpu_user_s: float | None = None
    cpu_system_s: float | None = None
    children_user_s: float | None = None
    """CPU of children that were already reaped: it has what a worker cost that died between two ticks."""
    children_system_s: float | None = None
    rss_bytes: int | None = None
    fds: int | None = None
    uss_bytes: int | None = None
    """On a slower tick than what is above, as all that follows: None in between."""
    pss_bytes: int | None = None
    threads: int | None = None
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None
    read_bytes: int | None = None
    write_bytes: int | None = None
    run_delay_ns: int | None = None
    """Time its threads were runnable but waited for a CPU, from /proc/PID/task/*/schedstat."""
    cores: str | None = None
    """The cores that its main thread may run on, as the kernel lists them: `0-3,8`."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What each line begins with, see `now_ns`: files are joined on CLOCK_MONOTONIC, which nobody can set."""

    mono_ns: int
    wall_ns: int


class ProcessTick(Line, frozen=True, kw_only=True):
    """A line of processes.jsonl."""

    processes: list[ProcessSample]


class CoreTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Cumulative seconds of one core, as in /proc/stat."""

    user: float
    nice: float
    system: float
    idle: float
    iowait: float
    irq: float
    softirq: float
    steal: float | None = None
    """Not every kernel has it."""


class SlotCounters(msgspec.Struct, frozen=True, kw_only=True):
    """One scoreboard slot; counters run on over the workers that follow each other in it."""

    slot: int
    pid: int
    state: str
    births: int
    connections_now: int
    connections_accepted: int
    uploads_stored: int
    bytes_stored: int
    failures: dict[str, int]


class AcceptQueue(msgspec.Struct, frozen=True, kw_only=True):
    """One listening socket: connections that wait to be accepted, how many may, and how many it had no room for since
    it was opened; None where the kernel does not tell."""

    waiting: int
    limit: int
    dropped: int | None = None


class NetworkBytes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that went over one network interface, cumulative."""

    received: int
    sent: int


class ControlGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A control group that limits recorded processes, its own or those of groups below it. Counters are cumulative
    since the group was made; what the kernel does not tell, or does not limit, is None."""

    path: str
    """Its folder."""
    roles: list[Role]
    """Of the recorded processes in it."""
    quota_cores: float | None = None
    """CPU that all its processes together may use of each period, usually 0.1 s, in cores."""
    periods: int | None = None
    """In which any of them was ready to run."""
    throttled_periods: int | None = None
    """In which its quota was used up, so that all of them stood still until the next one."""
    throttled_us: int | None = None
    """How long they did, summed over cores."""
    memory_max_bytes: int | None = None
    """Beyond it the kernel takes memory back, and kills where it cannot."""
    memory_high_bytes: int | None = None
    """Beyond it, the kernel takes memory back and slows down who asks for more."""
    memory_bytes: int | None = None
    """Used now, files in the page cache included."""
    memory_limit_hits: int | None = None
    """How often either limit was reached."""
    oom_kills: int | None = None
    """Processes that were killed for it."""


class HostTick(Line, frozen=True, kw_only=True):
    """A line of host.jsonl. Counters are cumulative."""

    cores: list[CoreTimes]
    """None of them where they could not be read."""
    tcp_in_use: int | None
    tcp_time_wait: int | None
    scoreboard: list[SlotCounters] | None
    """None when the server is not one of ours."""
    accept_queues: list[AcceptQueue] | None = None
    """One for each socket that listens on the server's port."""
    tcp_states: dict[str, int] | None = None
    """Connections at the server's end by state, without TIME_WAIT. This and all below are read on a slower tick than
    the rest: None or empty in between."""
    kernel: dict[str, int] = {}
    """TCP counters of the whole machine, as the kernel names them; see reports/recording/kernel_tcp.py."""
    network: dict[str, NetworkBytes] = {}
    """Bytes by the name of the interface."""
    memory_available_bytes: int | None = None
    load_1min: float | None = None
    control_groups: list[ControlGroup] = []
    """Those that limit the recorded processes."""


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """One duration of one second's uploads, in microseconds; for looking at: percentiles cannot be merged."""

    p50: float
    p95: float
    p99: float
    max: float


class SecondOfUploads(msgspec.Struct, frozen=True, kw_only=True):
    """What one name (mode x size class) did in one second. `count` and `bytes` are acknowledged uploads."""

    count: int
    bytes: int
    failures: dict[str, int]
    connections: int
    """Those that were opened, whatever became of the upload."""
    late: int = 0
    """Those of `count` that were acknowledged only after the end of their phase."""
    service_us: Percentiles | None = None
    transaction_us: Percentiles | None = None
    response_us: Percentiles | None = None


class UploadsLine(Line, frozen=True, kw_only=True, tag="second"):
    """A line of uploads.jsonl: one second of one phase, over all load processes, ending about at `mono_ns`."""

    phase: str
    users: int
    names: dict[str, SecondOfUploads]
    hiccup_us: Percentiles | None = None
    """How late sleepers of 1 ms woke on the load processes' cores, all of them together."""


class HistogramsLine(Line, frozen=True, kw_only=True, tag="histograms"):
    """A line of uploads.jsonl: one phase's histograms so far; the last line of a phase counts.

    `names[name][duration]` is a base64 HDR histogram (V2, compressed; 1 us to 1 h, 3 significant digits).
    """

    phase: str
    names: dict[str, dict[str, str]]
    hiccups: str | None = None
    """One more such histogram: how late sleepers of 1 ms woke. It measures the machine, not the server."""


class LoadTick(Line, frozen=True, kw_only=True):
    """A line of load.jsonl: what one load process says of itself, stamped when it came in. Counters are cumulative
    since its birth; unlike processes.jsonl it tells of processes on other hosts too."""

    host: str
    pid: int
    cpu_s: float
    run_delay_ns: int | None
    """Time its threads were runnable but waited for a CPU; None where the kernel does not say."""
    in_flight: int
    """Uploads under way."""
    queued: int
    """Open model: arrivals that are due and wait for a connection."""


class Event(Line, frozen=True, kw_only=True):
    """A line of events.jsonl. `kind` is a short constant; `text` is for people."""

    source: Literal["load", "server", "recorder"]
    kind: str
    text: str
    details: dict[str, Any] = {}


def mode_of(uploads_per_connection: int) -> str:
    """What connections of so many uploads are called: 0 (no end) is `long`, 1 is `short`."""
    return {0: "long", 1: "short"}.get(uploads_per_connection, f"{uploads_per_connection} per connection")


_SIZE_LIMITS = ((4 << 10, "≤4 KiB"), (64 << 10, "≤64 KiB"), (1 << 20, "≤1 MiB"), (16 << 20, "≤16 MiB"))
SIZE_CLASSES = (*(name for _, name in _SIZE_LIMITS), ">16 MiB")


def size_class(size_bytes: int) -> str:
    """The size class of an upload: the few names that latencies are kept apart by."""
    for limit, name in _SIZE_LIMITS:
        if size_bytes <= limit:
            return name
    return SIZE_CLASSES[-1]


def upload_name(mode: str, size_bytes: int) -> str:
    """The name an upload is counted under: `long ≤4 KiB`. The mode is all before the size class."""
    return f"{mode} {size_class(size_bytes)}"


def split_name(name: str) -> tuple[str, str]:
    """(mode, size class) of a name that `upload_name` made."""
    for known in SIZE_CLASSES:
        if name.endswith(f" {known}"):
            return name[: -len(known) - 1], known
    raise RunFolderError(f"{name!r} is not an upload name of this schema")


def build_command(folder: Path) -> str:
    """What makes a folder's report, for people to type."""
    return f"python -m reports build {folder}"


def new_run_id(label: str, now: datetime | None = None) -> str:
    """`<UTC time>-<label>`, which sorts by time and is a safe folder name."""
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in label)
    short = safe.encode()[:60].decode(errors="ignore") or "run"  # file systems count bytes
    return f"{(now or datetime.now(UTC)):%Y%m%dT%H%M%SZ}-{short}"


def create(path: Path) -> Path:
    """Make a new run folder; when the name is taken, the first free of `path-2`, `path-3`... OSError as from mkdir, and
    when there is no room for a run: it would only be cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < ROOM_BYTES:
        why = f"{format_size(free_bytes)} are left there, and a run with its report takes {format_size(ROOM_BYTES)}"
        raise OSError(errno.ENOSPC, why, str(path.parent))
    candidate, number = path, 1
    while True:
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")


def now_ns() -> dict[str, int]:
    """Both clocks, as the fields every line starts with."""
    return {"mono_ns": time.monotonic_ns(), "wall_ns": time.time_ns()}


def read_run(folder: Path) -> RunInfo:
    """run.json. RunFolderError when it is missing, broken, or of a schema this version does not know."""
    path = folder / RUN
    try:
        data = path.read_bytes()
        version = msgspec.json.decode(data, type=_AnySchema).schema_version
        if version != SCHEMA_VERSION:  # before the rest, which may have other fields
            raise RunFolderError(
                f"{path} has schema {version}; this version reads {SCHEMA_VERSION}: build the report with the version "
                "of socketswarm that wrote it"
            )
        return msgspec.json.decode(data, type=RunInfo)
    except FileNotFoundError:
        raise RunFolderError(f"{folder} is not a run folder: it has no {RUN}") from None
    except (OSError, *UNDECODABLE) as error:
        raise RunFolderError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error


class _AnySchema(msgspec.Struct):
    """What run.json has in every version."""

    schema_version: int = SCHEMA_VERSION


def _lines(path: Path, decoder: "msgspec.json.Decoder[T]") -> Iterator[T]:
    """Decoded lines of a file; none when it is missing. RunFolderError when it is there and cannot be read."""
    try:
        # A pipe in its place has nothing, and is not waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            yield from decoded(file, decoder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}") from error


def read_processes(folder: Path) -> Iterator[ProcessTick]:
    return _lines(folder / PROCESSES, msgspec.json.Decoder(ProcessTick))


def read_host(folder: Path) -> Iterator[HostTick]:
    return _lines(folder / HOST, msgspec.json.Decoder(HostTick))


def read_uploads(folder: Path) -> Iterator[UploadsLine | HistogramsLine]:
    return _lines(folder / UPLOADS, msgspec.json.Decoder(UploadsLine | HistogramsLine))


def read_load(folder: Path) -> Iterator[LoadTick]:
    return _lines(folder / LOAD, msgspec.json.Decoder(LoadTick))


def read_events(folder: Path) -> Iterator[Event]:
    return _lines(folder / EVENTS, msgspec.json.Decoder(Event))


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What summary.json says of the whole run, for who ran it: the rest of that file is the reports' own."""

    verdict: str
    reason: str
    also_broken: list[str] = []
    exit_code: int


def read_outcome(folder: Path) -> Outcome | None:
    """None when no report was built. RunFolderError when its summary cannot be read."""
    path = folder / SUMMARY
    try:
        return msgspec.json.decode(path.read_bytes(), type=Outcome)
    except FileNotFoundError:
        return None
    except (OSError, *UNDECODABLE) as error:
        raise RunFolderError(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error


class UploadsTail:
    """Follows uploads.jsonl while it is written: each call gives the whole lines that came since the last."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / UPLOADS
        self._position = 0
        self._decoder = msgspec.json.Decoder(UploadsLine | HistogramsLine)

    def take(self) -> list[UploadsLine]:
        """New lines of seconds; none when there is no file yet."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        lines = decoded(whole.splitlines(), self._decoder)
        return [line for line in lines if isinstance(line, UploadsLine)]
