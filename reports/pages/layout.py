"""Templates made into pages, tables into lines of a terminal, and files written: what a report and a comparison share.

What strangers chose is escaped here and in the templates: by Jinja in HTML, by `texts.markdown` in Markdown, and
control characters are taken out everywhere.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2

from reports import texts
from reports.pages.tables import Table

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


def aligned(table: Table) -> Iterator[str]:
    """The lines of a table in a terminal."""
    columns = table.columns
    rows: list[Sequence[str]] = [[c.title for c in columns], [c.unit for c in columns]]
    rows += [
        [f"  {first}" if row.kind == "part" else first, *cells] for row in table.rows for first, *cells in [row.cells]
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        cells = zip(row, widths, columns, strict=True)
        yield "  ".join(cell.rjust(w) if column.numeric else cell.ljust(w) for cell, w, column in cells).rstrip()
