"""How the server looks after its workers: reloads, more and fewer of them, hangs, crash loops, and its own end, each
under load that must not notice."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from certificates import Authority
from crowd import crowd
from servers import AS_NOBODY, ROOT, Client, Server, bindable, eventually, needs_nobody, running, session, upload
from slow import first_of
from terminals import at_a_terminal

from server.scoreboard import Scoreboard, read_state
from server.supervisor import KILL_AFTER_DRAIN_S

FAULTY = ROOT / "tests" / "faulty_server.py"
MODES = ("per-worker", "shared")


def events(server: Server, kind: str) -> list[str]:
    return [event["text"] for event in server.events() if event["kind"] == kind]


def has_workers(server: Server, number: int) -> bool:
    """Whether so many are ready, and the supervisor has settled that: new connections may go to each of them, and to no
    other."""
    return len(server.workers()) == number and server.state().workers == number


def titles(server: Server) -> set[str]:
    """Command lines of its workers."""
    found = {Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode() for pid in server.workers()}
    return {title.replace("\0", " ") for title in found}


# ── Nobody notices ──


@pytest.mark.parametrize("mode", first_of(MODES))
def test_reloads_fail_no_upload(mode: str, tmp_path: Path) -> None:
    with running("--accept", mode, store=tmp_path / "store", workers=2) as server, crowd(server.port) as load:
        for reload in range(1, 4):
            before = set(server.workers())
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda number=reload: len(events(server, "reload-finished")) == number, "it reloaded")
            eventually(lambda old=before: not old & set(server.workers()), "all workers are new ones")
            load.go_on()
    assert load.failures == []
    load.assert_stored(tmp_path / "store")


@pytest.mark.parametrize("mode", first_of(MODES))
def test_more_and_fewer_workers_fail_no_upload(mode: str, tmp_path: Path) -> None:
    with running("--accept", mode, store=tmp_path / "store", workers=2) as server, crowd(server.port) as load:
        for _ in range(2):
            for number, workers in ((signal.SIGTTIN, 3), (signal.SIGTTIN, 4), (signal.SIGTTOU, 3), (signal.SIGTTOU, 2)):
                server.process.send_signal(number)
                eventually(lambda wanted=workers: has_workers(server, wanted), f"{workers} workers")
                load.go_on()
        eventually(lambda: {slot.slot for slot in server.slots() if slot.pid} == {0, 1}, "the others have ended")
    assert load.failures == []
    load.assert_stored(tmp_path / "store")


@pytest.mark.parametrize("mode", first_of(MODES))
def test_the_end_resets_nobody(mode: str, tmp_path: Path) -> None:
    """Who comes afterwards is refused, which is the truth; who was there has its answer."""
    with running("--accept", mode, store=tmp_path / "store", workers=2) as server, crowd(server.port) as load:
        assert server.stop() == 0
    assert set(load.codes()) <= {"connect_refused"}
    load.assert_stored(tmp_path / "store")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGTTOU])
def test_who_waits_for_a_worker_that_keeps_dying_is_served_nevertheless(number: signal.Signals, tmp_path: Path) -> None:
    """Its slot is empty for a while, and what the kernel has queued for it cannot go to another."""
    with running(store=tmp_path / "store", workers=2) as server, ExitStack() as stack:
        killed: set[int] = set()

        def is_down() -> bool:
            slot = server.slots()[1]
            if slot.state == "ready" and slot.pid not in killed:
                os.kill(slot.pid, signal.SIGKILL)
                killed.add(slot.pid)
            return len(killed) >= 5 and slot.state == "empty"

        eventually(is_down, "its slot is empty for a while")
        clients = [stack.enter_context(Client(server.port)) for _ in range(20)]
        for client in clients:
            client.send(b"abc", connection="close")
        server.process.send_signal(number)
        assert [client.reply().code for client in clients] == ["ok"] * 20
        if number == signal.SIGTERM:
            assert server.wait() == 0
        else:
            eventually(lambda: len(server.workers()) == 1, "it has left")


def test_reloads_and_the_end_fail_no_upload_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = authority.context()
    with (
        running("--tls-cert", authority.server(), store=tmp_path / "store", workers=2) as server,
        crowd(lambda: Client(server.port, tls=context)) as load,
    ):
        for reloads, number, workers in ((1, signal.SIGTTIN, 3), (2, signal.SIGTTOU, 2)):
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda wanted=reloads: len(events(server, "reload-finished")) == wanted, "it reloaded")
            load.go_on()
            server.process.send_signal(number)
            eventually(lambda wanted=workers: has_workers(server, wanted), f"{workers} workers")
            load.go_on()
        assert load.failures == []
        assert server.stop() == 0
    assert set(load.codes()) <= {"connect_refused"}
    load.assert_stored(tmp_path / "store")


def test_the_last_worker_stays(tmp_path: Path) -> None:
    with running(workers=1) as server:
        server.process.send_signal(signal.SIGTTOU)
        eventually(lambda: "the last worker stays" in server.messages(), "it says so")
        server.process.send_signal(signal.SIGTTIN)
        eventually(lambda: len(server.workers()) == 2, "one more than one")


def test_workers_that_were_added_and_removed_are_spread_over(tmp_path: Path) -> None:
    """A slot that comes back takes its share: the kernel was asked to pass it over, and is asked no more."""
    with running(workers=2) as server:
        for number, workers in ((signal.SIGTTIN, 3), (signal.SIGTTOU, 2), (signal.SIGTTIN, 3)):
            server.process.send_signal(number)
            eventually(lambda wanted=workers: has_workers(server, wanted), f"{workers} workers")
        served = Counter(upload(server.port, b"abc").worker for _ in range(150))
        assert set(served) == {0, 1, 2}
        assert min(served.values()) > 15  # of 50; fewer has a probability below 1e-11


def test_a_slot_that_comes_back_while_all_its_seats_drain_waits_for_one() -> None:
    with running("--drain-timeout", "60s", workers=2) as server, ExitStack() as stack:
        clients = []
        for reload in range(1, 4):
            while not any(client.served_by == (1, server.slots()[1].pid) for client in clients):
                clients.append(stack.enter_context(Held(server.port)))
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda number=reload: len(events(server, "reload-finished")) == number, "it reloaded")
        while not any(client.served_by == (1, server.slots()[1].pid) for client in clients):
            clients.append(stack.enter_context(Held(server.port)))
        server.process.send_signal(signal.SIGTTOU)
        eventually(lambda: len(server.workers()) == 1, "one worker")
        server.process.send_signal(signal.SIGTTIN)
        assert upload(server.port, b"abc").code == "ok"
        stack.close()
        eventually(lambda: len(server.workers()) == 2, "two again")


class Held(Client):
    """A client that stays connected; `served_by` is the slot and the pid of its worker."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        reply = self.upload(b"abc")
        self.served_by = (reply.worker, reply.pid)


