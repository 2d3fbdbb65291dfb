"""Conditions as people write them: what is read, and what is refused with a sentence that helps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import run_folder, thresholds
from reports.thresholds import Threshold, ThresholdError, parse, parse_all


@pytest.mark.parametrize(
    ("text", "metric", "limit"),
    [
        ("p99(response) > 20ms", "latency", 20_000),
        ("p99.9(service)>=500us", "latency", 500),
        ("max(read_lag) > 1.5s", "latency", 1_500_000),
        ("failures > 0", "failures", 0),
        ("failures > 1%", "failed share", 0.01),
        ("uploads/s < 1000", "uploads/s", 1000),
        ("cpu(server) > 1.5", "cpu", 1.5),
        ("cpu(server) > 80 %", "cpu", 0.8),
        ("memory(server) > 500MiB", "memory", 500 << 20),
    ],
)
def test_each_metric_and_unit(text, metric, limit):
    found = parse(text)
    assert (found.metric, found.limit) == (metric, pytest.approx(limit))


def test_a_latency_names_its_percentile_and_duration():
    assert parse("  p99.9 ( wait )>20 ms ") == Threshold(
        "p99.9(wait) > 20ms", "latency", ">", 20_000, duration="wait", percentile=99.9
    )


@pytest.mark.parametrize(
    ("sign", "broken"),
    [
        (">", [False, False, True]),
        (">=", [False, True, True]),
        ("<", [True, False, False]),
        ("<=", [True, True, False]),
    ],
)
def test_a_condition_says_when_the_run_has_failed(sign, broken):
    found = parse(f"uploads/s {sign} 1000")
    assert [found.broken_by(value) for value in (999, 1000, 1001)] == broken
    assert found.wants_less == sign.startswith(">")


def test_several_are_separated_by_semicolons():
    assert [found.text for found in parse_all("failures>0; p50(wait)>1ms ;")] == ["failures > 0", "p50(wait) > 1ms"]
    assert parse_all(" ; ") == parse_all("") == []


def test_the_normal_form_is_read_again():
    first = parse("p99(response)>20ms")
    assert parse(first.text) == first


def test_every_duration_of_the_run_folder_but_those_of_the_load_itself():
    assert set(thresholds.DURATIONS) == set(run_folder.DURATIONS) - {"think", "unanswered"}


@pytest.mark.parametrize(
    ("text", "helps"),
    [
        ("p99(response) 20ms", r"'p99\(response\) 20ms' is no condition: write METRIC > VALUE"),
        ("p99(response) = 20ms", "is no condition"),
        ("1ms < p99(wait) < 20ms", "is no condition"),
        ("p99(response) > 20ms; failures > x", r"'failures > x' .* 'x' is no number of uploads"),
        ("p98(response) > 20ms", r"no 'p98' of a duration, write one of p50, p90, p95, p99, p99\.9, max"),
        ("p99(think) > 20ms", "no duration 'think', write one of schedule_lag"),
        ("p99(response) > 20", "'20' has no unit, write us, ms or s, such as 20ms"),
        ("p99(response) > 20m", "'20m' is not a duration: .* with ms, s, min or h"),
        ("p99(response) > 20MiB", "'20MiB' is not a duration"),
        ("latency > 20ms", r"no metric 'latency', write pNN\(DURATION\), failures"),
        ("failures > -1", "'-1' is no number of uploads"),
        ("failures > lots%", "'lots' is no number of percent"),
        ("uploads/s < 1k", "'1k' is no number of uploads a second"),
        ("cpu(server) > all", "'all' is no number of cores"),
        ("memory(server) > 500", "'500' has no unit, write KiB, MiB or GiB, such as 500MiB"),
        ("memory(server) > 500MB/s", "'500MB/s' is not a size"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(text, helps):
    with pytest.raises(ThresholdError, match=helps) as raised:
        parse_all(text)
    assert "\n" not in str(raised.value)


@given(st.text())
def test_no_text_raises_anything_else(text):
    try:
        parse_all(text)
    except ThresholdError:
        pass
