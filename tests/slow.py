"""The same once more, at another moment, byte or socket: `make test` tries the first, and `make test-slow` the rest;
and all properties again, with four times as many examples."""

from collections.abc import Iterable
from typing import Any

import hypothesis
import pytest


def first_of(values: Iterable[Any]) -> list[Any]:
    """For `parametrize`: all but the first are slow."""
    first, *others = values
    tuples = (value if isinstance(value, tuple) else (value,) for value in others)
    return [first, *(pytest.param(*each, marks=pytest.mark.slow) for each in tuples)]


def examples(percent: int, **others: Any) -> hypothesis.settings:
    """For a property whose examples take long, so that it gets so many of each hundred that others have."""
    return hypothesis.settings(max_examples=hypothesis.settings.default.max_examples * percent // 100, **others)
