"""The main job's moments that no test can hit: it starts processes, and a signal may come in between."""

import subprocess

import pytest

from loadtest import run as main_job
from loadtest.options import DEFAULTS
from reports import run_folder


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


@pytest.mark.parametrize("number", main_job.ENDING)
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
