"""Servers and load processes that fail: each run ends by itself, with the verdict and exit code that it deserves."""

import os
import random
import re
import shutil
import signal
import threading
from contextlib import ExitStack

import pytest
from headless import (
    answer,
    host_of,
    load,
    outcome,
    read_exactly,
    read_header,
    reset,
    serving,
    spread,
    stored,
    users,
)
from loads import acked, built, events, failures, started
from servers import eventually, running
from slow import first_of

from reports import run_folder
from server.failure_codes import BY_CODE

OPEN = ["--arrival-rate", "50"]
CLOSED = [*users(3), "--wait", "20ms"]
BOTH = {"open": OPEN, "closed": CLOSED}


def run_of(model, tmp_path, host, *options):
    """A run of this model, to its end."""
    with started(tmp_path, *load(host, "--plan", "long", *BOTH[model], *options)) as job:
        job.wait()
    return job


def errors(job):
    """The texts of Locust's error report."""
    _, _, report = job.said().partition("# occurrences")
    return re.findall(r"^\d+ +(UPLOAD .*?) *$", report, re.MULTILINE)


def assert_one_text(job, code):
    """Locust groups by the text, so every failure of a code has the same."""
    assert errors(job) == [f"UPLOAD long ≤4 KiB: FailedUploadError('{code}: {BY_CODE[code].text}')"]


# ── servers ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", first_of(BOTH))
def test_a_server_that_answers_once_and_never_again(model, tmp_path):
    first = threading.Lock()

    def answer_the_first(sock):
        header = read_header(sock)  # a connection that only looks whether we are there has none
        if first.acquire(blocking=False):
            sock.sendall(stored(header, read_exactly(sock, header["file_size"])))
        read_exactly(sock, 1 << 40)

    with serving(answer_the_first) as host:
        job = run_of(model, tmp_path, host, "--timeout", "500ms", "--drain", "10s", "--no-report")
    [folder] = job.runs()
    judged = built(folder)
    assert (judged.verdict == "INVALID") is (model == "closed")  # the open model has them in its percentiles
    assert judged.exit_code in ((4,) if model == "closed" else (1, 4))  # 4 when the machine was too busy
    assert acked(folder) == 1
    assert set(failures(folder)) == {"timeout"}
    assert_one_text(job, "timeout")
    assert model == "closed" or failures(folder) == {"timeout": 49}


@pytest.mark.parametrize("model", first_of(["closed", "open"]))
def test_a_server_that_never_answers_ends_the_run(model, tmp_path):
    """As soon as that is clear, and without a drain for those who wait. The plan would take ten minutes."""
    with serving(lambda sock: read_exactly(sock, 1 << 40)) as host:
        options = ["--timeout", "500ms", "--drain", "9min", "--phase-seconds", "600", "--no-report"]
        job = run_of(model, tmp_path, host, *options)
    assert job.wait() == 2
    [folder] = job.runs()
    ended = run_folder.read_run(folder).ended
    none = rf"no upload to {host} can succeed: none of the first \d+ was answered within 0.5 s \(--timeout\)"
    assert ended.how == "failed" and re.fullmatch(none, ended.reason)
    assert f"Error: {ended.reason}" in job.said()
    assert acked(folder) == 0
    assert built(folder).verdict == "INVALID"


@pytest.mark.parametrize(("model", "uploads"), first_of([("closed", 3), ("open", 50)]))
def test_uploads_under_way_when_the_run_ends(model, uploads, tmp_path):
    """They are counted too, whatever they wait for."""
    with serving(lambda sock: read_exactly(sock, 1 << 40)) as host:
        job = run_of(model, tmp_path, host, "--no-report", "--drain", "1s")
    assert job.wait() == 1
    assert failures(job.runs()[0]) == {"unfinished": uploads}
    assert_one_text(job, "unfinished")


@pytest.mark.slow
@pytest.mark.parametrize("refused", ["one", "all"])
def test_a_load_process_that_is_refused_everything_ends_no_run_in_which_another_succeeds(refused, tmp_path):
    """Each has one user, and one connection: the server stores over the first, or over none."""
    first = threading.Lock()

    def store_or_refuse(sock):
        header = read_header(sock)
        accepts = refused == "one" and first.acquire(blocking=False)
        while True:
            data = read_exactly(sock, header["file_size"])
            told = {} if accepts else {"status": "failed", "code": "no_space"}
            sock.sendall(stored(header, data, **told))
            header = read_header(sock)

    options = ["--plan", "long", "--phase-seconds", "6" if refused == "one" else "600", "--no-report", *users(2)]
    with serving(store_or_refuse) as host, spread(tmp_path, host, 2, *options) as (master, _):
        assert master.wait() == {"one": 1, "all": 2}[refused], master.said()
    [folder] = master.runs()
    assert run_folder.read_run(folder).ended.how == {"one": "completed", "all": "failed"}[refused]
    assert set(failures(folder)) == {"no_space"}
    assert bool(acked(folder)) is (refused == "one")


@pytest.mark.slow
@pytest.mark.parametrize("model", BOTH)
def test_a_server_that_resets_in_the_body(model, tmp_path):
    def reset_in_the_body(sock):
        read_header(sock)
        reset(sock)

    with serving(reset_in_the_body) as host:
        job = run_of(model, tmp_path, host, "--payloads", "300KiB")
    assert (outcome(job).verdict, outcome(job).exit_code) == ("INVALID", 4)
    assert set(failures(job.runs()[0])) == {"connection_lost"}
    assert len(errors(job)) == 1


