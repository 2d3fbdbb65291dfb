"""The main job's moments that no test can hit: it starts processes, and a signal may come in between."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
from small_disks import fill, small_disk

from loadtest import run as main_job
from loadtest.options import DEFAULTS
from reports import run_folder
from reports.pages import report_files
from reports.run_folder import RunFolderError


@pytest.fixture
def job(tmp_path):
    where = {"host": None, "store": tmp_path, "folder": tmp_path / "run"}
    return main_job.Job(**where, users=1, workers=1, fields=dict(DEFAULTS), command=[])


class Interrupts:
    """As many signals as a test says, and none of this process's."""

    def __init__(self, count):
        self.count = count


@pytest.fixture
def build(monkeypatch):
    """Has the building of the report end in a text, or an error."""

    def ends_in(end):
        def build(_):
            if isinstance(end, str):
                return end
            raise end

        monkeypatch.setattr(report_files, "build", build)

    return ends_in


@pytest.mark.parametrize(("brief", "shown"), [(False, "VALID: all\n\nmore\n"), (True, "VALID: all\n")])
def test_where_there_are_more_runs_to_come_the_verdict_is_enough(job, build, capsys, brief, shown):
    job.folder.mkdir()
    (job.folder / run_folder.RUN).touch()
    build("VALID: all\n\nmore")
    assert main_job._report(replace(job, brief=brief))
    assert capsys.readouterr().out == shown


def test_a_server_that_a_signal_ended_while_it_started_is_no_failure(job, monkeypatch, capsys):
    monkeypatch.setattr(main_job.sys, "executable", "false")
    assert main_job.run(job, Interrupts(1)) == (main_job.INTERRUPTED, job.folder)
    assert capsys.readouterr().err == "stopped before the server was ready\n"
    assert list(job.store.iterdir()) == []  # neither a store nor a run


def test_without_a_signal_it_is(job, monkeypatch):
    monkeypatch.setattr(main_job.sys, "executable", "false")
    with pytest.raises(main_job.RunError, match="the server did not start: it said nothing; see "):
        main_job.run(job, Interrupts(0))


@pytest.mark.parametrize(("end", "code"), [("a report", 3), (RunFolderError("the disk is full"), main_job.FAILED)])
def test_without_a_report_there_is_no_outcome_to_go_by(job, build, monkeypatch, capsys, end, code):
    """Not even that of a summary which is there: the disk was full after it."""

    def load(made, *_):
        (made.folder / run_folder.RUN).touch()
        outcome = run_folder.Outcome(verdict="VALID", reason="", exit_code=3)
        run_folder.write_whole(made.folder / run_folder.SUMMARY, outcome)

    monkeypatch.setattr(main_job, "_server", lambda *_: nullcontext("tcp://127.0.0.1:1"))
    monkeypatch.setattr(main_job, "_load", load)
    build(end)
    assert main_job.run(job, Interrupts(0))[0] == code
    assert capsys.readouterr() in (("a report\n", ""), ("", "Error: the disk is full\n"))


@pytest.mark.parametrize(
    ("log", "last"),
    [
        ("starting\nError: no space\ntable\n", "no space"),
        ("Error: one\nError: two\n", "two"),
        ("starting\nended\n", "ended"),
        ("", "it said nothing; see "),
    ],
)
def test_what_a_log_says_last(tmp_path, log, last):
    (tmp_path / "log").write_text(log)
    assert main_job._last_line(tmp_path / "log").startswith(last)


def test_no_run_begins_where_it_has_no_room(job, tmp_path):
    """It could not even say why it ends: all that would is on that disk."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        taken = fill(disk, but_bytes=8 << 10)
        with pytest.raises(main_job.RunError, match="8 KiB are left there, and a run with its report takes 2 MiB"):
            main_job.run(replace(job, folder=disk / "run"), Interrupts(0))
        assert list(disk.iterdir()) == [taken]


def test_a_log_on_a_full_disk(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        (disk / "log").touch()
        fill(disk)
        assert main_job._last_line(disk / "log") == f"no space is left for {disk / 'log'}"
