"""What binds, in the order of explanation, with its evidence."""

import msgspec
import pytest

from reports.analysis.binding import binding
from reports.summary import TcpSummary
from server.failure_codes import NO_LOCAL_PORT
from tests.unit.reports.run_folders import summarise


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    return summarise(tmp_path_factory.mktemp("run") / "run").phases


def bound(phases, tcp=None, model="closed", **changes):
    """With these changes to all phases."""
    return binding([msgspec.structs.replace(phase, **changes) for phase in phases], tcp, [], model)


def tcp(drops):
    return TcpSummary(
        queue_waiting=90, queue_limit=100, dropped=drops, states={}, time_wait=0, counters={}, sent_bytes={}
    )


FULL = {"busiest_worker_share": 0.97, "mean_worker_share": 0.96}
HOT = {"busiest_worker_share": 0.97, "mean_worker_share": 0.4}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"generator_share": 0.9} | FULL, "the load generator (its busiest process used 90.0 % of a core)"),
        ({"failures": {NO_LOCAL_PORT: 5}} | FULL, "the load's ports (20 connections found none free)"),
        (FULL, "server CPU (its workers used 96.0 % of a core each)"),
        (HOT, "CPU of one worker (it used 97.0 % of a core; the workers' mean is 40.0 %)"),
        ({"machine_share": 0.99}, "the machine's CPU (all that ran there used 99.0 % of it)"),
        ({"disk_wait_share": 0.3}, "perhaps the disk (cores were idle for it 30.0 % of the time)"),
        (
            {"busiest_worker_share": None},
            "nothing (the users and their pauses asked for no more)",
        ),
    ],
)
def test_the_first_that_was_at_its_limit_is_named(phases, changes, text):
    assert bound(phases, **changes) == text


def test_connections_that_were_dropped_are_the_accept_queues(phases):
    assert bound(phases, tcp(3)) == "the accept queue (3 connections were dropped; a socket holds 100)"
    assert bound(phases, tcp(0)).startswith("nothing")
    assert bound(phases, tcp(3), **FULL).startswith("server CPU")


def test_the_open_model_has_no_users(phases):
    assert bound(phases, model="open").endswith("the arrival rate asked for no more)")


def test_nothing_measured_has_nothing_that_binds(phases):
    assert binding([], None, [], "closed") == ""
    assert bound(phases, uploads=0) == ""
    assert bound(phases, model="none") == ""
