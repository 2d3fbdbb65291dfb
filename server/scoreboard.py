"""What a running server shows of itself to other processes, without being asked.

Each supervisor owns a folder `/dev/shm/socketswarm-<uid>/<pid>/` with three files:

    state.json     who this server is: pid, start time, addresses, store, options
    scoreboard     shared memory, a few fixed records of 64-bit words per worker slot
    events.jsonl   what happened to the workers, one JSON object a line

A reader (the recorder, `server.ports.release`, a status page) needs only the supervisor's pid. The scoreboard's header
says how many slots there are and which failure codes are counted, so a reader needs no other module of the server: this
file is a leaf.

Why so:
- /dev/shm is memory on every Linux, so a counter never waits for a disk, and it does not depend on an environment
  variable that differs between the server's shell and the recorder's.
- A record has one writer, the worker in that seat of a slot. A slot has several seats, since after a reload the old
  worker goes on counting while it drains, beside the new one. Counters belong to the seat, not to the process: whoever
  comes next goes on counting where the last one stopped, so they never run backwards.
- A pid is reused sooner or later. The state file therefore carries the start time of its process in clock ticks
  since boot (/proc/PID/stat, field 22), which no clock adjustment changes; a stale file is never believed.
"""

import json
import logging
import mmap
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

log = logging.getLogger("server")

RUNTIME_PARENT = Path("/dev/shm")
STATE_FILE = "state.json"
SCOREBOARD_FILE = "scoreboard"
EVENTS_FILE = "events.jsonl"

_MAGIC = b"SSWARM02"
_HEADER_BYTES = 4096  # one page, so that the records start page-aligned
_WORD = 8

SEATS = 4
"""Processes that a slot can have at once: the one that serves, and those that still drain after reloads."""

# Words of a record, in their order.
PID, STATE, BIRTHS, HEARTBEAT_NS, STARTED_NS = range(5)
CONNECTIONS_NOW, CONNECTIONS_ACCEPTED, UPLOADS_STORED, BYTES_STORED = range(5, 9)
STORE_CHANGE, BYTES_ARRIVING = 9, 10  # for the quota, and shown to nobody
FAILURES = 11  # of the first failure code, which the others follow

STATES = ("empty", "starting", "ready", "draining")
EMPTY, STARTING, READY, DRAINING = range(len(STATES))

_PRECEDENCE = {READY: 3, STARTING: 2, DRAINING: 1, EMPTY: 0}


class ServerState(msgspec.Struct, frozen=True, kw_only=True):
    """The state file: who a server is. `start_ticks` is the supervisor's start time in clock ticks since boot."""

    pid: int
    start_ticks: int
    addresses: list[str]
    """All that it listens on: `127.0.0.1:12345`, `tls://[::1]:12345`, `unix:///run/upload.sock`."""
    port: int
    """The first one's that has one; 0 if none has."""
    workers: int
    store: str | None
    """Folder that uploads go to, as people can read it; None when they are discarded."""
    options: dict[str, str]
    """Its options by name, as people write them."""
    scoreboard: str
    events: str
    started_wall_ns: int
    page: str | None = None
    """Where its status page is, if it has one."""
    draining: bool = False
    """Whether it was told to stop."""


class SlotView(msgspec.Struct, frozen=True, gc=False):
    """One slot as read at one moment: pid, state and times of the worker that serves, or starts, or else drains.
    Counters are cumulative over all workers that ever had this slot."""

    slot: int
    pid: int
    state: str
    births: int
    heartbeat_ns: int
    started_ns: int
    connections_now: int
    connections_accepted: int
    uploads_stored: int
    bytes_stored: int
    failures: dict[str, int]
    retiring: tuple[int, ...] = ()
    """Workers of this slot that drain beside it."""


