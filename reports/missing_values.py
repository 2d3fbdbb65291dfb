"""Values of which some are not known. None is not 0: a sum with it is not known either, a mean is of the others.

A leaf.
"""

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")
N = TypeVar("N", int, float)


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
