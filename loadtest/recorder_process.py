"""The recorder and the builder of reports, as the process that starts them sees them. Neither may slow the load or
share its fate, so each is a process of its own."""

import json
import logging
import os
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import gevent
import msgspec
import psutil

from loadtest.link import leave
from loadtest.wires import Target
from reports import environment as machine
from reports import run_folder
from reports.run_folder import ServerInfo

RECORDER_TIMEOUT_S = 10.0
REPORT_TIMEOUT_S = 120.0
_UCRED = struct.Struct("iII")  # pid, uid, gid: linux/socket.h

log = logging.getLogger("socketswarm")


def subject_of(target: Target) -> list[str]:
    """The recorder's options that name the server at `target`; none when nobody can tell which process it is."""
    if target.scheme != "unix":
        return ["--host", target.host, "--port", str(target.port)]
    pid = _listener_of(target.path)
    return [] if pid is None else ["--pid", str(pid)]


def _listener_of(path: str) -> int | None:
    """Who listens at a unix socket: the kernel tells both ends who the other is, and a listener is who called listen().
    That may have ended meanwhile. Process 1 holds the sockets of others; 0 is a process of another container."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(RECORDER_TIMEOUT_S)
            sock.connect(path)
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
            leave(sock)
    except OSError:
        return None
    pid: int = _UCRED.unpack(credentials)[0]
    return pid if pid > 1 and psutil.pid_exists(pid) else None


class RecorderProcess:
    """The recorder process, as its parent sees it. If it dies the run goes on; the report will say what is missing."""

    def __init__(self, folder: Path, subject: list[str]) -> None:
        """`subject` is what `subject_of` says."""
        self.server: ServerInfo | None = None
        command = [sys.executable, "-m", "reports", "record", "--out", str(folder), *subject]
        command += ["--load-pid", str(os.getpid()), "--until-stdin-closes"]
        with (folder / "recorder.log").open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C at the terminal is for us; the recorder must see the drain
            )
        self._orders, self._answer = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        line = gevent.with_timeout(RECORDER_TIMEOUT_S, self._answer.readline, timeout_value=b"")
        if line:
            self.server = msgspec.convert(json.loads(line)["server"], ServerInfo | None)
        else:
            log.error("the recorder did not start; see %s", folder / "recorder.log")

    def store(self) -> dict[str, str]:
        """What the server stores on, if it is one of ours on this machine: a disk's latency is in every upload's."""
        options = self.server.options if self.server is not None else None
        if not options:
            return {}
        store = options["store"]
        discards = options["discard"] == "true"
        return {"store": "discarded" if discards else f"{store} ({machine.filesystem_of(store)})"}

    def follow(self, pid: int, role: str) -> None:
        self._order({"order": "follow", "pid": pid, "role": role})

    def look(self) -> None:
        """Have all figures in the next tick: a phase begins."""
        self._order({"order": "whole"})

    def _order(self, order: dict[str, Any]) -> None:
        with suppress(OSError):  # it is gone; `finish` says so
            self._orders.write(json.dumps(order).encode() + b"\n")
            self._orders.flush()

    def finish(self) -> str | None:
        """Let it take its last sample, and wait for it. What is wrong when it did not; None when it did."""
        early = self._process.poll() is not None
        with suppress(OSError):
            self._orders.close()
        try:
            code = self._process.wait(RECORDER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._answer.close()
        if early:
            return f"the recorder, pid {self._process.pid}, ended with exit code {code} before the run did"
        if code != 0:
            return f"the recorder, pid {self._process.pid}, took no last sample: exit code {code}"
        return None


def build_report(folder: Path) -> bool:
    """Build the report in a process of its own: it needs 160 MiB that Locust should not have. Whether it is there."""
    try:
        built = subprocess.run(
            [sys.executable, "-m", "reports", "build", str(folder)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=REPORT_TIMEOUT_S,
            start_new_session=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        log.error("the report took over %g s; build it with: %s", REPORT_TIMEOUT_S, run_folder.build_command(folder))
        return False
    if built.returncode == 0:
        log.info("report\n%s", built.stdout.rstrip())
    else:
        log.error("the report could not be built: %s", built.stderr.strip())
    return built.returncode == 0
