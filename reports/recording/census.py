"""Which processes belong to what is recorded: every root with its descendants, each with its role."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import psutil
from psutil import Process

from reports.run_folder import Role

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


class Census:
    """Looks who is there, again and again.

    psutil keeps one `Process` for each process of the machine, so a look is a list of /proc and costs 0.1 ms among 150
    processes. Whose child a process is is read once: `Process.children()` reads it anew of the whole machine, 2 to 4 ms
    at each call.
    """

    def __init__(self) -> None:
        self._parents: dict[Process, Process] = {}

    def take(self, roots: Sequence[Member]) -> list[Member]:
        """Each root that lives, with its descendants, parents first, every process once.

        A root inside another root's tree is no part of that tree, nor are its descendants; of two roles of a root the
        first counts. The recorder's own children are nobody's.
        """
        children = self._children()
        apart = {root.process for root in roots}
        found: dict[Process, Role] = {}
        for root, role in roots:
            if not root.is_running():
                continue
            found.setdefault(root, role)
            if role != "recorder":
                for process in _descendants(root, children, apart):
                    found.setdefault(process, _DESCENDANT_ROLE.get(role, role))
        return [Member(process, role) for process, role in found.items()]

    def _children(self) -> Mapping[Process, Sequence[Process]]:
        there = {process.pid: process for process in psutil.process_iter()}
        self._parents = {
            process: parent for process in there.values() if (parent := self._parent(process, there)) is not None
        }
        children = defaultdict(list)
        for process, parent in self._parents.items():
            children[parent].append(process)
        return children

    def _parent(self, process: Process, there: Mapping[int, Process]) -> Process | None:
        """It is another one only when the old one has ended. None once the process itself has."""
        known = self._parents.get(process)
        if known is not None and there.get(known.pid) is known:
            return known
        try:
            return there.get(process.ppid())
        except psutil.Error:
            return None


def _descendants(
    parent: Process, children: Mapping[Process, Sequence[Process]], without: set[Process]
) -> Iterator[Process]:
    """The living processes under `parent`, parents first, without the trees of those in `without`."""
    for process in children.get(parent, ()):
        # Where a pid was given to another process since the last look, psutil forgets the old one now.
        if process not in without and process.is_running():
            yield process
            yield from _descendants(process, children, without)
