"""What makes a run invalid, a lower bound or merely doubtful."""

from dataclasses import replace

import msgspec
import pytest

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.run_folder import Ending, Event, UploadsLine
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import Rate, rewrite, summarise

BUSY_GENERATOR = Rate(1000, 0.10, 0.93, 1.5, 200)


def test_a_busy_generator_makes_rates_a_lower_bound(tmp_path):
    summary = summarise(tmp_path / "run", long=BUSY_GENERATOR)
    assert summary.verdict == "LOWER BOUND"
    assert "93.0 %" in summary.reason
    assert "long-1" in summary.reason
    assert [mode.lower_bound for mode in summary.modes] == [True, False]


def test_a_busy_generator_on_another_host_is_seen_too(tmp_path):
    """The recorder sees the load of its own host; each load process tells of itself."""
    summary = summarise(tmp_path / "run", other_load_share=0.9)
    assert summary.verdict == "LOWER BOUND"
    assert [phase.generator_share for phase in summary.phases] == [pytest.approx(0.9)] * 5


def test_a_process_that_only_the_recorder_saw_counts_as_well(tmp_path):
    folder = run_folders.write(tmp_path / "run", long=BUSY_GENERATOR)
    (folder / run_folder.LOAD).unlink()
    assert analyse(folder).summary.verdict == "LOWER BOUND"


# --- noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hiccup_us", "verdict"), [(1660, "VALID"), (1670, "NOISY")])
def test_sleepers_that_wake_late_make_a_run_noisy(tmp_path, hiccup_us, verdict):
    """One of 100 wakes three times as late as is typical: 5,000 µs are the limit."""
    summary = summarise(tmp_path / "run", hiccup_us=hiccup_us)
    assert summary.verdict == verdict
    if verdict == "NOISY":
        assert "for 1 % of the time, a sleep of 1 ms" in summary.reason
        assert "more than 5,010 µs late (at most 5,000 µs)" in summary.reason


def test_few_sleeps_are_judged_too(tmp_path):
    """The noisier the machine, the fewer sleeps end."""
    assert summarise(tmp_path / "run", hiccup_us=9000, sleeps_per_s=10).verdict == "NOISY"


def test_a_meter_that_told_nothing_is_a_warning(tmp_path):
    summary = summarise(tmp_path / "run", sleeps_per_s=0)
    assert (
        "the hiccup meter told nothing of long-1, short-1, short-2, long-2: it may have been killed" in summary.warnings
    )


@pytest.mark.parametrize(("share", "verdict"), [(0.19, "VALID"), (0.21, "NOISY")])
def test_a_load_process_that_waits_for_a_cpu_makes_a_run_noisy(tmp_path, share, verdict):
    summary = summarise(tmp_path / "run", run_delay_share=share)
    assert summary.verdict == verdict
    if verdict == "NOISY":
        assert "waited for a CPU during 21.0 % of phase long-1 (at most 20.0 %)" in summary.reason


def test_a_kernel_that_does_not_tell_the_delay_makes_no_noise(tmp_path):
    folder = run_folders.write(tmp_path / "run", run_delay_share=0.9)
    rewrite(
        folder / run_folder.LOAD,
        [msgspec.structs.replace(tick, run_delay_ns=None) for tick in run_folder.read_load(folder)],
    )
    summary = analyse(folder).summary
    assert summary.verdict == "VALID"
    assert summary.phases[1].generator_run_delay_share is None


def test_noise_in_the_warm_up_does_not_matter(tmp_path):
    """The warm-up ends at second 3."""
    folder = run_folders.write(tmp_path / "run")
    ticks = [
        msgspec.structs.replace(tick, run_delay_ns=min(tick.mono_ns - run_folders.START_NS, 3 * run_folders.NS))
        for tick in run_folder.read_load(folder)
    ]
    rewrite(folder / run_folder.LOAD, ticks)
    summary = analyse(folder).summary
    assert summary.verdict == "VALID"
    assert [phase.generator_run_delay_share for phase in summary.phases] == [pytest.approx(1), 0, 0, 0, 0]


