"""/proc, beside what psutil makes of it, and as it is when something is missing."""

import os
import resource
import socket
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from reports.recording import procfs
from reports.recording.procfs import Process


def test_a_process_as_psutil_has_it():
    stat, known = procfs.stat(os.getpid()), psutil.Process()
    assert (stat.pid, stat.parent, stat.state) == (known.pid, known.ppid(), "R")
    assert stat.create_time == known.create_time()
    assert stat.threads == known.num_threads()
    times = known.cpu_times()
    seen = (stat.user_s, stat.system_s, stat.children_user_s, stat.children_system_s)
    for ours, theirs in zip(seen, times, strict=False):
        assert ours == pytest.approx(theirs, abs=0.1)
    assert stat.rss_bytes == pytest.approx(known.memory_info().rss, rel=0.1)


@pytest.fixture
def this():
    with closing(Process(os.getpid())) as process:
        yield process


def test_switches_are_those_of_the_kernel(this):
    seen = this.switches()
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    assert seen.voluntary <= usage.ru_nvcsw
    assert seen.involuntary <= usage.ru_nivcsw


def test_bytes_written_to_a_disk(this):
    assert this.disk_bytes() is not None


def test_the_footprint_is_psutils(this):
    seen, known = this.footprint(), psutil.Process().memory_full_info()
    assert (seen.uss, seen.pss) == (pytest.approx(known.uss, rel=0.05), pytest.approx(known.pss, rel=0.05))


def test_descriptors_are_counted(this):
    before = this.open_files()
    with socket.socket(), socket.socket():
        assert this.open_files() == before + 2


def test_nobody():
    """Above the highest pid that the kernel gives out."""
    pid = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    assert procfs.stat(pid) is None
    with pytest.raises(ProcessLookupError):
        Process(pid)


@pytest.fixture
def gone():
    """A process that was opened, and has ended since."""
    with subprocess.Popen(["sleep", "60"]) as process, closing(Process(process.pid)) as opened:
        process.kill()
        process.wait()
        yield opened


def test_what_is_gone_stays_gone(gone):
    assert gone.stat() is None
    assert gone.switches() is None
    assert gone.disk_bytes() is None
    assert gone.open_files() is None
    assert gone.footprint() is None
    assert gone.run_delay_ns(1) is None
    assert gone.children(2) == []


def test_a_child_for_each_page_of_its_list():
    """The kernel gives long lists in pieces of a page."""
    script = "import os, sys, time\nfor _ in range(700):\n if not os.fork(): time.sleep(60)\nprint(flush=True); input()"
    script += "\nimport signal; signal.signal(15, signal.SIG_IGN); os.killpg(0, 15)"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as parent:
        parent.stdout.readline()
        with closing(Process(parent.pid)) as process:
            assert sorted(process.children(1)) == sorted(child.pid for child in psutil.Process(parent.pid).children())
            assert len(process.children(1)) == 700
        parent.communicate(b"\n")


# ── a /proc of our own ──


@pytest.fixture
def proc(tmp_path):
    """Of one process, 5, with threads 5 and 6."""
    for thread, children, schedstat in ((5, "11 12 ", "900 30 4\n"), (6, "", "100 12 2\n")):
        folder = tmp_path / "5" / "task" / str(thread)
        folder.mkdir(parents=True)
        (folder / "children").write_text(children)
        (folder / "schedstat").write_text(schedstat)
    for name in ("stat", "status", "io"):
        (tmp_path / "5" / name).touch()
    return tmp_path


@contextmanager
def opened(proc):
    with closing(Process(5, str(proc))) as process:
        yield process


def test_children_of_all_threads(proc):
    (proc / "5/task/6/children").write_text("13")
    with opened(proc) as process:
        assert sorted(process.children(2)) == [11, 12, 13]
        assert process.children(1) == [11, 12]


def test_run_delay_is_summed_over_threads(proc):
    with opened(proc) as process:
        assert process.run_delay_ns(2) == 42
        (proc / "5/task/6/schedstat").unlink()  # it ended meanwhile
        assert process.run_delay_ns(2) == 30


def test_run_delay_is_unknown_when_the_kernel_does_not_count(proc):
    for thread in (5, 6):
        (proc / f"5/task/{thread}/schedstat").write_text("0 0 0\n")
    with opened(proc) as process:
        assert process.run_delay_ns(2) is None


def test_a_name_with_brackets_and_spaces_does_not_confuse_the_fields(proc):
    (proc / "5/stat").write_text("5 (a) R (b) S 7 " + " ".join(["0"] * 17) + " 4242 0 3 0")
    with opened(proc) as process:
        stat = process.stat()
    assert (stat.state, stat.parent, stat.identity) == ("S", 7, (5, 4242))
    assert stat.rss_bytes == 3 * resource.getpagesize()


@pytest.mark.parametrize("text", ["", "Name:\tx\n", "Name:\tx\nvoluntary_ctxt_switches:\t\n"])
def test_a_status_without_switches(proc, text):
    (proc / "5/status").write_text(text)
    with opened(proc) as process:
        assert process.switches() is None


@pytest.mark.parametrize("text", [None, "", "rchar: 5\n"])
def test_an_io_file_without_disk_bytes(proc, text):
    (proc / "5/io").unlink()
    if text is not None:
        (proc / "5/io").write_text(text)
    with opened(proc) as process:
        assert process.disk_bytes() is None


def test_threads_that_come_are_seen():
    stop = threading.Event()
    before = procfs.stat(os.getpid()).threads
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert procfs.stat(os.getpid()).threads == before + 1
    finally:
        stop.set()
        thread.join()
