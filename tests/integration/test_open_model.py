"""The open model and the plans, as real runs of Locust: what was due is what was uploaded, and is counted."""

import os
import signal
from collections import Counter
from contextlib import ExitStack

import pytest
from headless import (
    answer,
    histogram,
    host_of,
    load,
    measured,
    outcome,
    serving,
    spread,
    summary,
    users,
)
from in_process import called
from loads import (
    LOADTEST,
    LOCUST,
    USERS_PY,
    acked,
    assert_complete,
    events,
    failures,
    is_too_busy,
    run,
    seconds,
    started,
)
from servers import ROOT, eventually, running
from slow import first_of

from loadtest import arrivals, payloads
from loadtest.__main__ import cli
from reports import run_folder

# ── what was due ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_arrival_is_acknowledged(tmp_path):
    """Whatever the connections are like, and each with a response, which begins when it was due. One of the run's two
    conditions comes true."""
    with running(store=tmp_path / "store", workers=2) as server:
        command = load(host_of(server), "--arrival-rate", 300, "--uploads-per-connection", "5,1")
        command += ["--fail-if", "failures > 0", "--fail-if", "uploads/s < 1000000"]
        with started(tmp_path, *command) as job:
            assert job.wait() == 3 or is_too_busy(outcome(job)), job.said()
        [folder] = job.runs()
        info = assert_complete(folder)
        assert (failures(folder), acked(folder)) == ({}, server.stored())
    assert (info.model, info.users) == ("open", 0)
    assert {line.users for line in seconds(folder)} == {0}
    assert [phase.name for phase in measured(folder)] == ["5-per-connection-1", "short-1"]
    for phase, told in zip(measured(folder), summary(folder)["phases"][1:-1], strict=True):
        assert phase.offered == acked(folder, phase.name) == 300
        assert phase.end_ns - phase.start_ns == 1_000_000_000
        assert (told["name"], told["uploads"], told["offered"]) == (phase.name, 300, 300)
        assert told["achieved_share"] == pytest.approx((300 - told["late"]) / 300)
        for duration in ("schedule_lag", "pool_wait", "service", "transaction", "response"):
            assert histogram(folder, phase.name, duration).get_total_count() == 300
        for duration in ("unanswered", "think"):
            assert histogram(folder, phase.name, duration).get_total_count() == 0
    assert_thresholds_told(folder)


def assert_thresholds_told(folder):
    assert run_folder.read_run(folder).thresholds == ["failures > 0", "uploads/s < 1000000"]
    told = summary(folder)["thresholds"]
    assert [(result["condition"], result["broken"]) for result in told] == [
        ("failures > 0", False),
        ("uploads/s < 1000000", True),
    ]
    assert "uploads/s &lt; 1000000" in (folder / run_folder.REPORT_HTML).read_text()
    assert "uploads/s < 1000000" in (folder / run_folder.REPORT_MD).read_text().replace("\\", "")


@pytest.mark.parametrize(("kind", "rate"), first_of([("poisson", "200"), ("ramp", "50-300"), ("step", "50,200")]))
def test_profiles(kind, rate, tmp_path):
    with running(workers=2) as server:
        options = ["--plan", "long", "--warm-up", "300ms", "--seed", 3, "--no-report", "--arrival-profile"]
        with started(tmp_path, *load(host_of(server), *options, kind, "--arrival-rate", rate)) as job:
            assert job.wait() == 0, job.said()
    [folder] = job.runs()
    profile = arrivals.parse_profile(kind, rate)
    expected = {
        "warm-up": arrivals.offered(arrivals.warm_up(profile), 0.3, 3, 0.3),
        "long-1": arrivals.offered(profile, 1.0, 3, 1.0),
    }
    offered = {phase.name: phase.offered for phase in run_folder.read_run(folder).phases}
    assert offered == {"ramp-up": 0, **expected, "drain": 0}
    assert {phase: acked(folder, phase) for phase in expected} == expected


