"""A comparison's files: comparison.html, comparison.md, comparison.json, and what a terminal shows of it."""

from contextlib import suppress
from pathlib import Path

from markupsafe import Markup

from reports.comparison.result import Comparison
from reports.json_lines import json_of, replace_all
from reports.pages import layout
from reports.pages.comparison_texts import ComparisonView, view
from reports.pages.palette import FONT, PALETTE
from reports.run_folder import RunFolderError

COMPARISON_JSON = "comparison.json"
COMPARISON_HTML = "comparison.html"
COMPARISON_MD = "comparison.md"


def write(comparison: Comparison, folder: Path) -> str:
    """Make the folder and write all three files, or none. Returns what a terminal should show, which
    ends with the path of comparison.html. RunFolderError when the folder cannot be written."""
    shown = view(comparison)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_all(
            {
                folder / COMPARISON_JSON: json_of(comparison),
                folder / COMPARISON_MD: markdown(shown).encode(),
                folder / COMPARISON_HTML: html(shown).encode(),
            }
        )
    except OSError as error:
        with suppress(OSError):  # one that has nothing in it says nothing
            folder.rmdir()
        raise RunFolderError(f"the comparison cannot be written into {folder}: {error.strerror}") from error
    return terminal(shown, folder / COMPARISON_HTML, layout.columns())


def html(shown: ComparisonView) -> str:
    return layout.template("comparison.html.j2").render(view=shown, palette=PALETTE, font=Markup(FONT))


def markdown(shown: ComparisonView) -> str:
    return layout.template("comparison.md.j2").render(view=shown)


def terminal(shown: ComparisonView, page: Path, columns: int = 0) -> str:
    """What a terminal of so many columns shows, the path of the page last."""
    tables = [table for section in shown.sections for table in (section.findings, section.differences)]
    blocks = [
        [f"{shown.verdict}: {shown.sentence}"],
        [f"warning: {warning}" for warning in shown.warnings],
        *(layout.aligned(table, columns) for table in tables),
    ]
    return layout.terminal(blocks, page)
