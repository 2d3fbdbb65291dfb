"""The open model without Locust: which arrivals, which are under way, which wait, and that each is counted in the end.

Most plans here began in the past, so that all is due at once and nobody waits for a second to go by.
"""

import itertools
import logging
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager

import gevent
import pytest
from fake_load import fake_load, soon
from headless import answer, host_of, read_exactly, serving
from servers import DEADLINE_S, running

from loadtest import arrivals
from loadtest.open_model import BURST, OpenModel

NS = 1_000_000_000
LONG_AGO_NS = 100 * NS


def serve(sock):
    while answer(sock):
        pass


@contextmanager
def gated():
    """(host, gate) of a server that answers when the gate is open."""
    gate = threading.Event()

    def serve_later(sock):
        while gate.wait(DEADLINE_S) and answer(sock):
            pass

    with serving(serve_later) as host:
        try:
            yield host, gate
        finally:
            gate.set()


@contextmanager
def over(host, k=0, n=1, **options):
    """(load, model) of a plan that is over: all its arrivals are due. One long phase if nothing else is said."""
    with fake_load(host, **{"plan": "long"} | options) as load:
        model = OpenModel(load, time.monotonic_ns() - LONG_AGO_NS, k, n)
        try:
            yield load, model
        finally:
            model.drain(0)


def schedule(load, k=0, n=1):
    """(phase, ns from the plan's start, size, name) of a share, computed from the pure functions alone."""
    start_ns = 0
    for planned in load.options.plan:
        profile = load.options.profile_of(planned)
        cells = arrivals.cells(profile, planned.duration_s, load.options.seed) if profile else ()
        every = itertools.chain.from_iterable(offsets.tolist() for _, offsets in cells)
        for index, offset_ns in enumerate(every):
            if index % n == k:
                payload, name = load.payloads.pick_arrival(index)
                yield planned.name, start_ns + offset_ns, payload.size_bytes, name
        start_ns += round(planned.duration_s * NS)


def seen(load, start_ns):
    return [(ended.phase.name, ended.arrival.intended_ns - start_ns, ended.payload.size_bytes) for ended in load.ended]


# ── which arrivals ────────────────────────────────────────────────────────────────────────────────────────────────

SCHEDULES = {
    "constant": {"arrival_rate": "40"},
    "poisson": {"arrival_rate": "40", "arrival_profile": "poisson", "seed": "5"},
    "ramp": {"arrival_rate": "10-60", "arrival_profile": "ramp", "warm_up": "1500ms"},
    "from nothing": {"arrival_rate": "60", "arrival_profile": "ramp", "warm_up": "1500ms"},
    "step": {"arrival_rate": "0,30,0", "arrival_profile": "step", "plan": "sweep:1,3"},
}


@pytest.mark.parametrize("options", SCHEDULES.values(), ids=SCHEDULES)
def test_arrivals_are_those_of_the_schedule_in_its_order(options):
    """One upload at a time, so that they end in the order in which they began."""
    names = []

    def note(sock):
        while answer(sock, lambda name, _: names.append(name)):
            pass

    with serving(note) as host, fake_load(host, payloads="1KiB,9KiB,0", max_in_flight="1", **options) as load:
        start_ns = time.monotonic_ns() - LONG_AGO_NS
        model = OpenModel(load, start_ns, 0, 1)
        soon(model.finished.is_set, "all that was due has ended")
        model.drain(0)
    expected = list(schedule(load))
    assert seen(load, start_ns) == [upload[:3] for upload in expected]
    assert names == [upload[3] for upload in expected]
    assert set(load.codes()) == {"ok"}
    assert [ended.phase.end_ns - start_ns for ended in load.ended] == [ends(load)[phase] for phase, *_ in expected]


def ends(load):
    """phase -> its end in ns from the plan's start"""
    durations_ns = [round(planned.duration_s * NS) for planned in load.options.plan]
    return dict(zip((planned.name for planned in load.options.plan), itertools.accumulate(durations_ns), strict=True))


