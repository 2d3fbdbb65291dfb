"""Which run is compared with which: repeats of two labels, paired with their neighbours in time.

Machines drift: they warm up, neighbours come and go. Runs that follow each other share most of that, so their ratio is
free of it, and in turned order (A B B A) what drifts steadily falls on both labels alike. Only runs that were
interleaved can be paired; others are compared as two groups, where all that changed over time counts as a difference.
"""

from collections.abc import Sequence
from typing import TypeVar

from reports.comparison.result import FEWEST_PAIRS

T = TypeVar("T")

PAIRED_SHARE = 0.8  # of the runs of both labels: a few may have lost their partner


def pairs(ordered: Sequence[tuple[str, T]], baseline: str, candidate: str) -> list[tuple[T, T]] | None:
    """Neighbours of different labels as (baseline, candidate), each run in one pair at most, of (label, run) in the
    order of time. None where too few have such a neighbour: they were not interleaved, or not evenly, and as two groups
    they say more."""
    rest = [(label, run) for label, run in ordered if label in (baseline, candidate)]
    found: list[tuple[T, T]] = []
    at = 0
    while at + 1 < len(rest):
        (label, run), (next_label, next_run) = rest[at], rest[at + 1]
        if label == next_label:
            at += 1
            continue
        found.append((run, next_run) if label == baseline else (next_run, run))
        at += 2
    fewest = min(sum(label == name for label, _ in rest) for name in (baseline, candidate))
    interleaved = 2 * len(found) >= PAIRED_SHARE * len(rest)
    return found if interleaved and not len(found) < FEWEST_PAIRS <= fewest else None