def test_a_worker_that_is_added_and_cannot_start_takes_nothing_from_the_others(tmp_path: Path) -> None:
    with faulty("reload", tmp_path) as server, crowd(server.port, long=2, short=4) as load:
        workers = server.workers()
        (tmp_path / "broken").touch()
        server.process.send_signal(signal.SIGTTIN)
        eventually(lambda: "going on without it" in server.messages(), "it says so")
        load.go_on()
        assert server.workers() == workers
        (tmp_path / "broken").unlink()
        server.process.send_signal(signal.SIGTTIN)
        eventually(lambda: len(server.workers()) == 3, "the next one can")
        load.go_on()
    assert load.failures == []


def test_one_less_and_one_more_at_once_is_the_same_number(tmp_path: Path) -> None:
    """Who thinks better of it while connections are still being steered away keeps the worker."""
    with faulty("leave", tmp_path, workers=3) as server:
        workers = server.workers()
        server.process.send_signal(signal.SIGTTOU)
        eventually(lambda: "worker 2 is about to leave" in server.messages(), "it is being steered away from")
        server.process.send_signal(signal.SIGTTIN)
        eventually(lambda: "worker 2 stays" in server.messages(), "all is settled")
        assert server.workers() == workers
        server.process.send_signal(signal.SIGTTIN)
        eventually(lambda: len(server.workers()) == 4, "one more, as ever")


# ── Reload ──


