"""Who is recorded: trees of real processes, and roots inside each other's trees."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from reports.recording import procfs
from reports.recording.census import Census, Root

SLEEP = [sys.executable, "-c", "import sys; sys.stdin.read()"]
NEST = "import subprocess, sys; child = subprocess.Popen(sys.argv[1:]); print(flush=True); child.wait()"


@pytest.fixture
def tree():
    """(the outer process, its child), both idle until standard input closes."""
    with subprocess.Popen([sys.executable, "-c", NEST, *SLEEP], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as outer:
        outer.stdout.readline()
        [child] = psutil.Process(outer.pid).children()
        yield outer.pid, child.pid
        outer.stdin.close()


def found(*roots):
    """(pid, role) of each root's tree; a root is (pid, role)."""
    with closing(Census()) as census:
        return take(census, [Root(procfs.stat(pid).identity, role) for pid, role in roots])


def take(census, roots):
    return [(present.process.pid, present.role) for present in census.take(roots)]


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


def test_a_root_that_ended_is_in_no_census(tree):
    outer, _ = tree
    known = Root((outer, procfs.stat(outer).start_ticks - 1), "server-master")  # another process had its pid
    with closing(Census()) as census:
        assert take(census, [known]) == []


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_processes_are_open_while_they_are_there(tree):
    outer, child = tree
    before = descriptors()
    with closing(Census()) as census:
        both = [Root(procfs.stat(outer).identity, "server-master")]
        one = [Root(procfs.stat(child).identity, "server-master")]
        take(census, one)
        each = descriptors() - before
        assert each > 0
        take(census, both)
        take(census, both)
        assert descriptors() - before == 2 * each
        take(census, one)
        assert descriptors() - before == each
    assert descriptors() == before


def test_a_process_that_ends_between_two_looks_is_not_there_and_not_open():
    with closing(Census()) as census, subprocess.Popen(SLEEP, stdin=subprocess.PIPE) as process:
        before = descriptors()
        root = Root(procfs.stat(process.pid).identity, "server-master")
        assert take(census, [root]) == [(process.pid, "server-master")]
        process.communicate()
        assert take(census, [root]) == []
        assert descriptors() == before - 1  # its standard input was one


def test_kernels_that_list_no_children_give_the_same_trees(tree, monkeypatch):
    monkeypatch.setattr(procfs, "LISTS_CHILDREN", False)
    test_descendants_follow_their_parent_and_get_its_role(tree)
    test_a_root_inside_another_tree_is_no_part_of_it(tree)
    test_the_recorders_children_are_nobodys(tree)
