"""Numbers, verdict and warnings, from run folders whose numbers are known."""

from dataclasses import replace

import msgspec
import pytest

from reports import run_folder
from reports.analysis import Summary, analyse, significant
from reports.run_folder import Ending, Event, HistogramsLine, Phase, ProcessTick, RunFolderError, UploadsLine
from tests.unit import run_folders
from tests.unit.run_folders import Rate, Scenario

BUSY_GENERATOR = Rate(1000, 0.10, 0.93, 1.5, 200)


@pytest.fixture
def summarise(tmp_path):
    """Of a scenario with changes: its Summary."""

    def make(**changes) -> Summary:
        return analyse(run_folders.write(tmp_path / "run", **changes)).summary

    return make


def without(folder, kind):
    """Rewrite events.jsonl without the events of a kind."""
    events = [event for event in run_folder.read_events(folder) if event.kind != kind]
    (folder / run_folder.EVENTS).unlink()
    run_folders.append(folder / run_folder.EVENTS, *events)


def rewrite(folder, name, lines):
    (folder / name).unlink()
    run_folders.append(folder / name, *lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0123456, "0.0123"),
        (1.2, "1.20"),
        (9.999, "10.0"),
        (99.96, "100"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234.0, "1,230"),
        (999_900.0, "1,000,000"),
        (-12.34, "-12.3"),
    ],
)
def test_numbers_have_three_significant_digits(value, text):
    assert significant(value) == text


# --- rates, latency, cost ---------------------------------------------------------------------------------------------


def test_a_plain_run_gives_the_numbers_it_was_made_of(summarise):
    summary = summarise()
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


def test_the_warm_up_is_no_part_of_any_mode(summarise):
    summary = summarise(warm_up_s=7.0)
    assert summary.modes[0].uploads == 20_000
    assert [phase.name for phase in summary.phases if not phase.measured] == ["warm-up"]


def test_percentiles_are_read_from_added_histograms(summarise):
    """94 % of each size take the typical time, the large ones five times that of the small: p95 of all lies among the
    large ones' typical values, which no average of the two p95 (400 and 2000) would give."""
    long = summarise().modes[0]
    small, large = long.sizes
    assert [size.size_class for size in long.sizes] == ["≤4 KiB", "≤1 MiB"]
    assert (small.transaction_us.p50, small.transaction_us.p95, small.transaction_us.p99) == (200, 400, 600)
    assert large.transaction_us.p95 == pytest.approx(2000, rel=1e-3)
    assert long.transaction_us.p95 == pytest.approx(1000, rel=1e-3)
    assert long.transaction_us.samples == 20_000
    assert long.transaction_us.max == pytest.approx(10_000, rel=1e-3)


def test_a_percentile_with_fewer_than_30_samples_beyond_is_withheld(summarise):
    summary = summarise(long=Rate(290, 0.1, 0.1, 1, 200), short=Rate(1, 0.1, 0.1, 1, 200))
    long, short = summary.modes
    assert long.transaction_us.p95 is not None
    assert long.sizes[1].transaction_us.samples == 20 * 29
    assert long.sizes[1].transaction_us.p95 is None, "580 samples leave 29 beyond"
    assert long.transaction_us.p99 is not None, "5,800 samples leave 58 beyond"
    assert short.transaction_us.p50 is None
    assert short.transaction_us.max is not None


