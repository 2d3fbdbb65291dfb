"""Who is recorded: trees of real processes, and roots inside each other's trees."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from nursery import end_nurseries

from reports.recording.census import Census, Member, process_of

SLEEP = [sys.executable, "-c", "import sys; sys.stdin.read()"]
NEST = "import subprocess, sys; child = subprocess.Popen(sys.argv[1:]); print(flush=True); child.wait()"


@pytest.fixture
def tree():
    """(the outer process, its child), both idle until standard input closes. This process has no other children."""
    end_nurseries()
    with subprocess.Popen([sys.executable, "-c", NEST, *SLEEP], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as outer:
        outer.stdout.readline()
        [child] = psutil.Process(outer.pid).children()
        yield outer.pid, child.pid
        outer.stdin.close()


def found(*roots):
    """(pid, role) of each root's tree; a root is (pid, role)."""
    return take(Census(), *(member(pid, role) for pid, role in roots))


def member(pid, role="server-master"):
    return Member(psutil.Process(pid), role)


def take(census, *roots):
    return [(process.pid, role) for process, role in census.take(roots)]


def test_descendants_follow_their_parent_and_get_its_role(tree):
    outer, child = tree
    assert found((outer, "server-master")) == [(outer, "server-master"), (child, "server-worker")]
    assert found((outer, "load-master")) == [(outer, "load-master"), (child, "load-worker")]
    assert found((outer, "server-status")) == [(outer, "server-status"), (child, "server-status")]


def test_a_root_inside_another_tree_is_no_part_of_it(tree):
    outer, child = tree
    this = os.getpid()
    assert found((outer, "server-master"), (this, "load-master")) == [
        (outer, "server-master"),
        (child, "server-worker"),
        (this, "load-master"),
    ]
    assert found((this, "load-master"), (child, "server-master")) == [
        (this, "load-master"),
        (outer, "load-worker"),
        (child, "server-master"),
    ]


def test_the_recorders_children_are_nobodys(tree):
    outer, _ = tree
    this = os.getpid()
    assert found((outer, "recorder"), (this, "load-master")) == [(outer, "recorder"), (this, "load-master")]


def test_the_first_role_of_a_process_counts(tree):
    outer, child = tree
    assert found((outer, "server-master"), (outer, "load-master")) == [
        (outer, "server-master"),
        (child, "server-worker"),
    ]


def reused(process, monkeypatch):
    """As if this were a process that had its pid before."""
    monkeypatch.setattr(process, "_ident", (process.pid, 0.0))


def test_a_root_that_ended_is_in_no_census(tree, monkeypatch):
    outer, _ = tree
    root = member(outer)
    reused(root.process, monkeypatch)
    assert take(Census(), root) == []


def test_a_pid_that_was_given_to_another_process_is_that_one(tree, monkeypatch):
    outer, child = tree
    census = Census()
    both = [(outer, "server-master"), (child, "server-worker")]
    assert take(census, member(outer)) == both
    [known] = [process for process in psutil.process_iter() if process.pid == child]
    reused(known, monkeypatch)
    assert take(census, member(outer)) == both
    [found] = [process for process, _ in census.take([member(outer)]) if process.pid == child]
    assert found is not known
    assert found.is_running()


def test_processes_are_kept_and_no_file_of_theirs_is_open(tree):
    outer, _ = tree
    census, root = Census(), member(outer)
    before = len(list(Path("/proc/self/fd").iterdir()))
    first = census.take([root])
    second = census.take([root])
    assert all(one.process is other.process for one, other in zip(first, second, strict=True))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_process_that_ends_between_two_looks_is_not_there():
    census = Census()
    with subprocess.Popen(SLEEP, stdin=subprocess.PIPE) as process:
        root = member(process.pid)
        assert take(census, root) == [(process.pid, "server-master")]
        process.communicate()
        assert take(census, root) == []
        assert process_of(process.pid) is None


FATHERLESS = r"""
import ctypes, os, sys
if sys.argv[1] == "adopts":
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
father = os.fork()
if not father:
    child = os.fork()
    if child:
        os.write(1, b"%d\n" % child)
    sys.stdin.buffer.raw.read()
    os._exit(0)
os.write(1, b"%d\n" % father)
os.wait()
os.write(1, b"\n")
sys.stdin.buffer.raw.read()
"""


@pytest.mark.parametrize("way", ["adopts", "leaves"])
def test_whose_parent_has_ended_is_its_new_parents(way):
    """Its root's, if that adopts them, or somebody else's."""
    command = [sys.executable, "-c", FATHERLESS, way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        father, child = sorted(int(process.stdout.readline()) for _ in range(2))
        census, root = Census(), member(process.pid)
        below = [(pid, "server-worker") for pid in (father, child)]
        assert take(census, root) == [(process.pid, "server-master"), *below]
        psutil.Process(father).kill()
        process.stdout.readline()
        assert take(census, root) == [(process.pid, "server-master"), *(below[1:] if way == "adopts" else [])]
        process.stdin.close()


def test_hundreds_of_children():
    script = "import os, sys, time\nfor _ in range(700):\n if not os.fork(): time.sleep(60)\nprint(flush=True); input()"
    script += "\nimport signal; signal.signal(15, signal.SIG_IGN); os.killpg(0, 15)"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as parent:
        parent.stdout.readline()
        workers = [pid for pid, role in found((parent.pid, "server-master")) if role == "server-worker"]
        assert sorted(workers) == sorted(child.pid for child in psutil.Process(parent.pid).children())
        assert len(workers) == 700
        parent.communicate(b"\n")


@pytest.mark.parametrize("pid", [-1, 0, 1 << 22 | 1, 1 << 70])
def test_nobody(pid):
    """The highest pid that the kernel can give out is 1 << 22."""
    assert process_of(pid) is None
