"""Plans: which phases, in which order, how long, with how many uploads per connection."""

import pytest

from loadtest import phases
from loadtest.phases import LONG, PLANS, SHORT, WARM_UP_S, PlannedPhase


def test_compare_lets_drift_weigh_on_both_modes_alike():
    assert phases.plan("compare", 10.0) == (
        PlannedPhase("warm-up", "warm-up", LONG, WARM_UP_S),
        PlannedPhase("long-1", "measure", LONG, 10.0),
        PlannedPhase("short-1", "measure", SHORT, 10.0),
        PlannedPhase("short-2", "measure", SHORT, 10.0),
        PlannedPhase("long-2", "measure", LONG, 10.0),
    )


@pytest.mark.parametrize(("name", "mode"), [("long", LONG), ("short", SHORT)])
def test_one_mode_only(name, mode):
    assert phases.plan(name, 1.5) == (
        PlannedPhase("warm-up", "warm-up", mode, 1.5),
        PlannedPhase(f"{name}-1", "measure", mode, 1.5),
    )


@pytest.mark.parametrize("name", PLANS)
def test_every_plan(name):
    plan = phases.plan(name, 7.0)
    assert len({phase.name for phase in plan}) == len(plan)
    assert [phase.kind for phase in plan] == ["warm-up"] + ["measure"] * len(PLANS[name])
    assert plan[0].uploads_per_connection == plan[1].uploads_per_connection  # it warms up what comes next
    assert all(phase.duration_s == 7.0 for phase in plan[1:])


def test_phases_are_values():
    with pytest.raises(AttributeError):
        phases.plan("long", 1.0)[0].name = "other"


def test_an_unknown_plan_is_the_callers_bug():
    with pytest.raises(KeyError):
        phases.plan("middle", 1.0)