def test_a_reload_that_cannot_start_a_worker_leaves_the_old_ones(tmp_path: Path) -> None:
    with faulty("reload", tmp_path) as server:
        before, state = server.workers(), server.state()
        (tmp_path / "broken").touch()
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: events(server, "reload-failed"), "it gave up")
        assert server.workers() == before
        assert server.state() == state
        assert upload(server.port, b"abc").code == "ok"
        assert "reload given up, the old workers go on" in server.messages()
        (tmp_path / "broken").unlink()
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: not set(before) & set(server.workers()) and len(server.workers()) == 2, "the next one works")


def test_a_reload_is_refused_when_what_is_new_does_not_go_with_what_cannot_change(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("discard = true\n")
    without_flag = "import sys; from server.__main__ import main; sys.argv.remove('--discard'); main()"
    with running("--config", str(file), script=("-c", without_flag), forked=False) as server:
        workers = server.workers()
        file.write_text(f'store = "{tmp_path}/store"\ndurability = "power"\n')
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: events(server, "reload-failed"), "it said no")
        assert "durability is power, but discard keeps nothing" in events(server, "reload-failed")[0]
        assert server.workers() == workers


def test_a_reload_reads_the_file_again(tmp_path: Path) -> None:
    """What can change does; what needs a restart stays as it is, and that is said; a slip changes nothing."""
    file = tmp_path / "server.toml"
    file.write_text('max_file_size = "1KiB"\n')
    with running("--config", str(file), workers=2) as server:
        assert upload(server.port, bytes(2000)).code == "too_large"
        file.write_text('max_file_size = "1MiB"\nbacklog = 7\n')
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: events(server, "reload-finished"), "it reloaded")
        assert upload(server.port, bytes(2000)).code == "ok"
        assert "backlog can only change with a restart" in server.messages()
        options = server.state().options
        assert (options["max_file_size"], options["backlog"]) == ("1MiB", "4096")
        workers = server.workers()
        file.write_text('max_file_sise = "2MiB"\n')
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: events(server, "reload-failed"), "it said no")
        assert "unknown key 'max_file_sise'; did you mean max_file_size?" in events(server, "reload-failed")[0]
        assert server.workers() == workers


@pytest.mark.parametrize("option", first_of(["--config", "--token-file", "--tls-cert"]))
def test_a_file_that_has_become_a_pipe_refuses_the_reload(tmp_path: Path, option: str) -> None:
    """And keeps the supervisor from its workers for no longer than that."""
    content = {"--config": b"", "--token-file": b"token", "--tls-cert": Authority(tmp_path).server().read_bytes()}
    file = tmp_path / "file"
    file.write_bytes(content[option])
    file.chmod(0o600)
    with running(option, str(file)) as server:
        file.unlink()
        os.mkfifo(file)
        server.process.send_signal(signal.SIGHUP)
        [worker] = server.workers()
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: events(server, "reload-failed"), "it said no")
        assert "its files could not be read within 5 s" in server.messages()
        eventually(lambda: server.slots()[0].births == 2 and server.workers(), "the worker was replaced")


def test_a_reload_that_fails_by_a_mistake_of_ours_leaves_the_old_workers(tmp_path: Path) -> None:
    with faulty("reread", tmp_path) as server:
        before = server.workers()
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: events(server, "reload-failed"), "it said no")
        assert events(server, "reload-failed") == ["not reloaded: ValueError: a mistake\\nof ours"]
        assert upload(server.port, b"abc").code == "ok"
        assert server.workers() == before
        assert re.search(r"not reloaded, for a reason nobody foresaw\n +Traceback", server.messages())
        server.log.truncate(0)  # at the end there shall be no other


def test_a_worker_drains_as_long_as_it_was_told_when_it_was_born(tmp_path: Path) -> None:
    """Not as long as those that come after it are told."""
    file = tmp_path / "server.toml"
    file.write_text("drain_timeout = 60\n")
    with running("--config", str(file), "--min-rate", "0") as server, Client(server.port) as client:
        client.send_header(6, "slow")
        client.sock.sendall(b"abc")
        eventually(lambda: server.slots()[0].connections_now == 1, "the old worker has it")
        file.write_text("drain_timeout = 0\n")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: server.slots()[0].retiring, "the old worker drains")
        # That nobody kills it can only be seen by letting that time pass.
        until = time.monotonic() + KILL_AFTER_DRAIN_S + 1.0
        eventually(lambda: time.monotonic() > until, "longer than the new timeout and its grace")
        client.sock.sendall(b"def")
        assert client.reply().code == "ok"


