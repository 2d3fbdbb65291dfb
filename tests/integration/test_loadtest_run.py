"""The main job as a person runs it: `python -m loadtest run`, to its end or until it is told to end."""

import os
import signal

import pytest
from headless import refuse, serving
from in_process import called
from loads import (
    LOADTEST,
    acked,
    assert_complete,
    assert_report,
    built,
    failures,
    is_too_busy,
    pids_by_role,
    run,
    started,
)
from msgspec import structs
from servers import eventually, free_port, running

from loadtest import credentials
from loadtest.__main__ import cli
from loadtest.options import FIELDS
from reports import run_folder

RUN = [*LOADTEST, "run", "--users", "2", "--workers", "2"]
LONG = ["--plan", "long", "--phase-seconds", "600"]
CAME_TRUE = "p50(transaction) > 1us"


def test_to_the_end(tmp_path):
    """What it starts is gone afterwards: the frame of all these tests sees to that."""
    options = ["--plan", "long", "--phase-seconds", "1", "--payloads", "4KiB", "--label", "whole", "--no-verify-digest"]
    with started(tmp_path, *RUN, *options) as job:
        server = job.find("-m server")
        store = job.find_store()
        assert job.ends_well(), job.said()
    [folder] = job.runs()
    info = assert_complete(folder)
    assert info.ended.how == "completed"
    assert (info.server.pid, info.users, info.label) == (server, 2, "whole")
    assert info.server.options["workers"] == "2"
    assert info.server.options["store"] == str(store)
    assert info.load_options["verify_digest"] is False
    assert failures(folder) == {}
    assert "server    listening on 127.0.0.1:" in job.said()
    assert "\r" not in job.said()
    assert job.said().rstrip().endswith(str(folder.relative_to(tmp_path) / "report.html"))
    roles = {"server-master", "server-worker", "load-master", "hiccup-meter", "recorder"}
    assert set(pids_by_role(folder)) == roles


@pytest.fixture(scope="module")
def with_all_options(tmp_path_factory):
    """(its command, the options that were given, its arguments) of a run that has ended."""
    cwd = tmp_path_factory.mktemp("run")
    (cwd / "files").mkdir()
    (cwd / "files" / "one").write_bytes(b"data")
    (cwd / "disk").mkdir()
    given = {
        "plan": "short",
        "uploads_per_connection": "2",
        "phase_seconds": "2s",
        "warm_up": "100ms",
        "drain": "5s",
        "arrival_rate": "20-60",
        "arrival_profile": "ramp",
        "max_in_flight": "50",
        "at_cap": "drop",
        "shape": "none",
        "payloads": "4KiB:2,1KiB",
        "payload_dir": "files",
        "max_store": "1MiB",
        "wait": "5ms",
        "timeout": "20s",
        "closer": "client",
        "close": "rst",
        "wire": "loadtest.wires:FramedWire",
        "seed": "9",
        "label": "a 'quoted' --label",
    }
    options = [f"--{field.replace('_', '-')}={value}" for field, value in given.items()]
    options += ["--compressible", "--no-verify-digest", "--fail-if", "failures > 50%", "--fail-if", CAME_TRUE]
    given |= {"compressible": True, "verify_digest": False, "fail_if": f"failures > 50%; {CAME_TRUE}"}
    arguments = ["--workers", "1", "--store", "disk", *options]
    with started(cwd, *LOADTEST, "run", *arguments) as job:
        job.wait()
    return job, given, arguments


def test_all_options_reach_the_load(with_all_options):
    """Each has to pass from this command line to Locust's, which has its own way with switches and repetitions."""
    job, given, arguments = with_all_options
    secret = dict.fromkeys(credentials.FIELDS, "")  # for another host: test_secure_hosts.py
    assert set(given | secret) == set(FIELDS)
    [folder] = job.runs()
    info = assert_complete(folder)
    assert info.load_options == given | secret
    assert (info.model, info.users, info.thresholds) == ("open", 0, ["failures > 50%", CAME_TRUE])
    assert info.command == ["python", "-m", "loadtest", "run", *arguments]  # to repeat the run
    assert {phase.uploads_per_connection for phase in info.phases if phase.kind == "measure"} == {2}


def test_a_store_of_ones_own(with_all_options):
    """In a folder of the run's own below it, which is gone afterwards."""
    job, _, _ = with_all_options
    [folder] = job.runs()
    store = assert_complete(folder).server.options["store"]
    assert (job.cwd / store).parent == job.cwd / "disk"
    assert list((job.cwd / "disk").iterdir()) == []


# ── exit codes ────────────────────────────────────────────────────────────────────────────────────────────────────

IN_ASCII = ["env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0"]
SHORT_RUN = ["--plan", "long", "--phase-seconds", "1", "--warm-up", "0"]


def test_some_uploads_failed(tmp_path):
    """And with a condition that says how many may, they did not. What its terminal cannot show ends no run."""
    with running("--max-file-size", "8KiB") as server:
        options = [*SHORT_RUN, "--payloads", "4KiB:3,16KiB:1", "--host", f"tcp://127.0.0.1:{server.port}"]
        options += ["--label", "größe"]
        with started(tmp_path, *IN_ASCII, *LOADTEST, "run", *options) as job:
            assert job.ends_with_failures(), job.said()
    assert job.said().isascii()
    assert "<=4 KiB" in job.said()
    [folder] = job.runs()
    assert run_folder.read_run(folder).label == "größe"
    assert set(failures(folder)) == {"too_large"}
    info = assert_complete(folder)
    assert (info.ended.how, info.thresholds) == ("completed", [])
    run_folder.write_whole(folder / run_folder.RUN, structs.replace(info, thresholds=["failures > 90%"]))
    allowed = built(folder)
    assert allowed.exit_code == 0 or is_too_busy(allowed)