@pytest.mark.parametrize("load_processes", first_of([2, 1, 1]), ids=["two", "one", "one more"])
def test_a_seed_is_a_run(load_processes, tmp_path):
    """However many load processes send it: the same files, under the same names, as often."""
    mix = "1KiB:2,4KiB:1,20KiB:1"
    options = ["--arrival-profile", "poisson", "--arrival-rate", 150, "--uploads-per-connection", "0,1", "--seed", 11]
    options += ["--payloads", mix, "--no-report"]
    seen = Counter()

    def serve(sock):
        while answer(sock, lambda *upload: seen.update([upload])):
            pass

    with ExitStack() as stack:
        host, others = stack.enter_context(serving(serve)), []
        if load_processes == 1:
            job = stack.enter_context(started(tmp_path, *load(host, *options)))
        else:
            job, others = stack.enter_context(spread(tmp_path, host, load_processes, *options))
        assert {one.wait() for one in (job, *others)} == {0}, job.said()

    chosen = payloads.generated(payloads.parse_mix(mix), 11, with_digests=False)
    due = arrivals.offered(arrivals.parse_profile("poisson", "150"), 1.0, 11, 1.0)
    expected = Counter((name, payload.size_bytes) for payload, name in map(chosen.pick_arrival, range(due)))
    assert seen == expected + expected  # one for each of the two phases
    [folder] = job.runs()
    assert [(phase.offered, acked(folder, phase.name)) for phase in measured(folder)] == [(due, due)] * 2


PATIENT = ["--hang-timeout", "10min"]


def test_what_is_due_beyond_the_most_in_flight_is_dropped(tmp_path):
    """And counted, every one: a load that was not sent must be seen."""
    with running(*PATIENT) as server:
        [worker] = server.workers()
        os.kill(worker, signal.SIGSTOP)
        try:
            options = ["--plan", "long", "--arrival-rate", 100, "--max-in-flight", 1, "--at-cap", "drop"]
            with started(tmp_path, *load(host_of(server), *options, "--drain", "100ms", "--no-report")) as job:
                assert job.wait() == 1, job.said()
        finally:
            os.kill(worker, signal.SIGCONT)
    [folder] = job.runs()
    assert failures(folder) == {"dropped": 99, "unfinished": 1}
    assert "dropped: due while the most uploads were in flight" in job.said()
    assert histogram(folder, "long-1", "unanswered").get_total_count() == 1


def test_what_is_due_beyond_the_most_in_flight_waits(tmp_path):
    """The same, queued: nothing is lost, and waiting is part of the response."""
    with running(*PATIENT) as server:
        [worker] = server.workers()
        options = ["--plan", "long", "--phase-seconds", 2, "--arrival-rate", 100, "--max-in-flight", 1, "--no-report"]
        os.kill(worker, signal.SIGSTOP)
        try:
            with started(tmp_path, *load(host_of(server), *options)) as job:
                eventually(lambda: job.runs() and queued_for_s(job.runs()[0]) > 0.2, "some have been queued for long")
                os.kill(worker, signal.SIGCONT)
                assert job.wait() == 0, job.said()
        finally:
            os.kill(worker, signal.SIGCONT)
    [folder] = job.runs()
    assert (failures(folder), acked(folder, "long-1")) == ({}, 200)
    assert histogram(folder, "long-1", "pool_wait").get_max_value() > 100_000
    assert max(tick.in_flight for tick in run_folder.read_load(folder)) == 1


def queued_for_s(folder):
    """For how long arrivals are known to have waited for an uploader: from one word of the load process to another."""
    told_ns = [tick.mono_ns for tick in run_folder.read_load(folder) if tick.queued > 10]
    return (told_ns[-1] - told_ns[0]) / 1e9 if told_ns else 0


