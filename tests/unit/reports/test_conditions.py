"""Conditions of a run beside what was measured: what breaks them, and what cannot be known."""

import msgspec
import pytest

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.run_folder import Ending, HistogramsLine
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import MIB, Rate, rewrite, summarise


@pytest.fixture
def result(tmp_path):
    """What became of one condition in a scenario with changes."""

    def make(condition, **changes):
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        [found] = summarise(folder, thresholds=(condition,), **changes).thresholds
        return found

    return make


@pytest.mark.parametrize(
    ("condition", "measured", "why"),
    [
        ("p50(transaction) > 500us", "long 200 µs, short 500 µs", ""),
        ("p50(transaction) >= 500us", "long 200 µs, short 500 µs", "short: 500 µs"),
        ("p50(service) > 100us", "long 160 µs, short 400 µs", "long: 160 µs; short: 400 µs"),
        ("max(transaction) > 20ms", "long 10.0 ms, short 25.0 ms", "short: 25.0 ms"),
        ("p99.9(transaction) > 26ms", "long 3,000 µs, short 25.0 ms", ""),
        ("uploads/s < 500", "long 1,000/s, short 400/s", "short: 400/s"),
        ("uploads/s < 400", "long 1,000/s, short 400/s", ""),
        ("cpu(server) > 0.5", "long 0.210 cores, short 0.510 cores", "short: 0.510 cores"),
        ("cpu(server) > 52%", "long 0.210 cores, short 0.510 cores", ""),
        ("failures > 0", "long 0, short 0, whole run 0", ""),
        ("failures > 0%", "long 0 %, short 0 %, whole run 0 %", ""),
    ],
)
def test_one_mode_that_breaks_a_condition_breaks_it(result, condition, measured, why):
    found = result(condition)
    assert (found.condition, found.measured, found.broken, found.why) == (condition, measured, bool(why), why)


def test_the_servers_memory_is_its_largest_sum_of_pss(result):
    """The supervisor has 12 MiB of its own, each worker 9 MiB and more, growing until the last tick that reads PSS; and
    each its part of what they share."""
    peak = 12 + 9 + 9.125 + 2 * 44 / 40 + 3 * 5
    assert result(f"memory(server) > {peak * 1024 - 9:.0f}KiB").why == f"whole run: {peak:.1f} MiB PSS"
    assert not result(f"memory(server) > {peak * 1024 + 9:.0f}KiB").broken


def test_memory_is_rss_where_pss_is_not_read_of_every_process(tmp_path):
    folder = run_folders.write(tmp_path / "run", thresholds=("memory(server) > 1GiB",))
    ticks = [
        msgspec.structs.replace(
            tick, processes=[msgspec.structs.replace(s, pss_bytes=None) if s.slot == 1 else s for s in tick.processes]
        )
        for tick in run_folder.read_processes(folder)
    ]
    rewrite(folder / run_folder.PROCESSES, ticks)
    server = analyse(folder).summary.server
    assert server.memory_kind == "RSS"
    assert server.memory_peak_bytes == pytest.approx((12 + 9 + 9.125 + 2 * 44 / 40 + 3 * 20) * MIB, rel=0.01)


def test_failures_are_those_of_the_warm_up_too(tmp_path):
    """42 s of phases with 2 failures each, 20 s of them in either mode."""
    conditions = ("failures > 83", "failures > 84", "failures > 0.4%", "failures > 0.6%")
    found = summarise(tmp_path / "run", thresholds=conditions, failures_per_s=2).thresholds
    assert [result.broken for result in found] == [True, False, True, False]
    assert found[0].why == "whole run: 84"
    assert found[2].why == "short: 0.498 %", "40 of 8,040"


# --- what is not known ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("p99(response) > 1h", "long: there is no response in the closed model; use transaction"),
        ("p99(schedule_lag) > 1h", "long: there is no schedule_lag in the closed model"),
        ("p99(handshake) > 1h", "long: no handshake was recorded"),
    ],
)
def test_a_duration_that_was_not_recorded_breaks_its_condition(result, condition, why):
    found = result(condition, plan=(("long-1", "measure", 0),))
    assert (found.measured, found.broken, found.why) == ("–", True, why)


@pytest.mark.parametrize("condition", ["cpu(server) > 100", "memory(server) > 1000GiB"])
def test_a_server_that_was_not_recorded_breaks_conditions_on_it(result, condition):
    found = result(condition, with_server=False)
    assert found.broken
    assert "was not recorded" in found.why


