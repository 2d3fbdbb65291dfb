"""A table as finished texts, and how a value becomes a cell.

All outputs print these cells, none formats a number again: so they cannot disagree. A number that is not known is a
dash, never 0.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from reports.texts import percent, significant

T = TypeVar("T")

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


Columns = Sequence[tuple[Column, Callable[[T], str]]]
"""Each column, and how a thing of which a row tells becomes its cell."""


def table_of(columns: Columns[T], things: Iterable[T], note: str = "") -> Table:
    """A row for each thing; the note is for a table that has rows."""
    rows = [Row([cell(thing) for _, cell in columns]) for thing in things]
    return Table([column for column, _ in columns], rows, note if rows else "")


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
