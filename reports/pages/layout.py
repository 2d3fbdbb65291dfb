"""Templates made into pages, and texts and tables into a terminal's lines: what a report and a comparison share.

What strangers chose is escaped here and in the templates: by Jinja in HTML, by `texts.markdown` in Markdown, and
control characters everywhere, by `texts.plain`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2

from reports import texts
from reports.pages.table import Table

TEMPLATES = Path(__file__).parent / "templates"


def template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = texts.markdown
    environment.filters["plain"] = texts.plain
    return environment.get_template(name)


def terminal(blocks: Iterable[Sequence[str]], page: Path) -> str:
    """Blocks of lines with an empty line after each, but for those that are empty themselves; last the page's path."""
    lines = [texts.plain(line) for block in blocks if block for line in (*block, "")]
    return "\n".join([*lines, str(page)])


def aligned(table: Table) -> list[str]:
    """The lines of a table in a terminal; none without rows."""
    if not table.rows:
        return []
    columns = table.columns
    rows: list[Sequence[str]] = [[c.title for c in columns], [c.unit for c in columns]]
    rows += [
        [f"  {first}" if row.kind == "part" else first, *cells] for row in table.rows for first, *cells in [row.cells]
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column.numeric else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in rows
    ]
