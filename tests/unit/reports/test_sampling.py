"""Samples of real processes and of this machine."""

import os
import resource
import socket
import subprocess
import sys
import threading
from collections import namedtuple
from contextlib import closing
from functools import wraps

import msgspec
import psutil
import pytest
from mainless import MAINLESS

from reports.recording import sampling
from reports.recording.census import Member
from reports.recording.observed_server import Server
from reports.recording.sampling import footprint, network_bytes, sample_host, sample_process, untold
from reports.run_folder import HostTick, NetworkBytes


def look(pid, role="server-worker"):
    """A process, as the census has it."""
    return Member(psutil.Process(pid), role)


def this_now(*, slow=False):
    return sample_process(look(os.getpid()), slow=slow)


def test_a_living_process_has_every_field():
    pid = os.getpid()
    this = look(pid, "load-master")
    sample = sample_process(this, 3, footprint(this.process), slow=True)
    assert (sample.pid, sample.role, sample.slot) == (pid, "load-master", 3)
    missing = [name for name in sample.__struct_fields__ if getattr(sample, name) is None]
    assert missing == []
    assert 0 < sample.uss_bytes <= sample.pss_bytes <= sample.rss_bytes
    assert sample.threads >= 1
    assert sample.create_time == psutil.Process(pid).create_time()


def test_a_process_as_the_kernel_counts_it():
    before, sample, after = os.times(), this_now(slow=True), os.times()
    seen = (sample.cpu_user_s, sample.cpu_system_s, sample.children_user_s, sample.children_system_s)
    for least, counted, most in zip(before, seen, after, strict=False):
        assert least - 0.1 < counted < most + 0.1
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    assert sample.voluntary_switches <= usage.ru_nvcsw
    assert sample.involuntary_switches <= usage.ru_nivcsw


def test_descriptors_are_counted():
    before = this_now().fds
    assert before == psutil.Process().num_fds() - 1  # it opens one to list them
    with socket.socket(), socket.socket():
        assert this_now().fds == before + 2


def test_descriptors_are_counted_by_kernels_that_do_not_tell_their_number(monkeypatch):
    told = this_now().fds
    monkeypatch.setattr(sampling.os, "stat", lambda path: os.stat_result([0] * 10))
    assert this_now().fds == told + 1


def test_threads_that_come_are_seen():
    stop = threading.Event()
    before = this_now(slow=True).threads
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert this_now(slow=True).threads == before + 1
    finally:
        stop.set()
        thread.join()


def test_what_nobody_follows_is_read_on_slow_ticks():
    often, seldom = this_now(), this_now(slow=True)
    for name in ("threads", "voluntary_switches", "involuntary_switches", "read_bytes", "write_bytes", "run_delay_ns"):
        assert getattr(often, name) is None
        assert getattr(seldom, name) is not None


def test_cores_are_those_of_its_affinity_and_read_on_slow_ticks():
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        one = min(os.sched_getaffinity(0))
        os.sched_setaffinity(sleeper.pid, {one})
        member = look(sleeper.pid)
        assert sample_process(member, slow=True).cores == str(one)
        assert sample_process(member).cores is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_without_a_footprint_uss_and_pss_are_unknown():
    sample = this_now()
    assert (sample.slot, sample.uss_bytes, sample.pss_bytes) == (None, None, None)


