"""Processes that have nothing to import: one process has imported what a program does, and forks each of them.

What Python and its imports take to start is three quarters of what a server costs here, and half of what a short run of
Locust does; hundreds are started. From the fork on such a process is as any other: it runs `-m server`, `-m locust`, or
a script, as Python does, with the folder, the environment and a session of its own. Only its command line, and the
environment that /proc shows of it, are those of the nursery, and who reads them, or gives a process other streams,
starts a real one.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from os import fork, waitpid  # Python's own: Locust's imports put others in their place, which need an event loop
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
MESSAGE_BYTES = 128 << 10


class Forked:
    """A child of the nursery, as `subprocess.Popen` has its own."""

    def __init__(self, nursery: "Nursery", pid: int, stdout: IO[str] | None = None) -> None:
        self.pid = pid
        self.stdout = stdout
        self.returncode: int | None = None
        self._nursery = nursery
        self._pidfd = os.pidfd_open(pid)  # the nursery keeps the pid until it is asked how that ended

    def poll(self) -> int | None:
        return self._end_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """TimeoutExpired when it has not ended in so many seconds."""
        code = self._end_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _end_within(self, timeout_s: float | None) -> int | None:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            if poll.poll(None if timeout_s is None else timeout_s * 1000):
                self.returncode = self._nursery.reap(self.pid)
                os.close(self._pidfd)
        return self.returncode


class Nursery:
    """The process that forks, as its parent sees it. It ends when its parent does."""

    def __init__(self, *modules: str, unbuffered: bool = False) -> None:
        """`modules` are imported, in this order; `unbuffered` is Python's -u."""
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._one_at_a_time = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *(["-u"] if unbuffered else []), __file__, str(theirs.fileno()), *modules],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # as its children have: Python would seek in /dev/null, and then in theirs
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )

    def start(self, script: Sequence[str], cwd: Path, environment: Mapping[str, str], log: IO[Any]) -> Forked:
        """`script` is what follows `python` on a command line; `log` is both streams."""
        return Forked(self, self._fork(script, cwd, environment, log.fileno(), log.fileno()))

    def start_piped(self, script: Sequence[str], cwd: Path, environment: Mapping[str, str], log: IO[Any]) -> Forked:
        """The same, with standard output a pipe."""
        ours, theirs = os.pipe()
        try:
            pid = self._fork(script, cwd, environment, theirs, log.fileno())
        finally:
            os.close(theirs)
        return Forked(self, pid, open(ours))

    def _fork(self, script: Sequence[str], cwd: Path, environment: Mapping[str, str], *streams: int) -> int:
        return self._ask({"script": script, "cwd": str(cwd), "environment": environment}, *streams)

    def reap(self, pid: int) -> int:
        """How the child has ended, which it has: its exit code, or the signal, negative."""
        return self._ask({"reap": pid})

    def end(self) -> None:
        self._orders.close()
        self._process.communicate()

    def _ask(self, order: Mapping[str, object], *streams: int) -> int:
        with self._one_at_a_time:
            socket.send_fds(self._orders, [json.dumps(order).encode()], streams)
            answer = self._orders.recv(MESSAGE_BYTES)
        assert answer, "the nursery has ended"
        return int(answer)


@cache
def nursery(*modules: str, unbuffered: bool = False) -> Nursery:
    """One for each process of the tests."""
    _nurseries.append(Nursery(*modules, unbuffered=unbuffered))
    return _nurseries[-1]


_nurseries: list[Nursery] = []


@atexit.register
def end_nurseries() -> None:
    """For tests in which this process shall have no children but their own, and nothing from a nursery."""
    while _nurseries:
        _nurseries.pop().end()
    nursery.cache_clear()


# ── in the nursery ────────────────────────────────────────────────────────────────────────────────────────────────


def _serve(orders: socket.socket) -> list[str]:
    """Do what is asked, until nobody can ask any more. Returns in each child, with what that shall run."""
    while True:
        message, streams, _, _ = socket.recv_fds(orders, MESSAGE_BYTES, 2)
        if not message:
            sys.exit()
        order = json.loads(message)
        if "reap" in order:
            answer = os.waitstatus_to_exitcode(waitpid(order["reap"], 0)[1])
        elif (answer := fork()) == 0:
            orders.close()
            _be_born(streams, order["cwd"], order["environment"])
            return list(order["script"])
        for stream in streams:
            os.close(stream)
        orders.send(str(answer).encode())


def _be_born(streams: Sequence[int], cwd: str, environment: Mapping[str, str]) -> None:
    os.setsid()
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)


def _run(script: str, *arguments: str) -> None:
    """As `python SCRIPT ARGUMENT...` does, or `python -m NAME ARGUMENT...`."""
    if script == "-m":
        name, *arguments = arguments
        sys.argv = [name, *arguments]
        sys.path[0] = str(Path.cwd())
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [script, *arguments]
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as own:  # before an import can make other sockets of these
        for module in sys.argv[2:]:
            importlib.import_module(module)
        gc.freeze()  # or each child's first collection copies every page
        wanted = _serve(own)
    if "gevent" in sys.modules:
        sys.modules["gevent"].reinit()  # its event loop is the nursery's until then
    _run(*wanted)
