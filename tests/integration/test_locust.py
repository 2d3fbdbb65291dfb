"""Locust with our users, headless, against the real server: one run folder for a run, however it ends."""

import os
import signal
import threading
import time
from contextlib import contextmanager

import pytest
from headless import load, measured, read_exactly, read_header, refuse, serving, stored, users
from loads import (
    LOCUST,
    PLAIN_LOCUST,
    acked,
    assert_complete,
    assert_report,
    built,
    events,
    failures,
    is_too_busy,
    pids_by_role,
    run,
    seconds,
    started,
)
from servers import DEADLINE_S, eventually, free_port, running
from slow import first_of

from loadtest.options import FIELDS
from reports import run_folder
from reports.run_folder import HistogramsLine

HEADLESS = [*LOCUST, "--headless", "--only-summary"]


def against(server, *options, users=3):
    """The command line of a headless run."""
    return [
        *HEADLESS,
        "--host",
        f"tcp://127.0.0.1:{server.port}",
        "--users",
        str(users),
        "--spawn-rate",
        "100",
        *options,
    ]


def test_compare(tmp_path):
    """Every file of the run, and every acknowledged upload in it: of a Locust that a shell starts."""
    with running(store=tmp_path / "store", workers=2) as server:
        options = [
            "--phase-seconds",
            "1",
            "--label",
            "a label",
            "--payloads",
            "0:1,4KiB:2",
            "--seed",
            "7",
            "--wait",
            "10ms",
        ]
        with started(tmp_path, *against(server, *options), forked=False) as job:
            assert job.ends_well(), job.said()
        stored, accepted = server.stored(), sum(slot.connections_accepted for slot in server.slots())
        [folder] = job.runs()
        info = assert_complete(folder)
        assert failures(folder) == {}
        assert acked(folder) == stored
        assert set(server.files()) <= {f"load-{size}-{v}-{n}" for size in (0, 4096) for v in range(4) for n in range(8)}

    assert folder.name.endswith("-a-label")
    assert info.ended.how == "completed"
    measured = [phase for phase in info.phases if phase.kind == "measure"]
    assert [phase.name for phase in measured] == ["long-1", "short-1", "short-2", "long-2"]
    assert [phase.mode for phase in measured] == ["long", "short", "short", "long"]
    assert [phase.name for phase in info.phases if phase not in measured] == ["ramp-up", "warm-up", "drain"]
    for before, after in zip(info.phases, info.phases[1:], strict=False):
        assert before.end_ns <= after.start_ns
    assert (info.model, info.users, info.seed, info.host) == ("closed", 3, 7, f"tcp://127.0.0.1:{server.port}")
    assert {phase.offered for phase in info.phases} == {None}
    assert set(info.load_options) == set(FIELDS)
    assert info.load_options["payloads"] == "0:1,4KiB:2"
    assert info.server.pid == server.pid

    lines = seconds(folder)
    assert {line.phase for line in lines} >= {phase.name for phase in measured}
    for line in lines:
        mode = "short" if line.phase.startswith("short") else "long"
        assert line.phase == "drain" or {run_folder.split_name(name)[0] for name in line.names} == {mode}
        if mode == "short":
            assert all(name.connections == name.count for name in line.names.values())
    opened = sum(name.connections for line in lines for name in line.names.values())
    assert opened <= accepted <= opened + 1  # one looked whether a server is there
    last = {line.phase: line for line in run_folder.read_uploads(folder) if isinstance(line, HistogramsLine)}
    happened = set(run_folder.DURATIONS) - {"schedule_lag", "pool_wait", "response", "unanswered"}
    assert set(last["short-1"].names["short ≤4 KiB"]) == happened
    assert set(last["long-2"].names["long ≤4 KiB"]) == happened - {"close"}
    assert any(line.hiccups for line in last.values())

    roles = {"server-master", "server-worker", "load-master", "hiccup-meter", "recorder"}
    assert set(pids_by_role(folder)) == roles
    [*_, tick] = run_folder.read_host(folder)
    assert sum(slot.uploads_stored for slot in tick.scoreboard) == stored  # the recorder saw the last upload
    kinds = [event.kind for event in run_folder.read_events(folder) if event.source == "load"]
    assert (kinds.count("phase"), kinds[-1]) == (len(info.phases), "run-ended")


