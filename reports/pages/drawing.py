"""The charts, drawn with bokeh, which only this file and percentile_chart.py import.

All charts are one bokeh document on one x axis: to zoom or to point in one is to do so in all. Legends, titles and
notes are HTML around them (templates/report.html.j2), where they wrap on a phone and can be read by a screen reader.

The page has a script for each chart, right behind its place: a browser shows the first while it still reads the rest,
and all are there before the page counts as loaded, so that a printer finds them.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.core.properties import value
from bokeh.core.serialization import Serializer
from bokeh.document import Document
from bokeh.document.events import RootAddedEvent
from bokeh.events import DoubleTap
from bokeh.models import (
    BasicTicker,
    BoxZoomTool,
    ColumnDataSource,
    CrosshairTool,
    CustomJS,
    FixedTicker,
    HoverTool,
    Model,
    NumeralTickFormatter,
    Range1d,
    glyphs,
)
from bokeh.models.annotations import Span
from bokeh.models.renderers import DataRenderer
from bokeh.plotting import figure
from bokeh.resources import INLINE
from jinja2.utils import htmlsafe_json_dumps

from reports.analysis.timeline import Curve
from reports.pages import envelope
from reports.pages.charts import Chart, Line, Mark
from reports.pages.palette import FONT, light, mode_colour
from reports.summary import PhaseSummary
from reports.texts import plain

HEIGHT_PX = 210
MOST_DOTS = 100  # more would be a line
HEADROOM = 1.25  # of the range of values, for the names of the phases
FRAME: dict[str, Any] = {
    "sizing_mode": "stretch_width",
    "toolbar_location": None,
    "tools": [],
    "min_border_left": 64,
    "min_border_right": 8,
    "background_fill_alpha": 0,
    "border_fill_alpha": 0,
    "outline_line_alpha": 0,
}
"""What all charts have around them: nothing, and room for the labels of the y axis."""
PHONE_PX, LETTER_PX = 300, 7  # width of a plot on a phone, and of a letter in it


@dataclass(frozen=True, slots=True)
class _Canvas:
    """What all charts of a report share."""

    phases: ColumnDataSource
    marks: ColumnDataSource
    x_range: Range1d
    crosshair: Span


def draw(
    charts: Sequence[Chart], end_s: float, phases: Sequence[PhaseSummary], marks: Sequence[Mark]
) -> dict[str, str]:
    """HTML by title, of the charts that have lines: from 0 to `end_s`, over shaded phases, with marks of events."""
    end_s = end_s or 1.0
    x_range = Range1d(start=0, end=end_s, bounds=(0, end_s), min_interval=min(1.0, end_s))
    crosshair = Span(dimension="height", line_width=1, line_color=light("muted"))
    marked = ColumnDataSource({"x": [mark.at_s for mark in marks], "text": [mark.text for mark in marks]})
    canvas = _Canvas(_phases(phases, end_s), marked, x_range, crosshair)
    drawn = [chart for chart in charts if chart.lines]
    if not drawn:
        return {}
    figures = [_figure(canvas, chart) for chart in drawn]
    figures[-1].xaxis.axis_label = "seconds since the start of the run"
    return dict(zip((chart.title for chart in drawn), embedded(figures), strict=True))


def library() -> str:
    """HTML of bokeh's JavaScript, which comes before any chart."""
    return INLINE.clone(components=["bokeh"]).render_js()


def embedded(figures: Sequence[figure]) -> list[str]:
    """HTML of each, for behind the library and templates/charts.html.j2, in this order. Together they are one document,
    which they are added to as bokeh's own server would, by patches: each knows the models of those before it."""
    document, known = Document(), set[Model]()
    found = []
    for plot in figures:
        events = Serializer(references=known, deferred=False).encode([RootAddedEvent(document, plot)])
        known |= plot.references()
        found.append(
            f'<div class="chart" style="min-height: {plot.height}px"></div>'
            f"<script>socketswarmChart({htmlsafe_json_dumps(figures[0].id)}, {htmlsafe_json_dumps(events)})</script>"
        )
    return found


