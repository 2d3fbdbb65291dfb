"""What the server does at every signal that people and their tools send: to it, to a worker or to the status helper,
while they start and when they serve. Reloads, and more and fewer workers, are in test_supervision.py."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from servers import ROOT, Client, bindable, eventually, running, session, upload

from server import scoreboard

UNUSED = [
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGSTKFLT,
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGWINCH,
    signal.SIGURG,
    signal.SIGCONT,
    signal.SIGRTMAX,
]
STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
CHANGES = [signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU]


def test_a_signal_that_means_nothing_ends_nothing_and_quit_drains() -> None:
    """logrotate sends USR1, and pkill whatever it is told to everybody."""
    with running("--status-port", "0", workers=2) as server:
        eventually(lambda: "status-started" in {event["kind"] for event in server.events()}, "the page has its process")
        workers, everybody = server.workers(), session(server.pid)
        for pid in everybody:
            for number in UNUSED if pid == server.pid else UNUSED + STOPS + CHANGES:
                os.kill(pid, number)
        eventually(lambda: server.messages().count(" does nothing: ") == 2, "it has said so, once for each")
        assert {upload(server.port, b"abc").pid for _ in range(20)} <= set(workers)
        assert session(server.pid) == everybody
        assert "USR1 does nothing: the log goes to standard error" in server.messages()
        with Client(server.port) as client:
            client.send_header(6, "slow")
            client.sock.sendall(b"abc")
            server.process.send_signal(signal.SIGQUIT)
            eventually(lambda: bindable(server.port), "nobody is let in any more")
            client.sock.sendall(b"def")
            assert client.reply().code == "ok"
        assert server.wait() == 0


def test_a_signal_to_a_worker_that_is_not_ready_does_not_end_it(tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.touch()
    with running(script=(str(ROOT / "tests" / "faulty_server.py"), "slow"), cwd=tmp_path) as server:
        [first] = server.workers()
        go.unlink()
        os.kill(first, signal.SIGKILL)
        second = eventually(lambda: server.slots()[0].pid not in (0, first) and server.slots()[0].pid, "it is replaced")
        for number in UNUSED + STOPS + CHANGES:
            os.kill(second, number)
        go.touch()
        eventually(lambda: server.workers() == [second], "it is ready")


@contextmanager
def starting() -> "Iterator[subprocess.Popen[str]]":
    """A server that has begun to import what it needs."""
    command = [sys.executable, "-m", "server", "--port", "0", "--workers", "1", "--discard"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            eventually(lambda: "/msgspec/" in Path(f"/proc/{process.pid}/maps").read_text(), "it imports")
            yield process
        finally:
            process.kill()


def test_signals_before_there_is_a_supervisor() -> None:
    with starting() as server:
        for number in (*UNUSED, signal.SIGHUP, signal.SIGTTIN):
            server.send_signal(number)
        assert server.stdout.readline().startswith("listening on ")
        eventually(lambda: len(psutil.Process(server.pid).children()) == 2, "there is one worker more")
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=60)
        assert (server.returncode, "reloading 1 workers" in said) == (0, True)


@pytest.mark.parametrize("number", STOPS)
def test_a_stop_before_there_is_a_supervisor_is_an_end_at_once(number: signal.Signals) -> None:
    with starting() as server:
        server.send_signal(number)
        assert server.communicate(timeout=60)[1] == ""
        assert server.returncode == 128 + number
        assert not (scoreboard.runtime_root(os.geteuid()) / str(server.pid)).exists()
