"""The same once more, at another moment, byte or socket: `make test` tries the first, and `make test-slow` the rest."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_of(values: Iterable[Any]) -> list[Any]:
    """For `parametrize`: all but the first are slow."""
    first, *others = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in others)]
