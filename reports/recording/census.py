"""Which processes belong to what is recorded: every root with its descendants, each with its role."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import psutil
from psutil import Process

from reports.missing_values import read
from reports.run_folder import Role
from server.ports.holders import TICKS_PER_S, living_thread, read_process

_DESCENDANT_ROLE: dict[Role, Role] = {"server-master": "server-worker", "load-master": "load-worker"}
"""Role of the descendants of a root; those of any other root have its own role."""


class Member(NamedTuple):
    """A process and its part in the run. psutil knows a process by its pid and create_time."""

    process: Process
    role: Role


def process_of(pid: int) -> Process | None:
    """None when there is no such process."""
    try:
        return Process(pid)
    except (psutil.NoSuchProcess, ValueError):  # the latter of a negative number
        return None


# Once, or each reading would be another time.
_BOOT_S = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def create_time(process: Process) -> float | None:
    """In seconds since the epoch; None when it has ended. psutil needs a boot time, which /proc/stat may not have."""
    created = read(process.create_time)
    if created is None and (found := read_process(process.pid)):
        created = _BOOT_S + found.start_ticks / TICKS_PER_S
    return created


def living_part(process: Process) -> Process:
    """What to ask for its memory, files and command line: another of its threads if the main one has ended."""
    thread = living_thread(process.pid)
    return process if thread == process.pid else process_of(thread) or process


class Census:
    """Looks who is there, again and again. psutil keeps one `Process` for each process of the machine, so a look is a
    list of /proc and costs 0.1 ms among 150 processes. Whose child a process is is read once: `Process.children()`
    reads it anew of the whole machine, 2 to 4 ms at each call."""

    def __init__(self) -> None:
        self._parents: dict[int, tuple[Process, Process]] = {}  # by pid, as psutil takes a while to hash a Process
        self._pids: list[int] = []
        self._roots: list[Member] = []
        self._found: list[Member] = []

    def take(self, roots: Sequence[Member], *, identities: bool = True) -> list[Member]:
        """Each root that lives, with its descendants, parents first, every process once.

        A root inside another root's tree is no part of that tree, nor are its descendants; of two roles of a root the
        first counts. The recorder's own children are nobody's.

        While the machine has the same pids nobody was born, ended or adopted. With `identities` creation times are read
        anew, too: between two looks a pid comes back only after the kernel has gone through all others, and this would
        be a third of what the recorder costs.
        """
        pids = psutil.pids()
        if identities or pids != self._pids or roots != self._roots:
            self._pids, self._roots = pids, list(roots)
            self._found = self._look(roots)
            if identities and not all(one.process.is_running() for one in self._found):
                psutil.process_iter.cache_clear()  # somebody has the pid of another: let psutil forget that one
                self._found = self._look(roots)
        return self._found

    def _look(self, roots: Sequence[Member]) -> list[Member]:
        there = {process.pid: process for process in psutil.process_iter()}
        children = self._children(there)
        apart = {root.process.pid for root in roots}
        found: dict[Process, Role] = {}
        for root, role in roots:
            if there.get(root.pid) != root:
                continue
            found.setdefault(root, role)
            if role != "recorder":
                for process in _descendants(root.pid, children, apart):
                    found.setdefault(process, _DESCENDANT_ROLE.get(role, role))
        return [Member(process, role) for process, role in found.items()]

    def _children(self, there: Mapping[int, Process]) -> Mapping[int, Sequence[Process]]:
        """The children of each pid."""
        children = defaultdict(list)
        before, self._parents = self._parents, {}
        for pid, process in there.items():
            known = before.get(pid)
            # A process gets another parent only when the old one has ended.
            if known is None or known[0] is not process or there.get(known[1].pid) is not known[1]:
                ppid = read(process.ppid)  # None once it has ended
                parent = None if ppid is None else there.get(ppid)
                known = None if parent is None else (process, parent)
            if known is not None:
                self._parents[pid] = known
                children[known[1].pid].append(process)
        return children


def _descendants(parent: int, children: Mapping[int, Sequence[Process]], without: set[int]) -> Iterator[Process]:
    """The processes under `parent`, parents first, without the trees of those in `without`."""
    for process in children.get(parent, ()):
        if process.pid not in without:
            yield process
            yield from _descendants(process.pid, children, without)
