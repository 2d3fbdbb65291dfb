"""Run delay of real processes, and of a /proc of our own."""

import os
from pathlib import Path

import pytest

from reports.run_delay import run_delay_ns


def test_of_this_process():
    assert run_delay_ns(os.getpid()) > 0


def test_of_nobody():
    """Above the highest pid that the kernel gives out."""
    assert run_delay_ns(int(Path("/proc/sys/kernel/pid_max").read_text()) + 1) is None


@pytest.fixture
def proc(tmp_path):
    """Of one process, 5, with threads 5 and 6."""
    for thread, schedstat in ((5, "900 30 4\n"), (6, "100 12 2\n")):
        folder = tmp_path / "5" / "task" / str(thread)
        folder.mkdir(parents=True)
        (folder / "schedstat").write_text(schedstat)
    return tmp_path


def test_it_is_summed_over_threads(proc):
    assert run_delay_ns(5, str(proc)) == 42
    (proc / "5/task/6/schedstat").unlink()  # it ended meanwhile
    assert run_delay_ns(5, str(proc)) == 30


@pytest.mark.parametrize("text", ["0 0 0\n", "", "7\n"])
def test_it_is_unknown_when_the_kernel_does_not_count(proc, text):
    for thread in (5, 6):
        (proc / f"5/task/{thread}/schedstat").write_text(text)
    assert run_delay_ns(5, str(proc)) is None
