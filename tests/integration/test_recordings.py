"""Recordings of their own: of a port, a pid or a command, ours or not, and the report that is made of each."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from operator import sub

import psutil
import pytest
from in_process import called
from mainless import MAINLESS
from servers import DEADLINE_S, ROOT, eventually, free_port, running
from servers_of_others import needs_nginx, needs_postgres, needs_redis, nginx, postgres, public_folder, redis
from terminals import WAYS, at_a_terminal, exit_code, shown_until, term

from reports import run_folder
from reports.__main__ import main
from reports.summary import MISSED_TICKS_LIMIT

RECORD = [sys.executable, "-m", "reports", "record"]
BURN = """
import sys, time
from pathlib import Path
end = time.process_time() + 0.3
while time.process_time() < end or not Path(sys.argv[1]).exists():
    pass
raise SystemExit(7)
"""


@contextmanager
def recording(folder, *arguments, **options):
    """A recorder that has written its first sample, and then what it records."""
    command = [*RECORD, "--interval", "0.1", "--out", str(folder), *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            eventually(lambda: (folder / run_folder.RUN).exists() or process.poll() is not None, "a first sample")
            yield process
        finally:
            process.kill()


def ended(process, number=signal.SIGINT):
    """(its exit code, what it said), after this signal."""
    process.send_signal(number)
    code = process.wait(DEADLINE_S)
    return code, process.stderr.read()


def roles(folder):
    """pid -> role, of all processes that were seen."""
    return {sample.pid: sample.role for tick in run_folder.read_processes(folder) for sample in tick.processes}


def tcp_states(folder):
    """Of the server's connections, at each tick."""
    return [tick.tcp_states for tick in run_folder.read_host(folder)]


def report(folder):
    """What the terminal shows of the report that is built of a recording."""
    built = called(main, ROOT, "build", folder)
    assert (built.returncode, built.stderr) == (0, "")
    assert "<h2>TCP</h2>" in (folder / run_folder.REPORT_HTML).read_text()
    assert run_folder.read_outcome(folder).verdict == "RECORDED"
    return built.stdout


def test_a_server_of_ours_by_its_port(tmp_path):
    folder = tmp_path / "run"
    with running(workers=2) as server, recording(folder, "--port", server.port) as process:
        eventually(lambda: len(list(run_folder.read_host(folder))) > 12, "more than a second")
        eventually(lambda: None in tcp_states(folder), "a tick without what is dear, which is read each 2 s")
        code, said = ended(process)
        pids = {server.pid: "server-master", process.pid: "recorder"}
        pids |= dict.fromkeys((slot.pid for slot in server.slots()), "server-worker")
    assert code == 0
    assert f"recording port {server.port} (pid {server.pid}) into {folder}; Ctrl-C ends it\n" in said
    assert f"make the report with: python -m reports build {folder}\n" in said
    assert roles(folder) == pids
    run = run_folder.read_run(folder)
    assert (run.model, run.ended.how, run.server.pid) == ("none", "completed", server.pid)
    assert [queue.waiting for queue in list(run_folder.read_host(folder))[-1].accept_queues] == [0, 0]
    first, *_, last = tcp_states(folder)
    assert first == last == {}
    said = report(folder)
    assert "RECORDED: what the processes cost" in said
    assert "the server, 3 processes in all, used" in said


def test_a_server_that_comes_later_is_in_the_run(tmp_path):
    folder, port = tmp_path / "run", free_port()
    with recording(folder, "--port", port) as process:
        assert run_folder.read_run(folder).server is None
        with running("--port", port) as server:
            eventually(
                lambda: [event for event in run_folder.read_events(folder) if event.kind == "server-found"],
                "it is found",
            )
            assert ended(process)[0] == 0
    assert run_folder.read_run(folder).server.pid == server.pid


def test_a_command_from_its_start_to_its_end(tmp_path):
    """Its exit code is passed on. It does not end before it is seen; when it has, all that it used is known."""
    folder = tmp_path / "run"
    with recording(folder, "--", sys.executable, "-c", BURN, folder / run_folder.RUN) as process:
        assert process.wait(DEADLINE_S) == 7
    command = [pid for pid, role in roles(folder).items() if role == "server-master"]
    assert command == [run_folder.read_run(folder).server.pid]
    [*_, last] = [
        sample for tick in run_folder.read_processes(folder) for sample in tick.processes if sample.pid == command[0]
    ]
    assert last.cpu_user_s + last.cpu_system_s > 0.25
    assert "1 process in all" in report(folder)


