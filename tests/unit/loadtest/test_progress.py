"""What is shown of a run while it goes on: true rates, and plain lines where nothing can be drawn over."""

import io
import sys
import time

import pytest

from loadtest import progress as shown
from loadtest.progress import Progress, Rates
from reports import run_folder
from reports.run_folder import Appender, Phase, RunInfo, SecondOfUploads, UploadsLine

NS = 1_000_000_000


@pytest.fixture
def uploads(tmp_path):
    """Appends a line of uploads.jsonl: (seconds, phase, uploads, failures)."""
    appender = Appender(tmp_path / run_folder.UPLOADS)

    def append(at_s, phase, count, failures=0):
        name = SecondOfUploads(
            count=count,
            bytes=count * 1000,
            connections=0,
            late=0,
            failures={"busy": failures} if failures else {},
            service_us=None,
            transaction_us=None,
            response_us=None,
        )
        line = UploadsLine(
            mono_ns=round(at_s * NS), wall_ns=0, phase=phase, users=1, names={"long ≤4 KiB": name}, hiccup_us=None
        )
        appender.append(line)

    yield append
    appender.close()


def test_the_first_rate_is_true(tmp_path, uploads):
    """What was uploaded before the plan began is in none, and its first second need not be one."""
    rates = Rates(tmp_path)
    uploads(10.0, "ramp-up", 70_000)
    rates.take(time.monotonic_ns())
    assert rates.text == ""
    uploads(12.0, "warm-up", 60_000, failures=3)
    rates.take(10 * NS)
    assert rates.text == "30,000 uploads/s  3 failed  30.0 MB/s"


def test_where_a_phase_changes_the_rate_is_that_of_both(tmp_path, uploads):
    rates = Rates(tmp_path)
    uploads(11.0, "long-1", 100)
    uploads(11.4, "long-1", 40)  # too short to tell
    rates.take(10 * NS)
    assert rates.text.startswith("100 uploads/s")
    uploads(12.4, "long-1", 60)
    uploads(12.4, "short-1", 40)
    rates.take(10 * NS)
    assert rates.text.startswith("100 uploads/s")


def test_where_nothing_ends_any_more_no_old_rate_is_repeated(tmp_path, uploads):
    now_s = time.monotonic()
    rates = Rates(tmp_path)
    uploads(now_s - 5, "long-1", 100)
    rates.take(round((now_s - 6) * NS))
    assert rates.text.startswith("100 uploads/s")
    rates.take(round((now_s - 6) * NS))
    assert rates.text.startswith("0 uploads/s")
    uploads(now_s, "long-1", 50)
    rates.take(round((now_s - 6) * NS))
    assert rates.text.startswith("10 uploads/s")


def test_without_a_terminal_it_is_one_plain_line_now_and_then(tmp_path, uploads, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    now_ns = time.monotonic_ns()
    machine = {"seed": 1, "git_commit": None, "git_dirty": None, "environment": {}}
    described = {"id": "run", "label": "load", "command": [], "host": "", "users": 1, "load_options": {}}
    started = {"started_mono_ns": now_ns, "started_wall_ns": now_ns}
    phase = Phase(name="long-1", kind="measure", uploads_per_connection=0, start_ns=now_ns - 2 * NS)
    run_folder.write_whole(tmp_path / run_folder.RUN, RunInfo(**described, **machine, **started, phases=[phase]))
    uploads(now_ns / NS - 1, "long-1", 29)
    said = []
    progress = Progress(tmp_path, 42.0, said.append)
    progress.update()
    assert said == []
    progress.say("stopping")
    for _ in range(2):
        monkeypatch.setattr(progress, "_line_due_s", progress._line_due_s - shown.LINE_EVERY_S)
        progress.update()
        progress.update()
    assert said == ["stopping", *["long-1    2/42 s  29 uploads/s  0 failed  0.0 MB/s"] * 2]
    assert sys.stderr.getvalue() == ""
    progress.close()


def test_before_it_has_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(shown, "LINE_EVERY_S", 0.0)
    said = []
    Progress(tmp_path, 42.0, said.append).update()
    assert said == ["starting  0/42 s"]