def test_a_reload_may_change_the_number_of_workers(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("workers = 2\n")
    with running("--config", str(file), workers=None) as server:
        for number in (4, 1, 3):
            file.write_text(f"workers = {number}\n")
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda wanted=number: len(server.workers()) == wanted, f"{number} workers")
            assert upload(server.port, b"abc").code == "ok"


def test_an_idle_connection_of_a_retired_worker_is_closed_at_the_drain_timeout() -> None:
    with running("--drain-timeout", "300ms") as server, Client(server.port) as idle:
        assert idle.upload(b"abc").code == "ok"
        server.process.send_signal(signal.SIGHUP)
        assert idle.sock.recv(1) == b"", "closed without a word, which would be read as an answer"
        eventually(lambda: len(events(server, "worker-ended")) == 1, "the old worker is gone")
        assert upload(server.port, b"abc").code == "ok"


def test_reloads_pile_up_behind_workers_that_drain() -> None:
    """A slot has few seats; a reload waits for one, and no connection is cut for it."""
    with running("--drain-timeout", "60s") as server, ExitStack() as stack:
        clients = []
        for reload in range(1, 7):
            client = stack.enter_context(Client(server.port))
            assert client.upload(b"abc").code == "ok"
            clients.append(client)
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda number=reload: len(events(server, "reload-started")) == number, "it is told")
            draining = min(reload, 3)  # as many as there are seats, beside the one that serves
            eventually(lambda number=draining: len(server.slots()[0].retiring) == number, "the one before drains")
        assert [client.upload(b"abc").code for client in clients] == ["ok"] * 6
        stack.close()
        eventually(lambda: not server.slots()[0].retiring, "with these gone there is room")
        assert upload(server.port, b"abc").code == "ok"


def test_counters_never_run_backwards() -> None:
    """Though the old worker and the new one of a slot count at the same time."""
    with running() as server, crowd(server.port, long=3, short=3) as load:
        last = 0
        for _ in range(3):
            server.process.send_signal(signal.SIGHUP)
            for _ in range(20):
                stored = server.stored()
                assert stored >= last
                last = stored
                load.go_on(5)
        load.go_on()
    assert load.failures == []


def test_temporary_files_of_two_workers_of_a_slot_do_not_meet(tmp_path: Path) -> None:
    with running("--min-rate", "0", store=tmp_path / "store") as server, Client(server.port) as old:
        old.send_header(6, "old")
        old.sock.sendall(b"abc")
        eventually(server.temporary_files, "it has begun")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: server.slots()[0].retiring, "the old worker drains")
        assert upload(server.port, b"xyz", "new").code == "ok"
        old.sock.sendall(b"def")
        assert old.reply().code == "ok"
        assert (tmp_path / "store" / "old").read_bytes() == b"abcdef"


# ── Hangs ──

HANG_TIMEOUT = "5s"  # a busy machine may keep a worker from its core for a second or two


def faulty(fault: str, cwd: Path, *options: object, workers: int = 2, exit_code: int = 0):
    return running(*options, workers=workers, script=(str(FAULTY), fault), cwd=cwd, exit_code=exit_code)


def test_a_worker_in_an_endless_loop_is_replaced_and_it_is_told_why(tmp_path: Path) -> None:
    with faulty("loop", tmp_path, "--hang-timeout", HANG_TIMEOUT) as server, Client(server.port) as client:
        client.send(b"abc", "bad")
        eventually(lambda: events(server, "worker-ended"), "it was killed")
        assert re.search(
            r"was ended by SIGKILL from the supervisor, because it hung", events(server, "worker-ended")[0]
        )
        eventually(lambda: len(server.workers()) == 2, "it was replaced")
        assert re.search(
            r"worker \d \(pid \d+\) is killed: it hung: its loop has not turned for \d s", server.messages()
        )
        assert upload(server.port, b"abc").code == "ok"