# A signal just before a sleep is not lost.
LATE = """
import signal, sys, time
from pathlib import Path

def end(*_):
    print("told", flush=True)
    while not Path(sys.argv[1]).exists():
        time.sleep(0.02)
    sys.exit(3)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, end)
print("ready", flush=True)
while True:
    time.sleep(0.02)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_end_is_recorded_until_it_has(tmp_path, number):
    """Ctrl-C at the terminal reaches both, TERM is passed on."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", LATE, tmp_path / "end"]
    with recording(folder, "--", *command, stdout=subprocess.PIPE, process_group=0) as process:
        assert process.stdout.readline() == "ready\n"
        before = len(list(run_folder.read_host(folder)))
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        assert process.stdout.readline() == "told\n"
        told = len(list(run_folder.read_host(folder)))
        eventually(lambda: len(list(run_folder.read_host(folder))) >= told + 5, "its last half second")
        (tmp_path / "end").touch()
        assert process.wait(DEADLINE_S) == 3
    ticks = list(run_folder.read_processes(folder))
    [*_, last] = [sample for sample in ticks[-1].processes if sample.role == "recorder"]
    [*_, then] = [sample for sample in ticks[before].processes if sample.role == "recorder"]
    assert last.cpu_user_s - then.cpu_user_s < 0.3  # it slept between its ticks


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_server_of_another_user(tmp_path):
    """Everything is imported before the user changes, who may not read our folder."""
    imports = "import encodings.idna, os; from reports import environment; from reports.recording import standalone"
    code = f"{imports}; from reports.__main__ import main; environment.fingerprint(); os.setuid(65534); main()"
    script = [sys.executable, "-c", code, "record", "--interval", "0.1", "--out"]
    told = "a process of user root listens that cannot be seen from here; record as that user, or as root, to see it"
    with public_folder() as folder, running() as server:
        folder.chmod(0o777)
        for option, number, who in (
            ("--port", server.port, told),
            ("--pid", server.pid, f"pid {server.pid}, another user's: to see its memory, files and disk too, record"),
        ):
            out = folder / option
            command = [*script, str(out), option, str(number)]
            with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as recorder:
                assert f"({who}" in recorder.stderr.readline()
                code, _ = ended(recorder)
            assert code == 0
        unseen = [event.text for event in run_folder.read_events(folder / "--port") if event.kind == "server-unseen"]
        assert unseen == [told]  # once
        assert f"warning: {told}" in called(main, ROOT, "build", folder / "--port").stdout


def test_a_server_on_another_machine(tmp_path):
    with recording(tmp_path / "run", "--host", "192.0.2.1", "--port", 1) as recorder:
        code, said = ended(recorder)
    assert code == 0
    assert "(192.0.2.1 is not this machine: no process of the server is recorded)" in said


def test_a_server_whose_main_thread_has_ended(tmp_path):
    with subprocess.Popen([sys.executable, "-c", MAINLESS], stdout=subprocess.PIPE) as server:
        try:
            port = int(server.stdout.readline())
            with recording(tmp_path / "run", "--port", port) as recorder:
                code, said = ended(recorder)
        finally:
            server.kill()
    assert code == 0
    assert f"recording port {port} (pid {server.pid}) into" in said
    *_, last = [tick.processes[0] for tick in run_folder.read_processes(tmp_path / "run")]
    assert (last.pid, last.role) == (server.pid, "server-master")
    assert last.pss_bytes > 1 << 20


def test_a_folder_and_a_command_that_are_no_utf_8(tmp_path):
    """And no terminal's encoding ends a command."""
    name = os.fsdecode(b"caf\xe9")
    done = called(main, tmp_path, "record", "--out", name, "--", "true", name)
    assert done.returncode == 0, done.stderr
    info = run_folder.read_run(tmp_path / name)
    assert (info.id, info.command[-1]) == ("caf\ufffd", "caf\ufffd")
    for encoding in ("ascii", "latin-1"):
        build = ["env", f"PYTHONIOENCODING={encoding}", sys.executable, "-m", "reports", "build", str(tmp_path / name)]
        built = subprocess.run(build, cwd=ROOT, capture_output=True, timeout=60, check=False)
        assert (built.returncode, built.stderr) == (0, b"")
        assert built.stdout.startswith(b"RECORDED: ")


def test_a_process_by_its_pid(tmp_path):
    folder = tmp_path / "run"
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server,
        recording(folder, "--pid", server.pid) as process,
    ):
        server.communicate(b"\n")
        assert process.wait(DEADLINE_S) == 0  # there is nothing left to record
    assert roles(folder) == {server.pid: "server-master", process.pid: "recorder"}
    assert {tick.accept_queues for tick in run_folder.read_host(folder)} == {None}
    report(folder)


