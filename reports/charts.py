"""The charts, drawn with bokeh; no other file imports it.

All charts are one bokeh document on one x axis: to zoom or to point in one is to do so in all. Legends, titles and
notes are HTML around them (templates/report.html.j2), where they wrap on a phone and can be read by a screen reader.

Each model carries in its tags which of its properties takes which colour of the palette; a few lines of JavaScript in
the page paint them, again whenever the reader's colour scheme changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.core.properties import value
from bokeh.document import Document
from bokeh.embed import components
from bokeh.events import DocumentReady, DoubleTap
from bokeh.models import (
    BasicTicker,
    BoxZoomTool,
    ColumnDataSource,
    CrosshairTool,
    CustomJS,
    FixedTicker,
    HoverTool,
    NumeralTickFormatter,
    Range1d,
    glyphs,
)
from bokeh.models.annotations import BoxAnnotation, Span
from bokeh.models.renderers import DataRenderer
from bokeh.plotting import figure
from bokeh.resources import INLINE

from reports import envelope
from reports.chart_lines import Chart, Line, Mark
from reports.palette import FONT, PALETTE, mode_colour
from reports.summary import PhaseSummary
from reports.texts import plain

HEIGHT_PX = 210
HEADROOM = 1.25  # above the highest value, for the names of the phases
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
class Drawing:
    """HTML that shows charts without network; all empty when there is nothing to draw."""

    library: str
    """bokeh's JavaScript."""
    script: str
    divs: dict[str, str]
    """By title of the chart."""


@dataclass(frozen=True, slots=True)
class _Canvas:
    """What all charts of a report share."""

    end_s: float
    phases: Sequence[PhaseSummary]
    marks: Sequence[Mark]
    x_range: Range1d
    crosshair: Span


def draw(charts: Sequence[Chart], end_s: float, phases: Sequence[PhaseSummary], marks: Sequence[Mark]) -> Drawing:
    """Those of the charts that have lines, from 0 to `end_s`, over shaded phases, with marks of events."""
    end_s = end_s or 1.0
    x_range = Range1d(start=0, end=end_s, bounds=(0, end_s), min_interval=min(1.0, end_s))
    crosshair = paint(Span(dimension="height", line_width=1), line_color="muted")
    canvas = _Canvas(end_s, phases, marks, x_range, crosshair)
    drawn = [chart for chart in charts if chart.lines]
    if not drawn:
        return Drawing("", "", {})
    figures = [_figure(canvas, chart) for chart in drawn]
    figures[-1].xaxis.axis_label = "seconds since the start of the run"
    script, divs = embedded(figures)
    titled = zip((chart.title for chart in drawn), divs, strict=True)
    return Drawing(INLINE.clone(components=["bokeh"]).render_js(), script, dict(titled))


def embedded(figures: Sequence[figure]) -> tuple[str, Sequence[str]]:
    """(script, a div for each), without the library; painted in the reader's colours as soon as it is there."""
    document = Document()
    with document.models.freeze():  # or every figure would have all models counted anew
        for plot in figures:
            document.add_root(plot)
    document.js_on_event(DocumentReady, CustomJS(code="socketswarmPaint()"))
    script, divs = components(figures)
    return script, divs


def paint(model: Any, **colours: str) -> Any:
    """Give these properties of a model a colour of the palette, now and, through its tags, in either colour scheme."""
    model.update(**{name: PALETTE[colour][0] for name, colour in colours.items()})
    model.tags = [f"{name}={colour}" for name, colour in colours.items()]
    return model


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
    _shade_phases(plot, canvas, high)
    drawn = [_draw_line(plot, line) for line in chart.lines]
    _mark_events(plot, canvas.marks)
    _add_tools(plot, canvas, chart, drawn)
    return plot


def _limits(chart: Chart) -> tuple[float, float]:
    """Of the y axis: from 0; a logarithmic one, which shows only what is above 0, from below the lowest such value."""
    values = np.concatenate([curve.values for line in chart.lines for curve in (line.curve, *(line.band or ()))])
    highest = float(np.nanmax(values)) or 1.0
    lowest = float(np.min(values[values > 0], initial=highest))
    return lowest / HEADROOM if chart.log else 0, highest * HEADROOM


