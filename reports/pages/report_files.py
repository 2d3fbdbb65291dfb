"""The report's files: report.html, report.md and what a terminal shows, each laid out from the same texts and charts.

report.html is one file: bokeh's JavaScript is inside, nothing is fetched, and it works from disk.
"""

from pathlib import Path

from markupsafe import Markup

from reports import run_folder
from reports.analysis.summarise import Analysis, analyse
from reports.json_lines import json_of, replace_all
from reports.pages import layout
from reports.pages.charts import charts, marks
from reports.pages.palette import FONT, PALETTE
from reports.pages.report_texts import View, view
from reports.run_folder import RunFolderError


def build(folder: Path) -> str:
    """Write summary.json, report.html and report.md of a run folder, from that folder alone: all of them or none.
    Returns what a terminal should show. RunFolderError as from `analyse`, and when the folder cannot be written."""
    analysis = analyse(folder)
    shown = view(analysis)
    page, text = html(analysis, shown), markdown(shown)
    try:
        replace_all(
            {
                folder / run_folder.SUMMARY: json_of(analysis.summary),
                folder / run_folder.REPORT_MD: text.encode(),
                folder / run_folder.REPORT_HTML: page.encode(),
            }
        )
    except OSError as error:
        raise RunFolderError(f"the report cannot be written into {folder}: {error.strerror}") from error
    return terminal(shown, folder / run_folder.REPORT_HTML, layout.columns())


def html(analysis: Analysis, shown: View) -> str:
    from reports.pages.drawing import draw, library  # bokeh takes half a second to import: only who draws waits for it
    from reports.pages.percentile_chart import draw_percentiles

    lines, marked = charts(analysis), marks(analysis)
    drawn = draw(lines, analysis.timeline.end_s, analysis.summary.phases, marked)
    percentiles, percentile_keys = draw_percentiles(analysis.percentiles)
    return layout.template("report.html.j2").render(
        view=shown,
        percentiles=Markup(percentiles),
        percentile_keys=percentile_keys,
        charts=lines,
        drawn={title: Markup(chart) for title, chart in drawn.items()},
        marks=bool(marked),
        library=Markup(library() if drawn or percentiles else ""),
        palette=PALETTE,
        font=Markup(FONT),
    )


def markdown(shown: View) -> str:
    return layout.template("report.md.j2").render(view=shown)


def terminal(shown: View, report: Path, columns: int = 0) -> str:
    """What a terminal of so many columns shows, the path of the report last."""
    blocks = [
        [f"{shown.verdict}: {shown.reason}", *(f"  also broken: {text}" for text in shown.also_broken)],
        [shown.sentence],
        [_threshold_line(*row.cells) for row in shown.thresholds.rows],
        [f"warning: {warning}" for warning in shown.warnings],
        layout.aligned(shown.offered, columns),
        layout.aligned(shown.modes, columns),
    ]
    return layout.terminal(blocks, report)


def _threshold_line(condition: str, result: str, measured: str, why: str) -> str:
    return f"{result}: fails if {condition} ({why or measured})"