# ── connections ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("plan", "modes"),
    first_of([(["--plan", "sweep:1,2,0"], [1, 2, 0, 0, 2, 1]), (["--uploads-per-connection", "5"], [5])]),
    ids=["sweep", "five"],
)
def test_uploads_per_connection(plan, modes, tmp_path):
    """One user, so that each phase's connections can be counted: none is kept over its end."""
    with running(workers=2) as server:
        options = [*users(1), "--wait", "2ms", "--no-report"]
        with started(tmp_path, *load(host_of(server), *options, *plan)) as job:
            assert job.wait() == 0, job.said()
        accepted = sum(slot.connections_accepted for slot in server.slots())
    [folder] = job.runs()
    opened = Counter()
    for line in seconds(folder):
        opened[line.phase] += sum(name.connections for name in line.names.values())
    for phase in run_folder.read_run(folder).phases:
        uploads, each = acked(folder, phase.name), phase.uploads_per_connection
        assert opened[phase.name] == (min(uploads, 1) if each == 0 else -(-uploads // each)), phase.name
    assert opened.total() + 1 == accepted  # it looked whether a server is there
    assert [phase.uploads_per_connection for phase in measured(folder)] == modes


@pytest.mark.parametrize("close", first_of(["rst", "fin"]))
def test_the_client_closes(close, tmp_path):
    """Neither way loses an upload or looks like a failure to the server."""
    with running(workers=2) as server:
        options = ["--arrival-rate", 100, "--plan", "short", "--closer", "client", "--no-report", "--close", close]
        with started(tmp_path, *load(host_of(server), *options)) as job:
            assert job.wait() == 0, job.said()
        [folder] = job.runs()
        assert (failures(folder), server.failures()) == ({}, {})
        assert acked(folder) == server.stored()
    assert histogram(folder, "short-1", "close").get_total_count() == acked(folder, "short-1") == 100


@pytest.mark.parametrize("shape", first_of(["step", "ramp", "soak"]))
def test_shapes(shape, tmp_path):
    with running() as server:
        options = [*users(4), "--plan", "long", "--phase-seconds", 8, "--no-report", "--shape", shape]
        with started(tmp_path, *load(host_of(server), *options)) as job:
            assert job.wait() == 0, job.said()
    [folder] = job.runs()
    numbers = [event.details["users"] for event in events(folder, "users-changed")]
    assert 1 <= min(numbers) < max(numbers) == 4
    assert run_folder.read_run(folder).ended.how == "completed"
    assert failures(folder) == {}


@pytest.mark.slow
def test_a_shape_waits_for_the_start(tmp_path):
    """Locust asks it each second; told of other users before the test has begun, it would begin another."""
    with running() as server:
        options = [*users(4), "--plan", "long", "--phase-seconds", 2, "--no-report", "--shape", "ramp"]
        files = f"{USERS_PY},{ROOT / 'tests' / 'slow_start.py'}"
        with started(tmp_path, *load(host_of(server), *options, "-f", files)) as job:
            assert job.wait() == 0, job.said()
    [folder] = job.runs()
    assert acked(folder, "long-1")


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────────────────────

MISTAKES = [
    (["--arrival-rate", "100", "--users", "5"], "an arrival rate and 5 users: the open model has no users"),
    (["--arrival-rate", "x"], "arrival rate 'x' is not one of profile constant: write one number"),
    (["--arrival-rate", "100", "--arrival-profile", "step", "--shape", "ramp"], "shape belongs to the closed model"),
    (["--users", "5", "--fail-if", "p98(response) > 1ms"], "there is no 'p98' of a duration, write one of"),
    (["--users", "5", "--wire", "no.such:Wire"], "wire 'no.such:Wire' cannot be had: No module named 'no'"),
    (["--users", "5", "--wire", "loadtest.wires"], "wire is 'loadtest.wires': write MODULE:CLASS"),
    (["--users", "5", "--max-store", "1KiB"], "over 1 KiB: allow it with --max-store"),
    (["--arrival-rate", "0.0", "--max-store", "1KiB"], "20 uploads under way"),
    (["--users", "5", "--close", "rst"], "close is 'rst', but the server closes"),
    (["--users", "5", "--plan", "sweep:1,x"], "uploads per connection is 'x'"),
    (["--users", "0"], "number of users is 0"),
]


@pytest.mark.parametrize(("options", "said"), MISTAKES, ids=[" ".join(options) for options, _ in MISTAKES])
def test_mistakes(tmp_path, options, said):
    """In one line, before anything is started."""
    done = called(cli, tmp_path, "run", *options)
    everything = done.stdout + done.stderr
    assert done.returncode == 2
    assert everything.startswith("Error: ")
    assert everything.count("\n") == 1
    assert said in everything
    assert not (tmp_path / "reports").exists()


def test_too_few_files_may_be_open(tmp_path):
    command = ["sh", "-c", 'ulimit -n 300; exec "$@"', "sh", *LOADTEST, "run", "--users", "150"]
    code, everything = run(tmp_path, *command)
    assert code == 2
    assert everything.startswith("Error: 150 connections at once need more than the 300 files")
    assert not (tmp_path / "reports").exists()


@pytest.mark.slow  # test_locust.py has one
@pytest.mark.parametrize(("options", "said"), [MISTAKES[0], MISTAKES[6]], ids=["users", "store"])
def test_mistakes_to_locust(tmp_path, options, said):
    with running() as server:
        code, everything = run(tmp_path, *LOCUST, "--headless", "--host", host_of(server), *options)
    assert code == 2
    [line] = [line for line in everything.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert not (tmp_path / "reports").exists()


def test_an_unknown_profile(tmp_path):
    done = called(cli, tmp_path, "run", "--arrival-rate", "100", "--arrival-profile", "square")
    assert done.returncode == 2
    assert "'square' is not one of 'constant', 'poisson', 'ramp', 'step'" in done.stderr
