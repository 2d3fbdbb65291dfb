"""What one load process sends of a run's schedule: its arrivals in order, each made when it is taken.

The schedule is one for the whole run; of n load processes the k-th sends every n-th arrival, so together they send what
one would. It is held a cell of one second at a time. So memory stays constant however long a plan is, and however long
nobody can take anything: in a minute's stall at 5,000 arrivals a second 300,000 become due, which are only counted.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from loadtest import arrivals
from loadtest.load import RunningPhase
from loadtest.options import LoadOptions
from loadtest.payloads import Payload, PayloadSet
from loadtest.telemetry import Arrival

Job = tuple[RunningPhase, Payload, str, Arrival]
"""What to upload in which phase, under which name, and when it was due."""

_Nanoseconds = NDArray[np.int64]
_Cell = tuple[RunningPhase, _Nanoseconds, _Nanoseconds]
"""Our arrivals of a second of a phase: their indices, and when they are due on our monotonic clock."""


class Schedule:
    """Arrivals k, k + n, k + 2n… of each phase of a plan that starts at `start_ns` of our monotonic clock."""

    def __init__(self, options: LoadOptions, payloads: PayloadSet, start_ns: int, k: int, n: int) -> None:
        self._pick = payloads.pick_arrival
        self._arrivals = _one_by_one(_cells(options, start_ns, k, n))
        self._next = next(self._arrivals, None)
        self._end_ns: int | None = None
        self._count = _Count(_cells(options, start_ns, k, n))
        self._taken = 0

    @property
    def due_ns(self) -> int | None:
        """When the next arrival is due; None if there is none left."""
        if self._next is None:
            return None
        due_ns = self._next[2]
        return due_ns if self._end_ns is None or due_ns <= self._end_ns else None

    def take(self, woke_ns: int) -> Job:
        """The next arrival, of which the load process learned at `woke_ns`. There must be one, see `due_ns`."""
        assert self._next is not None
        phase, index, due_ns = self._next
        self._next = next(self._arrivals, None)
        self._taken += 1
        return (phase, *self._pick(index), Arrival(due_ns, woke_ns))

    def waiting(self, now_ns: int) -> int:
        """How many are due and were not taken. `now_ns` never goes back."""
        return self._count.until(now_ns if self._end_ns is None else self._end_ns) - self._taken

    def end(self, at_ns: int) -> None:
        """What is due later is not ours any more."""
        if self._end_ns is None:
            self._end_ns = at_ns


class _Count:
    """How many of the arrivals in these cells are due by a time that never goes back. Cells are made a second time for
    it, which takes 0.3 ms a second at most at 5,000 arrivals a second; kept, they would all have to be."""

    def __init__(self, cells: Iterator[_Cell]) -> None:
        self._due = (due_ns for _, _, due_ns in cells)
        self._cell = next(self._due, None)
        self._before = 0

    def until(self, now_ns: int) -> int:
        while self._cell is not None and (not len(self._cell) or self._cell[-1] <= now_ns):
            self._before += len(self._cell)
            self._cell = next(self._due, None)
        return self._before + (0 if self._cell is None else int(np.searchsorted(self._cell, now_ns, side="right")))


def _cells(options: LoadOptions, start_ns: int, k: int, n: int) -> Iterator[_Cell]:
    for planned in options.plan:
        end_ns = start_ns + round(planned.duration_s * 1e9)
        phase = RunningPhase(planned.name, planned.uploads_per_connection, end_ns)
        profile = options.profile_of(planned)
        cells = arrivals.cells(profile, planned.duration_s, options.seed) if profile is not None else ()
        for first, offsets in cells:
            indices, ours = arrivals.stripe(first, offsets, k, n)
            yield phase, indices, start_ns + ours
        start_ns = end_ns


def _one_by_one(cells: Iterator[_Cell]) -> Iterator[tuple[RunningPhase, int, int]]:
    for phase, indices, due_ns in cells:
        for index, due in zip(indices.tolist(), due_ns.tolist(), strict=True):
            yield phase, index, due
