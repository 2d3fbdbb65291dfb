"""Servers that have nothing to import: one process has imported what `python -m server` does, and forks each of them.

What Python and its imports take to start is three quarters of what a server costs here, and hundreds are started. From
the fork on such a server is as any other: it runs `-m server`, or a script, as Python does, with the folder, the
environment and a session of its own. Only its command line is that of the nursery, and who reads that, or gives a
server more than two streams, starts a real one.
"""

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
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
MESSAGE_BYTES = 128 << 10


class Forked:
    """A child of the nursery, as `subprocess.Popen` has its own."""

    def __init__(self, nursery: "Nursery", pid: int, stdout: IO[str]) -> None:
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
            raise subprocess.TimeoutExpired("python -m server", timeout or 0)
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

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._one_at_a_time = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # as its children have: Python would seek in /dev/null, and then in theirs
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )

    def start(self, script: Sequence[str], cwd: Path, environment: Mapping[str, str], log: IO[str]) -> Forked:
        """`script` is what follows `python` on a command line; standard output is a pipe, `log` the other stream."""
        ours, theirs = os.pipe()
        try:
            answer = self._ask({"script": script, "cwd": str(cwd), "environment": environment}, theirs, log.fileno())
        finally:
            os.close(theirs)
        return Forked(self, answer, open(ours))

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


def _serve(orders: socket.socket) -> list[str]:
    """Do what is asked, until nobody can ask any more. Returns in each child, with what that shall run."""
    while True:
        message, streams, _, _ = socket.recv_fds(orders, MESSAGE_BYTES, 2)
        if not message:
            sys.exit()
        order = json.loads(message)
        if "reap" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["reap"], 0)[1])
        elif (answer := os.fork()) == 0:
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
    import click  # noqa: F401

    import server.printing
    import server.settings
    import server.start  # noqa: F401

    with socket.socket(fileno=int(sys.argv[1])) as own:
        wanted = _serve(own)
    _run(*wanted)
