"""The main job's moments that no test can hit: it starts processes, and a signal may come in between."""

import subprocess
from contextlib import nullcontext
from dataclasses import replace

import pytest
from small_disks import fill, small_disk

from loadtest import run as main_job
from loadtest.options import DEFAULTS
from reports import run_folder, signals


@pytest.fixture
def job(tmp_path):
    where = {"host": None, "store": tmp_path, "folder": tmp_path / "run"}
    return main_job.Job(**where, users=1, workers=1, fields=dict(DEFAULTS), command=[])


class Interrupts:
    """As many signals as a test says, and none of this process's."""

    def __init__(self, count):
        self.count = count


@pytest.fixture
def builds(monkeypatch):
    """Exit codes that the builds of a report have, one after the other; each has an output of its own."""

    def replace(*codes):
        left = [subprocess.CompletedProcess([], code, stdout=f"report {n}\n") for n, code in enumerate(codes, start=1)]
        monkeypatch.setattr(main_job.subprocess, "run", lambda *_, **__: left.pop(0))
        return left

    return replace


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_build_that_a_signal_ended_is_made_again(job, builds, capsys, number):
    """A key at the terminal may reach a process that is being started before it has a session of its own."""
    job.folder.mkdir()
    (job.folder / run_folder.RUN).touch()
    left = builds(-number, 0)
    main_job._report(job)
    assert (left, capsys.readouterr().out) == ([], "report 2\n")


@pytest.mark.parametrize("code", [0, 1, -9])
def test_no_other_build_is(job, builds, capsys, code):
    job.folder.mkdir()
    (job.folder / run_folder.RUN).touch()
    left = builds(code, 0)
    main_job._report(job)
    assert (len(left), capsys.readouterr().out) == (1, "report 1\n")


def test_a_server_that_a_signal_ended_while_it_started_is_no_failure(job, monkeypatch, capsys):
    monkeypatch.setattr(main_job.sys, "executable", "false")
    assert main_job.run(job, Interrupts(1)) == (main_job.INTERRUPTED, job.folder)
    assert capsys.readouterr().err == "stopped before the server was ready\n"
    assert list(job.store.iterdir()) == []  # neither a store nor a run


def test_without_a_signal_it_is(job, monkeypatch):
    monkeypatch.setattr(main_job.sys, "executable", "false")
    with pytest.raises(main_job.RunError, match="the server did not start: it said nothing; see "):
        main_job.run(job, Interrupts(0))


@pytest.mark.parametrize(("build_code", "code"), [(0, 3), (1, main_job.FAILED)])
def test_without_a_report_there_is_no_outcome_to_go_by(job, builds, monkeypatch, build_code, code):
    """Not even that of a summary which is there: the disk was full after it."""

    def load(made, *_):
        (made.folder / run_folder.RUN).touch()
        outcome = run_folder.Outcome(verdict="VALID", reason="", exit_code=3)
        run_folder.write_whole(made.folder / run_folder.SUMMARY, outcome)

    monkeypatch.setattr(main_job, "_server", lambda *_: nullcontext("tcp://127.0.0.1:1"))
    monkeypatch.setattr(main_job, "_load", load)
    builds(build_code)
    assert main_job.run(job, Interrupts(0))[0] == code


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