def test_a_condition_came_true(with_all_options):
    job, _, _ = with_all_options
    code = job.wait()
    assert code in (3, 4), job.said()
    outcome = run_folder.read_outcome(job.runs()[0])
    assert (outcome.exit_code, is_too_busy(outcome)) == (code, code == 4), job.said()
    assert CAME_TRUE in job.said()


def test_nothing_was_measured(tmp_path):
    """Whatever the conditions are: there are no numbers for them."""
    with serving(refuse) as host:
        options = [*SHORT_RUN, "--payloads", "4KiB", "--host", host, "--fail-if"]
        with started(tmp_path, *LOADTEST, "run", *options, "failures > 100%") as job:
            assert job.wait() == 4, job.said()
    assert "INVALID: nothing was measured" in job.said()
    assert_report(job.runs()[0])


# ── Ctrl-C ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_ctrl_c_once_more_while_the_report_is_built(tmp_path):
    """As a terminal does it: to the whole process group. Single ones at any moment: test_interrupts.py."""
    with started(tmp_path, *RUN, *LONG) as job:
        job.in_phase("warm-up")
        os.killpg(job.process.pid, signal.SIGINT)
        eventually(lambda: job.info().ended, "the load has ended")
        os.killpg(job.process.pid, signal.SIGINT)
        assert job.wait() == 130, job.said()
    [folder] = job.runs()
    assert assert_complete(folder).ended.how == "stopped"
    assert failures(folder) == {}
    assert "report.html" in job.said()


@pytest.mark.slow
def test_a_closed_terminal(tmp_path):
    """And a server of somebody else, which is left running."""
    with running() as server:
        host = f"tcp://127.0.0.1:{server.port}"
        with started(tmp_path, *LOADTEST, "run", "--users", "2", *LONG, "--host", host) as job:
            job.in_phase("warm-up")
            job.process.send_signal(signal.SIGHUP)
            assert job.wait() == 130, job.said()
        assert server.process.poll() is None
        [folder] = job.runs()
        info = assert_complete(folder)
        assert (info.ended.how, info.server.pid) == ("stopped", server.pid)
        assert acked(folder) == server.stored()


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(tmp_path):
    """A stopped Locust would never finish its uploads."""
    with started(tmp_path, *RUN, *LONG) as job:
        job.in_phase("warm-up")
        os.kill(job.find("-m locust"), signal.SIGSTOP)
        job.process.send_signal(signal.SIGINT)
        eventually(lambda: "again to end at once" in job.said(), "it says what a second one does")
        job.process.send_signal(signal.SIGINT)
        assert job.wait() == 130, job.said()
    assert_report(job.runs()[0])


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--no-such-option"], "No such option '--no-such-option'"),
        (["--plan", "middle"], "plan is 'middle', not one of compare, long, short, sweep"),
        (["--at-cap", "wait"], "'wait' is not one of 'queue', 'drop'"),
        (["--users", "-1"], "-1 is not in the range"),
        (["--users", "0"], "number of users is 0: a run of the closed model needs at least 1"),
        (["--payloads", "4KX"], "payloads: '4KX' is not a size"),
        (["--payload-dir", "/no/such/folder"], "payload folder: '/no/such/folder' is not a folder"),
        (["--payload-dir", "empty"], "payload folder: 'empty' has no files"),
        (["--phase-seconds", "soon"], "'soon' is not a duration"),
        (["--wait=-1"], "'-1' is not a duration"),
        (["--seed", "x"], "seed: 'x' is not a whole number"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options(tmp_path, options, said):
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path, options, said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "127.0.0.1:12345"], "'127.0.0.1:12345' is not a host"),
        (
            ["--host", "tcp://127.0.0.1:{closed}"],
            "no server at tcp://127.0.0.1:{closed}: Connection refused; start one",
        ),
        (["--host", "tcp://user:hunter2@127.0.0.1:1", "--workers", "2"], "the one of --host runs already"),
        (["--host", "unix:///no/such/socket"], "no server at unix:///no/such/socket: No such file or directory"),
        (["--host", "tcp://127.0.0.1:{closed}", "--workers", "2"], "workers is for a server that the run starts, but"),
        (["--host", "tcp://127.0.0.1:{closed}", "--store", "."], "store is for a server that the run starts, but"),
    ],
)
def test_hosts_that_cannot_be_loaded(tmp_path, options, said):
    closed = free_port()
    options = [option.format(closed=closed) for option in options]
    assert_refused(tmp_path, options, said.format(closed=closed))


def assert_refused(tmp_path, options, said):
    done = called(cli, tmp_path, "run", *options)
    everything = done.stdout + done.stderr
    assert done.returncode == 2
    [line] = [line for line in everything.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert "hunter2" not in everything
    assert everything.splitlines()[-1] == line
    assert not (tmp_path / "reports").exists()


def test_runs_cannot_be_written(tmp_path):
    (tmp_path / "reports").touch()
    code, everything = run(tmp_path, *RUN)
    assert code == 1
    assert everything.startswith("Error: the run folder cannot be made: ")
    assert everything.count("\n") == 1
