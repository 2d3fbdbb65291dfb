"""Which lines and marks the charts show, and in which colours."""

import msgspec
import numpy as np

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.pages.charts import charts, marks
from reports.pages.palette import PALETTE
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import rewrite


def test_many_workers_become_a_few_lines_and_one_band(tmp_path):
    folder = run_folders.write(tmp_path / "run", workers=32, killed_at_s=17.3)
    cpu = charts(analyse(folder))[2]
    labels = [key.label for key in cpu.keys]
    assert "worker 0 (1001)" in labels, "who died is drawn"
    assert "worker 0 (2000)" in labels, "and who came instead"
    assert "27 more workers: mean and range" in labels
    assert {"supervisor (1000)", "load (20)", "recorder (30)"} < set(labels)
    assert len(labels) == 10
    looks = [(key.colour, key.dash) for key in cpu.keys if key.label.startswith("worker")]
    assert len(looks) == len(set(looks)) == 6


def test_every_colour_that_is_used_has_a_name(tmp_path):
    folder = run_folders.write(tmp_path / "run", workers=9, plan=(("a", "measure", 0), ("b", "measure", 3)))
    keys = [key for chart in charts(analyse(folder)) for key in chart.keys]
    assert {key.colour for key in keys} <= set(PALETTE)


def test_latency_of_the_open_model_is_response_with_the_service_beside_it(tmp_path):
    folder = run_folders.write(tmp_path / "run", model="open")
    latency = charts(analyse(folder))[1]
    long = [(key.label, key.dash) for key in latency.keys if key.colour == "long"]
    assert long == [("long, response p50, in bands up to p95 and p99", "solid"), ("long, service p99", "dotted")]
    assert latency.note.startswith("responses, and the server's part of them (service), of ≤4 KiB only")
    assert "(90.0 % of uploads)" in latency.note


def test_latency_of_the_closed_model_is_bands_of_transactions(tmp_path):
    latency = charts(analyse(run_folders.write(tmp_path / "run")))[1]
    assert [key.label for key in latency.keys] == [
        f"{mode}, p50, in bands up to p95 and p99" for mode in ("long", "short")
    ]
    assert latency.note.startswith("transactions of ≤4 KiB only")
    [long, _] = latency.lines
    assert float(long.curve.values[-1]) == 200
    assert [[float(edge.values[-1]) for edge in band] for band in long.bands] == [[200, 600], [200, 400]]


def test_what_happens_in_every_run_gets_no_mark(tmp_path):
    analysis = analyse(run_folders.write(tmp_path / "run", killed_at_s=17.3))
    assert [mark.at_s for mark in marks(analysis)] == [17.3, 17.35]
    assert marks(analysis)[0].text == "worker 0 (pid 1001) was killed by signal 9"


def test_memory_is_drawn_at_each_tick_and_what_an_end_gives_back_where_it_was_read(tmp_path):
    analysis = analyse(run_folders.write(tmp_path / "run", workers=9))
    [memory] = [chart for chart in charts(analysis) if chart.title == "Memory"]
    for line in memory.lines:
        assert line.part == "USS"
        assert len(line.dots.t_s) < len(line.curve.t_s)
        assert set(line.dots.t_s[~np.isnan(line.dots.values)]) <= set(line.curve.t_s)
        assert np.nanmax(line.dots.values) < np.nanmax(line.curve.values)


def test_memory_is_drawn_of_processes_that_ended_before_more_than_rss_was_read(tmp_path):
    folder = run_folders.write(tmp_path / "run", workers=32)
    ticks = [
        msgspec.structs.replace(
            tick, processes=[msgspec.structs.replace(one, uss_bytes=None) for one in tick.processes]
        )
        for tick in run_folder.read_processes(folder)
    ]
    rewrite(folder / run_folder.PROCESSES, ticks)
    [memory] = [chart for chart in charts(analyse(folder)) if chart.title == "Memory"]
    assert "26 more workers: mean and range" in [key.label for key in memory.keys]
    assert all(line.dots is None or not len(line.dots.t_s) for line in memory.lines)