@pytest.mark.parametrize("n", [2, 3])
def test_shares_make_the_whole(n):
    """Each arrival is of exactly one load process."""
    options = {"arrival_rate": "50", "arrival_profile": "poisson", "plan": "compare", "payloads": "1KiB,2KiB"}
    found = Counter()
    with serving(serve) as host:
        for k in range(n):
            with fake_load(host, **options) as load:
                start_ns = time.monotonic_ns() - LONG_AGO_NS
                model = OpenModel(load, start_ns, k, n)
                soon(model.finished.is_set, "all that was due has ended")
                model.drain(0)
                assert Counter(seen(load, start_ns)) == Counter(upload[:3] for upload in schedule(load, k, n))
                found.update(seen(load, start_ns))
    assert found == Counter(upload[:3] for upload in schedule(load))


def test_nothing_starts_before_it_is_due():
    """In real time, against the real server."""
    with running(workers=2) as server, fake_load(host_of(server), arrival_rate="200", plan="long") as load:
        start_ns = time.monotonic_ns() + 10_000_000
        model = OpenModel(load, start_ns, 0, 1)
        soon(model.finished.is_set, "all that was due has ended")
        model.drain(0)
        assert server.stored() == 200
    assert load.codes() == ["ok"] * 200
    assert load.in_flight == 0
    assert sorted(seen(load, start_ns)) == [upload[:3] for upload in schedule(load)]
    for ended in load.ended:
        assert start_ns <= ended.arrival.intended_ns <= ended.arrival.woke_ns <= ended.done.start_ns < ended.done.end_ns
        assert ended.row == "long ≤4 KiB"


def test_more_than_one_burst_at_once():
    """A process that could not run for a while comes to all that was due meanwhile."""
    with serving(serve) as host, over(host, arrival_rate=str(4 * BURST)) as (load, model):
        soon(model.finished.is_set, "all that was due has ended")
        assert load.codes() == ["ok"] * 4 * BURST


def test_a_schedule_of_hours_is_not_made_beforehand():
    with serving(serve) as host, fake_load(host, arrival_rate="1000000", phase_seconds="10h", plan="long") as load:
        model = OpenModel(load, time.monotonic_ns() + 3600 * NS, 0, 1)
        model.drain(DEADLINE_S)
        assert load.ended == []


# ── how many at once ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_rest_waits():
    with gated() as (host, gate), over(host, arrival_rate="10", max_in_flight="3") as (load, model):
        soon(lambda: (load.in_flight, model.queued) == (3, 7), "three are under way, the others wait")
        assert not model.finished.is_set()
        gate.set()
        soon(model.finished.is_set, "all that was due has ended")
        assert model.queued == load.in_flight == 0
    assert load.codes() == ["ok"] * 10
    assert sum(ended.done.connected for ended in load.ended) == 3  # connections are used again
    assert load.dropped == []


def test_the_rest_is_dropped():
    with (
        gated() as (host, gate),
        over(host, arrival_rate="10", max_in_flight="3", at_cap="drop", plan="compare") as (load, model),
    ):
        dropped = 4 * 10 - 3  # of all four phases
        soon(lambda: (load.in_flight, len(load.dropped)) == (3, dropped), "three are under way, the others dropped")
        assert model.queued == 0
        gate.set()
        soon(model.finished.is_set, "all that was due has ended")
    assert load.codes() == ["ok"] * 3
    assert Counter((phase.name, row) for phase, row in load.dropped) == {
        ("long-1", "long ≤4 KiB"): 7,
        ("short-1", "short ≤4 KiB"): 10,
        ("short-2", "short ≤4 KiB"): 10,
        ("long-2", "long ≤4 KiB"): 10,
    }


@pytest.mark.parametrize(
    ("most", "shares"), [(5, [3, 2]), (6, [2, 2, 2]), (8, [3, 3, 2]), (2, [1, 1]), (1, [1]), (2, [1, 1, 1, 1])]
)
def test_the_most_in_flight_is_dealt_out(most, shares):
    """One for each load process at least, since its share of the schedule could not be sent else."""
    n = len(shares)
    for k, own in enumerate(shares):
        with gated() as (host, _), over(host, k, n, arrival_rate="40", max_in_flight=str(most)) as (load, model):
            soon(lambda k=k: load.in_flight + model.queued == len(range(k, 40, n)), "all are under way or wait")
            assert load.in_flight == own


