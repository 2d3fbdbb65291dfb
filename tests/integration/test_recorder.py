"""The recorder as a process, beside real servers: small ones of our own making, and socketswarm's."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pages
import psutil
import pytest
import servers
from limits import real_group
from nursery import end_nurseries
from servers import eventually, free_port
from slow import first_of

from reports.run_folder import read_events, read_host, read_processes

DEADLINE_S = 30

# A pre-fork server of somebody else's: port, then workers. Workers idle; the end of standard input ends it all.
PREFORK = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        sys.stdin.buffer.raw.read()
        os._exit(0)
print(listener.getsockname()[1], flush=True)
sys.stdin.buffer.raw.read()
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
"""


@contextmanager
def ended_with_stdin(*command, **options):
    """A process that says a first line and ends when its standard input closes."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)
    with process:
        watchdog = threading.Timer(DEADLINE_S, process.kill)  # or a test that fails would wait for its first line
        watchdog.start()
        try:
            yield process
            process.stdin.close()
            process.wait(DEADLINE_S)
        finally:
            watchdog.cancel()
            process.kill()


@contextmanager
def server_script(script, *arguments):
    """(the process, its port)."""
    with ended_with_stdin(sys.executable, "-c", script, *map(str, arguments)) as process:
        yield process, int(process.stdout.readline())


@contextmanager
def recorder(folder, port, *options, interval="0.05"):
    """A recorder that has written its first sample; `.hello` is what it said then."""
    command = [sys.executable, "-m", "reports", "record", "--out", str(folder), "--port", str(port)]
    command += ["--interval", interval, "--until-stdin-closes", *options]
    with ended_with_stdin(*command, stderr=subprocess.PIPE) as process:
        process.hello = json.loads(process.stdout.readline())
        yield process


def finish(process):
    """End a recorder the ordinary way."""
    process.stdin.close()
    assert process.wait(DEADLINE_S) == 0
    assert process.stderr.read() == ""


def events(folder, kind):
    return [event for event in read_events(folder) if event.kind == kind]


def roles(tick):
    return {sample.pid: sample.role for sample in tick.processes}


def children(pid):
    return [child.pid for child in psutil.Process(pid).children()]


def test_somebody_elses_prefork_server(tmp_path):
    with server_script(PREFORK, 0, 2) as (server, port), recorder(tmp_path, port) as process:
        assert process.hello["recorder_pid"] == process.pid
        assert process.hello["server"]["pid"] == server.pid
        assert process.hello["server"]["create_time"] == psutil.Process(server.pid).create_time()
        assert process.hello["server"]["command"][:2] == [sys.executable, "-c"]
        assert process.hello["server"]["options"] is None
        workers = children(server.pid)
        eventually(lambda: len(list(read_host(tmp_path))) >= 5, "five ticks")
        eventually(lambda: quick(tmp_path), "a tick that is not slow")  # the first one after 2 s is
        finish(process)

    ticks, hosts = list(read_processes(tmp_path)), list(read_host(tmp_path))
    assert [tick.mono_ns for tick in ticks] == [host.mono_ns for host in hosts]
    assert [tick.mono_ns for tick in ticks] == sorted({tick.mono_ns for tick in ticks})
    expected = {server.pid: "server-master", **dict.fromkeys(workers, "server-worker"), process.pid: "recorder"}
    assert all(roles(tick) == expected for tick in ticks)
    assert len({(sample.pid, sample.create_time) for tick in ticks for sample in tick.processes}) == 4
    assert all(sample.slot is None for tick in ticks for sample in tick.processes)
    assert all(sample.uss_bytes for tick in (ticks[0], ticks[-1]) for sample in tick.processes)
    assert all(host.scoreboard is None for host in hosts)
    assert [event.details["pid"] for event in events(tmp_path, "server-found")] == [server.pid]


def test_the_quota_of_a_servers_control_group(tmp_path):
    """It is read on slow ticks, whoever has made it."""
    quota = {"cpu__max": "20000 100000", "cpu__cfs_quota_us": "20000"}
    with real_group("cpu", **quota) as group, server_script(PREFORK, 0, 1) as (server, port):
        (group / "cgroup.procs").write_text(str(server.pid))
        with recorder(tmp_path, port) as process:
            eventually(lambda: len(list(read_host(tmp_path))) >= 3, "three ticks")
            finish(process)
    groups = [{found.path: found for found in tick.control_groups} for tick in read_host(tmp_path)]
    for found in (groups[0], groups[-1]):
        assert (found[str(group)].quota_cores, found[str(group)].roles) == (0.2, ["server-master"])
    assert not any(groups[1:-1])


def quick(folder):
    """The ticks that read no memory."""
    return [tick for tick in read_processes(folder) if all(sample.uss_bytes is None for sample in tick.processes)]


BURN = """
import os, resource, socket, sys, time

