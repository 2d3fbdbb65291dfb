"""Schedules as values: what is due when, in every profile, in however long a phase, from however many processes."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from slow import examples

from loadtest import arrivals
from loadtest.arrivals import Profile, parse_profile
from loadtest.option_error import OptionError

NS = 1_000_000_000

rates = st.floats(0, 5_000, allow_subnormal=False).map(lambda rate: round(rate, 3))
some = rates.filter(lambda rate: rate > 0)
constants = st.builds(lambda rate: Profile("constant", (rate,)), some)
poissons = st.builds(lambda rate: Profile("poisson", (rate,)), some)
ramps = st.tuples(rates, rates).filter(any).map(lambda pair: Profile("ramp", pair))
steps = st.lists(rates, min_size=1, max_size=6).filter(any).map(lambda each: Profile("step", tuple(each)))
even = constants | ramps | steps
profiles = even | poissons
durations_s = st.floats(0.001, 8).map(lambda duration: round(duration, 3))
seeds = st.integers(0, 10**18)


def schedule(profile, duration_s, seed=1):
    """All arrivals of a phase, and a check of what every schedule promises."""
    parts, due = [], 0
    for cell, (first, offsets) in enumerate(arrivals.cells(profile, duration_s, seed)):
        assert first == due
        assert offsets.dtype == np.int64
        assert all(cell * NS <= offset < (cell + 1) * NS for offset in offsets[[0, -1]]) if len(offsets) else True
        due += len(offsets)
        parts.append(offsets)
    assert len(parts) == math.ceil(round(duration_s * NS) / NS)
    whole = np.concatenate(parts)
    assert (np.diff(whole) >= 0).all()
    assert not len(whole) or whole[-1] < round(duration_s * NS)
    return whole


def integral(profile, duration_s, until_s):
    """How many arrivals the rate adds up to, written in another way than the program's."""
    if profile.kind == "constant":
        return profile.rates[0] * until_s
    if profile.kind == "ramp":
        begin, end = profile.rates
        return until_s * (begin + (begin + (end - begin) * until_s / duration_s)) / 2
    length_s = duration_s / len(profile.rates)
    spent = [min(max(until_s - step * length_s, 0), length_s) for step in range(len(profile.rates))]
    return sum(rate * part_s for rate, part_s in zip(profile.rates, spent, strict=True))


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "rate", "profile"),
    [
        ("constant", "2000", (2000.0,)),
        ("constant", " 0.5 ", (0.5,)),
        ("constant", "1000000", (1e6,)),
        ("poisson", "2000", (2000.0,)),
        ("ramp", "100-2000", (100.0, 2000.0)),
        ("ramp", "2000 - 0", (2000.0, 0.0)),
        ("ramp", "2000", (0.0, 2000.0)),
        ("step", "500,1000, 0,2000", (500.0, 1000.0, 0.0, 2000.0)),
        ("step", "2000", (500.0, 1000.0, 1500.0, 2000.0)),
    ],
)
def test_profiles(kind, rate, profile):
    assert parse_profile(kind, rate) == Profile(kind, profile)


@pytest.mark.parametrize("kind", arrivals.KINDS)
@pytest.mark.parametrize("rate", ["", " ", "0", "0.0", "00"])
def test_no_rate_is_no_open_model(kind, rate):
    assert parse_profile(kind, rate) is None


@pytest.mark.parametrize(
    ("kind", "rate", "said"),
    [
        ("", "0", "arrival profile is '', not one of constant, poisson, ramp, step"),
        ("burst", "5", "arrival profile is 'burst', not one of"),
        (
            "constant",
            "100-2000",
            "arrival rate '100-2000' is not one of profile constant: write one number, such as 2000",
        ),
        ("constant", "1,2", "arrival rate '1,2' is not one of profile constant: write one number"),
        ("poisson", "100-2000", "is not one of profile poisson: write one number"),
        ("constant", "-5", "arrival rate '-5' is not one of profile constant"),
        ("constant", "abc", "arrival rate 'abc' is not"),
        ("constant", "nan", "arrival rate 'nan' is not"),
        ("constant", "inf", "arrival rate 'inf' is not"),
        ("constant", "1e3", "arrival rate '1e3' is not"),
        ("constant", "1_000", "arrival rate '1_000' is not"),
        ("constant", "٣", "arrival rate '٣' is not"),
        ("constant", "1000000.1", "arrival rate '1000000.1' is over 1,000,000 a second"),
        ("constant", "9" * 400, "is over 1,000,000 a second"),
        ("ramp", "-5", "arrival rate '-5' is not one of profile ramp: write FROM-TO"),
        ("ramp", "5-", "arrival rate '5-' is not one of profile ramp"),
        ("ramp", "1-2-3", "arrival rate '1-2-3' is not one of profile ramp"),
        ("ramp", "1,2", "arrival rate '1,2' is not one of profile ramp"),
        ("ramp", "0-0", "arrival rate '0-0' is 0 all the time"),
        ("ramp", "0-1000001", "arrival rate '1000001' is over 1,000,000 a second"),
        ("step", "1-2", "arrival rate '1-2' is not one of profile step: write the rate of each step"),
        ("step", "1,,2", "arrival rate '1,,2' is not one of profile step"),
        ("step", "1,-2", "arrival rate '1,-2' is not one of profile step"),
        ("step", "0,0", "arrival rate '0,0' is 0 all the time"),
    ],
)
def test_mistakes(kind, rate, said):
    with pytest.raises(OptionError) as caught:
        parse_profile(kind, rate)
    assert str(caught.value).startswith(said) or said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.sampled_from(arrivals.KINDS), st.text(st.sampled_from("0123456789.,- e_+nif"), max_size=12) | st.text())
