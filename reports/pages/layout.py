"""Templates made into pages, and texts and tables into a terminal's lines: what a report and a comparison share.

What strangers chose is escaped here and in the templates: by Jinja in HTML, by `texts.markdown` in Markdown, and
control characters everywhere, by `texts.plain`.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2

from reports import texts
from reports.pages.table import Table
from server.printing import as_shown

GAP = "  "  # between two columns
TEMPLATES = Path(__file__).parent / "templates"


_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(TEMPLATES),
    autoescape=jinja2.select_autoescape(disabled_extensions=["md.j2"], default=True),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters |= {"markdown": texts.markdown, "plain": texts.plain}
template = _environment.get_template


def columns() -> int:
    """How wide the terminal is, by COLUMNS or the kernel; 0 where there is none, and lines may be of any length."""
    return shutil.get_terminal_size((0, 0)).columns


def terminal(blocks: Iterable[Sequence[str]], page: Path) -> str:
    """Blocks of lines with an empty line after each, but for those that are empty themselves; last the page's path."""
    lines = [texts.plain(line) for block in blocks if block for line in (*block, "")]
    return "\n".join([*lines, texts.plain(page)])


def aligned(table: Table, columns: int = 0) -> list[str]:
    """The lines of a table in a terminal of so many columns; none without rows. What it is too narrow for follows
    below, with the first column before it again."""
    if not table.rows:
        return []
    titled = table.columns
    rows: list[Sequence[str]] = [[c.title for c in titled], [c.unit for c in titled]]
    rows += [
        [f"  {first}" if row.kind == "part" else first, *cells] for row in table.rows for first, *cells in [row.cells]
    ]
    rows = [[as_shown(texts.plain(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(titled))]

    def lines(shown: Sequence[int]) -> list[str]:
        cells = [
            [row[i].rjust(widths[i]) if titled[i].numeric else row[i].ljust(widths[i]) for i in shown] for row in rows
        ]
        return [GAP.join(row).rstrip() for row in cells]

    parts = _parts(widths, columns)
    return [line for part in parts for line in ([] if part is parts[0] else [""]) + lines(part)]


def _parts(widths: Sequence[int], columns: int) -> list[list[int]]:
    """Which columns of a table stand beside each other: the first, and as many others as there is room for."""
    first, *others = range(len(widths))
    parts = [[first]]
    for other in others:
        wide = sum(widths[i] + len(GAP) for i in parts[-1]) + widths[other]
        if columns and wide > columns and len(parts[-1]) > 1:
            parts.append([first])
        parts[-1].append(other)
    return parts
