"""Which lines and marks the charts show, and in which colours."""

from reports.analysis import analyse
from reports.chart_lines import charts, marks
from reports.palette import PALETTE
from tests.unit import run_folders


def test_many_workers_become_a_few_lines_and_one_band(tmp_path):
    folder = run_folders.write(tmp_path / "run", workers=32, killed_at_s=17.3)
    cpu = charts(analyse(folder).timeline)[2]
    labels = [key.label for key in cpu.keys]
    assert "worker 0 (1001)" in labels, "who died is drawn"
    assert "worker 0 (2000)" in labels, "and who came instead"
    assert "27 more workers: mean and range" in labels
    assert {"supervisor (1000)", "load (20)", "recorder (30)"} < set(labels)
    assert len(labels) == 10


def test_every_colour_that_is_used_has_a_name(tmp_path):
    folder = run_folders.write(tmp_path / "run", workers=9, plan=(("a", "measure", 0), ("b", "measure", 3)))
    keys = [key for chart in charts(analyse(folder).timeline) for key in chart.keys]
    assert {key.colour for key in keys} <= set(PALETTE)


def test_what_happens_in_every_run_gets_no_mark(tmp_path):
    analysis = analyse(run_folders.write(tmp_path / "run", killed_at_s=17.3))
    assert [mark.at_s for mark in marks(analysis)] == [17.3, 17.35]
    assert marks(analysis)[0].text == "worker 0 (pid 1001) was killed by signal 9"