@contextmanager
def workers_of(tmp_path, port, count):
    """Locust workers, each a command of its own, that end with their master."""
    if not count:
        yield []
        return
    folder = tmp_path / f"worker-{count}"
    folder.mkdir()
    command = [*LOCUST, "--worker", "--master-port", str(port)]
    with started(folder, *command) as job, workers_of(tmp_path, port, count - 1) as others:
        yield [job, *others]
        assert job.wait() == 0, job.said()


def test_a_master_and_two_workers_have_one_run_folder(tmp_path):
    port = free_port()
    with running(workers=2) as server, workers_of(tmp_path, port, 2) as workers:
        options = [
            "--master",
            "--master-bind-host",
            "127.0.0.1",
            "--master-bind-port",
            str(port),
            "--expect-workers",
            "2",
        ]
        options += ["--plan", "long", "--phase-seconds", "1", "--payloads", "4KiB", "--no-report"]
        with started(tmp_path, *against(server, *options, users=4)) as master:
            assert master.wait() == 0, master.said()
        stored = server.stored()

    [folder] = tmp_path.glob("**/reports/runs/*")
    assert built(folder).exit_code in (0, 4)  # 4 when the machine was too busy
    info = assert_complete(folder)
    assert (info.users, info.ended.how) == (4, "completed")
    assert failures(folder) == {}
    assert acked(folder) == stored
    assert events(folder, "load-process-lost") == []
    pids = pids_by_role(folder)
    assert pids["load-worker"] == {worker.process.pid for worker in workers}
    assert pids["load-master"] == {master.process.pid}
    assert len(pids["hiccup-meter"]) == len(workers)  # one on the core of each that makes load


@pytest.mark.parametrize("number", first_of([signal.SIGTERM, signal.SIGINT]), ids=["TERM", "INT"])
def test_a_signal_in_a_run_leaves_its_report(tmp_path, number):
    """Before anything was measured, so its exit code says that there are no numbers."""
    options = ["--plan", "long", "--phase-seconds", "600", "--warm-up", "600"]
    with running() as server, started(tmp_path, *against(server, *options)) as job:
        job.in_phase("warm-up")
        job.process.send_signal(number)
        assert job.wait() == 4, job.said()
        [folder] = job.runs()
        assert assert_complete(folder).ended.how == "stopped"
        assert "nothing was measured" in run_folder.read_outcome(folder).reason
        assert failures(folder) == {}  # uploads under way were finished
        assert acked(folder) == server.stored()


def test_a_run_that_is_stopped_early_is_judged_by_what_was_measured(tmp_path):
    options = ["--plan", "long", "--phase-seconds", "600", "--warm-up", "0", "--no-report"]
    with running() as server, started(tmp_path, *against(server, *options)) as job:
        job.in_phase("long-1")
        [folder] = job.runs()
        lines = eventually(
            lambda: len(found := [line for line in seconds(folder) if line.phase == "long-1"]) > 3 and found, "3 s"
        )
        assert not any(name.failures for line in lines for name in line.names.values())
        job.process.send_signal(signal.SIGTERM)
        assert job.wait() == 0, job.said()
        outcome = built(folder)
        assert outcome.exit_code == 0 or is_too_busy(outcome)
        info = assert_complete(folder)
        assert (info.ended.how, [phase.name for phase in info.phases][-2:]) == ("stopped", ["long-1", "drain"])
        assert (failures(folder), acked(folder)) == ({}, server.stored())