def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        os.getppid()

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
burn(0.4)
for _ in range(10):                     # workers that come, burn and are reaped
    child = os.fork()
    if not child:
        burn(0.1)
        os._exit(0)
    os.waitpid(child, 0)
reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
burnt = time.process_time() + reaped.ru_utime + reaped.ru_stime
child = os.fork()                       # and one that stays
if not child:
    burn(0.6)
    print(burnt + time.process_time(), flush=True)
    sys.stdin.buffer.raw.read()
    os._exit(0)
os.waitpid(child, 0)
"""


def test_cpu_agrees_with_wait4(tmp_path):
    """Totals are cumulative from birth: also of workers that lived before the recorder did, or between two ticks."""
    with server_script(BURN) as (server, port):
        with recorder(tmp_path, port, interval="0.5") as process:
            burnt_s = float(server.stdout.readline())
            finish(process)
        server.stdin.close()
        _, status, usage = os.wait4(server.pid, 0)
        server.returncode = os.waitstatus_to_exitcode(status)

    last = list(read_processes(tmp_path))[-1]
    parts = ("cpu_user_s", "cpu_system_s", "children_user_s", "children_system_s")
    recorded_s = sum(
        getattr(sample, part)
        for sample in last.processes
        if sample.role.startswith("server-")
        for part in (parts if sample.role == "server-master" else parts[:2])
    )
    charged_s = usage.ru_utime + usage.ru_stime
    assert burnt_s > 1.9
    # Each of the six counters is cut to whole ticks of 10 ms, and what runs is charged at the kernel's next tick. How
    # much it costs to end, which is charged too, is the machine's.
    assert burnt_s - 0.07 < recorded_s < charged_s + 0.001


# Two workers; each line on standard input tells the first of them to take 50 MiB and touch them, or to give them back.
GROWING = """
import mmap, os, socket, sys

listener = socket.create_server(("127.0.0.1", 0))
orders, order = os.pipe()
answer, answers = os.pipe()
ended, parent_lives = os.pipe()
grows = os.fork()
if not grows:
    os.close(order)
    os.close(parent_lives)
    block = None
    while os.read(orders, 1):
        if block is None:
            block = mmap.mmap(-1, 50 << 20)
            for at in range(0, len(block), mmap.PAGESIZE):
                block[at] = 1
        else:
            block.close()
        os.write(answers, b".")
    os._exit(0)
stays = os.fork()
if not stays:
    os.close(order)
    os.close(parent_lives)
    os.read(ended, 1)
    os._exit(0)
print(listener.getsockname()[1], flush=True)
print(grows, stays, flush=True)
while sys.stdin.readline():
    os.write(order, b".")
    os.read(answer, 1)
    print("done", flush=True)
os.close(order)
os.close(parent_lives)
os.wait()
os.wait()
"""


def uss_of(folder, pid):
    """(stamp, USS), of the ticks that read it."""
    found = [(tick.mono_ns, sample) for tick in read_processes(folder) for sample in tick.processes]
    return [(at_ns, sample.uss_bytes) for at_ns, sample in found if sample.pid == pid and sample.uss_bytes is not None]


def test_memory_that_a_worker_takes_is_in_its_uss_at_the_next_slow_tick(tmp_path):
    def tell_worker():
        step(server)
        assert server.stdout.readline() == "done\n"
        return time.monotonic_ns()

    with server_script(GROWING) as (server, port), recorder(tmp_path, port) as process:
        grows, stays = map(int, server.stdout.readline().split())
        taken_ns = tell_worker()
        # Memory is read just before a tick's stamp: the first slow tick after another one began after that moment.
        eventually(lambda: next_slow(tmp_path, taken_ns), "a slow tick")
        tell_worker()
        finish(process)

    at_ns = next_slow(tmp_path, taken_ns)
    for pid, grown in ((grows, 50 << 20), (stays, 0)):
        uss = dict(uss_of(tmp_path, pid))
        first, *_, last = uss.values()
        assert grown <= uss[at_ns] - first < grown + (2 << 20)
        assert abs(last - first) < 2 << 20  # given back


def next_slow(folder, after_ns):
    """The stamp of the first tick that read memory and began later."""
    later = [tick for tick in read_processes(folder) if tick.mono_ns >= after_ns][1:]
    return next((tick.mono_ns for tick in later if tick.processes[0].uss_bytes is not None), None)


def test_a_server_that_comes_later_and_restarts(tmp_path):
    port = free_port()
    with recorder(tmp_path, port) as process:
        assert process.hello["server"] is None
        with server_script(PREFORK, port, 1) as (first, _):
            eventually(lambda: events(tmp_path, "server-found"), "the first server")
        eventually(lambda: events(tmp_path, "server-gone"), "its end")
        with server_script(PREFORK, port, 1) as (second, _):
            eventually(lambda: len(events(tmp_path, "server-found")) == 2, "the second server")
            finish(process)
    assert [event.details["pid"] for event in events(tmp_path, "server-found")] == [first.pid, second.pid]
    assert [event.details["pid"] for event in events(tmp_path, "server-gone")] == [first.pid]
    assert roles(list(read_processes(tmp_path))[-1])[second.pid] == "server-master"


LOAD = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
child.communicate()
"""
IDLE = [sys.executable, "-c", "import sys; sys.stdin.read()"]


