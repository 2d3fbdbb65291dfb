"""The chart of latency by percentile, drawn with bokeh: the tail spread out, both axes logarithmic."""

from collections.abc import Sequence

from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, Range1d, glyphs
from bokeh.plotting import figure

from reports.analysis.histograms import PercentileCurve
from reports.pages.charts import Dash, Key
from reports.pages.drawing import FRAME, HEADROOM, embedded, log_ticks, style_axes
from reports.pages.palette import light, mode_colour
from reports.run_folder import SIZE_CLASSES

HEIGHT_PX = 320
_DASHES: tuple[Dash, ...] = ("solid", "dashed", "dotted")
_NAMED = {  # shares beyond that percentiles are known by, by the least share that there is
    0.05: (0.5, 0.4, 0.3, 0.2, 0.1, 0.05),
    0.005: (0.5, 0.25, 0.1, 0.05, 0.02, 0.01),
    0.0: (0.5, 0.1, 0.01, 0.001, 0.0001, 0.00001),
}


def draw_percentiles(curves: Sequence[PercentileCurve]) -> tuple[str, list[Key]]:
    """(HTML, legend), without bokeh's library; both empty when there is nothing to draw."""
    if not curves:
        return "", []
    sizes = [size for size in SIZE_CLASSES if any(curve.size_class == size for curve in curves)]
    last = min(0.4, *(float(curve.beyond[-1]) for curve in curves))  # of few samples, so that two ticks are there
    named = next(shares for least, shares in _NAMED.items() if last >= least)
    values = [float(value) for curve in curves for value in (curve.values_us[0], curve.values_us[-1])]
    low, high = max(1.0, min(values)) / HEADROOM, max(values) * HEADROOM
    plot = figure(
        height=HEIGHT_PX,
        x_range=Range1d(start=2, end=1 / last),
        y_range=Range1d(start=low, end=high),
        x_axis_type="log",
        y_axis_type="log",
        **FRAME,
    )
    style_axes(plot, "0,0")
    plot.xaxis.ticker = FixedTicker(ticks=[1 / share for share in named])
    plot.xaxis.major_label_overrides = {1 / share: f"{100 - share * 100:g} %" for share in named}
    plot.yaxis.ticker = FixedTicker(ticks=log_ticks(low, high))
    keys = [_draw(plot, curve, sizes) for curve in curves]
    [chart] = embedded([plot])
    return chart, keys


def _draw(plot: figure, curve: PercentileCurve, sizes: Sequence[str]) -> Key:
    """A mode has a colour, a size class a dash; the service beside a response is faint."""
    what = "" if curve.duration == "transaction" else f", {curve.duration}"
    dash = _DASHES[sizes.index(curve.size_class) % len(_DASHES)]
    key = Key(f"{curve.mode} {curve.size_class}{what}", mode_colour(curve.mode), dash)
    source = ColumnDataSource(
        {"x": 1 / curve.beyond, "y": curve.values_us, "percentile": [f"{100 - b * 100:.4g} %" for b in curve.beyond]}
    )
    line = glyphs.Line(line_color=light(key.colour), line_width=2, line_dash=dash, line_join="round")
    if curve.duration == "service":
        line.update(line_width=1, line_alpha=0.5)
    drawn = plot.add_glyph(source, line)
    drawn.name = key.label
    tooltips = [("what", "$name"), ("percentile", "@percentile"), ("is", "@y{0,0} µs")]
    plot.add_tools(HoverTool(renderers=[drawn], tooltips=tooltips, line_policy="nearest"))
    return key
