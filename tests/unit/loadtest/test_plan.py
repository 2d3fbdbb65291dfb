"""Plans: which phases, in which order, how long, with how many uploads per connection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.option_error import OptionError
from loadtest.plan import LONG, MAX_PHASES, PLANS, SHORT, WARM_UP_S, PlannedPhase, make_plan


def modes(name, **options):
    return [phase.uploads_per_connection for phase in make_plan(name, 1.0, warm_up_s=0, **options)]


def test_compare_lets_drift_weigh_on_both_modes_alike():
    assert make_plan("compare", 10.0) == (
        PlannedPhase("warm-up", "warm-up", LONG, WARM_UP_S),
        PlannedPhase("long-1", "measure", LONG, 10.0),
        PlannedPhase("short-1", "measure", SHORT, 10.0),
        PlannedPhase("short-2", "measure", SHORT, 10.0),
        PlannedPhase("long-2", "measure", LONG, 10.0),
    )


@pytest.mark.parametrize(("name", "mode"), [("long", LONG), ("short", SHORT)])
def test_one_mode_only(name, mode):
    assert make_plan(name, 1.5) == (
        PlannedPhase("warm-up", "warm-up", mode, WARM_UP_S),
        PlannedPhase(f"{name}-1", "measure", mode, 1.5),
    )


def test_a_sweep_goes_forward_and_back():
    assert make_plan("sweep:5,0,1", 7.0, warm_up_s=3.0) == (
        PlannedPhase("warm-up", "warm-up", 5, 3.0),
        PlannedPhase("5-per-connection-1", "measure", 5, 7.0),
        PlannedPhase("long-1", "measure", 0, 7.0),
        PlannedPhase("short-1", "measure", 1, 7.0),
        PlannedPhase("short-2", "measure", 1, 7.0),
        PlannedPhase("long-2", "measure", 0, 7.0),
        PlannedPhase("5-per-connection-2", "measure", 5, 7.0),
    )
    assert modes("sweep") == [1, 2, 5, 20, 0, 0, 20, 5, 2, 1]
    assert modes("sweep: 1, 1000000") == [1, 1_000_000, 1_000_000, 1]


@given(st.lists(st.integers(0, 1_000_000), min_size=1, max_size=32))
def test_a_sweep_lets_drift_weigh_on_all_alike(numbers):
    """The mean place of each value's phases is the middle of the plan."""
    swept = modes("sweep:" + ",".join(map(str, numbers)))
    middle = (len(swept) - 1) / 2
    for number in numbers:
        places = [place for place, mode in enumerate(swept) if mode == number]
        assert sum(places) / len(places) == middle


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", [5]), ("1,2,5", [1, 2, 5]), ("0, 1 ,0", [0, 1, 0]), ("", [0, 1, 1, 0]), ("  ", [0, 1, 1, 0])],
)
def test_uploads_per_connection_in_place_of_the_plans(text, expected):
    assert modes("compare", uploads_per_connection=text) == expected
    assert make_plan("compare", 1.0, uploads_per_connection=text)[0].uploads_per_connection == expected[0]


@pytest.mark.parametrize("name", [*PLANS, "sweep:1", "sweep:3,3,3"])
def test_every_plan(name):
    plan = make_plan(name, 7.0)
    assert len({phase.name for phase in plan}) == len(plan)
    assert [phase.kind for phase in plan] == ["warm-up"] + ["measure"] * (len(plan) - 1)
    assert plan[0].uploads_per_connection == plan[1].uploads_per_connection  # it warms up what comes next
    assert all(phase.duration_s == 7.0 for phase in plan[1:])
    assert make_plan(name, 7.0, warm_up_s=0) == plan[1:]


def test_phases_are_values():
    with pytest.raises(AttributeError):
        make_plan("long", 1.0)[0].name = "other"


@pytest.mark.parametrize(
    ("name", "uploads_per_connection", "said"),
    [
        ("middle", "", "plan is 'middle', not one of compare, long, short, sweep, sweep:K,K,..."),
        ("middle", "5", "plan is 'middle', not one of"),
        ("", "", "plan is '', not one of"),
        ("long:5", "", "plan is 'long:5', not one of"),
        ("sweep:", "", "uploads per connection is '', not a whole number from 0 (no end) to 1,000,000"),
        ("sweep:1,,2", "", "uploads per connection is '', not"),
        ("sweep:1:2", "", "uploads per connection is '1:2', not"),
        ("sweep:-1", "", "uploads per connection is '-1', not"),
        ("sweep:1.5", "", "uploads per connection is '1.5', not"),
        ("sweep:1000001", "", "uploads per connection is '1000001', not"),
        ("sweep:٣", "", "uploads per connection is '٣', not"),
        ("sweep:" + "9" * 5000, "", "uploads per connection is '999"),
        ("sweep:" + ",".join("1" * 33), "", "66 measured phases: a plan may have at most 64"),
        ("long", ",", "uploads per connection is '', not"),
        ("long", "5;6", "uploads per connection is '5;6', not"),
        ("long", "0" * 21 + "1" * 21, "uploads per connection is '000"),
        ("long", ",".join("1" * 65), "65 measured phases: a plan may have at most 64"),
    ],
)
def test_mistakes(name, uploads_per_connection, said):
    with pytest.raises(OptionError) as caught:
        make_plan(name, 1.0, uploads_per_connection=uploads_per_connection)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@given(
    st.text() | st.from_regex(r"sweep:[0-9,]{0,9}", fullmatch=True),
    st.text(st.sampled_from("0123456789, -"), max_size=9),
)
def test_any_text_is_a_plan_or_a_plan_error(name, numbers):
    try:
        plan = make_plan(name, 1.0, uploads_per_connection=numbers)
    except OptionError as error:
        assert str(error)
        return
    assert len({phase.name for phase in plan}) == len(plan) <= 1 + MAX_PHASES
