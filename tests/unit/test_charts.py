"""What is drawn, as far as it can be told without a browser; tests/browser/test_report.py looks at the rest."""

import itertools
import math

import pytest

from reports.analysis import analyse
from reports.chart_lines import charts, marks
from reports.charts import draw, log_ticks
from tests.unit import run_folders


@pytest.mark.parametrize("lowest", [1, 3.05, 210, 9_990, 4e6])
@pytest.mark.parametrize("factor", [1.5625, 3, 10, 40, 900, 1e6])
def test_a_logarithmic_axis_has_ticks_all_along(lowest, factor):
    ticks = log_ticks(lowest, lowest * factor)
    edges = [lowest, *ticks, lowest * factor]
    assert ticks
    assert edges == sorted(edges)
    assert len(ticks) <= 10
    widest = max(math.log(right / left) for left, right in itertools.pairwise(edges))
    assert widest <= max(0.55 * math.log(factor), math.log(1.5) + 1e-9)


def test_nothing_to_draw_is_no_script_and_no_library():
    drawing = draw([], 0.0, [], [])
    assert (drawing.library, drawing.script, drawing.divs) == ("", "", {})


def test_charts_without_lines_are_left_out(tmp_path):
    analysis = analyse(run_folders.write(tmp_path / "run", with_server=False))
    shown = [chart for chart in charts(analysis) if chart.title != "Latency"]
    drawing = draw(shown, analysis.timeline.end_s, analysis.summary.phases, marks(analysis))
    assert list(drawing.divs) == ["Uploads", "CPU", "Memory"]
    assert "function" in drawing.library