def test_a_recorder_that_is_killed(tmp_path):
    """The report still builds, says so, and has all costs until the last sample."""
    folder = tmp_path / "run"

    def is_enough():
        """Ticks surround so much that what is missing, a first one that was late and a last one, tells nothing else."""
        ticks_ns = [tick.mono_ns for tick in run_folder.read_host(folder)]
        if len(ticks_ns) <= 12:
            return False
        late_ns = ticks_ns[0] - run_folder.read_run(folder).started_mono_ns
        return late_ns + max(map(sub, ticks_ns[1:], ticks_ns)) < MISSED_TICKS_LIMIT * (ticks_ns[-1] - ticks_ns[0])

    with running() as server, recording(folder, "--port", server.port) as process:
        eventually(is_enough, "enough for costs")
        process.kill()
        process.wait()
    last = list(run_folder.read_processes(folder))[-1]  # of whose machine it may not have written any more
    lasted_s = (last.mono_ns - run_folder.read_run(folder).started_mono_ns) / 1e9
    said = report(folder)
    assert "warning: the run was cut off" in said
    assert "the server, 2 processes in all, used" in said
    assert re.search(r"at most [\d.]+ MiB \(PSS, read (once|\d+ times); its RSS was at most [\d.]+ MiB\)", said)
    [phase] = json.loads((folder / run_folder.SUMMARY).read_text())["phases"]
    assert phase["duration_s"] == pytest.approx(lasted_s, abs=0.1)
    assert None not in (phase["server_cpu_s"], phase["busy_core_s"])


# ── ends of a recording ──


def is_recorded(job, ticks=4):
    return len(list(run_folder.read_host(job.cwd / "run"))) >= ticks and run_folder.read_run(job.cwd / "run")


@pytest.mark.slow
def test_a_recording_is_ended(tmp_path):
    """Whichever way, its folder is complete. All at the same time, of one server."""
    with running() as server, ExitStack() as stack:
        command = [*RECORD, "--interval", "0.1", "--out", "run", "--port", str(server.port)]
        recorders = [(*stack.enter_context(at_a_terminal(tmp_path / way.__name__, *command)), way) for way in WAYS]
        for job, terminal, end in recorders:
            shown_until(terminal, lambda job=job: is_recorded(job), "some samples")
            end(job, terminal)
        for job, terminal, _ in recorders:
            assert exit_code(job, terminal) == 0
            assert_ended_in_order(job.cwd / "run", server.pid)


def assert_ended_in_order(folder, server):
    run = run_folder.read_run(folder)
    assert (run.ended.how, run.server.pid) == ("completed", server)
    assert all(sample.uss_bytes for sample in list(run_folder.read_processes(folder))[-1].processes)  # a last sample
    warnings = [line for line in report(folder).splitlines() if line.startswith("warning: ")]
    assert [line for line in warnings if not line.startswith("warning: the recorder missed ")] == []  # it had to wait


@pytest.mark.slow
def test_a_recording_outlives_its_terminal_under_nohup(tmp_path):
    with running() as server:
        command = ["nohup", *RECORD, "--interval", "0.1", "--out", "run", "--port", str(server.port)]
        with at_a_terminal(tmp_path / "recorder", *command) as (job, terminal):
            shown_until(terminal, lambda: is_recorded(job), "some samples")
            terminal.close()
            before = len(list(run_folder.read_host(job.cwd / "run")))
            shown_until(terminal, lambda: is_recorded(job, before + 4), "samples from then on")
            term(job, terminal)
            assert exit_code(job, terminal) == 0
    assert_ended_in_order(tmp_path / "recorder" / "run", server.pid)


def test_a_command_ends_with_the_terminal(tmp_path):
    """And is recorded until then, though a signal of the terminal's reaches only the recorder."""
    script = "import signal, time\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nwhile True: time.sleep(1)\n"
    command = [*RECORD, "--interval", "0.1", "--out", "run", "--", sys.executable, "-c", script]
    with at_a_terminal(tmp_path / "recorder", *command) as (job, terminal):
        shown_until(terminal, lambda: is_recorded(job), "some samples")
        terminal.close()
        assert exit_code(job, terminal) == 128 + signal.SIGTERM
    folder = job.cwd / "run"
    assert run_folder.read_run(folder).ended.how == "completed"
    assert "1 process in all" in report(folder)


def test_a_command_ends_with_a_recorder_that_is_killed(tmp_path):
    folder = tmp_path / "run"
    with recording(folder, "--", "sleep", "600") as process:
        [command] = [pid for pid, role in roles(folder).items() if role == "server-master"]
        process.kill()
        process.wait()
        eventually(lambda: not psutil.pid_exists(command), "it has ended too")


def fill_the_disk(folder):
    """For run.json, which is written beside its place first: /dev/full has no space for a single byte."""
    (folder / f".{run_folder.RUN}").symlink_to("/dev/full")