# --- one chart --------------------------------------------------------------------------------------------------------


def _figure(canvas: _Canvas, chart: Chart) -> figure:
    low, high = _limits(chart)
    plot = figure(
        height=HEIGHT_PX,
        x_range=canvas.x_range,
        y_range=Range1d(start=low, end=high),
        y_axis_type="log" if chart.log else "linear",
        **FRAME,
    )
    style_axes(plot, chart.tick_format)
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0.[0]")
    if chart.tick_format == "0,0" and not chart.log:
        plot.yaxis.ticker = BasicTicker(min_interval=1)  # of whole things
    if chart.log:
        plot.yaxis.ticker = FixedTicker(ticks=log_ticks(*_limits(chart)))
    _shade_phases(plot, canvas.phases, high)
    drawn = [_draw_line(plot, line) for line in chart.lines]
    drawn += [(_draw_dots(plot, line, line.dots, line.part), False) for line in chart.lines if line.dots is not None]
    drawn += [(_draw_dots(plot, line, lone), False) for line in chart.lines if len((lone := _lone(line.curve)).t_s)]
    _mark_events(plot, canvas.marks)
    _add_tools(plot, canvas, chart, drawn)
    return plot


def _limits(chart: Chart) -> tuple[float, float]:
    """Both ends of the y axis. It begins at 0, or below the lowest value above 0 where it is logarithmic, and leaves
    room for the names of the phases above the highest."""
    curves = [curve for line in chart.lines for curve in (line.curve, *itertools.chain(*line.bands))]
    values = np.concatenate([curve.values for curve in curves])
    highest = float(np.nanmax(values)) or 1.0
    if not chart.log:
        return 0, highest * HEADROOM
    lowest = float(np.min(values[values > 0], initial=highest)) / HEADROOM
    return lowest, highest * (highest / lowest) ** (HEADROOM - 1)


