"""Rates, latencies and costs of modes and phases, from run folders whose numbers are known."""

import msgspec
import pytest

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.run_folder import HistogramsLine
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import Rate, rewrite, summarise


def test_a_plain_run_gives_the_numbers_it_was_made_of(tmp_path):
    summary = summarise(tmp_path / "run")
    assert summary.verdict == "VALID"
    assert "held the offered load" in summary.reason
    assert summary.warnings == []
    long, short = summary.modes
    assert (long.mode, long.phases, long.duration_s) == ("long", ["long-1", "long-2"], 20)
    assert (long.uploads, long.uploads_per_s, short.uploads_per_s) == (20_000, 1000, 400)
    assert long.bytes_per_s == 900 * run_folders.SMALL + 100 * run_folders.LARGE
    assert long.busy_core_us_per_upload == pytest.approx(1000)
    assert short.busy_core_us_per_upload == pytest.approx(3000)
    assert long.server_core_us_per_upload == pytest.approx((2 * 0.10 + 0.01) / 1000 * 1e6)
    assert short.server_core_us_per_upload == pytest.approx((2 * 0.25 + 0.01) / 400 * 1e6)
    assert summary.load.uploads == summary.server.uploads_stored == 30_000
    assert summary.server.workers == 2


def test_the_warm_up_is_no_part_of_any_mode(tmp_path):
    summary = summarise(tmp_path / "run", warm_up_s=7.0)
    assert summary.modes[0].uploads == 20_000
    assert [phase.name for phase in summary.phases if not phase.measured] == ["warm-up"]


def test_percentiles_are_read_from_added_histograms(tmp_path):
    """94 % of each size take the typical time, the large ones five times that of the small: p95 of all lies among the
    large ones' typical values, which no average of the two p95 (400 and 2000) would give."""
    long = summarise(tmp_path / "run").modes[0]
    small, large = long.sizes
    assert [size.size_class for size in long.sizes] == ["≤4 KiB", "≤1 MiB"]
    assert (small.transaction_us.p50, small.transaction_us.p95, small.transaction_us.p99) == (200, 400, 600)
    assert large.transaction_us.p95 == pytest.approx(2000, rel=1e-3)
    assert long.transaction_us.p95 == pytest.approx(1000, rel=1e-3)
    assert long.transaction_us.samples == 20_000
    assert long.transaction_us.max == pytest.approx(10_000, rel=1e-3)


def test_a_percentile_with_fewer_than_30_samples_beyond_is_withheld(tmp_path):
    summary = summarise(tmp_path / "run", long=Rate(290, 0.1, 0.1, 1, 200), short=Rate(1, 0.1, 0.1, 1, 200))
    long, short = summary.modes
    assert long.transaction_us.p95 is not None
    assert long.sizes[1].transaction_us.samples == 20 * 29
    assert long.sizes[1].transaction_us.p95 is None, "580 samples leave 29 beyond"
    assert long.transaction_us.p99 is not None, "5,800 samples leave 58 beyond"
    assert short.transaction_us.p50 is None
    assert short.transaction_us.max is not None


# --- the open model ---------------------------------------------------------------------------------------------------


def test_what_was_offered_and_what_came_of_it(tmp_path):
    summary = summarise(tmp_path / "run", model="open", late=50, dropped_per_s=100, failures_per_s=5)
    long = summary.modes[0]
    assert long.offered_per_s == pytest.approx((20_000 + 2 * 50 + 2000 + 100) / 20)
    assert long.achieved_share == pytest.approx(20_000 / 22_200)
    assert (long.uploads, long.uploads_per_s) == (20_100, 1000), "late ones are uploads, but in no rate"
    assert long.bytes_per_s == pytest.approx(long.bytes / 20 * 20_000 / 20_100)
    assert long.busy_core_us_per_upload == pytest.approx(1000)
    phase = summary.phases[1]
    assert (phase.offered, phase.late, phase.dropped, phase.unanswered) == (11_100, 50, 1000, 0)
    assert phase.offered_per_s == 1110


def test_response_stands_beside_service(tmp_path):
    long = summarise(tmp_path / "run", model="open", response_factor=3.0).modes[0]
    small = long.sizes[0]
    assert (small.service_us.p50, small.response_us.p50, small.response_us.p95) == (160, 600, 1200)
    assert long.response_us.samples == long.service_us.samples == long.transaction_us.samples == 20_000
    assert long.response_us.bound_from is None
    phase = summarise(tmp_path / "again", model="open").phases[1]
    assert (phase.schedule_lag_us.p99, phase.pool_wait_us.p50) == (300, 50)


