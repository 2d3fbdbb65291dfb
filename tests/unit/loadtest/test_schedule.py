"""A load process's share of a schedule: how many arrivals wait, by a clock of the test's own. Which ones there are, and
that they are uploaded, test_open_model.py says."""

import bisect

import pytest

from loadtest.options import DEFAULTS, validate
from loadtest.schedule import Schedule

NS = 1_000_000_000
START_NS = 7 * NS

SCHEDULES = {
    "constant": {"arrival_rate": "40"},
    "poisson": {"arrival_rate": "40", "arrival_profile": "poisson", "plan": "compare"},
    "from nothing": {"arrival_rate": "60", "arrival_profile": "ramp", "warm_up": "1500ms"},
    "with gaps": {"arrival_rate": "0,30,0", "arrival_profile": "step", "plan": "sweep:1,3", "phase_seconds": "6"},
}


def options_of(**fields):
    return validate("tcp://h:1", DEFAULTS | {"payloads": "1", "warm_up": "0", "phase_seconds": "2"} | fields)


def share(options, k=0, n=1):
    return Schedule(options, options.load_payloads(), START_NS, k, n)


def all_due(schedule):
    found = []
    while schedule.due_ns is not None:
        _, _, _, arrival = schedule.take(0)
        found.append(arrival.intended_ns)
    return found


@pytest.mark.parametrize("fields", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("n", [1, 3])
def test_what_waits_is_what_is_due_and_was_not_taken(fields, n):
    options = options_of(**fields)
    for k in range(n):
        due = all_due(share(options, k, n))
        assert due == sorted(due)
        schedule, taken = share(options, k, n), 0
        for now_ns in range(START_NS - NS, START_NS + round((options.planned_s + 1) * NS), NS // 7):
            assert schedule.waiting(now_ns) == bisect.bisect_right(due, now_ns) - taken
            for _ in range(schedule.waiting(now_ns) // 2):
                assert schedule.take(now_ns)[3].intended_ns == due[taken]
                taken += 1
        assert schedule.waiting(now_ns) == len(due) - taken > 0


def test_what_is_due_at_a_moment_waits_at_that_moment():
    schedule = share(options_of(arrival_rate="1"))
    assert [schedule.waiting(START_NS + offset) for offset in (-1, 0, 1, NS - 1, NS)] == [0, 1, 1, 1, 2]


def test_after_its_end_nothing_is_due():
    """The first that is told counts."""
    schedule = share(options_of(arrival_rate="10", plan="long"))
    for end_ns in (START_NS + NS // 2, START_NS + NS):
        schedule.end(end_ns)
        assert schedule.waiting(START_NS + 2 * NS) == 6
    due = all_due(schedule)
    assert due == [START_NS + i * NS // 10 for i in range(6)]
    assert schedule.waiting(START_NS + 3 * NS) == 0
