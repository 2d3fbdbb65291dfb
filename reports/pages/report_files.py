"""The report's files: report.html, report.md and what a terminal shows, each laid out from the same texts and charts.

report.html is one file: bokeh's JavaScript is inside, nothing is fetched, and it works from disk.
"""

from pathlib import Path

from markupsafe import Markup

from reports import run_folder, texts
from reports.analysis.summarise import Analysis, analyse
from reports.pages import layout
from reports.pages.chart_lines import charts, marks
from reports.pages.charts import draw, library
from reports.pages.palette import FONT, PALETTE
from reports.pages.percentile_chart import draw_percentiles
from reports.pages.report_texts import view
from reports.run_folder import RunFolderError


def build(folder: Path) -> str:
    """Write summary.json, report.html and report.md of a run folder, from that folder alone, each whole or not at all.

    Returns what a terminal should show, which ends with the path of report.html. RunFolderError as from `analyse`, and
    when the folder cannot be written.
    """
    analysis = analyse(folder)
    page, text = html(analysis), markdown(analysis)
    try:
        run_folder.write_whole(folder / run_folder.SUMMARY, analysis.summary)
        run_folder.replace(folder / run_folder.REPORT_MD, text.encode())
        run_folder.replace(folder / run_folder.REPORT_HTML, page.encode())
    except OSError as error:
        raise RunFolderError(f"the report cannot be written into {folder}: {error.strerror}") from error
    return terminal(analysis, folder / run_folder.REPORT_HTML)


def html(analysis: Analysis) -> str:
    shown, marked = charts(analysis), marks(analysis)
    drawn = draw(shown, analysis.timeline.end_s, analysis.summary.phases, marked)
    percentiles, percentile_keys = draw_percentiles(analysis.percentiles)
    return layout.template("report.html.j2").render(
        view=view(analysis),
        percentiles=Markup(percentiles),
        percentile_keys=percentile_keys,
        charts=shown,
        drawn={title: Markup(chart) for title, chart in drawn.items()},
        marks=bool(marked),
        library=Markup(library() if drawn or percentiles else ""),
        palette=PALETTE,
        font=Markup(FONT),
    )


def markdown(analysis: Analysis) -> str:
    return layout.template("report.md.j2").render(view=view(analysis))


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
            lines += [*layout.aligned(table), ""]
    return "\n".join([*(texts.plain(line) for line in lines), str(report)])


def _threshold_line(condition: str, result: str, measured: str, why: str) -> str:
    return f"{result}: fails if {condition} ({why or measured})"