def test_the_load_the_server_and_the_recorder_are_told_apart(tmp_path):
    """All three are children of the load here, as in a run that starts its own server."""
    end_nurseries()
    with (
        server_script(PREFORK, 0, 1) as (server, port),
        server_script(LOAD, *IDLE) as (helper, grandchild),
        recorder(tmp_path, port, "--load-pid", str(os.getpid())) as process,
    ):
        [worker] = children(server.pid)
        finish(process)
    first = roles(next(read_processes(tmp_path)))
    assert first == {
        os.getpid(): "load-master",
        helper.pid: "load-worker",
        grandchild: "load-worker",
        server.pid: "server-master",
        worker: "server-worker",
        process.pid: "recorder",
    }


def test_orders(tmp_path):
    def refusals():
        """On a busy machine it misses ticks too."""
        return [event.kind for event in read_events(tmp_path) if event.kind != "recorder-missed-ticks"]

    with server_script(LOAD, *IDLE) as (other, child), recorder(tmp_path, free_port()) as process:
        order = json.dumps({"order": "follow", "pid": other.pid, "role": "load-worker"})
        process.stdin.write(
            f'{order}\nnonsense\n{{"order": "follow", "pid": 1, "role": "king"}}\n{order}\n{order[:10]}'
        )
        process.stdin.flush()
        process.stdin.write(f'{order[10:]}\n{{"order": "follow", "pid": 4194305, "role": "load-worker"}}\n')
        process.stdin.flush()
        eventually(lambda: len(refusals()) == 3, "three refusals")
        finish(process)
    assert refusals() == [
        "recorder-bad-order",
        "recorder-bad-order",
        "recorder-no-such-process",
    ]
    last = list(read_processes(tmp_path))[-1]
    assert roles(last) == {process.pid: "recorder", other.pid: "load-worker", child: "load-worker"}
    assert len(last.processes) == 3


def test_the_tick_after_a_phase_begins_has_all_figures(tmp_path):
    """Those of all ticks would cost more than what they tell is worth."""

    def ticks():
        return list(read_processes(tmp_path))

    with recorder(tmp_path, free_port(), interval="0.05") as process:
        eventually(lambda: len(ticks()) > 2, "ticks of no phase")
        assert ticks()[2].processes[0].run_delay_ns is None
        process.stdin.write('{"order": "whole"}\n')
        process.stdin.flush()
        eventually(lambda: any(tick.processes[0].run_delay_ns for tick in ticks()[2:]), "a tick that has all")
        finish(process)
    whole = [tick.processes[0] for tick in ticks()[2:-1] if tick.processes[0].run_delay_ns is not None]
    assert len(whole) == 1 and whole[0].pss_bytes


@pytest.mark.parametrize("number", first_of([signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]))
def test_signals_finish_with_a_last_sample(tmp_path, number):
    with recorder(tmp_path, free_port(), interval="60") as process:
        process.send_signal(number)
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr.read() == ""
    ticks = list(read_processes(tmp_path))
    assert len(ticks) == 2
    assert ticks[-1].processes[0].uss_bytes


