"""The server that is recorded, as it is found from outside: its root process, and what one of ours shows of itself."""

import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from reports.json_lines import UNDECODABLE
from reports.missing_values import read
from reports.recording.census import Member, create_time, process_of
from reports.run_folder import Event, ServerInfo
from server.ports import holders
from server.scoreboard import Scoreboard, SlotView, read_state

CHUNK_BYTES = 64 << 10
_WORKER_TITLE = "socketswarm: worker"
_LINE_LIMIT_BYTES = 1 << 20
"""A line that grows longer than this is no line of ours: the rest of it is dropped, so that memory stays bounded."""


class Server:
    """A server that was found: its root process and, when it is one of ours, its scoreboard and events."""

    @classmethod
    def of(cls, pid: int) -> "Server | None":
        """The server with this root process; None when there is none, or it has ended and was not reaped yet."""
        process = process_of(pid)
        if process is None or (created := create_time(process)) is None:
            return None
        try:
            server = cls(process, created, os.pidfd_open(pid))
        except OSError:  # it has ended
            return None
        if server.has_ended or not process.is_running():  # the latter: somebody else has this pid by now
            server.close()
            return None
        return server

    def __init__(self, root: psutil.Process, created: float, pidfd: int) -> None:
        self.process = root
        self._pidfd = pidfd
        self._end = select.poll()
        self._end.register(pidfd, select.POLLIN)
        self.info = ServerInfo(pid=root.pid, create_time=created, command=_command(root))
        self._scoreboard: Scoreboard | None = None
        self._events: EventTail | None = None

    @property
    def has_ended(self) -> bool:
        """Reaped or not. A pidfd tells in 3 µs, where psutil reads two files; and of all threads: a process whose first
        one has ended lives on as what `ps` calls a zombie."""
        return bool(self._end.poll(0))

    @property
    def is_ours(self) -> bool:
        return self._scoreboard is not None

    def attach(self, events_after_ns: int) -> bool:
        """Open what it shows of itself. False when it does not, or not yet: it may listen before its state is out."""
        state = read_state(self.info.pid)
        if state is None:
            return False
        try:
            self._events = EventTail(state.events, events_after_ns)
            self._scoreboard = Scoreboard.open(state.scoreboard)
        except (OSError, ValueError):
            self._hide()
            return False
        self.info = msgspec.structs.replace(self.info, options=state.options)
        return True

    def slots(self) -> list[SlotView] | None:
        return list(self._scoreboard.read()) if self._scoreboard else None

    def recognised(self, member: Member, slot: int | None) -> Member:
        """One of its processes with its role. A child of ours that has no slot and does not call itself a worker is the
        status helper. Asked at every tick: what was just forked has no title yet."""
        if (
            not self.is_ours
            or slot is not None
            or member.role != "server-worker"
            or read(member.process.ppid) != self.info.pid
        ):
            return member
        called_worker = " ".join(_command(member.process)).startswith(_WORKER_TITLE)
        return member if called_worker else member._replace(role="server-status")

    def new_events(self) -> Iterator[Event]:
        if self._events:
            yield from self._events.read()

    def _hide(self) -> None:
        if self._scoreboard:
            self._scoreboard.close()
        if self._events:
            self._events.close()
        self._scoreboard = self._events = None

    def close(self) -> None:
        """It is not to be asked anything after this."""
        self._hide()
        os.close(self._pidfd)


def why_unseen(port: int) -> str | None:
    """Why nobody is found who listens on this port, though somebody does; None where nobody listens."""
    return holders.why_unseen(port, "record as that user, or as root, to see it")


def _command(process: psutil.Process) -> list[str]:
    """Its command as `ps` shows it; empty once it has ended. psutil would make every carriage return a line's end."""
    found = holders.read_process(process.pid)
    words = found.argv if found else ()
    if len(words) == 1:  # a title that it gave itself, or a command without arguments
        words = tuple(words[0].split(" "))
    return [os.fsencode(word).decode(errors="replace") for word in words]  # what is no UTF-8 could not be written down


class EventTail:
    """A server's events file, read on as it grows. The descriptor is kept, so that what is written just before the
    file is removed is still read. OSError as from open()."""

    def __init__(self, path: Path | str, after_ns: int) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._after_ns = after_ns
        self._pending = b""

    def read(self) -> Iterator[Event]:
        """What was written since the last call, without what is older than `after_ns`."""
        while chunk := os.read(self._fd, CHUNK_BYTES):
            lines, self._pending = split_lines(self._pending + chunk)
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
    except (*UNDECODABLE, KeyError):
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


def split_lines(data: bytes) -> tuple[list[bytes], bytes]:
    """(whole lines, the start of the next one)."""
    *lines, rest = data.split(b"\n")
    return lines, rest[:_LINE_LIMIT_BYTES]
