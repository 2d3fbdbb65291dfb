"""The report's files: report.html, report.md and what a terminal shows, each laid out from the same texts and charts.

report.html is one file: bokeh's JavaScript is inside, nothing is fetched, and it works from disk. What strangers chose
is escaped here and in the templates: by Jinja in HTML, by `texts.markdown` in Markdown, and control characters
are taken out everywhere.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from reports import run_folder, texts
from reports.analysis import Analysis, analyse
from reports.chart_lines import charts, marks
from reports.charts import draw
from reports.palette import FONT, PALETTE
from reports.percentile_chart import draw_percentiles
from reports.run_folder import RunFolderError
from reports.tables import Table
from reports.view import view

TEMPLATES = Path(__file__).parent / "templates"


def build(folder: Path) -> str:
    """Write summary.json, report.html and report.md of a run folder, from that folder alone, each whole or not at all.

    Returns what a terminal should show, which ends with the path of report.html. RunFolderError as from `analyse`, and
    when the folder cannot be written.
    """
    analysis = analyse(folder)
    page, text = html(analysis), markdown(analysis)
    try:
        run_folder.write_whole(folder / run_folder.SUMMARY, analysis.summary)
        _write_text(folder / run_folder.REPORT_MD, text)
        _write_text(folder / run_folder.REPORT_HTML, page)
    except OSError as error:
        raise RunFolderError(f"the report cannot be written into {folder}: {error.strerror}") from error
    return terminal(analysis, folder / run_folder.REPORT_HTML)


def _write_text(path: Path, text: str) -> None:
    """As run_folder.write_whole: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def html(analysis: Analysis) -> str:
    shown, marked = charts(analysis), marks(analysis)
    drawing = draw(shown, analysis.timeline.end_s, analysis.summary.phases, marked)
    percentile_script, percentile_div, percentile_keys = draw_percentiles(analysis.percentiles)
    return _template("report.html.j2").render(
        view=view(analysis),
        percentiles=Markup(percentile_div),
        percentile_keys=percentile_keys,
        charts=shown,
        divs={title: Markup(div) for title, div in drawing.divs.items()},
        marks=bool(marked),
        library=Markup(drawing.library),
        script=Markup(drawing.script + percentile_script),
        palette=PALETTE,
        font=Markup(FONT),
    )


def markdown(analysis: Analysis) -> str:
    return _template("report.md.j2").render(view=view(analysis))


def _template(name: str) -> jinja2.Template:
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


def terminal(analysis: Analysis, report: Path) -> str:
    """Verdict, sentence, conditions, what to be wary of, the modes without their size classes, what was offered, and
    where the report is."""
    shown = view(analysis)
    lines = [f"{shown.verdict}: {shown.reason}", "", shown.sentence, ""]
    if shown.thresholds.rows:
        lines += [*(_threshold_line(*row.cells) for row in shown.thresholds.rows), ""]
    if shown.warnings:
        lines += [*(f"warning: {warning}" for warning in shown.warnings), ""]
    for table in (shown.offered, shown.modes):
        if table.rows:
            lines += [*_aligned(table), ""]
    return "\n".join([*(texts.plain(line) for line in lines), str(report)])


def _threshold_line(condition: str, result: str, measured: str, why: str) -> str:
    return f"{result}: fails if {condition} ({why or measured})"


def _aligned(table: Table) -> Iterator[str]:
    columns = table.columns
    rows: list[Sequence[str]] = [[c.title for c in columns], [c.unit for c in columns]]
    rows += [
        [f"  {first}" if row.kind == "part" else first, *cells] for row in table.rows for first, *cells in [row.cells]
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        cells = zip(row, widths, columns, strict=True)
        yield "  ".join(cell.rjust(w) if column.numeric else cell.ljust(w) for cell, w, column in cells).rstrip()
