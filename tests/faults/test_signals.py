"""What each command does at every signal that people and their tools send: to the server, to a worker or to the status
helper, to a run and all that it starts, to a recording; while they start and when they go on. Reloads, and more and
fewer workers, are in test_supervision.py; what ends a run at which moment, in test_interrupts.py."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from loads import LOADTEST, assert_report, started
from servers import ROOT, Client, bindable, eventually, running, session, upload

from reports import run_folder
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
        assert "draining: SIGQUIT" in server.messages()


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
        assert server.communicate(timeout=60)[1] == f"Stopped by {number.name}\n"
        assert server.returncode == 128 + number
        assert not (scoreboard.runtime_root(os.geteuid()) / str(server.pid)).exists()


COMMANDS = [
    ("server", "--port", "0", "--discard"),
    ("loadtest", "run"),
    ("loadtest", "compare", "--a", "--workers 1"),
    ("loadtest", "upload", __file__),
    ("reports", "record", "--port", "1", "--out", "run"),
    ("reports", "build", "run"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_stop_while_python_imports_is_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    """From our first line on. Before that it is Python, which knows nothing of us: the shell says that it was ended."""
    for number, at_first in ((signal.SIGTERM, True), *((number, False) for number in STOPS)):
        with subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            if not at_first:
                eventually(lambda pid=process.pid, number=number: hears(pid, number), "our first line")
            process.send_signal(number)
            said = process.communicate(timeout=60)[1]
        code = 128 + number if command[0] == "server" else 130
        assert (process.returncode, said) in [(code, f"Stopped by {number.name}\n"), *[(-number, "")] * at_first]
    assert list(tmp_path.iterdir()) == []


def hears(pid: int, number: signal.Signals) -> bool:
    """Whether it would not just end: it has a handler of its own, or will hear it as soon as it has one. Python's own,
    for Ctrl-C alone, is not what we wait for."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk:", "SigCgt:"))]
    return any(mask >> signal.SIGTERM - 1 & mask >> number - 1 & 1 for mask in masks)


def test_a_signal_that_means_nothing_ends_no_run_and_quit_ends_it_in_order(tmp_path: Path) -> None:
    run = ("run", "--users", "2", "--workers", "1", "--plan", "long", "--payloads", "4KiB", "--phase-seconds", "600")
    with started(tmp_path, *LOADTEST, *run, "--warm-up", "1s") as job:
        job.in_phase("warm-up")
        everybody = job.living()
        assert len(everybody) >= 7  # the run, its guard, Locust, recorder, meter, server and worker
        for pid in everybody:
            for number in UNUSED:
                os.kill(pid, number)
        job.in_phase("long-1")
        assert job.living().keys() == everybody.keys()
        job.process.send_signal(signal.SIGQUIT)
        assert job.wait() == 130, job.said()
    [folder] = job.runs()
    assert run_folder.read_run(folder).ended.how == "stopped"
    assert_report(folder)


def test_a_recorded_command_has_signals_as_anywhere_else(tmp_path: Path) -> None:
    """The recorder ignores what means nothing to it; what it starts must not."""
    script = 'trap "exit 7" USR1; while :; do sleep 0.1; done'
    command = [sys.executable, "-m", "reports", "record", "--out", "run", "--", "sh", "-c", script]
    with started(tmp_path, *command) as job:
        eventually(lambda: (tmp_path / "run" / run_folder.RUN).exists(), "it records")
        for number in UNUSED:
            job.process.send_signal(number)
        os.kill(run_folder.read_run(tmp_path / "run").server.pid, signal.SIGUSR1)
        assert job.wait() == 7, job.said()


STARTER = """
import signal, subprocess
from reports.guard import Guard
guard = Guard("the test", "its report")
started = subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 600 & wait"], preexec_fn=guard.will_end(0.2))
print("started", flush=True)
signal.pause()
"""


def test_all_is_stopped_and_who_has_started_it_is_killed(tmp_path: Path) -> None:
    """And does not hear TERM: the guard, which was stopped too, has to kill it, and what it has started."""
    with started(tmp_path, sys.executable, "-c", STARTER) as job:
        eventually(lambda: "sleep 600 " in job.living().values(), "it has started something, too")
        for pid in job.living():
            os.kill(pid, signal.SIGSTOP)
        job.process.kill()
        eventually(lambda: not job.living(), "all of it has ended")
    assert job.said().splitlines()[1:] == [
        "the test was killed; what it had started has ended; for what was measured until then: its report"
    ]