def test_a_worker_that_hangs_before_it_is_ready_is_killed_when_it_is_told_a_second_time(tmp_path: Path) -> None:
    """It was told to go before, which it did not hear."""
    go = tmp_path / "go"
    go.touch()
    with faulty("slow", tmp_path, workers=1, exit_code=1) as server:
        [first] = server.workers()
        go.unlink()
        os.kill(first, signal.SIGKILL)
        eventually(lambda: server.slots()[0].pid not in (0, first), "it is replaced")
        os.kill(server.slots()[0].pid, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        supervisor = psutil.Process(server.process.pid)
        eventually(lambda: not supervisor.net_connections(), "it has waited for who starts, and told that one to go")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 1


def test_a_long_upload_is_no_hang(tmp_path: Path) -> None:
    """One that takes longer than the hang timeout, and is silent most of that time."""
    options = ["--hang-timeout", HANG_TIMEOUT, "--min-rate", "0"]
    with running(*options, store=tmp_path / "store") as server, Client(server.port) as client:
        [worker] = server.workers()
        client.send_header(120, "slow")
        beats = {server.slots()[0].heartbeat_ns}
        for _ in range(12):
            client.sock.sendall(bytes(10))
            eventually(lambda: server.slots()[0].heartbeat_ns not in beats, "half a second has passed")
            beats.add(server.slots()[0].heartbeat_ns)
        assert client.reply().code == "ok"
        assert server.workers() == [worker]


def test_a_supervisor_that_slept_itself_takes_nobody_for_hung() -> None:
    """All stand still longer than the hang timeout, as in a suspended machine; beats are old when it wakes."""
    with running("--hang-timeout", HANG_TIMEOUT, workers=2) as server:
        workers = server.workers()
        stopped = [*workers, server.pid]
        beat = max(slot.heartbeat_ns for slot in server.slots())
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        eventually(lambda: time.monotonic_ns() - beat > 6_500_000_000, "the beats are old")
        os.kill(server.pid, signal.SIGCONT)
        eventually(lambda: state_of(server.pid) != "T", "it is awake")
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: min(slot.heartbeat_ns for slot in server.slots()) > beat, "they beat again")
        assert upload(server.port, b"abc").code == "ok"
        assert server.workers() == workers


def state_of(pid: int) -> str:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2]


def test_what_cannot_be_written_down_ends_nothing(tmp_path: Path) -> None:
    with faulty("full", tmp_path) as server:
        before = server.workers()
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: len(server.workers()) == 2 and server.workers() != before, "it was replaced")
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: not set(before) & set(server.workers()) and len(server.workers()) == 2, "it reloaded")
        assert upload(server.port, b"abc").code == "ok"
        assert "an event could not be written down (No space left on device)" in server.messages()


def test_a_pid_file_that_cannot_be_written_keeps_nobody_from_knowing_that_it_is_ready(tmp_path: Path) -> None:
    with faulty("pid", tmp_path, "--pid-file", tmp_path / "pid") as server:
        assert upload(server.port, b"abc").code == "ok"
        assert "the pid file could not be written: Read-only file system" in server.messages()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_crashes_in_a_drain_is_in_the_exit_code() -> None:
    with running(workers=2, exit_code=1) as server, Client(server.port) as client:
        served_by = client.upload(b"abc").pid
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: {slot.state for slot in server.slots()} <= {"draining", "empty"}, "it drains")
        os.kill(served_by, signal.SIGKILL)
        assert server.wait() == 1


# ── Its terminal ──

SERVE = (sys.executable, "-m", "server", "--port", "0", "--workers", "1", "--discard", "--drain-timeout", "30s")


def test_when_its_terminal_is_closed_it_drains(tmp_path: Path) -> None:
    with at_a_terminal(tmp_path / "there", *SERVE) as (job, terminal):
        ready = eventually(lambda: re.search(r"listening on \S+:(\d+) .*\n", terminal.shown()), "it is ready")
        port = int(ready[1])
        with Client(port) as client:
            client.send_header(6, "slow")
            client.sock.sendall(b"abc")
            terminal.close()
            job.process.send_signal(signal.SIGHUP)  # the shell tells as well as the kernel
            eventually(lambda: not connects(port), "nobody is let in any more")
            client.sock.sendall(b"def")
            assert client.reply().code == "ok"
        assert job.wait() == 0


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
    except OSError:
        return False
    return True


