"""Samples of real processes and of this machine."""

import os
import subprocess
import sys
from contextlib import ExitStack, closing

import msgspec
import psutil
import pytest

from reports.recording.census import Present
from reports.recording.procfs import Process
from reports.recording.sampling import sample_host, sample_process
from reports.run_folder import HostTick


@pytest.fixture
def look():
    """A process now, as the census has it."""
    with ExitStack() as stack:

        def make(pid, role="server-worker"):
            process = stack.enter_context(closing(Process(pid)))
            return Present(process, process.stat(), role)

        yield make


def test_a_living_process_has_every_field(look):
    pid = os.getpid()
    present = look(pid, "load-master")
    sample = sample_process(present, 3, present.process.footprint(), slow=True)
    assert (sample.pid, sample.role, sample.slot) == (pid, "load-master", 3)
    missing = [name for name in sample.__struct_fields__ if getattr(sample, name) is None]
    assert missing == []
    assert 0 < sample.uss_bytes <= sample.pss_bytes <= sample.rss_bytes
    assert sample.threads >= 1


def test_cores_are_those_of_its_affinity_and_read_on_slow_ticks(look):
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        one = min(os.sched_getaffinity(0))
        os.sched_setaffinity(sleeper.pid, {one})
        present = look(sleeper.pid)
        assert sample_process(present, slow=True).cores == str(one)
        assert sample_process(present).cores is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_without_a_footprint_uss_and_pss_are_unknown(look):
    sample = sample_process(look(os.getpid()))
    assert (sample.slot, sample.uss_bytes, sample.pss_bytes) == (None, None, None)


@pytest.fixture
def zombie():
    child = subprocess.Popen([sys.executable, "-c", "sum(range(3_000_000))"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield child
    child.wait()


def test_a_zombie_keeps_its_cpu_and_has_no_memory(look, zombie):
    present = look(zombie.pid)
    sample = sample_process(present, None, present.process.footprint())
    assert sample.cpu_user_s > 0
    assert (sample.rss_bytes, sample.uss_bytes, sample.pss_bytes, sample.fds) == (None, None, None, None)


def test_a_process_that_is_gone_has_its_counters_and_nothing_else(look, zombie):
    """It ended after they were read."""
    present = look(zombie.pid)
    zombie.wait()
    sample = sample_process(present)
    assert sample.cpu_user_s == present.stat.user_s
    assert (sample.fds, sample.voluntary_switches, sample.read_bytes, sample.run_delay_ns) == (None, None, None, None)
    assert present.process.footprint() is None


def test_host_tick():
    before = psutil.cpu_times(percpu=True)
    tick = sample_host({"mono_ns": 1, "wall_ns": 2}, None, None, slow=True)
    after = psutil.cpu_times(percpu=True)
    assert len(tick.cores) == psutil.cpu_count()
    for core, least, most in zip(tick.cores, before, after, strict=True):
        for name in core.__struct_fields__:
            assert getattr(least, name) - 0.5 < getattr(core, name) < getattr(most, name) + 0.5
    assert tick.memory_total_bytes == psutil.virtual_memory().total
    assert tick.memory_total_bytes > tick.memory_available_bytes > 0
    assert tick.tcp_in_use is not None and tick.tcp_time_wait is not None
    assert (tick.scoreboard, tick.accept_queues, tick.tcp_states) == (None, None, None)
    assert tick.kernel["ActiveOpens"] >= 0
    assert msgspec.json.decode(msgspec.json.encode(tick), type=HostTick) == tick


def test_what_is_dear_is_left_out_of_most_ticks():
    tick = sample_host({"mono_ns": 1, "wall_ns": 2}, 1, None, slow=False)
    assert (tick.tcp_states, tick.kernel, tick.network) == (None, {}, {})
    assert tick.accept_queues == []