def style_axes(plot: figure, tick_format: str) -> None:
    """Make the axes look as in all charts. `tick_format` is that of the y axis, in the words of numeral.js."""
    for axis in plot.axis:
        axis.update(
            axis_line_alpha=0,
            minor_tick_line_alpha=0,
            major_tick_line_alpha=0,
            major_label_text_font=FONT,
            major_label_text_font_size="11px",
            axis_label_text_font=FONT,
            axis_label_text_font_size="11px",
            axis_label_text_font_style="normal",
            major_label_text_color=light("muted"),
            axis_label_text_color=light("muted"),
        )
    plot.xgrid.grid_line_alpha = 0
    plot.ygrid.update(grid_line_color=light("muted"), grid_line_alpha=0.2)
    plot.yaxis.formatter = NumeralTickFormatter(format=tick_format)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers, 3 to 9 of them in most ranges, at least one in any. bokeh's LogTicker spaces them evenly where
    there are few decades, and so leaves the lower half of the axis bare."""
    first, last = math.log10(low), math.log10(high)
    mantissas = (1.0,) if last - first > 3 else (1, 2, 5) if last - first > 1 else (1, 1.5, 2, 3, 4, 6, 8)
    ticks = [mantissa * 10.0**decade for decade in range(math.floor(first), math.ceil(last)) for mantissa in mantissas]
    return [tick for tick in ticks if low <= tick <= high]


def _phases(phases: Sequence[PhaseSummary], end_s: float) -> ColumnDataSource:
    """Measure phases in the colour of their mode, others grey; named where the name fits on a phone too."""
    fits = [phase.duration_s / end_s * PHONE_PX >= LETTER_PX * len(phase.name) for phase in phases]
    return ColumnDataSource(
        {
            "x0": [phase.start_s for phase in phases],
            "x1": [phase.end_s for phase in phases],
            "colour": [light(mode_colour(phase.mode) if phase.kind == "measure" else "muted") for phase in phases],
            "name": [plain(phase.name) if fit else "" for phase, fit in zip(phases, fits, strict=True)],
        }
    )


def _shade_phases(plot: figure, phases: ColumnDataSource, top: float) -> None:
    strip = glyphs.VStrip(fill_color="colour", fill_alpha=0.08, line_color="colour", line_alpha=0.35)
    plot.add_glyph(phases, strip, level="underlay")
    name = glyphs.Text(x="x0", y=top, text="name", text_color="colour", text_font=value(FONT), text_font_size="11px")
    name.update(text_baseline="top", x_offset=4, y_offset=4)
    plot.add_glyph(phases, name)


def _draw_line(plot: figure, line: Line) -> tuple[DataRenderer, bool]:
    """(the line, whether it has a band). It knows the widest of its bands, to tell of it where a reader points."""
    curve, bands = envelope.reduce(line.curve, line.bands)
    columns = {"x": curve.t_s, "y": curve.values}
    for low, high in reversed(bands):
        columns |= {"low": low.values, "high": high.values}
        area = glyphs.VArea(fill_color=light(line.key.colour), fill_alpha=0.25 / len(bands))
        plot.add_glyph(ColumnDataSource(envelope.area(low, high)), area)
    colour, dash = light(line.key.colour), line.key.dash
    glyph = glyphs.Line(line_width=line.width, line_dash=dash, line_color=colour, line_join="round")
    drawn = plot.add_glyph(ColumnDataSource(columns), glyph)
    drawn.name = plain(line.key.label)
    return drawn, bool(bands)


def _lone(curve: Curve) -> Curve:
    """What has a break on either side, so that no line shows it."""
    known = np.pad(~np.isnan(curve.values), 1)
    lone = known[1:-1] & ~known[:-2] & ~known[2:]
    return Curve(curve.t_s[lone], curve.values[lone])


def _draw_dots(plot: figure, line: Line, dots: Curve, part: str = "") -> DataRenderer:
    """Dots; a line where they are so many that they would be one."""
    curve, _ = envelope.reduce(dots, ())
    colour, dash = light(line.key.colour), line.key.dash
    glyph = (
        glyphs.Scatter(size=5, fill_color=colour, line_color=None)
        if len(curve.t_s) <= MOST_DOTS
        else glyphs.Line(line_width=1.6, line_dash=dash, line_color=colour)
    )
    drawn = plot.add_glyph(ColumnDataSource({"x": curve.t_s, "y": curve.values}), glyph)
    drawn.name = plain(f"{line.key.label}, {part}" if part else line.key.label)
    return drawn


def _mark_events(plot: figure, marks: ColumnDataSource) -> None:
    drawn = plot.add_glyph(marks, glyphs.VSpan(line_color=light("bad"), line_width=1.2, line_dash=[2, 3]))
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=[("what", "@text"), ("at", "@x{0,0.0} s")]))


def _add_tools(plot: figure, canvas: _Canvas, chart: Chart, drawn: Sequence[tuple[DataRenderer, bool]]) -> None:
    """What a reader points at is told with its band, if it has one."""
    tick = chart.tick_format
    band = ("band", f"@low{{{tick}}} to @high{{{tick}}}")
    for with_band, more in ((True, [band]), (False, [])):
        if renderers := [renderer for renderer, has_band in drawn if has_band == with_band]:
            tooltips = [("what", "$name"), ("is", f"@y{{{tick}}}"), *more, ("at", "@x{0,0.0} s")]
            plot.add_tools(HoverTool(renderers=renderers, tooltips=tooltips, line_policy="nearest"))
    zoom = BoxZoomTool(dimensions="width")
    plot.add_tools(CrosshairTool(overlay=canvas.crosshair), zoom)
    plot.toolbar.active_drag = zoom
    plot.js_on_event(DoubleTap, CustomJS(args={"range": canvas.x_range}, code="range.reset()"))