def test_the_worst_that_can_be_said_is_the_verdict(tmp_path):
    noisy = {"hiccup_us": 9000.0, "long": BUSY_GENERATOR}
    assert summarise(tmp_path / "a", **noisy).verdict == "NOISY", "rather than LOWER BOUND"
    assert summarise(tmp_path / "b", **noisy, recorder_gap_s=(3.0, 40.0)).verdict == "INVALID"


# --- what is uploaded -------------------------------------------------------------------------------------------------


def test_a_fairly_busy_generator_is_warned_of(tmp_path):
    summary = summarise(tmp_path / "run", long=replace(BUSY_GENERATOR, load_share=0.7))
    assert summary.verdict == "VALID"
    assert any("70.0 %" in warning for warning in summary.warnings)


@pytest.mark.parametrize(("worker", "load", "capacity"), [(0.96, 0.5, True), (0.94, 0.5, False), (0.99, 0.9, False)])
def test_capacity_needs_a_full_worker_and_an_idle_generator(tmp_path, worker, load, capacity):
    rate = Rate(1000, worker, load, 1.9, 200)
    summary = summarise(tmp_path / "run", long=rate, short=rate)
    assert [mode.at_capacity for mode in summary.modes] == [capacity, capacity]
    assert ("at capacity" in summary.reason) == capacity


@pytest.mark.parametrize(("others", "said"), [(0.2, True), (0.99, False)])
def test_capacity_of_one_hot_worker_is_said_to_be_that(tmp_path, others, said):
    """Whatever spreads connections over workers may have given it too many."""
    rate = Rate(1000, 0.97, 0.5, 1.0, 200)
    summary = summarise(tmp_path / "run", long=rate, short=rate, others_share=others)
    assert [mode.at_capacity for mode in summary.modes] == [True, True]
    assert summary.phases[1].mean_worker_share == pytest.approx(0.97 * (1 + others) / 2)
    hot = " since its busiest worker was full (97.0 % of a core; the workers' mean 58.2 %)"
    assert summary.reason.startswith(f"the server was at capacity{hot if said else ''}: ")


def test_a_worker_that_was_replaced_counts_while_it_lived(tmp_path):
    """At its start a worker uses 0.2 s more."""
    summary = summarise(tmp_path / "run", killed_at_s=8.0)
    assert summary.phases[1].mean_worker_share == pytest.approx((2 * 0.1 * 10 + 0.2) / 20, rel=0.05)


def _shift_stored(folder, by):
    """Add uploads to the scoreboard of the last tick."""
    ticks = list(run_folder.read_host(folder))
    slot, *others = ticks[-1].scoreboard
    slot = msgspec.structs.replace(slot, uploads_stored=slot.uploads_stored + by)
    rewrite(folder / run_folder.HOST, [*ticks[:-1], msgspec.structs.replace(ticks[-1], scoreboard=[slot, *others])])


@pytest.mark.parametrize(
    ("code", "shift", "verdict"),
    [
        ("connection_lost", 42, "VALID"),
        ("connection_lost", 43, "INVALID"),
        ("connection_lost", -1, "INVALID"),
        ("timeout", 42, "VALID"),
        ("connect_refused", 1, "INVALID"),
        ("connect_failed", 1, "INVALID"),
        ("dropped", 1, "INVALID"),
    ],
)
def test_what_was_acknowledged_is_stored_and_more_only_of_failures_that_were_sent(tmp_path, code, shift, verdict):
    """An upload whose reply was lost may be stored."""
    model = {"model": "open"} if code == "timeout" else {}  # in the closed model, nobody may wait in vain
    folder = run_folders.write(tmp_path / "run", failures_per_s=1, failure_code=code, **model)  # 42 s of phases
    _shift_stored(folder, shift)
    summary = analyse(folder).summary
    assert summary.verdict == verdict
    if verdict == "INVALID":
        assert f"stored {30_000 + shift:,} uploads, but 30,000 were acknowledged to the load" in summary.reason
        assert ("some that it acknowledged are not there" in summary.reason) == (shift < 0)
        assert ("did something else upload to this server?" in summary.reason) == (shift > 0)