def assert_said_to_be_full(code, said, folder):
    assert code == 1
    assert said.splitlines()[-1] == f"Error: cannot record into {folder}: No space left on device"
    assert "Traceback" not in said


def test_the_disk_is_full_at_the_first_sample(tmp_path):
    fill_the_disk(tmp_path)
    with recording(tmp_path, "--port", free_port()) as process:
        assert_said_to_be_full(process.wait(DEADLINE_S), process.stderr.read(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_disk_is_full_at_the_end(tmp_path):
    with recording(tmp_path, "--port", free_port()) as process:
        eventually((tmp_path / run_folder.RUN).exists, "run.json")
        fill_the_disk(tmp_path)
        assert_said_to_be_full(*ended(process), tmp_path)
    assert "cut off" in report(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ([], 2, "name the server: --port PORT, --pid PID, or -- COMMAND"),
        (["--pid", "1", "--", "true"], 2, "--pid and a COMMAND both name the server"),
        (["--pid", str(2**22 + 1)], 2, f"there is no process {2**22 + 1} (--pid)"),
        (["--port", "1", "--load-pid", str(2**22 + 1)], 2, f"there is no process {2**22 + 1} (--load-pid)"),
        *[(["--pid", str(pid)], 2, f"there is no process {pid} (--pid)") for pid in (2**31, 10**12 - 1, 10**25)],
        (["--port", "1", "--load-pid", str(2**63)], 2, f"there is no process {2**63} (--load-pid)"),
        (["--pid", "0"], 2, "0 is not in the range x>=1"),
        (["--pid", "-1"], 2, "-1 is not in the range x>=1"),
        (["--port", "1", "--interval", "nan"], 2, "nan is no number of seconds"),
        (["--until-stdin-closes", "--", "true"], 2, "it starts no COMMAND"),
        (["--host", "user:hunter2@localhost", "--port", "1"], 2, "--host is an address or a name alone"),
        (["--port", "http"], 2, "is not a valid integer"),
        (["--", "/no/such/command"], 1, "cannot start /no/such/command: No such file or directory"),
        (["--out", "x" * 300, "--port", "1"], 1, "cannot record into " + "x" * 300 + ": File name too long"),
    ],
)
def test_mistakes(tmp_path, arguments, code, problem):
    done = called(main, ROOT, "record", "--out", tmp_path / "run", *arguments)
    assert done.returncode == code
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr


def test_nothing_is_left_of_what_could_not_be_recorded(tmp_path):
    """A folder of which only the one above it can be made."""
    done = called(main, tmp_path, "record", "--out", f"new/{'x' * 300}", "--pid", os.getpid())
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path):
    (tmp_path / run_folder.RUN).write_text("{}")
    done = called(main, ROOT, "record", "--out", tmp_path, "--", "true")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "holds a run already; give another folder with --out" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [run_folder.RUN]


# ── servers of others ──


@pytest.mark.parametrize(
    ("server", "children"),
    [
        pytest.param(nginx, 2, marks=needs_nginx, id="nginx"),
        pytest.param(redis, 0, marks=[needs_redis, pytest.mark.slow], id="redis"),
        pytest.param(postgres, 5, marks=[needs_postgres, pytest.mark.slow], id="postgres"),
    ],
)
def test_servers_of_others(tmp_path, server, children):
    """nginx's master and workers, redis's one process of several threads, postgres's postmaster and helpers."""
    port = free_port()
    with (
        public_folder() as own,
        subprocess.Popen(server(own, port), cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            eventually(lambda: len(psutil.Process(process.pid).children()) >= children, "it has its children")
            folder = tmp_path / "run"
            with recording(folder, "--port", port) as recorder:
                eventually(lambda: process.pid in roles(folder), "the server listens and was found")
                ticks = len(list(run_folder.read_host(folder)))
                eventually(lambda: len(list(run_folder.read_host(folder))) > ticks + 12, "more than a second")
                before = psutil.Process(process.pid).children(recursive=True)
                assert ended(recorder)[0] == 0
                after = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(DEADLINE_S)
    tree = {process.pid: "server-master", recorder.pid: "recorder"}
    tree |= {child.pid: "server-worker" for child in before if child in after}  # postgres has some that come and go
    assert len(tree) >= 2 + children
    seen = roles(folder)
    assert {pid: seen.get(pid) for pid in tree} == tree
    assert [queue.waiting for queue in list(run_folder.read_host(folder))[-1].accept_queues] == [0]
    last = list(run_folder.read_processes(folder))[-1]
    assert tree.keys() <= {sample.pid for sample in last.processes if sample.uss_bytes and sample.threads}
    report(folder)