@pytest.mark.parametrize("model", first_of(["closed", "open"]))
def test_a_server_that_lies(model, tmp_path):
    """Two times of three. The third is measured, and the run has failed."""
    chance = random.Random(1)  # in turn, one of the loads might hear only one of the lies

    def lie_at_times(sock):
        while answer(sock, **chance.choice([{}, {"digest": "xxh3_128:0"}, {"received": 1}])):
            pass

    with serving(lie_at_times) as host:
        job = run_of(model, tmp_path, host, "--no-report")
    [folder] = job.runs()
    assert job.wait() == 1
    assert built(folder).exit_code in (1, 4)  # 4 when the machine was too busy
    assert acked(folder)
    assert set(failures(folder)) == {"digest_differs", "size_differs"}
    assert len(errors(job)) == 2
    report = (folder / run_folder.REPORT_MD).read_text().replace("\\", "")
    assert "digest_differs" in report
    assert "size_differs" in report


@pytest.mark.parametrize("model", first_of(BOTH))
def test_a_server_that_dies(model, tmp_path):
    with running(exit_code=-signal.SIGKILL) as server:
        options = ["--plan", "long", "--phase-seconds", "6", "--no-report", *BOTH[model]]
        with started(tmp_path, *load(host_of(server), *options)) as job:
            job.in_phase("long-1")
            os.kill(server.pid, signal.SIGKILL)
            assert job.wait() == 1
            [folder] = job.runs()
            judged = built(folder)
            assert (judged.verdict, judged.exit_code) == ("INVALID", 4)
            assert "server was gone in phase long-1" in judged.reason
            assert len(errors(job)) == len(failures(folder))
            assert set(failures(folder)) <= {"connect_refused", "connection_lost"}
        shutil.rmtree(server.folder, ignore_errors=True)


# ── the load ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", first_of(BOTH))
def test_a_load_process_that_dies(model, tmp_path):
    """It took its counts with it. The run ends long before its plan, and so does the other worker."""
    options = ["--plan", "long", "--phase-seconds", "600", *BOTH[model]]
    with running(workers=2) as server, spread(tmp_path, host_of(server), 2, *options) as (master, others):
        master.in_phase("long-1")
        others[0].process.kill()
        master.wait()
        assert (outcome(master).verdict, outcome(master).exit_code) == ("INVALID", 4)
        [folder] = master.runs()
        assert [event.text for event in events(folder, "load-process-lost")] == [
            "a load process was lost: 1 of 2 are left"
        ]
        assert outcome(master).reason == "a load process was lost: 1 of 2 are left"
        assert not any("something else" in text or "run failed" in text for text in outcome(master).also_broken)
        assert run_folder.read_run(folder).ended.how == "failed"
        assert [other.wait() for other in others] == [-signal.SIGKILL, 0]


@pytest.mark.slow
def test_the_last_load_process_dies(tmp_path):
    """Locust sees that before we do, and stops the test."""
    options = ["--plan", "long", "--phase-seconds", "600", *BOTH["closed"]]
    with running() as server, spread(tmp_path, host_of(server), 1, *options) as (master, [only]):
        master.in_phase("long-1")
        only.process.kill()
        master.wait()
        assert outcome(master).verdict == "INVALID"
        assert run_folder.read_run(master.runs()[0]).ended.how == "failed"
        only.wait()


@pytest.mark.slow
@pytest.mark.parametrize("model", BOTH)
def test_a_load_process_that_leaves(tmp_path, model):
    """In good order, and with its counts. Its arrivals would be nobody's; users go to the other."""
    options = ["--plan", "long", "--phase-seconds", "6", *BOTH[model]]
    with running(workers=2) as server, spread(tmp_path, host_of(server), 2, *options) as (master, others):
        master.in_phase("long-1")
        others[0].process.terminate()
        code = master.wait()
        [folder] = master.runs()
        [event] = events(folder, "load-process-left")
        assert event.text == "a load process left before the run's end: 1 remain"
        assert events(folder, "load-process-lost") == []
        assert run_folder.read_run(folder).ended.how == ("failed" if model == "open" else "completed")
        assert code != 0 or model == "closed"
        assert failures(folder) == {} and acked(folder) == server.stored()
        assert [other.wait() for other in others] == [0, 0]


@pytest.mark.parametrize("name", first_of([run_folder.UPLOADS, run_folder.EVENTS]))
def test_a_disk_that_is_full(tmp_path, name):
    """What nobody can write down ends the run: it would go on for ever, and nobody would know how it went."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).symlink_to("/dev/full")  # opens like a file, and has no space for a single byte
    options = ["--plan", "long", "--phase-seconds", "600", "--run-folder", folder, *BOTH["closed"]]
    with running() as server, started(tmp_path, *load(host_of(server), *options)) as job:
        assert job.wait() in (1, 2)
        assert "No space left on device" in job.said()


@pytest.mark.slow  # it takes a core from all other tests for as long
def test_a_load_that_is_starved(tmp_path):
    """Two others want its only core: whatever it measured, nobody may take it for the server's."""
    core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    loops = [tmp_path / "one", tmp_path / "another"]
    with running(workers=2) as server, ExitStack() as stack:
        options = ["--plan", "long", "--phase-seconds", "2", "--arrival-rate", "1500", "--no-report"]
        job = stack.enter_context(started(tmp_path, *core, *load(host_of(server), *options)))
        eventually(job.info, "the run has begun")
        for folder in loops:
            folder.mkdir()
            command = [*core, "timeout", "3", "sh", "-c", "while :; do :; done"]
            stack.enter_context(started(folder, *command))
        job.wait()
    assert built(job.runs()[0]).verdict in ("NOISY", "LOWER BOUND", "INVALID"), job.said()
