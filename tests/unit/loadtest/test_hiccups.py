"""The hiccup meter: a process that sleeps beside the load, and says how late it woke."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from servers import DEADLINE_S, ROOT, eventually

from loadtest import hiccups
from loadtest.hiccup_meter import HiccupMeter, with_missed

SCRIPT = ROOT / "loadtest" / "hiccups.py"


@pytest.fixture
def meter():
    meter = HiccupMeter()
    yield meter
    meter.close()


def delays(meter, number=1):
    """At least so many, as they come."""
    found = []
    eventually(lambda: found.extend(meter.take().tolist()) or len(found) >= number, f"{number} delays")
    return found


def test_its_sleeps_fill_the_time(meter):
    """One each 1 ms, told once each, ten times a second. What a pause kept it from telling comes later, so it may take
    more than one look."""

    def fill_it():
        delays(meter)
        begun_s = time.monotonic()
        found = [*delays(meter, 500), *meter.take().tolist()]
        took_s = time.monotonic() - begun_s
        assert min(found) >= 0
        return len(found) / 1000 == pytest.approx(took_s, rel=0.2, abs=0.15)

    eventually(fill_it, "as many as there were milliseconds")


@pytest.mark.parametrize(
    ("delays_us", "all_us"),
    [
        ([], []),
        ([60, 1000, 70], [60, 1000, 70]),
        ([60, 3500, 70], [60, 3500, 70, 2500, 1500, 500]),
        ([2000, 1001], [2000, 1001, 1000, 1]),
    ],
)
def test_sleeps_that_were_missed_were_late_too(delays_us, all_us):
    assert with_missed(np.array(delays_us, dtype=np.int64)).tolist() == all_us


def test_a_pause_counts_for_its_time(meter):
    """One of 0.2 s is a fifth of a second of sleeps, most of them late by more than 5 ms."""
    delays(meter)
    process = psutil.Process(meter.pid)
    process.suspend()
    eventually(lambda: process.status() == psutil.STATUS_STOPPED, "it has stopped")
    meter.take()
    stopped_s = time.monotonic()
    eventually(lambda: time.monotonic() - stopped_s > 0.2, "it missed 200 sleeps")
    process.resume()
    assert sum(delay > 5000 for delay in delays(meter, 200)) >= 190


def test_it_sleeps_on_the_core_of_the_load():
    """Of one that stays on its core, so that there is one answer."""
    before = os.sched_getaffinity(0)
    core = max(before)
    try:
        os.sched_setaffinity(0, {core})
        assert hiccups.core_of(os.getpid()) == core
        meter = HiccupMeter()
        try:
            os.sched_setaffinity(meter.pid, before)  # it inherits ours
            delays(meter)
            eventually(lambda: os.sched_getaffinity(meter.pid) == {core}, "it has moved")
        finally:
            meter.close()
    finally:
        os.sched_setaffinity(0, before)


def test_close_ends_it(meter):
    pid = meter.pid
    assert psutil.pid_exists(pid)
    meter.close()
    assert not psutil.pid_exists(pid)


def test_one_that_died_says_nothing(meter):
    """The run goes on without."""
    os.kill(meter.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(meter.pid)], timeout=DEADLINE_S)
    meter.take()  # what it said before
    assert meter.take().tolist() == []


def test_it_ends_with_the_load():
    """However that ended."""
    code = "import os; from loadtest.hiccup_meter import HiccupMeter; print(HiccupMeter().pid, flush=True); os._exit(0)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    eventually(lambda: has_ended(int(ended.stdout)), "it ends")


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_ends_when_nobody_reads():
    process = subprocess.Popen([sys.executable, "-S", "-E", str(SCRIPT)], stdout=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(DEADLINE_S) == 0


def test_ctrl_c_is_for_the_load(meter):
    """It has a session of its own, so that a terminal does not end it in the middle of the drain."""
    assert os.getsid(meter.pid) == meter.pid