@pytest.fixture
def zombie():
    child = subprocess.Popen([sys.executable, "-c", "sum(range(3_000_000))"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield child
    child.wait()


@pytest.fixture
def mainless():
    """A process whose main thread has ended, while another goes on."""
    with subprocess.Popen([sys.executable, "-c", MAINLESS], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout.readline()
            yield child
        finally:
            child.kill()


def test_a_zombie_keeps_its_cpu_and_has_no_memory(zombie):
    member = look(zombie.pid)
    sample = sample_process(member, None, footprint(member.process))
    assert sample.cpu_user_s > 0
    assert (sample.rss_bytes, sample.uss_bytes, sample.pss_bytes, sample.fds) == (None, None, None, None)


def test_whose_main_thread_has_ended_is_sampled_whole(mainless):
    member = look(mainless.pid)
    assert member.process.status() == psutil.STATUS_ZOMBIE
    memory = footprint(member.process)
    sample = sample_process(member, None, memory, slow=True)
    assert sample.pid == mainless.pid
    assert sample.rss_bytes > 1 << 20 and memory.uss > 1 << 18
    assert sample.fds >= 3 and sample.threads == 2
    with closing(Server.of(mainless.pid)) as server:
        assert not server.has_ended
        assert server.info.command[1:2] == ["-c"]


def test_a_process_that_is_gone_is_in_no_sample(zombie):
    member = look(zombie.pid)
    zombie.wait()
    assert sample_process(member, slow=True) is None
    assert footprint(member.process) is None


def test_a_process_that_ends_while_it_is_read_has_its_counters_and_nothing_else(zombie, monkeypatch):
    member = look(zombie.pid)
    used, memory_info = member.process.cpu_times(), psutil.Process.memory_info

    @wraps(memory_info)
    def too_late(process):
        zombie.wait()
        return memory_info(process)

    monkeypatch.setattr(psutil.Process, "memory_info", too_late)
    sample = sample_process(member, slow=True)
    assert sample.cpu_user_s == used.user
    assert (sample.rss_bytes, sample.threads, sample.fds, sample.voluntary_switches) == (None, None, None, None)
    assert (sample.read_bytes, sample.run_delay_ns, sample.cores) == (None, None, None)


# ── a /proc of our own ──


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """Of one process, 5, whose name is like another field."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    files = {
        "stat": "5 (a) R (b) S 7 " + " ".join(["0"] * 9) + " 250 50 25 5 0 0 0 0 4242 0 3 " + " ".join(["0"] * 20),
        "statm": "9 3 0 0 0 0 0\n",
        "status": "Name:\tx\nThreads:\t2\nvoluntary_ctxt_switches:\t8\nnonvoluntary_ctxt_switches:\t1\n",
        "io": "rchar: 5\nwchar: 5\nsyscr: 1\nsyscw: 1\nread_bytes: 4096\nwrite_bytes: 8192\n",
    }
    (tmp_path / "5").mkdir()
    for name, text in files.items():
        (tmp_path / "5" / name).write_text(text)
    (tmp_path / "stat").write_text("cpu  1 2\nbtime 1000\n")
    return tmp_path


def test_a_name_with_brackets_and_spaces_does_not_confuse_the_fields(proc):
    sample = sample_process(look(5), slow=True)
    assert (sample.cpu_user_s, sample.cpu_system_s) == (2.5, 0.5)
    assert (sample.children_user_s, sample.children_system_s) == (0.25, 0.05)
    assert sample.create_time == 1042.42
    assert (sample.rss_bytes, sample.threads) == (3 * resource.getpagesize(), 2)
    assert (sample.voluntary_switches, sample.involuntary_switches) == (8, 1)
    assert (sample.read_bytes, sample.write_bytes) == (4096, 8192)


@pytest.mark.parametrize("text", ["", "Name:\tx\n", "Name:\tx\nvoluntary_ctxt_switches:\t\n"])
def test_a_status_without_switches_and_threads(proc, text):
    (proc / "5/status").write_text(text)
    sample = sample_process(look(5), slow=True)
    assert (sample.voluntary_switches, sample.involuntary_switches, sample.threads) == (None, None, None)
    assert sample.cpu_user_s == 2.5


@pytest.mark.parametrize("text", [None, "", "rchar: 5\n"])
def test_an_io_file_without_disk_bytes(proc, text):
    (proc / "5/io").unlink()
    if text is not None:
        (proc / "5/io").write_text(text)
    sample = sample_process(look(5), slow=True)
    assert (sample.read_bytes, sample.write_bytes) == (None, None)
    assert sample.cpu_user_s == 2.5


def test_a_kernel_that_counts_no_disk_bytes(monkeypatch):
    """psutil has no such method there."""
    monkeypatch.delattr(psutil.Process, "io_counters")
    sample = this_now(slow=True)
    assert sample.read_bytes is None and sample.cores


def test_a_kernel_that_tells_of_no_pages(monkeypatch):
    """psutil's memory_full_info() is its memory_info() there."""
    monkeypatch.setattr(psutil.Process, "memory_full_info", psutil.Process.memory_info)
    assert footprint(psutil.Process()) is None


def test_a_process_of_somebody_else(monkeypatch):
    def denied(process):
        raise psutil.AccessDenied(process.pid)

    for name in ("io_counters", "memory_full_info"):
        monkeypatch.setattr(psutil.Process, name, denied)
    assert (this_now(slow=True).read_bytes, footprint(psutil.Process())) == (None, None)


# ── the machine ──


def test_host_tick():
    before = psutil.cpu_times(percpu=True)
    tick = sample_host({"mono_ns": 1, "wall_ns": 2}, None, None, slow=True)
    after = psutil.cpu_times(percpu=True)
    assert len(tick.cores) == psutil.cpu_count()
    for core, least, most in zip(tick.cores, before, after, strict=True):
        for name in core.__struct_fields__:
            assert getattr(least, name) - 0.5 < getattr(core, name) < getattr(most, name) + 0.5
    assert psutil.virtual_memory().total > tick.memory_available_bytes > 0
    assert tick.load_1min >= 0
    assert tick.tcp_in_use is not None and tick.tcp_time_wait is not None
    assert (tick.scoreboard, tick.accept_queues, tick.tcp_states) == (None, None, None)
    assert tick.kernel["ActiveOpens"] >= 0
    assert msgspec.json.decode(msgspec.json.encode(tick), type=HostTick) == tick


def test_what_is_dear_is_left_out_of_most_ticks():
    tick = sample_host({"mono_ns": 1, "wall_ns": 2}, 1, None, slow=False)
    assert (tick.tcp_states, tick.kernel, tick.network) == (None, {}, {})
    assert (tick.memory_available_bytes, tick.load_1min) == (None, None)
    assert tick.accept_queues == []


CORES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq")


@pytest.mark.parametrize("text", [None, "", "cpu 1 2 3 4\ncpu0 1 2 3 4\n"])
def test_a_machine_that_tells_of_no_cores(tmp_path, monkeypatch, text):
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    if text is not None:
        (tmp_path / "stat").write_text(text)
    assert sample_host({"mono_ns": 1, "wall_ns": 2}, None, None, slow=False).cores == []


def test_a_machine_that_tells_of_no_stolen_time(monkeypatch):
    """psutil makes its tuple of what the kernel has."""
    cores = [namedtuple("scputimes", CORES)(*map(float, range(7)))]
    monkeypatch.setattr(psutil, "cpu_times", lambda *, percpu: cores)
    [core] = sample_host({"mono_ns": 1, "wall_ns": 2}, None, None, slow=False).cores
    assert (core.user, core.softirq, core.steal) == (0.0, 6.0, None)


WITHOUT_AVAILABLE = "".join(
    f"{name}: 5 kB\n" for name in ("MemTotal", "MemFree", "Cached", "Active(file)", "Inactive(file)", "SReclaimable")
)


@pytest.mark.parametrize(
    "text", [None, "", "MemTotal: 5 kB\n", WITHOUT_AVAILABLE, f"{WITHOUT_AVAILABLE}MemAvailable: 0 kB\n"]
)
def test_a_machine_that_tells_of_no_memory(tmp_path, monkeypatch, text):
    """psutil would make an estimate of what the others say."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    if text is not None:
        (tmp_path / "meminfo").write_text(text)
    tick = sample_host({"mono_ns": 1, "wall_ns": 2}, None, None, slow=True)
    assert tick.memory_available_bytes is None


def test_what_a_machine_does_not_tell_is_named(tmp_path, monkeypatch):
    stamp = {"mono_ns": 1, "wall_ns": 2}
    assert untold(sample_host(stamp, None, None, slow=True)) == []
    cores = [namedtuple("scputimes", CORES)(*map(float, range(7)))]
    monkeypatch.setattr(psutil, "cpu_times", lambda *, percpu: cores)
    assert untold(sample_host(stamp, None, None, slow=True)) == ["stolen time"]
    monkeypatch.undo()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert untold(sample_host(stamp, None, None, slow=True)) == [
        "the time of its cores",
        "available memory",
    ]


def test_a_process_is_recorded_where_nobody_knows_when_the_machine_was_booted(tmp_path, monkeypatch):
    known = this_now()
    (tmp_path / "stat").write_text("cpu 1 2 3 4 5 6 7 8\n")
    (tmp_path / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    told = this_now()
    assert told.cpu_user_s >= known.cpu_user_s
    assert told.create_time == this_now().create_time == pytest.approx(known.create_time, abs=2)


def test_bytes_of_each_interface(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert network_bytes() == {}
    (tmp_path / "net").mkdir()
    numbers = "4 0 0 0 0 0 0"
    (tmp_path / "net" / "dev").write_text(
        f"Inter-| Receive\n face |bytes\n    lo: 12 {numbers} 34 {numbers}\n eth0: 0 {numbers} 0 {numbers}\n"
    )
    assert network_bytes() == {"lo": NetworkBytes(received=12, sent=34)}