def test_what_waits_is_not_made_yet():
    """It is made when an uploader is free for it: a stall may last, and be one of 100,000 arrivals a second."""
    with gated() as (host, gate), fake_load(host, arrival_rate="20000", max_in_flight="3", plan="long") as load:
        picked = []
        pick = load.payloads.pick_arrival
        load.payloads.pick_arrival = lambda index: picked.append(index) or pick(index)
        model = OpenModel(load, time.monotonic_ns() - LONG_AGO_NS, 0, 1)
        soon(lambda: (load.in_flight, model.queued) == (3, 19_997), "three are under way, the others wait")
        assert picked == [0, 1, 2]
        gate.set()
        soon(lambda: len(load.ended) >= 50, "it goes on")
        model.drain(0)
    assert picked == list(range(20_000))
    assert len(load.ended) == 20_000
    assert len({ended.arrival.intended_ns for ended in load.ended}) == 20_000


def test_waiting_for_an_uploader_is_no_schedule_lag():
    """What was due before the load process looked, was late by its own fault until it looked."""
    options = {"arrival_rate": "200", "max_in_flight": "2", "plan": "long", "phase_seconds": "600"}
    with gated() as (host, gate), fake_load(host, **options) as load:
        begun_ns = time.monotonic_ns()
        model = OpenModel(load, begun_ns - NS // 2, 0, 1)
        soon(lambda: model.queued, "all uploaders are busy")
        busy_ns, before = time.monotonic_ns(), model.queued
        soon(lambda: model.queued > before + 10, "others became due")
        opened_ns = time.monotonic_ns()
        gate.set()
        model.drain(DEADLINE_S)
    assert set(load.codes()) == {"ok"}
    arrivals = [ended.arrival for ended in load.ended]
    late = [arrival for arrival in arrivals if arrival.intended_ns < begun_ns]
    assert len(late) >= 100
    assert all(begun_ns <= arrival.woke_ns <= busy_ns for arrival in late)
    waited = [arrival for arrival in arrivals if busy_ns < arrival.intended_ns < opened_ns]
    assert waited
    assert all(arrival.woke_ns == arrival.intended_ns for arrival in waited)


# ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_never_answered_is_unfinished():
    """Those under way, those that wait, and nothing twice."""
    with gated() as (host, _), over(host, arrival_rate="10", max_in_flight="3") as (load, model):
        soon(lambda: (load.in_flight, model.queued) == (3, 7), "three are under way, the others wait")
        model.drain(0.01)
        assert (load.in_flight, model.queued) == (0, 0)
        assert load.codes() == ["unfinished"] * 10
        model.drain(1000)  # it is over: there is nothing to wait for
        assert len(load.ended) == 10
    start_ns = min(ended.arrival.intended_ns for ended in load.ended)
    assert sorted(seen(load, start_ns)) == [upload[:3] for upload in schedule(load)]
    assert all(ended.done.end_ns - ended.arrival.intended_ns > LONG_AGO_NS - NS for ended in load.ended)


def test_others_have_a_turn_while_much_is_given_up():
    """Heartbeats and batches, or the load process would be taken for lost."""
    with gated() as (host, _), over(host, arrival_rate="10000", max_in_flight="3") as (load, model):
        soon(lambda: (load.in_flight, model.queued) == (3, 9_997), "three are under way, the others wait")
        with turns(lambda: len(load.ended)) as seen:
            model.drain(0)
        assert load.codes() == ["unfinished"] * 10_000
    assert largest_step(seen) <= BURST


def test_others_have_a_turn_while_uploads_fail_at_once():
    """A server that stalled and is gone: all that waited fails without waiting for a socket."""
    with ExitStack() as server:
        host = server.enter_context(serving(lambda sock: read_exactly(sock, 1 << 40)))
        with over(host, arrival_rate="1000", max_in_flight="3") as (load, model):
            soon(lambda: (load.in_flight, model.queued) == (3, 997), "three are under way, the others wait")
            server.close()
            with turns(lambda: len(load.ended)) as seen:
                soon(model.finished.is_set, "all that was due has ended")
    assert Counter(load.codes()) == {"connection_lost": 3, "connect_refused": 997}
    assert largest_step(seen) <= 3


@contextmanager
def turns(look):
    """What `look` tells another greenlet at each of its turns."""
    seen = [look()]

    def watch():
        while True:
            gevent.sleep(0)
            seen.append(look())

    watcher = gevent.spawn(watch)
    gevent.sleep(0)
    try:
        yield seen
    finally:
        watcher.kill()
        seen.append(look())


def largest_step(seen):
    return max(after - before for before, after in itertools.pairwise(seen))


def test_a_drain_waits_for_what_is_under_way():
    with gated() as (host, gate), over(host, arrival_rate="10", max_in_flight="3") as (load, model):
        soon(lambda: (load.in_flight, model.queued) == (3, 7), "three are under way, the others wait")
        draining = gevent.spawn(model.drain, DEADLINE_S)
        gevent.sleep(0)
        gate.set()
        draining.join()
    assert load.codes() == ["ok"] * 10


def test_a_drain_in_the_middle():
    """What is due by then is ours, also what the hub did not come to; what is due later is nobody's."""
    with serving(serve) as host, fake_load(host, arrival_rate="1000", plan="long") as load:
        start_ns = time.monotonic_ns() - NS // 2
        model = OpenModel(load, start_ns, 0, 1)
        before_ns = time.monotonic_ns()
        model.drain(0)  # the hub has not run yet
        after_ns = time.monotonic_ns()
    ended = len(load.ended)
    due = [upload[1] for upload in schedule(load)]
    assert sum(start_ns + offset_ns <= before_ns for offset_ns in due) <= ended
    assert ended <= sum(start_ns + offset_ns <= after_ns for offset_ns in due)
    assert sorted(offset_ns for _, offset_ns, _ in seen(load, start_ns)) == due[:ended]


def test_a_drain_before_anything_was_due():
    with serving(serve) as host, fake_load(host, arrival_rate="10") as load:
        model = OpenModel(load, time.monotonic_ns() + 3600 * NS, 0, 1)
        model.drain(1000)
        assert model.finished.is_set()
        assert load.ended == []


def test_connections_are_closed_at_the_end():
    ended = threading.Semaphore(0)

    def serve_to_the_end(sock):
        try:
            serve(sock)
        finally:
            ended.release()

    with serving(serve_to_the_end) as host:
        with over(host, arrival_rate="10", max_in_flight="2") as (load, model):
            soon(model.finished.is_set, "all that was due has ended")
        opened = sum(ended.done.connected for ended in load.ended)
        assert all(ended.acquire(timeout=DEADLINE_S) for _ in range(opened))


def test_failures_do_not_end_it(caplog):
    """Each upload that fails is one; the next begins anew."""
    turns = itertools.count()

    def fail_at_times(sock):
        while next(turns) % 3 and answer(sock):
            pass

    with (
        caplog.at_level(logging.ERROR, "socketswarm"),
        serving(fail_at_times) as host,
        over(host, arrival_rate="60", max_in_flight="2") as (load, model),
    ):
        soon(model.finished.is_set, "all that was due has ended")
    assert len(load.ended) == 60
    assert set(load.codes()) == {"ok", "connection_lost"}
    assert caplog.records == []


def test_a_mistake_in_a_wire_is_a_failed_upload(caplog):
    """It is nobody's upload that is lost then, and no uploader."""

    def babble(sock):
        while sock.recv(1 << 16):
            sock.sendall(b"?\n")

    options = {"arrival_rate": "10", "max_in_flight": "2", "wire": "line_wire:BrokenWire"}
    with serving(babble) as host, over(host, **options) as (load, model):
        soon(model.finished.is_set, "all that was due has ended")
    assert load.codes() == ["client_failed"] * 10
    assert "on purpose" in caplog.text