@pytest.mark.parametrize("condition", ["p99(response) > 1h", "failures > 0%", "uploads/s < 1", "cpu(server) > 100"])
def test_a_run_that_measured_nothing_breaks_every_condition_on_it(result, condition):
    found = result(condition, plan=(), cut_off_at_s=0.4, ended=None)
    assert found.broken
    assert "nothing was" in found.why


def test_a_condition_of_another_version_is_broken(result):
    found = result("jitter(reply) > 3ms")
    assert found.broken
    assert "no 'jitter' of a duration" in found.why


def test_few_samples_are_enough_for_a_condition(result):
    """The tables give no p99 of 20 samples; who names a limit wants an answer."""
    found = result("p99(transaction) > 100ms", plan=(("long-1", "measure", 0),), long=Rate(2, 0.1, 0.1, 1, 200))
    assert (found.measured, found.broken) == ("long 2,000 µs", False)


# --- lower bounds -----------------------------------------------------------------------------------------------------

# 4 % of the uploads are given up after 9 s: response times from p96 on are bounds.
OPEN = {"model": "open", "plan": (("long-1", "measure", 0),), "unanswered_per_s": 42, "unanswered_us": 9e6}
BOUND = "≥ 9,000 ms is a lower bound, which cannot show that the limit was kept"


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("p95(response) > 20ms", ""),
        ("p99(response) > 8s", "long: ≥ 9,000 ms"),
        ("p99(response) > 10s", f"long: {BOUND}"),
        ("p99(response) < 8s", ""),
        ("p99(response) < 10s", f"long: {BOUND}"),
        ("p99(transaction) > 20ms", ""),
    ],
)
def test_a_bound_breaks_what_it_cannot_show_to_hold(result, condition, why):
    found = result(condition, **OPEN)
    assert (found.broken, found.why) == (bool(why), why)


@pytest.mark.parametrize(("condition", "broken"), [("uploads/s < 900", False), ("uploads/s < 1100", True)])
def test_a_rate_that_the_generator_limited_is_a_bound(result, condition, broken):
    found = result(condition, plan=OPEN["plan"], long=Rate(1000, 0.1, 0.93, 1.5, 200))
    assert found.measured == "long ≥ 1,000/s"
    assert found.broken == broken
    assert ("lower bound" in found.why) == broken


def test_histograms_of_other_phases_do_not_count(tmp_path):
    """The warm-up was slow."""
    folder = run_folders.write(tmp_path / "run", thresholds=("max(transaction) > 1s",))
    slow = run_folders.histogram()
    slow.record_value(5_000_000)
    names = {"long ≤4 KiB": {"transaction": run_folders.encoded(slow)}}
    run_folders.append(
        folder / run_folder.UPLOADS, HistogramsLine(**run_folders.stamp(44), phase="warm-up", names=names)
    )
    assert [result.broken for result in analyse(folder).summary.thresholds] == [False]


# --- what a command exits with ----------------------------------------------------------------------------------------

BROKEN, HELD = "uploads/s < 2000", "uploads/s < 2"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, 0),
        ({"thresholds": (HELD,)}, 0),
        ({"failures_per_s": 1}, 1),
        ({"failures_per_s": 1, "thresholds": (HELD,)}, 1),
        ({"failures_per_s": 1, "thresholds": ("failures > 1%",)}, 0),
        ({"failures_per_s": 1, "thresholds": ("failures > 0",)}, 3),
        ({"failures_per_s": 1, "thresholds": (BROKEN,)}, 3),
        ({"thresholds": (HELD, BROKEN)}, 3),
        ({"thresholds": (BROKEN,), "hiccup_us": 3000.0}, 4),
        ({"recorder_gap_s": (3.0, 40.0)}, 4),
        ({"long": Rate(1000, 0.1, 0.93, 1.5, 200)}, 0),
        ({"ended": Ending(how="stopped", reason="Ctrl-C")}, 0),
        ({"ended": Ending(how="failed", reason="a load process left")}, 1),
        ({"ended": Ending(how="failed", reason="a load process left"), "thresholds": ("failures > 0",)}, 1),
        ({"ended": Ending(how="failed", reason="a load process left"), "thresholds": (BROKEN,)}, 3),
        ({"ended": Ending(how="failed", reason="a load process left"), "hiccup_us": 3000.0}, 4),
    ],
)
def test_the_exit_code_is_of_the_worst(tmp_path, changes, code):
    assert summarise(tmp_path / "run", **changes).exit_code == code


def test_results_are_of_each_condition_in_its_order(tmp_path):
    found = summarise(tmp_path / "run", thresholds=(HELD, BROKEN, HELD)).thresholds
    assert [result.condition for result in found] == [HELD, BROKEN, HELD]
    assert [result.broken for result in found] == [False, True, False]