def test_missed_ticks_are_reported_and_not_made_up(tmp_path):
    def missed_many():
        """On a busy machine it may have missed a few before."""
        return [event for event in events(tmp_path, "recorder-missed-ticks") if event.details["missed"] >= 6]

    with recorder(tmp_path, free_port()) as process:
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, "the stop")
        stopped_ns = time.monotonic_ns()
        eventually(lambda: time.monotonic_ns() - stopped_ns > 400_000_000, "ticks to be missed")
        process.send_signal(signal.SIGCONT)
        told = eventually(missed_many, "the event")
        finish(process)
    assert {event.source for event in told} == {"recorder"}


def test_a_server_elsewhere_is_not_looked_for_here(tmp_path):
    with (
        server_script(PREFORK, 0, 0) as (server, port),
        recorder(tmp_path, port, "--host", "192.0.2.1") as process,
    ):
        assert process.hello["server"] is None
        finish(process)
    assert len(events(tmp_path, "server-elsewhere")) == 1
    assert server.pid not in roles(next(read_processes(tmp_path)))


def test_nobody_reads_what_it_says(tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "reports", "record", "--out", str(tmp_path), "--port", str(free_port())]
    command += ["--until-stdin-closes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=write, stderr=subprocess.PIPE, text=True) as process:
        os.close(write)
        eventually(lambda: list(read_host(tmp_path)), "a tick")
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
        assert process.stderr.read() == ""


# ---------------------------------------------------------------- failures


def failure(process):
    """What a recorder that gave up said."""
    assert process.wait(DEADLINE_S) == 1
    said = process.stderr.read()
    assert said.count("\n") == 1 and said.startswith("Error: cannot record into ")
    return said


def test_the_folder_vanishes(tmp_path):
    folder = tmp_path / "run"
    with recorder(folder, free_port()) as process:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        assert "it has vanished" in failure(process)


def test_the_disk_is_full(tmp_path):
    """/dev/full opens like a file, and has no space for a single byte."""
    (tmp_path / "host.jsonl").symlink_to("/dev/full")
    command = [sys.executable, "-m", "reports", "record", "--out", str(tmp_path), "--port", str(free_port())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert "No space left on device" in failure(process)


def test_the_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "reports", "record", "--out", str(tmp_path / "file"), "--port", str(free_port())]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert "File exists" in failure(process)


# ---------------------------------------------------------------- a server that shows its slots

# What a socketswarm supervisor does for those who watch it, without the rest. Each line on standard input is a step.
SHOWING = """
import os, socket, sys, time
from server import scoreboard as board

listener = socket.create_server(("127.0.0.1", 0))
folder = board.create_runtime_folder()
log = board.EventLog(folder / board.EVENTS_FILE)
log.append("server-started", text="before the recorder")
shared = board.Scoreboard.create(folder / board.SCOREBOARD_FILE, 3, ["truncated"])
read, write = os.pipe()
worker = os.fork()
if not worker:
    os.close(write)
    os.read(read, 1)  # until the parent is gone
    os._exit(0)
record = shared.record(2)
record[board.PID], record[board.STATE], record[board.BIRTHS] = worker, board.READY, 1
record[board.UPLOADS_STORED], record[board.BYTES_STORED], record[board.FAILURES] = 7, 700, 1
state = board.ServerState(
    pid=os.getpid(), start_ticks=board.start_ticks(os.getpid()), addresses=["127.0.0.1"],
    port=listener.getsockname()[1], workers=3, store=None, options={"accept": "per-worker"},
    scoreboard=str(folder / board.SCOREBOARD_FILE), events=str(folder / board.EVENTS_FILE), started_wall_ns=1,
)
if sys.argv[1] == "late":
    print(state.port, flush=True)
    sys.stdin.readline()
board.write_state(folder, state)
if sys.argv[1] != "late":
    print(state.port, flush=True)
sys.stdin.readline()
log.append("worker-ended", text="worker 2 ended", slot=2, pid=worker, how="exit 0", cpu_user_s=0.5)
log.append("server-ended", text="the last word")
os.kill(worker, 9)
os.wait()
board.remove_runtime_folder(folder)
"""


def step(process):
    process.stdin.write("\n")
    process.stdin.flush()


def test_slots_counters_and_events(tmp_path):
    with server_script(SHOWING, "at-once") as (server, port), recorder(tmp_path, port) as process:
        assert process.hello["server"]["options"] == {"accept": "per-worker"}
        [worker] = children(server.pid)
        step(server)
        server.wait(DEADLINE_S)
        eventually(lambda: events(tmp_path, "server-gone"), "the end")
        finish(process)

    first = next(read_processes(tmp_path))
    assert {sample.pid: sample.slot for sample in first.processes}[worker] == 2
    [slot] = next(read_host(tmp_path)).scoreboard
    assert (slot.slot, slot.pid, slot.state, slot.births) == (2, worker, "ready", 1)
    assert (slot.uploads_stored, slot.bytes_stored, slot.failures) == (7, 700, {"truncated": 1})
    kinds = [event.kind for event in read_events(tmp_path) if event.kind != "recorder-missed-ticks"]
    assert kinds == ["server-found", "worker-ended", "server-ended", "server-gone"]
    [ended] = events(tmp_path, "worker-ended")
    assert (ended.source, ended.text) == ("server", "worker 2 ended")
    assert ended.details == {"slot": 2, "pid": worker, "how": "exit 0", "cpu_user_s": 0.5}
    assert list(read_host(tmp_path))[-1].scoreboard is None


def test_a_server_that_listens_before_its_state_is_out(tmp_path):
    with server_script(SHOWING, "late") as (server, port), recorder(tmp_path, port) as process:
        assert process.hello["server"]["options"] is None
        step(server)
        [event] = eventually(lambda: events(tmp_path, "server-attached"), "the state file")
        assert event.details["options"] == {"accept": "per-worker"}
        step(server)
        server.wait(DEADLINE_S)
        eventually(lambda: events(tmp_path, "server-gone"), "the end")
        finish(process)
    assert events(tmp_path, "server-ended")


# ---------------------------------------------------------------- socketswarm's own server


@contextmanager
def socketswarm():
    """(the server's process, its port); ended by SIGTERM."""
    command = [sys.executable, "-m", "server", "--host", "127.0.0.1", "--port", "0", "--workers", "2", "--discard"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        watchdog = threading.Timer(DEADLINE_S, process.terminate)
        watchdog.start()
        try:
            line = process.stdout.readline()
            assert line.startswith("listening on 127.0.0.1:")
            yield process, int(line.split()[2].rpartition(":")[2])
        finally:
            watchdog.cancel()
            process.terminate()
            process.wait(DEADLINE_S)


def test_a_killed_worker_and_its_replacement(tmp_path):
    with recorder(tmp_path, free_port()):
        pass  # a folder that is used twice goes on growing
    with socketswarm() as (server, port), recorder(tmp_path, port) as process:
        assert process.hello["server"]["pid"] == server.pid
        assert process.hello["server"]["options"]

        def slots():
            *_, last = read_processes(tmp_path)
            return {sample.slot: sample.pid for sample in last.processes if sample.role == "server-worker"}

        before = eventually(lambda: len(slots()) == 2 and slots(), "both workers")
        os.kill(before[0], signal.SIGKILL)
        after = eventually(lambda: slots().get(0) not in (None, before[0]) and slots(), "the replacement")
        eventually(lambda: events(tmp_path, "worker-ended"), "the event")
        finish(process)

    assert after[1] == before[1]
    [ended] = events(tmp_path, "worker-ended")
    assert (ended.source, ended.details["slot"], ended.details["pid"]) == ("server", 0, before[0])
    assert {"cpu_user_s", "cpu_system_s"} <= set(ended.details)
    assert {slot.births for slot in list(read_host(tmp_path))[-1].scoreboard} == {1, 2}


def test_the_status_helper_is_no_worker_dead_or_alive(tmp_path):
    with servers.running("--status-port", "0", workers=2) as server, recorder(tmp_path, server.port) as process:
        dead = pages.helper(server)
        eventually(lambda: dead in roles(list(read_processes(tmp_path))[-1]), "it is recorded")
        os.kill(dead, signal.SIGKILL)
        eventually(lambda: events(tmp_path, "status-ended"), "the event")
        alive = pages.helper(server)
        eventually(lambda: alive in roles(list(read_processes(tmp_path))[-1]), "its replacement")
        workers = set(server.workers())
        finish(process)

    for tick in read_processes(tmp_path):
        found = roles(tick)
        assert {pid for pid, role in found.items() if role == "server-status"} <= {dead, alive}
        assert {pid for pid, role in found.items() if role == "server-worker"} == workers
    [ended] = events(tmp_path, "status-ended")
    assert {"cpu_user_s", "cpu_system_s"} <= set(ended.details)
