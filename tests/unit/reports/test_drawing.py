"""What is drawn, as far as it can be told without a browser; tests/browser/test_report.py looks at the rest."""

import itertools
import json
import math
import re

import pytest

from reports.analysis.summarise import analyse
from reports.pages.charts import charts, marks
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


def test_what_charts_share_is_told_once(drawing):
    x_range = drawing.Range1d(start=0, end=7)
    first, second = (
        embedded_events(chart) for chart in drawing.embedded([drawing.figure(x_range=x_range) for _ in range(2)])
    )
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
