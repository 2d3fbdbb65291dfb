"""Values of which some are not known. None is not 0: a sum with it is not known either, a mean is of the others.

A leaf.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import psutil

T = TypeVar("T")
N = TypeVar("N", int, float)

# A process that ended or is another user's is one of psutil's own errors. The others are a kernel's, or lxcfs's, that
# leaves out a file, a line or a field of /proc: psutil then has no method, finds no number, or cannot fill its tuple.
_UNREADABLE = (psutil.Error, OSError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def read(figure: Callable[[], T]) -> T | None:
    """A figure of the machine or of a process; None where it cannot be read."""
    try:
        return figure()
    except _UNREADABLE:
        return None


def known(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def total(values: Iterable[N | None]) -> N | None:
    """The sum; None where there is no value at all, or one of them is not known."""
    found = list(values)
    told = known(found)
    return sum(told) if told and len(told) == len(found) else None


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are known; None where none is."""
    told = known(values)
    return sum(told) / len(told) if told else None


def most(values: Iterable[N | None]) -> N | None:
    """The largest that is known; None where none is."""
    return max(known(values), default=None)