def test_seconds_that_the_scoreboard_does_not_surround_are_not_held_against_it(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    rewrite(folder / run_folder.HOST, list(run_folder.read_host(folder))[6:-8])
    assert analyse(folder).summary.verdict == "VALID"


@pytest.mark.parametrize(("late", "verdict"), [(True, "VALID"), (False, "INVALID")])
def test_a_line_speaks_of_all_the_time_since_the_one_before(tmp_path, late, verdict):
    """The scoreboard is seen from 5.5 on, when 1,500 uploads that the lines from 6.0 on count were stored already. That
    may be so if a late line counts what came since 5.0; it cannot if it counts what came since 6.0."""
    folder = run_folders.write(tmp_path / "run")
    rewrite(folder / run_folder.HOST, list(run_folder.read_host(folder))[11:])
    _shift_stored(folder, -1500)
    if late:
        lines = run_folder.read_uploads(folder)
        rewrite(folder / run_folder.UPLOADS, [_late(line) for line in lines if line.mono_ns != run_folders.mono(7.0)])
    assert analyse(folder).summary.verdict == verdict


def _late(line):
    """The line of second 6 comes at 7.0, with the uploads of both."""
    if line.mono_ns != run_folders.mono(6.0):
        return line
    names = {name: msgspec.structs.replace(second, count=second.count * 2) for name, second in line.names.items()}
    return msgspec.structs.replace(line, **run_folders.stamp(7.0), names=names)


def test_a_run_in_which_nothing_was_acknowledged_is_invalid(tmp_path):
    nothing = Rate(0, 0, 0, 0, 1)
    summary = summarise(tmp_path / "run", long=nothing, short=nothing)
    assert summary.verdict == "INVALID"
    assert "nothing was measured" in summary.reason
    assert summary.modes[0].busy_core_us_per_upload is None
    assert summary.modes[0].transaction_us.max is None


@pytest.mark.parametrize(
    ("gap", "verdict"), [((5.0, 8.0), "VALID"), ((5.0, 16.0), "INVALID"), ((30.0, 99.0), "INVALID")]
)
def test_a_recorder_that_missed_too_much_makes_the_run_invalid(tmp_path, gap, verdict):
    summary = summarise(tmp_path / "run", recorder_gap_s=gap)
    assert summary.verdict == verdict
    assert any("recorder missed" in text for text in [summary.reason, *summary.warnings])


@pytest.mark.parametrize(
    ("gap", "told"),
    [((5.0, 8.0), "nothing was recorded from 4.5 to 8.0 s"), ((20.0, 99.0), "nothing was recorded from 19.5 to ")],
)
def test_a_gap_is_told_from_when_to_when(tmp_path, gap, told):
    summary = summarise(tmp_path / "run", recorder_gap_s=gap)
    [missed] = [text for text in [summary.reason, *summary.also_broken, *summary.warnings] if "recorder" in text]
    assert told in missed


def test_a_recorder_that_was_gone_is_not_a_server_that_was_not_there(tmp_path):
    nothing = Rate(0, 0, 0, 0, 1)
    summary = summarise(tmp_path / "run", recorder_gap_s=(3.0, 99.0), long=nothing, short=nothing)
    assert any("the server was not recorded (too few ticks" in warning for warning in summary.warnings)


def test_what_is_not_known_for_want_of_ticks_is_no_more_than_that(tmp_path):
    """And what is not known for another reason is told."""
    folder = run_folders.write(tmp_path / "run", recorder_gap_s=(3.0, 99.0))
    untold = Event(**run_folders.stamp(1), source="recorder", kind="recorder-untold", text="no stolen time here")
    run_folders.append(folder / run_folder.EVENTS, untold)
    summary = analyse(folder).summary
    assert "the recorder missed" in summary.reason
    assert (summary.also_broken, summary.warnings) == ([], ["no stolen time here"])


def test_what_the_recorder_could_not_see_is_said_once(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    (folder / run_folder.PROCESSES).unlink()
    for kind, text in ("server-unseen", "user x has it; record as x"), ("recorder-untold", "no stolen time here"):
        event = Event(**run_folders.stamp(0), source="recorder", kind=kind, text=text)
        run_folders.append(folder / run_folder.EVENTS, event)
    told = " ".join(analyse(folder).summary.warnings)
    assert "the server was not recorded (user x has it; record as x): its costs are unknown" in told
    assert told.count("no stolen time here") == 1


def test_a_run_that_was_cut_off_reports_what_was_measured(tmp_path):
    summary = summarise(tmp_path / "run", cut_off_at_s=19.4, ended=None)
    assert summary.verdict == "VALID"
    assert any("the run was cut off" in warning for warning in summary.warnings)
    assert [phase.name for phase in summary.phases] == ["warm-up", "long-1", "short-1"]
    assert summary.phases[-1].duration_s == pytest.approx(6), "until the last second that was counted"
    assert summary.modes[1].uploads_per_s == pytest.approx(400)


def test_a_run_that_was_cut_off_before_it_measured_is_invalid(tmp_path):
    summary = summarise(tmp_path / "run", cut_off_at_s=3.9, ended=None)
    assert summary.verdict == "INVALID"
    assert summary.reason.startswith("the run was cut off; nothing was measured")
    assert summary.modes == []


def test_a_run_that_was_stopped_says_so_and_leaves_out_what_is_too_short(tmp_path):
    stopped = Ending(how="stopped", reason="Ctrl-C")
    plan = (("long-1", "measure", 0), ("short-1", "measure", 1))
    summary = summarise(tmp_path / "run", plan=plan, phase_s=0.9, ended=stopped)
    assert summary.verdict == "INVALID"
    assert any("Ctrl-C" in warning for warning in summary.warnings)
    assert any("left out: long-1, short-1" in warning for warning in summary.warnings)


def test_a_worker_that_died_is_warned_of(tmp_path):
    assert any(
        "1 server worker ended during the run: 1001" in text
        for text in summarise(tmp_path / "run", killed_at_s=20.2).warnings
    )


def _warning(summary, text):
    return next((warning for warning in summary.warnings if text in warning), None)


@pytest.mark.parametrize(("lag_us", "warned"), [(1660.0, False), (1670.0, True)])
def test_uploads_that_start_late_are_warned_of(tmp_path, lag_us, warned):
    summary = summarise(tmp_path / "run", model="open", schedule_lag_us=lag_us)
    assert summary.verdict == "VALID"
    assert bool(_warning(summary, "started late: 1 % of them more than 5,010 µs after they were due")) == warned


def test_each_way_to_fail_in_the_open_model_is_told_with_its_consequence(tmp_path):
    summary = summarise(tmp_path / "run", model="open", failures_per_s=1, unanswered_per_s=2, dropped_per_s=3)
    assert _warning(summary, "40 of 28,240 uploads") is not None
    assert "(connection_lost 40); they are in no latency or rate" in _warning(summary, "40 of 28,240")
    assert "as a lower bound" in _warning(summary, "80 of 28,240 uploads in the measured phases failed (unfinished 80)")
    assert "never sent" in _warning(summary, "120 of 28,240 uploads in the measured phases failed (dropped 120)")


def test_uploads_of_a_phase_that_is_not_named_are_told(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    line = next(line for line in run_folder.read_uploads(folder) if isinstance(line, UploadsLine))
    run_folders.append(folder / run_folder.UPLOADS, msgspec.structs.replace(line, phase="?"))
    assert any("1,000 uploads belong to phases" in text for text in analyse(folder).summary.warnings)