def test_any_text_is_a_profile_or_an_arrival_error(kind, rate):
    try:
        profile = parse_profile(kind, rate)
    except OptionError as error:
        assert str(error)
        return
    assert profile is None or (any(profile.rates) and all(0 <= each <= arrivals.MAX_RATE for each in profile.rates))


def test_a_profile_is_a_value():
    with pytest.raises(AttributeError):
        Profile("constant", (1.0,)).rates = ()


# ── one phase ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_constant():
    assert schedule(Profile("constant", (4.0,)), 1.6).tolist() == [n * NS // 4 for n in range(7)]
    assert schedule(Profile("constant", (0.5,)), 6).tolist() == [0, 2 * NS, 4 * NS]
    assert len(schedule(Profile("constant", (1e6,)), 1)) == 1_000_000


def test_ramp():
    """The rate is 2 t, so the n-th arrival comes at the root of n."""
    exact = [math.isqrt(n * NS * NS) for n in range(16)]
    assert np.abs(schedule(Profile("ramp", (0.0, 8.0)), 4) - exact).max() <= 1
    fall = schedule(Profile("ramp", (8.0, 0.0)), 4)
    assert np.abs(fall[1:] - [4 * NS - time for time in exact[:0:-1]]).max() <= 1
    assert fall[0] == 0
    assert schedule(Profile("ramp", (4.0, 4.0)), 1.6).tolist() == schedule(Profile("constant", (4.0,)), 1.6).tolist()


def test_a_ramp_that_is_nearly_flat():
    flat = schedule(Profile("constant", (1000.0,)), 3)
    for nearly in ((1000.0, 1000.0000001), (1000.0000001, 1000.0)):
        assert np.abs(schedule(Profile("ramp", nearly), 3)[: len(flat)] - flat).max() <= 1


def test_step():
    assert schedule(Profile("step", (2.0, 4.0)), 2).tolist() == [0, NS // 2, NS, *(NS + n * NS // 4 for n in (1, 2, 3))]
    assert schedule(Profile("step", (3.0,)), 2).tolist() == schedule(Profile("constant", (3.0,)), 2).tolist()


def test_nothing_is_due_in_a_step_of_rate_0():
    profile = Profile("step", (0.0, 2.0, 0.0, 0.0, 2.0, 0.0))
    assert schedule(profile, 6).tolist() == [NS, 3 * NS // 2, 4 * NS, 9 * NS // 2]


@given(even, durations_s, st.data())
def test_as_many_are_due_as_the_rate_adds_up_to(profile, duration_s, data):
    times = schedule(profile, duration_s)
    for until_s in (duration_s, *data.draw(st.lists(st.floats(0, duration_s), max_size=3))):
        due = int(np.searchsorted(times, round(until_s * NS)))
        assert abs(due - integral(profile, duration_s, until_s)) <= 1.001


@given(even, durations_s, seeds)
def test_the_seed_matters_to_a_poisson_process_only(profile, duration_s, seed):
    assert (schedule(profile, duration_s, seed) == schedule(profile, duration_s, 0)).all()


@given(poissons, durations_s, seeds)
def test_the_same_seed_gives_the_same_poisson_process(profile, duration_s, seed):
    assert (schedule(profile, duration_s, seed) == schedule(profile, duration_s, seed)).all()


@given(seeds, seeds)
def test_another_seed_gives_another_poisson_process(one, other):
    profile = Profile("poisson", (100.0,))
    same = schedule(profile, 1, one).tolist() == schedule(profile, 1, other).tolist()
    assert same == (one == other)


def test_a_poisson_process_is_one():
    """Gaps are exponential, at the edges of cells too: their mean is the rate's inverse, their spread is their mean,
    and the share that is longer than the mean is 1/e."""
    gaps_ns = np.diff(schedule(Profile("poisson", (1000.0,)), 200))
    assert len(gaps_ns) == pytest.approx(200_000, abs=5 * 200_000**0.5)
    assert gaps_ns.mean() == pytest.approx(NS / 1000, rel=0.02)
    assert gaps_ns.std() == pytest.approx(NS / 1000, rel=0.02)
    assert (gaps_ns > NS / 1000).mean() == pytest.approx(math.exp(-1), abs=0.01)


def test_seconds_of_a_poisson_process_differ():
    profile = Profile("poisson", (1000.0,))
    seconds = [offsets % NS for _, offsets in arrivals.cells(profile, 20, 1)]
    assert len({tuple(second[:5].tolist()) for second in seconds}) == 20


@given(constants | poissons, durations_s, durations_s, seeds)
def test_a_longer_phase_begins_as_a_shorter_one(profile, one_s, other_s, seed):
    short_s, long_s = sorted((one_s, other_s))
    short = schedule(profile, short_s, seed)
    assert (schedule(profile, long_s, seed)[: len(short)] == short).all()


@examples(30)
@given(st.floats(0.1, 10_000), st.integers(0, 3_000_000))
def test_a_long_phase_does_not_drift(rate, second):
    """A month of constant arrivals, looked into at one second: within 2 ns of exact arithmetic."""
    profile = Profile("constant", (rate,))
    before = arrivals.offered(profile, 3_000_001, 1, second)
    first, times = arrivals._even(profile, 3_000_001 * NS, second * NS, (second + 1) * NS)
    assert first == before
    exact = [int((first + n) * NS / Fraction(rate)) for n in range(min(5, len(times)))]
    assert all(abs(time - right) <= 2 for time, right in zip(times.tolist(), exact, strict=False))


@given(profiles, st.integers(3600, 100_000))
def test_an_hour_needs_no_more_memory_than_a_second(profile, duration_s):
    first, offsets = next(iter(arrivals.cells(profile, duration_s, 1)))
    assert first == 0
    assert len(offsets) <= max(profile.rates) + 12 * max(profile.rates) ** 0.5 + 25


# ── parts of it ───────────────────────────────────────────────────────────────────────────────────────────────────


@given(profiles, durations_s, st.integers(1, 9))
def test_load_processes_together_send_what_one_would(profile, duration_s, n):
    sent = {}
    for first, offsets in arrivals.cells(profile, duration_s, 1):
        for k in range(n):
            indices, ours = arrivals.stripe(first, offsets, k, n)
            assert (indices % n == k).all()
            pairs = list(zip(indices.tolist(), ours.tolist(), strict=True))
            assert not sent.keys() & dict(pairs).keys()
            sent.update(pairs)
    assert [sent[index] for index in sorted(sent)] == schedule(profile, duration_s).tolist()
    assert sorted(sent) == list(range(len(sent)))


@given(profiles, durations_s, seeds, st.data())
def test_offered_is_what_was_due(profile, duration_s, seed, data):
    times = schedule(profile, duration_s, seed)
    assert arrivals.offered(profile, duration_s, seed, duration_s) == len(times)
    assert arrivals.offered(profile, duration_s, seed, duration_s + 9) == len(times)
    assert arrivals.offered(profile, duration_s, seed, 0) == 0
    assert arrivals.offered(profile, duration_s, seed, -1) == 0
    until_s = data.draw(st.floats(0, duration_s))
    due = int((times < round(until_s * NS)).sum())
    assert arrivals.offered(profile, duration_s, seed, until_s) == due


@given(profiles, durations_s)
def test_an_arrival_at_the_limit_is_not_yet_due(profile, duration_s):
    for index, time_ns in itertools.islice(enumerate(schedule(profile, duration_s).tolist()), 0, 9000, 977):
        before = arrivals.offered(profile, duration_s, 1, time_ns / NS)
        assert before <= index < arrivals.offered(profile, duration_s, 1, (time_ns + 1) / NS)


# ── before it ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("profile", "warm_up"),
    [
        (Profile("constant", (5.0,)), Profile("constant", (5.0,))),
        (Profile("poisson", (5.0,)), Profile("poisson", (5.0,))),
        (Profile("ramp", (5.0, 9.0)), Profile("constant", (5.0,))),
        (Profile("ramp", (0.0, 9.0)), None),
        (Profile("step", (5.0, 9.0)), Profile("constant", (5.0,))),
        (Profile("step", (0.0, 9.0)), None),
    ],
)
def test_a_warm_up_has_the_rate_that_comes_first(profile, warm_up):
    assert arrivals.warm_up(profile) == warm_up
