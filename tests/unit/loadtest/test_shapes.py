"""Stages of the closed model: how many users at which time; and that Locust runs a shape only when told to."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

SHAPES = ("ramp", "step", "soak")
names = st.sampled_from(SHAPES)
peaks = st.integers(1, 5000)
totals_s = st.floats(1, 100_000)


@pytest.fixture(scope="module", autouse=True)
def with_locust():
    """Which takes its time to import, so no process that only collects tests does; and it patches the process that does
    where it is not told that other tests need that as it is."""
    global load_locustfile, shapes
    os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"
    from locust.util.load_locustfile import load_locustfile

    from loadtest import shapes

    del os.environ["LOCUST_SKIP_MONKEY_PATCH"]


def stages(shape, peak, *shares):
    """Users at these shares of a plan of 200 s."""
    return [shapes.users_at(shape, peak, 200.0, share * 200) for share in shares]


@pytest.mark.parametrize(
    ("shape", "shares", "users"),
    [
        ("ramp", (0, 0.01, 0.2, 0.4, 0.6, 0.8, 0.9, 1), [1, 2, 25, 50, 75, 100, 100, 100]),
        ("step", (0, 0.24, 0.25, 0.49, 0.5, 0.74, 0.75, 1), [25, 25, 50, 50, 75, 75, 100, 100]),
        ("soak", (0, 0.05, 0.1, 0.5, 0.95, 0.975, 0.999, 1), [1, 50, 100, 100, 100, 50, 2, 1]),
    ],
)
def test_stages(shape, shares, users):
    assert stages(shape, 100, *shares) == pytest.approx(users, abs=1)
    assert stages(shape, 100, 0, 1) == [users[0], users[-1]]
    assert stages(shape, 100, -1, 2) == [users[0], users[-1]]
    assert set(stages(shape, 1, *shares)) == {1}


def test_few_users_make_whole_steps():
    assert stages("step", 2, 0, 0.25, 0.5, 0.75) == [1, 1, 2, 2]
    assert stages("step", 3, 0, 0.25, 0.5, 0.75) == [1, 2, 3, 3]


@given(names, peaks, totals_s, st.floats(-1, 1e9))
def test_there_is_always_a_user_and_never_more_than_the_peak(shape, peak, total_s, elapsed_s):
    assert 1 <= shapes.users_at(shape, peak, total_s, elapsed_s) <= peak


@given(names, peaks, totals_s)
def test_every_shape_reaches_its_peak(shape, peak, total_s):
    assert shapes.users_at(shape, peak, total_s, 0.9 * total_s) == peak


@given(st.sampled_from(["ramp", "step"]), peaks, totals_s, st.lists(st.floats(0, 1.5), min_size=2))
def test_users_only_come_until_the_end(shape, peak, total_s, shares):
    users = [shapes.users_at(shape, peak, total_s, share * total_s) for share in sorted(shares)]
    assert users == sorted(users)


@given(names, peaks, totals_s, st.floats(0, 1))
def test_users_come_and_go_as_fast_as_a_shape_asks(shape, peak, total_s, share):
    """Also when a tick of Locust's comes half a second late."""
    rate = shapes.spawn_rate(shape, peak, total_s)
    now, then = (shapes.users_at(shape, peak, total_s, share * total_s + late_s) for late_s in (0, 1.5))
    assert rate >= 1
    assert abs(then - now) <= 2 * rate


def test_locust_is_not_given_cause_to_warn_of_many_users_who_come_slowly():
    assert shapes.spawn_rate("ramp", 2000, 600.0) < 100
    assert shapes.spawn_rate("ramp", 10, 60.0) == 1.0


def test_these_are_all():
    assert shapes.SHAPES == SHAPES


@pytest.mark.parametrize("name", SHAPES)
def test_locust_asks_a_shape(name, monkeypatch):
    shape = shapes.Stages(name, 100, 200.0)
    for elapsed_s in (0.0, 60.0, 1e6):
        monkeypatch.setattr(shape, "get_run_time", lambda now_s=elapsed_s: now_s)
        assert shape.tick() == (shapes.users_at(name, 100, 200.0, elapsed_s), shapes.spawn_rate(name, 100, 200.0))


@pytest.mark.parametrize(
    "line", ["from loadtest import shapes", "from loadtest.shapes import *", "import loadtest.shapes"]
)
def test_locust_runs_none_that_a_locustfile_only_imports(line, tmp_path):
    """Nor a class of ours that is imported by its name."""
    locustfile = tmp_path / "a_locustfile.py"
    user = "class Idle(User):\n    @task\n    def idle(self): pass\n"
    locustfile.write_text(f"from locust import User, task\n{line}\nfrom loadtest.shapes import Stages\n{user}")
    user_classes, shape_classes = load_locustfile(str(locustfile))
    assert list(user_classes) == ["Idle"]
    assert shape_classes == []