class Scoreboard:
    """The shared mapping. The supervisor creates it, workers inherit it, readers open it read-only."""

    def __init__(self, mapping: mmap.mmap, slots: int, failure_codes: Sequence[str]) -> None:
        self._mapping = mapping
        self.slots = slots
        self.failure_codes = tuple(failure_codes)
        self._record_words = FAILURES + len(self.failure_codes)
        end = _HEADER_BYTES + slots * SEATS * self._record_words * _WORD
        self._view = memoryview(mapping)
        self._words = self._view[_HEADER_BYTES:end].cast("Q")
        self.store_base = self._view[_HEADER_BYTES - _WORD : _HEADER_BYTES].cast("Q")
        """One word for the quota: what the store held when it was counted, less `store_change` of all seats then."""

    @classmethod
    def create(cls, path: Path, slots: int, failure_codes: Sequence[str]) -> "Scoreboard":
        """Make the file at `path` with room for `slots` and map it writable. OSError as from open()."""
        header = json.dumps({"slots": slots, "failure_codes": list(failure_codes)}).encode()
        if len(_MAGIC) + _WORD + len(header) > _HEADER_BYTES - _WORD:
            raise ValueError(f"scoreboard header of {len(header)} bytes does not fit its page")
        size = _HEADER_BYTES + slots * SEATS * (FAILURES + len(failure_codes)) * _WORD
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)  # a full /dev/shm is an OSError here, not a SIGBUS later
            os.pwrite(fd, _MAGIC + len(header).to_bytes(_WORD, "little") + header, 0)
            mapping = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        return cls(mapping, slots, failure_codes)

    @classmethod
    def open(cls, path: Path | str) -> "Scoreboard":
        """Map an existing scoreboard read-only. OSError when it is gone, ValueError when it is something else."""
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        if mapping[: len(_MAGIC)] != _MAGIC:
            mapping.close()
            raise ValueError(f"{path} is not a scoreboard")
        start = len(_MAGIC) + _WORD
        length = int.from_bytes(mapping[len(_MAGIC) : start], "little")
        header = json.loads(mapping[start : start + length])
        return cls(mapping, header["slots"], header["failure_codes"])

    def record(self, slot: int, seat: int = 0) -> memoryview:
        """The words of one seat, to be written by its worker: `record[UPLOADS_STORED] += 1`."""
        start = (slot * SEATS + seat) * self._record_words
        return self._words[start : start + self._record_words]

    def column(self, word: int) -> memoryview:
        """This word of all seats."""
        return self._words[word :: self._record_words]

    def read(self) -> Iterator[SlotView]:
        """Every slot that ever had a worker."""
        births = self.column(BIRTHS).tolist()
        for slot in range(self.slots):
            born = births[slot * SEATS : (slot + 1) * SEATS]
            if seats := [self.record(slot, seat).tolist() for seat, number in enumerate(born) if number]:
                yield self._view_of(slot, seats)

    def _view_of(self, slot: int, seats: list[list[int]]) -> SlotView:
        serving, sums = seats[0], seats[0]
        if len(seats) > 1:
            serving = max(seats, key=lambda words: (_PRECEDENCE[words[STATE]], words[STARTED_NS]))
            sums = [sum(words) for words in zip(*seats, strict=True)]
        return SlotView(
            slot=slot,
            pid=serving[PID],
            state=STATES[serving[STATE]],
            births=sums[BIRTHS],
            heartbeat_ns=serving[HEARTBEAT_NS],
            started_ns=serving[STARTED_NS],
            connections_now=sums[CONNECTIONS_NOW],
            connections_accepted=sums[CONNECTIONS_ACCEPTED],
            uploads_stored=sums[UPLOADS_STORED],
            bytes_stored=sums[BYTES_STORED],
            failures={code: count for code, count in zip(self.failure_codes, sums[FAILURES:], strict=True) if count},
            retiring=tuple(words[PID] for words in seats if words[STATE] == DRAINING and words is not serving),
        )

    def close(self) -> None:
        """Unmap. Records handed out before must not be used afterwards."""
        self.store_base.release()
        self._words.release()
        self._view.release()
        self._mapping.close()


def clear_seat(record: memoryview) -> None:
    """Its worker has ended. Counters stay."""
    record[STATE] = EMPTY
    record[PID] = 0  # after the state: 0 must never be taken for the pid of one that is ready
    record[CONNECTIONS_NOW] = 0
    record[BYTES_ARRIVING] = 0


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None when there is no such process, or only its zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name may hold spaces and brackets
    return None if fields[0] == "Z" else int(fields[19])


def runtime_root(uid: int) -> Path:
    """Where all servers of one user keep their folders."""
    return RUNTIME_PARENT / f"socketswarm-{uid}"


def create_runtime_folder() -> Path:
    """Make this process's folder, readable by its user only, after removing what dead servers left. Raises
    PermissionError when somebody else owns the name: /dev/shm is open to every user."""
    root = runtime_root(os.geteuid())
    folder = root / str(os.getpid())
    while True:
        _make_root(root)
        try:
            _remove_stale(root)
            shutil.rmtree(folder, ignore_errors=True)  # an earlier process with our pid, dead by definition
            folder.mkdir(mode=0o700)
        except FileNotFoundError:
            continue  # the last other server of this user just ended, and took the empty root with it
        return folder


def _make_root(root: Path) -> None:
    try:
        root.mkdir(mode=0o700)
    except FileExistsError:
        info = root.lstat()
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise PermissionError(f"{root} is not this user's folder: remove it") from None


def remove_runtime_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # another server of this user is running
        folder.parent.rmdir()


def _remove_stale(root: Path) -> None:
    for folder in root.iterdir():
        # A folder without a state file may belong to a server that is just starting: its pid decides.
        if not folder.name.isdecimal() or start_ticks(int(folder.name)) is None:
            shutil.rmtree(folder, ignore_errors=True)


def write_state(folder: Path, state: ServerState) -> None:
    """Publish the state file whole: readers never see half of it."""
    temporary = folder / f".{STATE_FILE}"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
    temporary.rename(folder / STATE_FILE)


def read_state(pid: int) -> ServerState | None:
    """The state of the server whose supervisor is `pid`; None when that process is not a socketswarm server. The file
    is looked up in the folder of the process's user, and believed if that user owns it and the start times agree."""
    try:
        uid = Path(f"/proc/{pid}").stat().st_uid
        path = runtime_root(uid) / str(pid) / STATE_FILE
        if path.lstat().st_uid != uid:
            return None
        state = msgspec.json.decode(path.read_bytes(), type=ServerState)
    except (OSError, msgspec.DecodeError):
        return None
    return state if state.pid == pid and state.start_ticks == start_ticks(pid) else None


class EventLog:
    """The events file: appended by the supervisor, one line an event, each written whole by one write()."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def append(self, kind: str, **fields: Any) -> None:
        """Add one event with both clocks in nanoseconds. `kind` is a short constant such as `worker-started`."""
        line = {"mono_ns": time.monotonic_ns(), "wall_ns": time.time_ns(), "kind": kind, **fields}
        os.write(self._fd, msgspec.json.encode(line) + b"\n")

    def note(self, kind: str, text: str, **fields: Any) -> None:
        """Add one with a text for people. That it cannot be written down is no reason to end."""
        try:
            self.append(kind, text=text, **fields)
        except OSError as error:  # /dev/shm is full
            log.warning("an event could not be written down (%s): %s", error.strerror, text)

    def close(self) -> None:
        os.close(self._fd)