def test_what_is_waited_for_after_a_stop_is_in_no_measured_phase(tmp_path):
    """Arrivals that nobody sends any more are not offered, however long the last uploads take."""
    slow, waits, gate = threading.Event(), threading.Event(), threading.Event()

    def answer_late(sock):
        while True:
            header = read_header(sock)
            data = read_exactly(sock, header["file_size"])
            if slow.is_set():
                waits.set()
                gate.wait(DEADLINE_S)
            sock.sendall(stored(header, data))

    options = ["--arrival-rate", "20", "--plan", "long", "--phase-seconds", "600", "--drain", "30s", "--no-report"]
    with serving(answer_late) as host, started(tmp_path, *load(host, *options)) as job:
        job.in_phase("long-1")
        [folder] = job.runs()
        eventually(lambda: acked(folder) > 20, "some are answered")
        slow.set()
        assert waits.wait(DEADLINE_S)
        stopped_ns = time.monotonic_ns()
        job.process.send_signal(signal.SIGTERM)
        told_ns = eventually(lambda: told_in_the_drain(folder), "the drain, in which nothing is due any more")
        gate.set()
        job.wait()
        [phase] = measured(folder)
        assert stopped_ns < phase.end_ns < told_ns
        assert phase.offered == pytest.approx((phase.end_ns - phase.start_ns) / 1e9 * 20, abs=1)
        sent = sum(name.count for line in seconds(folder) for name in line.names.values())
        late_s = (told_ns - phase.end_ns) / 1e9  # some may have been due while they were told
        assert 0 <= sent - phase.offered <= late_s * 20 + 1


def told_in_the_drain(folder):
    """When the load process first told of itself after the drain had begun; 0 if it has not."""
    [*_, phase] = run_folder.read_run(folder).phases
    told_ns = [tick.mono_ns for tick in run_folder.read_load(folder) if tick.mono_ns > phase.start_ns]
    return told_ns[0] if phase.kind == "drain" and told_ns else 0


def test_the_report_can_be_left_for_later(tmp_path):
    folder = tmp_path / "here" / "it is"
    options = [
        "--plan",
        "short",
        "--phase-seconds",
        "1",
        "--no-report",
        "--run-folder",
        str(folder),
        "--no-verify-digest",
        "--compressible",
    ]
    with running() as server:
        command = [*HEADLESS, "--host", f"tcp://127.0.0.1:{server.port}", *options]
        with started(tmp_path, *command) as job:
            assert job.wait() == 0, job.said()
    assert job.runs() == []
    info = run_folder.read_run(folder)
    assert (info.ended.how, info.users) == ("completed", 1)  # as many as Locust starts when nobody says how many
    assert (info.load_options["verify_digest"], info.load_options["compressible"]) == (False, True)
    assert acked(folder, "short-1")
    assert not (folder / run_folder.REPORT_HTML).exists()


@pytest.mark.slow  # test_loadtest_run.py has one
def test_a_server_that_refuses_everything(tmp_path):
    with serving(refuse) as host, started(tmp_path, *load(host, "--plan", "long", *users(2))) as job:
        assert job.wait() == 4, job.said()
    [folder] = job.runs()
    assert set(failures(folder)) == {"busy"}
    assert acked(folder) == 0
    assert "nothing was measured" in run_folder.read_outcome(folder).reason
    assert_report(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    first_of(
        [
            (["--payloads", "4KX"], "payloads: '4KX' is not a size: write bytes, or a number with KiB"),
            (["--payload-dir", "/no/such"], "payload folder: '/no/such' is not a folder"),
            (["--host", "127.0.0.1:1"], "'127.0.0.1:1' is not a host: write tcp://HOST:PORT"),
            (
                ["--host", "tcp://127.0.0.1:{closed}"],
                "no server at tcp://127.0.0.1:{closed}: Connection refused; start one",
            ),
            (["--wait=-1"], "wait: '-1' is not a duration"),
            (["--plan", "middle"], "plan is 'middle', not one of compare, long, short, sweep"),
            (["--users", "0"], "number of users is 0: a run of the closed model needs at least 1"),
            (["--fail-if", "failures > 1%", "--fail-if", "p99 > 1"], "there is no metric 'p99'"),
        ]
    ),
    ids=["payloads", "folder", "host", "no server", "wait", "plan", "users", "condition"],
)
def test_wrong_options(tmp_path, options, said):
    closed = free_port()
    command = [*HEADLESS, "--host", "tcp://127.0.0.1:1", *(option.format(closed=closed) for option in options)]
    code, everything = run(tmp_path, *command)
    assert code == 2
    [line] = [line for line in everything.splitlines() if line.startswith("Error: ")]
    assert said.format(closed=closed) in line
    assert not (tmp_path / "reports").exists()