def test_a_closed_model_has_no_response(tmp_path):
    summary = summarise(tmp_path / "run")
    assert [mode.response_us for mode in summary.modes] == [None, None]
    assert summary.modes[0].sizes[0].response_us is None
    assert summary.modes[0].sizes[0].service_us.p50 == 160
    phase = summary.phases[1]
    assert (phase.offered, phase.achieved_share, phase.schedule_lag_us, phase.pool_wait_us) == (None,) * 4


def test_uploads_without_an_answer_are_lower_bounds_in_the_percentiles(tmp_path):
    """4 % of all waited 9 s for nothing: from there on, a response may have taken any time."""
    long = summarise(tmp_path / "run", model="open", unanswered_per_s=42).modes[0]
    response = long.response_us
    assert response.samples == 20_840
    assert response.bound_from == pytest.approx(9e6, rel=1e-3)
    assert (response.p99, response.max) == (pytest.approx(9e6, rel=1e-3), pytest.approx(9e6, rel=1e-3))
    assert [response.is_bound(value) for value in (response.p50, response.p95, response.p99)] == [False, False, True]
    assert long.sizes[1].response_us.bound_from is None, "no large upload was given up"
    assert long.service_us.samples == 20_000


def test_an_unanswered_upload_that_waited_less_than_others_took_makes_bounds_of_them(tmp_path):
    """The slowest was answered; that it was not slower than one given up after 300 µs, nobody knows."""
    response = summarise(tmp_path / "run", model="open", unanswered_per_s=1, unanswered_us=301).modes[0].response_us
    assert response.bound_from == pytest.approx(301, rel=1e-2)
    assert response.max == pytest.approx(15_000, rel=1e-3)
    assert response.is_bound(response.max)
    assert not response.is_bound(response.p50)


def test_the_last_histogram_line_of_a_phase_counts(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    lines = list(run_folder.read_uploads(folder))
    last = next(line for line in lines if isinstance(line, HistogramsLine) and line.phase == "long-1")
    first = msgspec.structs.replace(last, mono_ns=last.mono_ns - 1)
    rewrite(folder / run_folder.UPLOADS, [first, *lines])
    assert analyse(folder).summary.modes[0].transaction_us.samples == 20_000


def test_failures_are_counted_by_code_and_warned_of(tmp_path):
    summary = summarise(tmp_path / "run", failures_per_s=3)
    assert summary.verdict == "VALID"
    assert summary.modes[0].failures == {"connection_lost": 60}
    assert summary.modes[0].sizes[1].failures == {}
    assert any("120 of 28,120 uploads" in warning for warning in summary.warnings)


def test_any_number_of_uploads_per_connection_is_a_mode_of_its_own(tmp_path):
    summary = summarise(tmp_path / "run", plan=(("a", "measure", 0), ("b", "measure", 4)))
    assert [mode.mode for mode in summary.modes] == ["long", "4 per connection"]


def test_cpu_is_interpolated_where_ticks_miss_the_ends_of_a_phase(tmp_path):
    summary = summarise(tmp_path / "run", interval_s=0.7)
    assert summary.phases[1].busy_core_s == pytest.approx(10, rel=0.02)
    assert summary.modes[0].server_core_us_per_upload == pytest.approx(210, rel=0.05)


def test_costs_of_a_phase_whose_end_was_not_recorded_are_extended_or_withheld(tmp_path):
    phases = summarise(tmp_path / "run", recorder_gap_s=(31.6, 99.0)).phases
    assert phases[3].server_cpu_s == pytest.approx(5.1), "8.5 of 10 s were recorded"
    assert phases[4].server_cpu_s is None


def test_a_server_elsewhere_costs_nothing_known(tmp_path):
    summary = summarise(tmp_path / "run", with_server=False)
    assert summary.verdict == "VALID"
    server = summary.server
    assert server.workers == 0
    assert (server.cpu_total_s, server.uploads_stored, server.memory_peak_bytes) == (None, None, None)
    assert [mode.server_core_us_per_upload for mode in summary.modes] == [None, None]
    assert all(mode.busy_core_us_per_upload for mode in summary.modes)
    assert any("server was not recorded" in warning for warning in summary.warnings)
