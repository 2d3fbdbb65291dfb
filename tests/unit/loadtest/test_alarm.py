"""The alarm: never early, in order, and one's mistake is not the others'."""

import logging
import time
from pathlib import Path

import gevent
import greenlet
import pytest
from fake_load import soon
from hypothesis import given
from hypothesis import strategies as st
from slow import examples

from loadtest.alarm import Alarm

MS = 1_000_000
OVER_NS = 1


@pytest.fixture
def alarm():
    alarm = Alarm()
    yield alarm
    alarm.close()


def test_never_early(alarm):
    rung = []
    start_ns = time.monotonic_ns()
    for after_ns in (5 * MS, 1 * MS, 1 * MS + 1, 3 * MS):
        alarm.at(start_ns + after_ns, lambda after_ns=after_ns: rung.append((after_ns, time.monotonic_ns() - start_ns)))
    soon(lambda: len(rung) == 4, "all have rung")
    assert [after_ns for after_ns, _ in rung] == [1 * MS, 1 * MS + 1, 3 * MS, 5 * MS]
    assert all(rung_ns >= after_ns for after_ns, rung_ns in rung)


@examples(30)
@given(st.lists(st.integers(-2 * MS, 2 * MS) | st.sampled_from([0, MS]), max_size=20))
def test_in_the_order_of_their_times_and_then_as_they_were_set(after):
    alarm = Alarm()
    try:
        rung = []
        now_ns = time.monotonic_ns()
        for number, after_ns in enumerate(after):
            alarm.at(now_ns + after_ns, lambda number=number: rung.append(number))
        soon(lambda: len(rung) == len(after), "all have rung")
        assert rung == sorted(range(len(after)), key=lambda number: after[number])
    finally:
        alarm.close()


@pytest.mark.parametrize("due_ns", [-1, 0, 1], ids=["before all time", "zero", "long over"])
def test_what_is_over_rings_at_once(alarm, due_ns):
    """A timerfd takes no time before 0, and 0 would disarm it."""
    rung = []
    alarm.at(due_ns, lambda: rung.append(1))
    soon(lambda: rung, "it has rung")


def test_an_earlier_time_that_is_set_later(alarm):
    rung = []
    now_ns = time.monotonic_ns()
    alarm.at(now_ns + 3600 * 1000 * MS, lambda: rung.append("in an hour"))
    alarm.at(now_ns + MS, lambda: rung.append("now"))
    soon(lambda: rung, "it has rung")
    assert rung == ["now"]


def test_a_callback_may_set_the_next(alarm):
    """Those that are over already, too: each has a turn of its own, so that sockets have theirs between."""
    turns = []

    def turn():
        turns.append(between[0])
        if len(turns) < 5:
            alarm.at(OVER_NS, turn)

    between = [0]
    alarm.at(OVER_NS, turn)
    while len(turns) < 5:
        gevent.sleep(0)
        between[0] += 1
    assert len(set(turns)) == 5


def test_a_mistake_is_not_the_others(alarm, caplog):
    rung = []

    def fail():
        raise ZeroDivisionError("on purpose")

    with caplog.at_level(logging.ERROR, "socketswarm"):
        for callback in (fail, lambda: rung.append(1), fail, lambda: rung.append(2)):
            alarm.at(OVER_NS, callback)
        soon(lambda: rung == [1, 2], "the others have rung")
    assert [record.message for record in caplog.records] == ["a callback failed"] * 2
    alarm.at(OVER_NS, lambda: rung.append(3))
    soon(lambda: 3 in rung, "it goes on")


def test_a_callback_may_switch(alarm):
    """To a greenlet that comes back when it waits: so uploads start."""
    steps = []

    def upload():
        steps.append("begun")
        gevent.get_hub().switch()
        steps.append("ended")

    uploader = greenlet.greenlet(upload, parent=gevent.get_hub())
    alarm.at(OVER_NS, uploader.switch)
    soon(lambda: steps == ["begun"], "it waits")
    alarm.at(OVER_NS, uploader.switch)
    soon(lambda: steps == ["begun", "ended"], "it has ended")


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_closed_alarm_is_silent():
    gevent.get_hub()
    before, rung = descriptors(), []
    alarm = Alarm()
    alarm.at(OVER_NS, lambda: rung.append(1))
    alarm.close()
    gevent.sleep(0.01)
    assert rung == []
    assert descriptors() == before


def test_other_systems(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(OSError, match="on Linux only"):
        Alarm()