def test_a_page_is_not_shown_with_a_password_in_it(tmp_path):
    options = ["--web-host", "127.0.0.1", "--web-port", str(free_port()), "--host", "http://user:hunter2@127.0.0.1"]
    code, everything = run(tmp_path, *LOCUST, *options)
    assert code == 2
    assert "Error: what was given is not a host: it has a user or a password" in everything
    assert "hunter2" not in everything


def test_an_unknown_choice(tmp_path):
    code, everything = run(tmp_path, *HEADLESS, "--host", "tcp://127.0.0.1:1", "--at-cap", "wait")
    assert code == 2
    assert "invalid choice: 'wait' (choose from 'queue', 'drop')" in everything


def test_a_server_that_hangs_at_the_end_is_not_passed_over(tmp_path):
    """Locust kills what has not ended by the end of the drain; such an upload must not be counted nowhere."""
    with running() as server:
        options = ["--plan", "long", "--phase-seconds", "600", "--warm-up", "0", "--drain", "1s", "--no-report"]
        command = against(server, *options)
        with started(tmp_path, *command) as job:
            job.in_phase("long-1")
            [worker] = server.workers()
            os.kill(worker, signal.SIGSTOP)
            stopped_ns = time.monotonic_ns()
            try:
                eventually(lambda: len(all_wait_since(job.runs()[0], stopped_ns)) > 2, "all users wait, for over 1 s")
                for number in (signal.SIGUSR1, signal.SIGPROF, signal.SIGTERM):  # the others mean nothing
                    job.process.send_signal(number)
                assert job.wait() == 1, job.said()
            finally:
                os.kill(worker, signal.SIGCONT)
        [folder] = job.runs()
        assert failures(folder) == {"unfinished": 3}
        outcome = built(folder)
        assert (outcome.verdict, outcome.exit_code) == ("INVALID", 4)
        assert "3 uploads were never answered" in (folder / run_folder.REPORT_MD).read_text()


def all_wait_since(folder, since_ns):
    """Ticks of the load process since then with all of 3 uploads under way."""
    return [tick for tick in run_folder.read_load(folder) if tick.mono_ns > since_ns and tick.in_flight == 3]


WHAT_IT_HAS = """
import os, resource, signal, sys, tempfile, threading
import gevent.monkey
print("has", sys.argv, sys.path[:2], sys.flags, os.getcwd(), tempfile.gettempdir() == os.environ["TMPDIR"])
print("has", sorted(name for name in os.environ if name != "TMPDIR"), os.umask(0o22), resource.getrlimit(7))
print("has", os.getsid(0) == os.getpid() == os.getpgid(0), threading.current_thread() is threading.main_thread())
print("has", len(os.listdir("/proc/self/fd")), [os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in range(3)])
print("has", {number.name: str(signal.getsignal(number)).split(" at ")[0] for number in signal.Signals})
print("has", sorted(gevent.monkey.saved), gevent.get_hub().threadpool.apply(lambda: "a thread"))
raise SystemExit(7)
"""


def test_one_of_the_nursery_is_as_any_other(tmp_path):
    """As far as the user's file can tell, or all the tests here are of something else."""
    (tmp_path / "users.py").write_text(WHAT_IT_HAS)
    said = []
    for forked in (True, False):
        with started(tmp_path, *PLAIN_LOCUST, "-f", "users.py", "--headless", forked=forked) as job:
            assert job.wait() == 7, job.said()
            said.append([line for line in job.said().splitlines() if line.startswith("has")])
    assert len(said[0]) == 6
    assert said[1] == said[0] * 2  # one file has what both said


def test_a_run_folder_that_cannot_be_made_ends_locust(tmp_path):
    (tmp_path / "file").touch()
    with running() as server:
        code, everything = run(tmp_path, *against(server, "--run-folder", str(tmp_path / "file" / "run")))
    assert code == 2
    [line] = [line for line in everything.splitlines() if line.startswith("Error: ")]
    assert "the run folder cannot be written" in line
