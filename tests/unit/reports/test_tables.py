"""The cells of the tables that people look through: failures, and processes when they are many."""

import io
import sys

from reports.pages import layout
from reports.pages.recorded_tables import all_processes_table, process_table
from reports.pages.tables import failure_table, mode_table
from server.printing import take_any_character
from tests.unit.reports.run_folders import Rate, summarise


def test_failures_are_told_by_mode_and_code(tmp_path):
    """Of the warm-up's 2 s too, whose uploads are in no mode."""
    summary = summarise(tmp_path / "run", model="open", failures_per_s=2, unanswered_per_s=5, failure_code="too_large")
    cells = [row.cells[:5] for row in failure_table(summary).rows]
    assert cells == [
        ["long", "unfinished", "100", "0.497 %", "perhaps"],
        ["long", "too_large", "40", "0.199 %", "no"],
        ["short", "unfinished", "100", "1.23 %", "perhaps"],
        ["short", "too_large", "40", "0.491 %", "no"],
        ["not measured", "unfinished", "10", "0.497 %", "perhaps"],
        ["not measured", "too_large", "4", "0.199 %", "no"],
    ]
    assert failure_table(summary).rows[1].cells[5] == "refused: the file is larger than the server takes"


def test_cpu_that_no_upload_can_be_charged_with_was_recorded(tmp_path):
    summary = summarise(tmp_path / "run", long=Rate(0, 0.1, 0.1, 0.3, 200), failures_per_s=3)
    assert [row.cells[-3:-1] for row in mode_table(summary).rows if "all sizes" in row.cells[0]] == [
        ["no uploads", "no uploads"],
        ["3,000", "1,280"],
    ]


def test_no_failure_is_one_sentence(tmp_path):
    table = failure_table(summarise(tmp_path / "run"))
    assert (table.rows, table.note) == ([], "No upload failed, in no phase.")


def test_few_processes_are_all_in_the_table(tmp_path):
    summary = summarise(tmp_path / "run", workers=7)
    assert [row.cells[0] for row in process_table(summary).rows] == [process.name for process in summary.processes]
    assert all_processes_table(summary).rows == []


def test_many_workers_become_a_few_rows_and_one(tmp_path):
    summary = summarise(tmp_path / "run", workers=32, killed_at_s=17.3)
    table = process_table(summary)
    names = [row.cells[0] for row in table.rows]
    assert len(names) == 10
    assert names[:3] == ["supervisor", "worker 0", "worker 0"], "who died, and who came instead"
    assert {"load", "recorder"} < set(names)
    mean = table.rows[-1].cells
    assert mean[:3] == ["27 more workers", "", "mean of each"]
    assert mean[5] == "17.5 %"
    assert mean[3:6] == table.rows[3].cells[3:6], "all that stayed did the same"
    assert len(mean) == len(table.columns)
    assert len(all_processes_table(summary).rows) == len(summary.processes) == 36


def test_a_table_is_aligned_as_it_will_be_shown(tmp_path, monkeypatch):
    """In ASCII, where `≤` takes two columns."""
    table = mode_table(summarise(tmp_path / "run"))
    shown = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    take_any_character()
    print(*layout.aligned(table), sep="\n", flush=True)
    lines = shown.buffer.getvalue().decode().splitlines()
    assert "  <=4 KiB" in lines[3] and "us" in lines[1]
    assert len({len(line) for line in lines if line.endswith("0")}) == 1
