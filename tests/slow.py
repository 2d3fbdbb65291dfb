"""The same once more, at another moment, byte or socket: `make test` tries the first, and `make test-slow` the rest."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_of(values: Iterable[Any]) -> list[Any]:
    """For `parametrize`: all but the first are slow."""
    first, *others = values
    tuples = (value if isinstance(value, tuple) else (value,) for value in others)
    return [first, *(pytest.param(*each, marks=pytest.mark.slow) for each in tuples)]
