"""A table as finished texts, and how a value becomes a cell.

All outputs print these cells, none formats a number again: so they cannot disagree. A number that is not known is a
dash, never 0.
"""

from dataclasses import dataclass
from typing import Literal

from reports.texts import percent, significant

NONE = "–"


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    cells: list[str]
    kind: Literal["main", "part", "ratio", "bad"] = "main"
    """How it looks: `part` is of the row above, `ratio` of all above; `bad` is red."""


@dataclass(frozen=True, slots=True)
class Table:
    columns: list[Column]
    rows: list[Row]
    note: str = ""


def text_column(title: str, unit: str = "") -> Column:
    return Column(title, unit, numeric=False)


def rounded(value: float | None, unit: float = 1) -> str:
    """Three digits of it, in this unit: `1 << 20` for MiB."""
    return NONE if value is None else significant(value / unit)


def whole(value: float | None) -> str:
    """All of its digits before the point."""
    return NONE if value is None else f"{round(value):,}"


def share(value: float | None) -> str:
    return NONE if value is None else percent(value)
