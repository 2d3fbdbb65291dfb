"""What is drawn, as far as it can be told without a browser; tests/browser/test_report.py looks at the rest."""

import itertools
import json
import math
import re

import numpy as np
import pytest

from reports.analysis.histograms import PercentileCurve
from reports.analysis.summarise import analyse
from reports.analysis.timeline import Curve
from reports.pages.charts import Chart, Key, Line, charts, marks
from tests.unit.reports import run_folders


@pytest.fixture
def drawing():
    """Imported with bokeh, which no process that only collects tests has to wait for."""
    from reports.pages import drawing

    return drawing


@pytest.mark.parametrize("lowest", [1, 3.05, 210, 9_990, 4e6])
@pytest.mark.parametrize("factor", [1.5625, 3, 10, 40, 900, 1e6])
def test_a_logarithmic_axis_has_ticks_all_along(drawing, lowest, factor):
    ticks = drawing.log_ticks(lowest, lowest * factor)
    edges = [lowest, *ticks, lowest * factor]
    assert ticks
    assert edges == sorted(edges)
    assert len(ticks) <= 10
    widest = max(math.log(right / left) for left, right in itertools.pairwise(edges))
    assert widest <= max(0.55 * math.log(factor), math.log(1.5) + 1e-9)


def test_nothing_to_draw_is_no_chart(drawing):
    assert drawing.draw([], 0.0, [], []) == {}


def test_charts_without_lines_are_left_out(drawing, tmp_path):
    analysis = analyse(run_folders.write(tmp_path / "run", with_server=False))
    shown = [chart for chart in charts(analysis) if chart.title != "Latency"]
    drawn = drawing.draw(shown, analysis.timeline.end_s, analysis.summary.phases, marks(analysis))
    assert list(drawn) == ["Uploads", "CPU", "Memory"]


@pytest.mark.parametrize(
    ("values", "dots"), [([7], 1), ([math.nan, 7, math.nan, 4, 5], 1), ([4, 5, math.nan, 7], 1), ([4, 5], 0)]
)
def test_what_no_line_shows_is_a_dot(drawing, values, dots):
    """As the CPU of a process that was seen at two ticks."""
    curve = Curve(np.arange(len(values), dtype=float), np.array(values, dtype=float))
    chart = Chart("CPU", "", [Line(Key("load", "load-0"), curve)], "0%", "")
    assert drawing.draw([chart], 10.0, [], [])["CPU"].count('"Scatter"') == dots


@pytest.mark.parametrize("samples", [60, 61, 100, 300, 1000, 10_000, 10**7])
def test_latency_by_percentile_has_labels_all_along(samples):
    """Where there are few samples, too: up to the percentile beyond which there are 30 of them."""
    last = 30 / samples
    curve = PercentileCurve("long", "≤4 KiB", "transaction", np.array([0.5, last]), np.array([100.0, 900.0]))
    from reports.pages.percentile_chart import draw_percentiles

    axis, _ = draw_percentiles([curve])
    labels = [float(label) for label in re.findall(r'\[[0-9.]+, "([0-9.]+) %"\]', axis)]
    shown = [label for label in labels if 100 - label >= min(40, last * 100) - 1e-9]
    assert labels == sorted(labels)
    assert shown[0] == 50 and 2 <= len(shown) <= 6


def test_what_charts_share_is_told_once(drawing):
    x_range = drawing.Range1d(start=0, end=7)
    figures = [drawing.figure(x_range=x_range) for _ in range(2)]
    first, second = map(embedded_events, drawing.embedded(figures))
    told = {"type": "object", "name": "Range1d", "id": x_range.id, "attributes": {"end": 7}}
    assert first["attributes"]["x_range"] == told
    assert second["attributes"]["x_range"] == {"id": x_range.id}


def embedded_events(chart: str) -> dict:
    """The figure that a chart's script adds."""
    _, events = json.loads(re.search(r"socketswarmChart\((.*)\)</script>", chart)[1].join("[]"))
    return events[0]["model"]


def test_a_chart_cannot_end_its_script(drawing):
    plot = drawing.figure()
    plot.line([0], [0], name="</script><script>alert(1)")
    [chart] = drawing.embedded([plot])
    assert chart.count("</script>") == 1