def test_the_last_histogram_line_of_a_phase_counts(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    lines = list(run_folder.read_uploads(folder))
    last = next(line for line in lines if isinstance(line, HistogramsLine) and line.phase == "long-1")
    first = msgspec.structs.replace(last, mono_ns=last.mono_ns - 1)
    rewrite(folder, run_folder.UPLOADS, [first, *lines])
    assert analyse(folder).summary.modes[0].transaction_us.samples == 20_000


def test_failures_are_counted_by_code_and_warned_of(summarise):
    summary = summarise(failures_per_s=3)
    assert summary.verdict == "VALID"
    assert summary.modes[0].failures == {"connection_lost": 60}
    assert summary.modes[0].sizes[1].failures == {}
    assert any("120 of 28,120 uploads" in warning for warning in summary.warnings)


def test_any_number_of_uploads_per_connection_is_a_mode_of_its_own(summarise):
    summary = summarise(plan=(("a", "measure", 0), ("b", "measure", 4)))
    assert [mode.mode for mode in summary.modes] == ["long", "4 per connection"]


# --- CPU --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_event", [True, False])
@pytest.mark.parametrize("killed_at_s", [13.0, 16.99, 17.01, 17.3, 43.6])
def test_a_replaced_worker_is_counted_once(tmp_path, killed_at_s, with_event):
    folder = run_folders.write(tmp_path / "run", killed_at_s=killed_at_s)
    if not with_event:
        without(folder, "worker-ended")
    summary = analyse(folder).summary
    scenario = Scenario(killed_at_s=killed_at_s)
    assert summary.server.cpu_total_s == pytest.approx(run_folders.server_total(scenario, 44.0))
    spent = sum(phase.server_cpu_s for phase in summary.phases)
    expected = run_folders.server_total(scenario, 43.0) - run_folders.server_total(scenario, 1.0)
    assert spent == pytest.approx(expected, abs=0.02), "phases that follow each other add up"
    pids = {process.pid: process for process in summary.processes}
    assert pids[1001].ended
    assert not pids[2000].ended
    assert pids[1001].slot == pids[2000].slot == 0


def test_a_worker_that_lived_between_two_ticks_is_counted(tmp_path):
    """It was never seen, but its supervisor reaped it."""
    folder = run_folders.write(tmp_path / "run")
    rewrite(folder, run_folder.PROCESSES, [_with_reaped(tick, 1.5) for tick in run_folder.read_processes(folder)])
    summary = analyse(folder).summary
    assert summary.server.cpu_total_s == pytest.approx(run_folders.server_total(Scenario(), 44.0) + 1.5)
    assert summary.phases[2].server_cpu_s == pytest.approx(5.1 + 1.5)


def _with_reaped(tick: ProcessTick, cpu_s: float) -> ProcessTick:
    if run_folders.seconds(tick.mono_ns) < 18:
        return tick
    return msgspec.structs.replace(
        tick,
        processes=[
            msgspec.structs.replace(sample, children_user_s=cpu_s) if sample.role == "server-master" else sample
            for sample in tick.processes
        ],
    )


def test_a_worker_reaped_within_the_tick_that_shows_it_is_not_counted_twice(tmp_path):
    """Its supervisor was read after it, and after it died: both have its CPU at 17.0, whatever the order of reading."""
    folder = run_folders.write(tmp_path / "run", killed_at_s=17.01)
    without(folder, "worker-ended")
    cpu_s = run_folders.worker_cpu(Scenario(), 0, 17.01)
    ticks = [
        _with_children(tick, cpu_s) if run_folders.seconds(tick.mono_ns) == 17.0 else tick
        for tick in run_folder.read_processes(folder)
    ]
    rewrite(folder, run_folder.PROCESSES, ticks)
    expected = run_folders.server_total(Scenario(killed_at_s=17.01), 44.0)
    assert analyse(folder).summary.server.cpu_total_s == pytest.approx(expected)


def _with_children(tick: ProcessTick, cpu_s: float) -> ProcessTick:
    processes = [
        msgspec.structs.replace(sample, children_user_s=cpu_s, children_system_s=0.0)
        if sample.role == "server-master"
        else sample
        for sample in tick.processes
    ]
    return msgspec.structs.replace(tick, processes=processes)


def test_what_the_server_says_at_its_end_completes_the_total(tmp_path):
    """Its drain came after the last tick."""
    folder = run_folders.write(tmp_path / "run")
    seen = run_folders.server_total(Scenario(), 44.0)
    cpu = {"cpu_user_s": 0.5, "cpu_system_s": 0.5, "children_user_s": seen, "children_system_s": 0.25}
    end = Event(**run_folders.stamp(44.2), source="server", kind="server-ended", text="ended", details=cpu)
    run_folders.append(folder / run_folder.EVENTS, end)
    assert analyse(folder).summary.server.cpu_total_s == pytest.approx(seen + 1.25)


def test_a_worker_that_ended_after_the_last_tick_is_completed_from_its_event(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    seen = run_folders.worker_cpu(Scenario(), 0, 44)
    cpu = {"pid": 1001, "cpu_user_s": seen, "cpu_system_s": 0.5}
    end = Event(**run_folders.stamp(44.2), source="server", kind="worker-ended", text="ended", details=cpu)
    run_folders.append(folder / run_folder.EVENTS, end)
    summary = analyse(folder).summary
    assert summary.server.cpu_total_s == pytest.approx(run_folders.server_total(Scenario(), 44.0) + 0.5)
    assert summary.warnings == [], "after the measured phases an end is no news"


def test_cpu_is_interpolated_where_ticks_miss_the_ends_of_a_phase(summarise):
    summary = summarise(interval_s=0.7)
    assert summary.phases[1].busy_core_s == pytest.approx(10, rel=0.02)
    assert summary.modes[0].server_core_us_per_upload == pytest.approx(210, rel=0.05)


def test_shares_are_of_the_measured_phases_while_the_process_lived(summarise):
    shares = {process.pid: process.share for process in summarise(killed_at_s=23.0).processes}
    assert shares[20] == pytest.approx(0.45)
    assert shares[1002] == pytest.approx(0.175)
    assert shares[1001] == pytest.approx(0.175, abs=0.01), "10 s of long, 10 s of short"
    assert shares[2000] == pytest.approx(0.175, abs=0.02)


# --- the verdict ------------------------------------------------------------------------------------------------------


def test_a_busy_generator_makes_rates_a_lower_bound(summarise):
    summary = summarise(long=BUSY_GENERATOR)
    assert summary.verdict == "LOWER BOUND"
    assert "93.0 %" in summary.reason
    assert "long-1" in summary.reason
    assert [mode.lower_bound for mode in summary.modes] == [True, False]


def test_a_fairly_busy_generator_is_warned_of(summarise):
    summary = summarise(long=replace(BUSY_GENERATOR, load_share=0.7))
    assert summary.verdict == "VALID"
    assert any("70.0 %" in warning for warning in summary.warnings)


@pytest.mark.parametrize(("worker", "load", "capacity"), [(0.96, 0.5, True), (0.94, 0.5, False), (0.99, 0.9, False)])
def test_capacity_needs_a_full_worker_and_an_idle_generator(summarise, worker, load, capacity):
    rate = Rate(1000, worker, load, 1.9, 200)
    summary = summarise(long=rate, short=rate)
    assert [mode.at_capacity for mode in summary.modes] == [capacity, capacity]
    assert ("at capacity" in summary.reason) == capacity


def _shift_stored(folder, by):
    """Add uploads to the scoreboard of the last tick."""
    ticks = list(run_folder.read_host(folder))
    slot, *others = ticks[-1].scoreboard
    slot = msgspec.structs.replace(slot, uploads_stored=slot.uploads_stored + by)
    rewrite(folder, run_folder.HOST, [*ticks[:-1], msgspec.structs.replace(ticks[-1], scoreboard=[slot, *others])])


@pytest.mark.parametrize(("shift", "verdict"), [(42, "VALID"), (43, "INVALID"), (-42, "VALID"), (-43, "INVALID")])
def test_stored_and_acknowledged_uploads_may_differ_by_the_failures_only(tmp_path, shift, verdict):
    folder = run_folders.write(tmp_path / "run", failures_per_s=1)  # 42 s of phases: 42 failures
    _shift_stored(folder, shift)
    summary = analyse(folder).summary
    assert summary.verdict == verdict
    if verdict == "INVALID":
        assert "30,000 were acknowledged" in summary.reason


def test_seconds_that_the_scoreboard_does_not_surround_are_not_held_against_it(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    rewrite(folder, run_folder.HOST, list(run_folder.read_host(folder))[6:-8])
    assert analyse(folder).summary.verdict == "VALID"


def test_a_run_in_which_nothing_was_acknowledged_is_invalid(summarise):
    nothing = Rate(0, 0, 0, 0, 1)
    summary = summarise(long=nothing, short=nothing)
    assert summary.verdict == "INVALID"
    assert "nothing was measured" in summary.reason
    assert summary.modes[0].busy_core_us_per_upload is None
    assert summary.modes[0].transaction_us.max is None


@pytest.mark.parametrize(
    ("gap", "verdict"), [((5.0, 8.0), "VALID"), ((5.0, 16.0), "INVALID"), ((30.0, 99.0), "INVALID")]
)
def test_a_recorder_that_missed_too_much_makes_the_run_invalid(summarise, gap, verdict):
    summary = summarise(recorder_gap_s=gap)
    assert summary.verdict == verdict
    assert any("recorder missed" in text for text in [summary.reason, *summary.warnings])


def test_costs_of_a_phase_whose_end_was_not_recorded_are_extended_or_withheld(summarise):
    phases = summarise(recorder_gap_s=(31.6, 99.0)).phases
    assert phases[3].server_cpu_s == pytest.approx(5.1), "8.5 of 10 s were recorded"
    assert phases[4].server_cpu_s is None


def test_a_run_that_was_cut_off_reports_what_was_measured(summarise):
    summary = summarise(cut_off_at_s=19.4, ended=None)
    assert summary.verdict == "VALID"
    assert any("the run was cut off" in warning for warning in summary.warnings)
    assert [phase.name for phase in summary.phases] == ["warm-up", "long-1", "short-1"]
    assert summary.phases[-1].duration_s == pytest.approx(6), "until the last second that was counted"
    assert summary.modes[1].uploads_per_s == pytest.approx(400)


def test_a_run_that_was_cut_off_before_it_measured_is_invalid(summarise):
    summary = summarise(cut_off_at_s=3.9, ended=None)
    assert summary.verdict == "INVALID"
    assert summary.reason.startswith("the run was cut off; nothing was measured")
    assert summary.modes == []


def test_a_run_that_was_stopped_says_so_and_leaves_out_what_is_too_short(summarise):
    stopped = Ending(how="stopped", reason="Ctrl-C")
    plan = (("long-1", "measure", 0), ("short-1", "measure", 1))
    summary = summarise(plan=plan, phase_s=0.9, ended=stopped)
    assert summary.verdict == "INVALID"
    assert any("Ctrl-C" in warning for warning in summary.warnings)
    assert any("left out: long-1, short-1" in warning for warning in summary.warnings)


def test_a_worker_that_died_is_warned_of(summarise):
    assert any("1 server worker ended during the run: 1001" in text for text in summarise(killed_at_s=20.2).warnings)


def test_a_server_elsewhere_costs_nothing_known(summarise):
    summary = summarise(with_server=False)
    assert summary.verdict == "VALID"
    assert summary.server == type(summary.server)(workers=0, cpu_total_s=None, uploads_stored=None)
    assert [mode.server_core_us_per_upload for mode in summary.modes] == [None, None]
    assert all(mode.busy_core_us_per_upload for mode in summary.modes)
    assert any("server was not recorded" in warning for warning in summary.warnings)


# --- damaged folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [run_folder.UPLOADS, run_folder.PROCESSES, run_folder.HOST, run_folder.EVENTS])
def test_a_torn_last_line_is_left_out(tmp_path, name):
    folder = run_folders.write(tmp_path / "run")
    path = folder / name
    path.write_bytes(path.read_bytes()[:-7])
    assert analyse(folder).summary.modes[0].uploads_per_s == 1000


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        (run_folder.PROCESSES, "load's CPU was not recorded"),
        (run_folder.HOST, "machine's CPU was not recorded"),
        (run_folder.EVENTS, None),
    ],
)
def test_a_missing_file_is_a_warning_at_most(tmp_path, name, warning):
    folder = run_folders.write(tmp_path / "run")
    (folder / name).unlink()
    summary = analyse(folder).summary
    assert summary.verdict == "VALID"
    assert summary.modes[0].uploads_per_s == 1000
    assert (warning is None) == (summary.warnings == [])
    assert warning is None or any(warning in text for text in summary.warnings)


def test_without_a_recorder_nothing_can_be_believed(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    for name in (run_folder.PROCESSES, run_folder.HOST):
        (folder / name).unlink()
    summary = analyse(folder).summary
    assert summary.verdict == "INVALID"
    assert "recorder missed 100 %" in summary.reason


def test_an_empty_uploads_file_is_a_report_of_nothing(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    (folder / run_folder.UPLOADS).write_bytes(b"")
    assert "nothing was measured" in analyse(folder).summary.reason


def test_uploads_of_a_phase_that_is_not_named_are_told(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    line = next(line for line in run_folder.read_uploads(folder) if isinstance(line, UploadsLine))
    run_folders.append(folder / run_folder.UPLOADS, msgspec.structs.replace(line, phase="?"))
    assert any("1,000 uploads belong to phases" in text for text in analyse(folder).summary.warnings)


def test_what_is_no_run_folder_is_one_clear_line(tmp_path):
    with pytest.raises(RunFolderError, match="there is no run folder"):
        analyse(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"it has no run\.json"):
        analyse(tmp_path)
    folder = run_folders.write(tmp_path / "run")
    (folder / run_folder.UPLOADS).unlink()
    with pytest.raises(RunFolderError, match=r"no uploads\.jsonl"):
        analyse(folder)


def test_a_broken_histogram_is_one_clear_line(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    broken = HistogramsLine(**run_folders.stamp(43), phase="long-2", names={"long ≤4 KiB": {"transaction": "AAAA"}})
    run_folders.append(folder / run_folder.UPLOADS, broken)
    with pytest.raises(RunFolderError, match="cannot be decoded"):
        analyse(folder)


# --- curves -----------------------------------------------------------------------------------------------------------


def test_curves_are_the_rates_and_break_between_phases(tmp_path):
    timeline = analyse(run_folders.write(tmp_path / "run")).timeline
    long = timeline.uploads_per_s["long"]
    known = long.values == long.values  # not NaN
    assert set(long.values[known]) == {1000.0}
    assert (~known).sum() == 3, "before each of its phases"
    load = next(curves for curves in timeline.processes if curves.process.role == "load-master")
    at_20 = float(load.share.values[abs(load.share.t_s - 20.25).argmin()])
    assert at_20 == pytest.approx(0.5)
    assert timeline.end_s == 44


def test_a_line_across_the_end_of_a_phase_speaks_of_its_part_of_it(tmp_path):
    """The load writes its lines on a clock of its own, and stragglers are counted in a line after the phase."""
    phase = Phase(
        name="long-1",
        kind="measure",
        uploads_per_connection=0,
        start_ns=run_folders.mono(2.3),
        end_ns=run_folders.mono(4.8),
    )
    folder = run_folders.write(tmp_path / "run")
    run = msgspec.structs.replace(run_folder.read_run(folder), phases=[phase])
    run_folder.write_whole(folder / run_folder.RUN, run)
    counts = {3.0: 70, 4.0: 100, 5.0: 80, 6.0: 3}
    lines = [
        UploadsLine(
            **run_folders.stamp(t),
            phase="long-1",
            users=1,
            names={"long ≤4 KiB": run_folders.second_of(count, 1, 100, 0)},
        )
        for t, count in counts.items()
    ]
    rewrite(folder, run_folder.UPLOADS, lines)
    curve = analyse(folder).timeline.uploads_per_s["long"]
    assert curve.t_s[1:] == pytest.approx([2.65, 3.5, 4.4])
    assert curve.values[1:] == pytest.approx([100, 100, 100])
