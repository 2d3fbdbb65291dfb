"""Which of many processes are shown by themselves, and which as one? The same in the charts and in the table.

Who came or went during the run comes first, then who used most CPU. Workers and all others are apart, or many workers
would leave no room for the load.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from reports.summary import ProcessSummary

MOST = 6  # of a family


@dataclass(frozen=True, slots=True)
class Family:
    """Some processes, each as its index, in the order that they had."""

    what: str
    shown: list[int]
    rest: list[int]


def families(processes: Sequence[ProcessSummary]) -> tuple[Family, Family]:
    """(workers, all others)."""
    workers = [i for i, process in enumerate(processes) if process.role == "server-worker"]
    others = [i for i, process in enumerate(processes) if process.role != "server-worker"]
    return _family("workers", processes, workers), _family("processes", processes, others)


def _family(what: str, processes: Sequence[ProcessSummary], members: list[int]) -> Family:
    """One more than the limit is shown too: a mean of one would say less in the same room."""
    if len(members) <= MOST + 1:
        return Family(what, members, [])
    ranked = sorted(members, key=lambda index: _rank(processes[index]))
    return Family(what, sorted(ranked[:MOST]), ranked[MOST:])


def _rank(process: ProcessSummary) -> tuple[bool, float]:
    stayed = process.started_s <= 0 and not process.ended
    return stayed, -((process.cpu_user_s or 0) + (process.cpu_system_s or 0))
