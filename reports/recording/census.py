"""Which processes belong to what is recorded: every root with its descendants, each with its role."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from reports.recording import procfs
from reports.recording.procfs import Identity, Process, Stat
from reports.run_folder import Role

_DESCENDANT_ROLE: dict[Role, Role] = {"server-master": "server-worker", "load-master": "load-worker"}
"""Role of the descendants of a root; those of any other root have its own role."""


class Root(NamedTuple):
    """A process to record with all its descendants."""

    identity: Identity
    role: Role


class Present(NamedTuple):
    """A process that was there, and its counters then."""

    process: Process
    stat: Stat
    role: Role


class Census:
    """Looks who is there, again and again. It keeps every process open that was there the last time."""

    def __init__(self) -> None:
        self._open: dict[int, Process] = {}
        self._children = self._listed if procfs.LISTS_CHILDREN else self._scanned
        self._parents: dict[int, list[int]] = {}

    def close(self) -> None:
        for process in self._open.values():
            process.close()
        self._open.clear()

    def take(self, roots: Sequence[Root]) -> list[Present]:
        """Each root that lives, with its descendants, parents first, every process once.

        A root inside another root's tree is no part of that tree, nor are its descendants; of two roots with one pid
        the first counts. The recorder's own children are nobody's.
        """
        self._parents.clear()
        taken = {pid for (pid, _), _ in roots}
        seen: dict[int, Process] = {}
        found: list[Present] = []
        for present in self._trees(roots, taken):
            if present.process.pid not in seen:
                seen[present.process.pid] = present.process
                found.append(present)
        for pid in self._open.keys() - seen.keys():
            self._open.pop(pid).close()
        return found

    def _trees(self, roots: Sequence[Root], taken: set[int]) -> Iterator[Present]:
        for (pid, start_ticks), role in roots:
            root = self._look(pid, role)
            if root is None or root.stat.start_ticks != start_ticks:
                continue
            yield root
            if role != "recorder":
                yield from self._descendants(root, _DESCENDANT_ROLE.get(role, role), taken)

    def _descendants(self, parent: Present, role: Role, without: set[int]) -> Iterator[Present]:
        """The processes under `parent`, parents first, without the trees of the pids in `without`."""
        for pid in self._children(parent):
            if pid not in without and (present := self._look(pid, role)) is not None:
                yield present
                yield from self._descendants(present, role, without)

    def _look(self, pid: int, role: Role) -> Present | None:
        process = self._open.get(pid)
        if process is not None and (stat := process.stat()) is not None:
            return Present(process, stat, role)
        if process is not None:  # it has ended, and its pid may be another's by now
            del self._open[pid]
            process.close()
        try:
            process = self._open[pid] = Process(pid)
        except ProcessLookupError:
            return None
        stat = process.stat()
        return None if stat is None else Present(process, stat, role)

    def _listed(self, parent: Present) -> Sequence[int]:
        return parent.process.children(parent.stat.threads)

    def _scanned(self, parent: Present) -> Sequence[int]:
        """By reading every process of the machine, once a census, where the kernel does not list children."""
        if not self._parents:
            for pid in procfs.pids():
                if (stat := procfs.stat(pid)) is not None:
                    self._parents.setdefault(stat.parent, []).append(pid)
        return self._parents.get(parent.process.pid, [])