# ── Crash loops ──


def test_a_worker_that_cannot_start_ends_the_server_after_few_forks(tmp_path: Path) -> None:
    command = [sys.executable, str(FAULTY), "start", "--port", "0", "--workers", "3", "--discard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, env=with_root())
    assert done.returncode == 1
    assert "the disk is broken" in done.stderr
    assert "could not start" in done.stderr
    assert done.stderr.count("the disk is broken") <= 3, "each worker once"
    assert done.stdout == ""


def test_workers_that_die_of_every_upload_end_the_server_with_the_reason(tmp_path: Path) -> None:
    with faulty("die", tmp_path, "--max-deaths", "4", "--death-window", "60s", exit_code=3) as server:
        with Client(server.port) as honest:
            assert honest.upload(b"abc").code == "ok"
            while server.process.poll() is None:
                try:
                    upload(server.port, b"abc", "bad")
                except (OSError, AssertionError, ConnectionError):
                    pass
                except Exception as error:
                    assert "lost" in str(error) or "closed" in str(error), error
        assert server.process.wait() == 3
        assert "4 workers died within 60 s: giving up" in server.messages()
        assert server.messages().count("ended with exit code 9") == 4


def test_deaths_that_others_cause_are_no_crash_loop() -> None:
    with running("--max-deaths", "2", workers=2) as server:
        for births in range(1, 5):
            eventually(lambda number=births: server.slots()[0].births == number and len(server.workers()) == 2, "two")
            os.kill(server.workers()[0], signal.SIGKILL)
        eventually(lambda: server.slots()[0].births == 5 and len(server.workers()) == 2, "two again")
        assert upload(server.port, b"abc").code == "ok"


@needs_nobody
def test_a_worker_that_cannot_be_forked_is_forked_later() -> None:
    """And until it has been, it counts as no restart."""
    with running(prefix=AS_NOBODY, workers=2) as server:
        state = read_state(server.pid)
        assert state is not None
        board = Scoreboard.open(state.scoreboard)
        worker = next(slot.pid for slot in board.read() if slot.slot == 0)
        _, most = resource.getrlimit(resource.RLIMIT_NPROC)
        limit = [*AS_NOBODY, "prlimit", "--pid", str(server.pid)]
        subprocess.run([*limit, "--nproc=1:"], check=True)
        os.kill(worker, signal.SIGKILL)
        failed = "worker 0 could not be forked: Resource temporarily unavailable; again in "
        eventually(lambda: server.messages().count(failed) == 2, "it is tried twice")
        assert [slot.births for slot in board.read()] == [1, 1]
        subprocess.run([*limit, f"--nproc={most}:"], check=True)
        eventually(lambda: [slot.births for slot in board.read()] == [2, 1], "it is replaced")
        eventually(lambda: [slot.state for slot in board.read()] == ["ready", "ready"], "it is ready")
        assert upload(server.port, b"abc").code == "ok"
        board.close()


# ── Seen from outside ──


def test_workers_have_titles_and_keep_their_environment() -> None:
    with running(workers=2, forked=False) as server:
        assert titles(server) == {f"socketswarm: worker {slot} [{server.port}]" for slot in (0, 1)}
        for pid in server.workers():
            assert b"PATH=" in Path(f"/proc/{pid}/environ").read_bytes()


def test_an_even_spread() -> None:
    """1,000 connections over 4 sockets: a worker with over 1.25 times the mean has a probability below 1e-5."""
    with running(workers=4) as server, ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        eventually(lambda: sum(slot.connections_now for slot in server.slots()) == 1000, "all are accepted")
        assert max(slot.connections_now for slot in server.slots()) <= 1.25 * 250


def test_a_stopped_worker_holds_no_port_when_the_supervisor_is_killed() -> None:
    with running(workers=2, exit_code=-signal.SIGKILL) as server:
        os.kill(server.workers()[0], signal.SIGSTOP)
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not session(server.pid), "all are gone")
        assert bindable(server.port)


def with_root() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}