def style_axes(plot: figure, tick_format: str) -> None:
    """As all charts look. The format, as numeral.js has it, is of the y axis."""
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
        )
        paint(axis, major_label_text_color="muted", axis_label_text_color="muted")
    plot.xgrid.grid_line_alpha = 0
    for grid in plot.ygrid:
        paint(grid, grid_line_color="rule")
    plot.yaxis.formatter = NumeralTickFormatter(format=tick_format)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers, 3 to 9 of them in most ranges, at least one in any. bokeh's LogTicker spaces them evenly where
    there are few decades, and so leaves the lower half of the axis bare."""
    first, last = math.log10(low), math.log10(high)
    mantissas = (1.0,) if last - first > 3 else (1, 2, 5) if last - first > 1 else (1, 1.5, 2, 3, 4, 6, 8)
    ticks = [mantissa * 10.0**decade for decade in range(math.floor(first), math.ceil(last)) for mantissa in mantissas]
    return [tick for tick in ticks if low <= tick <= high]


def _shade_phases(plot: figure, canvas: _Canvas, top: float) -> None:
    """Measure phases in the colour of their mode, others grey; named at the top where the name fits on a phone too."""
    for phase in canvas.phases:
        colour = mode_colour(phase.mode) if phase.kind == "measure" else "muted"
        box = BoxAnnotation(left=phase.start_s, right=phase.end_s, fill_alpha=0.08, line_alpha=0, level="underlay")
        plot.add_layout(paint(box, fill_color=colour))
        edge = Span(location=phase.start_s, dimension="height", line_width=1, line_alpha=0.35, level="underlay")
        plot.add_layout(paint(edge, line_color=colour))
        if phase.duration_s / canvas.end_s * PHONE_PX >= LETTER_PX * len(phase.name):
            _name_phase(plot, phase, colour, top)


def _name_phase(plot: figure, phase: PhaseSummary, colour: str, top: float) -> None:
    source = ColumnDataSource({"x": [phase.start_s], "y": [top], "text": [plain(phase.name)]})
    name = glyphs.Text(text_font=value(FONT), text_font_size="11px", text_baseline="top", x_offset=4, y_offset=4)
    plot.add_glyph(source, paint(name, text_color=colour))


def _draw_line(plot: figure, line: Line) -> DataRenderer:
    curve, band = envelope.reduce(line.curve, line.band)
    if band:
        low, high = band
        area = ColumnDataSource({"x": low.t_s, "y1": low.values, "y2": high.values})
        plot.add_glyph(area, paint(glyphs.VArea(fill_alpha=0.25), fill_color=line.key.colour))
    source = ColumnDataSource({"x": curve.t_s, "y": curve.values})
    glyph = glyphs.Line(line_width=line.width, line_dash=line.key.dash, line_join="round")
    drawn = plot.add_glyph(source, paint(glyph, line_color=line.key.colour))
    drawn.name = line.key.label
    return drawn


def _mark_events(plot: figure, marks: Sequence[Mark]) -> None:
    if not marks:
        return
    source = ColumnDataSource({"x": [mark.at_s for mark in marks], "text": [mark.text for mark in marks]})
    drawn = plot.add_glyph(source, paint(glyphs.VSpan(line_width=1.2, line_dash=[2, 3]), line_color="bad"))
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=[("what", "@text"), ("at", "@x{0,0.0} s")]))


def _add_tools(plot: figure, canvas: _Canvas, chart: Chart, drawn: list[DataRenderer]) -> None:
    tooltips = [("what", "$name"), ("is", f"@y{{{chart.tick_format}}}"), ("at", "@x{0,0.0} s")]
    zoom = BoxZoomTool(dimensions="width")
    plot.add_tools(HoverTool(renderers=drawn, tooltips=tooltips, line_policy="nearest"))
    plot.add_tools(CrosshairTool(overlay=canvas.crosshair), zoom)
    plot.toolbar.active_drag = zoom
    plot.js_on_event(DoubleTap, CustomJS(args={"range": canvas.x_range}, code="range.reset()"))
