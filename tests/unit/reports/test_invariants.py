"""Invariants: each of them breaks on the number it is about, and on nothing smaller."""

from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.run_folder import Ending, Event, HistogramsLine, UploadsLine
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import Rate, Scenario, rewrite, summarise

FULL = Rate(1000, 0.97, 0.50, 1.9, 200)
BUSY_GENERATOR = Rate(1000, 0.10, 0.93, 1.5, 200)
ONE_PHASE = (("long-1", "measure", 0),)


# --- counts -----------------------------------------------------------------------------------------------------------


def _shift(folder, field, by):
    """Add to a counter of the last tick's scoreboard."""
    ticks = list(run_folder.read_host(folder))
    slot, *others = ticks[-1].scoreboard
    slot = msgspec.structs.replace(slot, **{field: getattr(slot, field) + by})
    rewrite(folder / run_folder.HOST, [*ticks[:-1], msgspec.structs.replace(ticks[-1], scoreboard=[slot, *others])])


@pytest.mark.parametrize(
    ("changes", "shift", "verdict"),
    [
        ({}, 0, "VALID"),
        ({}, 1, "INVALID"),
        ({}, -1, "INVALID"),
        ({"failures_per_s": 1}, 42, "VALID"),
        ({"failures_per_s": 1}, 43, "INVALID"),
        ({"failures_per_s": 1}, -42, "VALID"),
        ({"failures_per_s": 1}, -43, "INVALID"),
        ({"failures_per_s": 1, "failure_code": "connect_failed"}, 42, "VALID"),
        ({"failures_per_s": 1, "failure_code": "connect_refused"}, 1, "INVALID"),
        ({"failures_per_s": 1, "failure_code": "dropped"}, -1, "INVALID"),
    ],
)
def test_connections_opened_and_accepted_may_differ_by_those_of_failures_only(tmp_path, changes, shift, verdict):
    folder = run_folders.write(tmp_path / "run", **changes)  # 42 s of phases
    _shift(folder, "connections_accepted", shift)
    summary = analyse(folder).summary
    assert summary.verdict == verdict
    if verdict == "INVALID":
        # three phases of long connections, 20 each, and 20 s of short ones
        assert f"accepted {8060 + shift:,} connections, but the load opened 8,060" in summary.reason


@pytest.mark.parametrize(
    ("code", "failures", "shift", "verdict"),
    [
        ("timeout", 0, 0, "VALID"),
        ("timeout", 0, 1, "INVALID"),
        ("connection_lost", 1, 1, "VALID"),
        ("dropped", 1, 1, "INVALID"),
    ],
)
def test_bytes_agree_unless_an_upload_that_failed_may_be_stored(tmp_path, code, failures, shift, verdict):
    folder = run_folders.write(tmp_path / "run", failures_per_s=failures, failure_code=code)
    _shift(folder, "bytes_stored", shift)
    summary = analyse(folder).summary
    assert summary.verdict == verdict
    assert ("(1 bytes differ)" in summary.reason) == (verdict == "INVALID")


def test_what_happened_outside_the_ticks_is_not_held_against_the_server(tmp_path):
    """The scoreboard is seen from second 2 on; by then 20 long connections are open."""
    folder = run_folders.write(tmp_path / "run")
    rewrite(folder / run_folder.HOST, list(run_folder.read_host(folder))[4:])
    assert analyse(folder).summary.verdict == "VALID"


def test_a_load_that_was_killed_takes_its_last_counts_with_it(tmp_path):
    folder = run_folders.write(tmp_path / "run", ended=None)
    _shift(folder, "connections_accepted", 7)
    assert analyse(folder).summary.verdict == "VALID"


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_load_process_that_was_lost_makes_the_run_invalid(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    text = "load process 77 on far was lost: its users and its last second of counts are gone"
    run_folders.append(
        folder / run_folder.EVENTS,
        Event(**run_folders.stamp(9), source="load", kind="load-process-lost", text=text),
    )
    summary = analyse(folder).summary
    assert (summary.verdict, summary.reason) == ("INVALID", text)


@pytest.mark.parametrize(("at_s", "verdict"), [(1.6, "VALID"), (5.0, "INVALID"), (11.4, "INVALID"), (11.6, "VALID")])
def test_a_server_that_ends_in_a_measured_phase_makes_the_run_invalid(tmp_path, at_s, verdict):
    """The recorder ticks twice a second, so what it sees at 11.4 may have been at 10.9; the phase ends at 11."""
    plan = (("warm-up", "warm-up", 0), *ONE_PHASE)
    folder = run_folders.write(tmp_path / "run", plan=plan, warm_up_s=1.0, phase_s=9.0)
    gone = Event(**run_folders.stamp(at_s), source="recorder", kind="server-gone", text="pid 1000 is gone")
    run_folders.append(folder / run_folder.EVENTS, gone)
    summary = analyse(folder).summary
    assert summary.verdict == verdict
    assert ("the server was gone in phase long-1" in summary.reason) == (verdict == "INVALID")


# --- arrivals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("late", "verdict"), [(100, "VALID"), (102, "INVALID")])
def test_99_of_100_offered_uploads_are_acknowledged_in_their_phase(tmp_path, late, verdict):
    """Late ones are counted, but not achieved: 100 of 10,100 are less than 1 %, 102 of 10,102 more."""
    summary = summarise(tmp_path / "run", model="open", plan=ONE_PHASE, late=late)
    assert summary.verdict == verdict
    if verdict == "INVALID":
        assert "only 99.0 % of the 10,102 uploads offered in phase long-1" in summary.reason
        assert "late 102" in summary.reason


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"dropped_per_s": 200}, "INVALID"),
        ({"unanswered_per_s": 200}, "VALID"),  # it was sent, and its time is a lower bound
        ({"failures_per_s": 200}, "VALID"),  # it was sent, and ended
    ],
)
def test_whatever_became_of_an_arrival_it_was_offered(tmp_path, changes, verdict):
    summary = summarise(tmp_path / "run", model="open", plan=ONE_PHASE, **changes)
    assert summary.verdict == verdict
    assert summary.phases[0].achieved_share == pytest.approx(1000 / 1200)
    if verdict == "INVALID":
        assert "neither the server nor the load nor their machine is known to have been at its limit" in summary.reason


def test_what_was_in_flight_at_a_phases_start_counts_for_what_is_at_its_end(tmp_path):
    """Half a second of uploads is late in each phase, of a server that keeps up."""
    plan = (("warm-up", "warm-up", 0), *ONE_PHASE)
    summary = summarise(tmp_path / "run", model="open", plan=plan, late=500)
    assert summary.verdict == "VALID"
    assert [phase.carried for phase in summary.phases] == [0, 500]


def _summary_of(folder, counts, responses_us, late):
    """Of an open phase from second 1 on that had these uploads acknowledged, with these typical responses, one of each
    a second, and so many late."""
    run_folders.write(folder, model="open", plan=ONE_PHASE, phase_s=float(len(counts)))
    (folder / run_folder.HOST).unlink()  # its scoreboard tells of other uploads
    lines = [line for line in run_folder.read_uploads(folder) if isinstance(line, HistogramsLine)]
    for second, (count, us) in enumerate(zip([*counts, late], [*responses_us, responses_us[-1]], strict=True), 1):
        is_late = second > len(counts)
        names = {"long ≤4 KiB": run_folders.second_of(count, 4000, us, response_us=us, late=count if is_late else 0)}
        lines.append(run_folders.uploads_line(Scenario(model="open"), 1.0 + second, "long-1", names))
    rewrite(folder / run_folder.UPLOADS, lines)
    run = run_folder.read_run(folder)
    phases = [msgspec.structs.replace(run.phases[0], offered=sum(counts) + late)]
    run_folder.write_whole(folder / run_folder.RUN, msgspec.structs.replace(run, phases=phases))
    return analyse(folder).summary


def test_what_is_in_flight_where_the_rate_is_highest_is_not_missing(tmp_path):
    """A ramp of 100 to 3,000 arrivals/s in 10 s, each answered after 80 ms: 239 of 15,500 are under way at its end."""
    until = [0, *(round(100 * t + 145 * t * t) for t in (second - 0.08 for second in range(1, 11)))]
    counts = [after - before for before, after in pairwise(until)]
    summary = _summary_of(tmp_path / "run", counts, [80_000] * 10, late=15_500 - sum(counts))
    assert summary.phases[0].late == 239
    assert summary.phases[0].in_flight_at_end == pytest.approx(2.832 * 80, rel=0.01)
    assert summary.verdict == "VALID"


@pytest.mark.parametrize("response_us", [200, 80_000])
def test_a_server_that_cannot_keep_up_is_short_however_long_its_responses_become(tmp_path, response_us):
    """980 of 1,000 arrivals/s: the backlog grows by 20 a second, and the response with it."""
    in_flight = round(980 * response_us / 1e6)
    responses_us = [response_us + (second - 0.5) * 20 / 980 * 1e6 for second in range(1, 11)]
    summary = _summary_of(tmp_path / "run", [980 - in_flight] + [980] * 9, responses_us, late=200 + in_flight)
    assert summary.phases[0].short_of_offered
    assert summary.verdict == "INVALID"


def test_what_was_dropped_was_not_in_flight(tmp_path):
    """Responses of 300 ms leave 300 uploads of 1,000/s in flight, but none is late here."""
    slow = Rate(1000, 0.10, 0.40, 1.00, 200_000)
    summary = summarise(tmp_path / "run", model="open", plan=ONE_PHASE, long=slow, dropped_per_s=20)
    assert summary.phases[0].in_flight_at_end == pytest.approx(300)
    assert summary.verdict == "INVALID"


def test_a_full_machine_that_load_and_server_share_is_a_lower_bound(tmp_path):
    full = replace(Scenario().long, busy=1.92)  # of two cores
    summary = summarise(tmp_path / "run", model="open", plan=ONE_PHASE, long=full, dropped_per_s=200)
    assert summary.verdict == "LOWER BOUND"
    assert "its cores, which load and server share, were busy for 96.0 % of phase long-1" in summary.reason
    assert summary.modes[0].lower_bound


# One of two cores is busy all the time, the other never.
ONE_CORE = {"plan": ONE_PHASE, "model": "open", "dropped_per_s": 200, "long": replace(Scenario().long, busy=0.96)}


@pytest.mark.parametrize(
    ("usable", "share", "verdict"),
    [
        ("0", 0.96, "LOWER BOUND"),
        ("1", 0.0, "INVALID"),
        ("0-1", 0.48, "INVALID"),
        ("0,7-9", 0.96, "LOWER BOUND"),
        ("", 0.48, "INVALID"),
        (None, 0.48, "INVALID"),
    ],
)
def test_the_machine_is_the_cores_that_the_load_may_run_on(tmp_path, usable, share, verdict):
    folder = run_folders.write(tmp_path / "run", **ONE_CORE)
    run = run_folder.read_run(folder)
    run = msgspec.structs.replace(run, environment=run.environment | {"cpus_usable": usable})
    run_folder.write_whole(folder / run_folder.RUN, run)
    summary = analyse(folder).summary
    assert summary.phases[0].machine_share == pytest.approx(share)
    assert summary.verdict == verdict


def test_a_machine_that_the_server_fills_alone_is_not_shared(tmp_path):
    """Only the master is here, and the load processes, which write load.jsonl, are elsewhere."""
    full = replace(Scenario().long, busy=1.92)
    folder = run_folders.write(tmp_path / "run", model="open", plan=ONE_PHASE, long=full, dropped_per_s=200)
    ticks = [msgspec.structs.replace(tick, host="far", pid=77) for tick in run_folder.read_load(folder)]
    rewrite(folder / run_folder.LOAD, ticks)
    summary = analyse(folder).summary
    assert summary.phases[0].machine_share is None
    assert summary.verdict == "INVALID"


def test_a_load_that_only_the_recorder_tells_of_shares_the_machine(tmp_path):
    full = replace(Scenario().long, busy=1.92)
    folder = run_folders.write(tmp_path / "run", model="open", plan=ONE_PHASE, long=full, dropped_per_s=200)
    (folder / run_folder.LOAD).unlink()
    assert analyse(folder).summary.verdict == "LOWER BOUND"


def test_noise_explains_what_was_not_taken(tmp_path):
    summary = summarise(tmp_path / "run", model="open", plan=ONE_PHASE, dropped_per_s=200, hiccup_us=2000)
    assert summary.verdict == "NOISY"


def test_a_server_at_capacity_is_a_result(tmp_path):
    summary = summarise(tmp_path / "run", model="open", plan=ONE_PHASE, long=FULL, dropped_per_s=250)
    assert summary.verdict == "VALID"
    assert "the server was at capacity and took 1,000 of 1,250 offered uploads/s in phase long-1" in summary.reason


def test_a_generator_at_its_limit_is_a_lower_bound(tmp_path):
    summary = summarise(tmp_path / "run", model="open", plan=ONE_PHASE, long=BUSY_GENERATOR, dropped_per_s=250)
    assert summary.verdict == "LOWER BOUND"


def test_several_phases_that_fell_short_are_one_sentence(tmp_path):
    summary = summarise(tmp_path / "run", model="open", dropped_per_s=200)
    assert summary.reason.startswith(
        "only 66.7 % of the 6,000 uploads offered in phase short-1 (and too few in 3 more) were acknowledged in it (at "
        "least 99.0 % must be; dropped 2,000)"
    )


@pytest.mark.parametrize(
    ("surplus", "how", "verdict"),
    [
        *((1, "completed", "INVALID"), (0, "completed", "VALID"), (-1, "completed", "INVALID")),
        *((1, "stopped", "VALID"), (-1, "stopped", "VALID")),
    ],
)
def test_every_arrival_is_acknowledged_or_failed_once(tmp_path, surplus, how, verdict):
    """Nothing is left out of the statistics without being counted, and nothing is in them twice. Load processes that
    are stopped hear of it one after the other."""
    folder = run_folders.write(tmp_path / "run", model="open", failures_per_s=1, ended=Ending(how=how, reason="why"))
    run = run_folder.read_run(folder)
    phases = [msgspec.structs.replace(phase, offered=phase.offered + surplus) for phase in run.phases]
    run_folder.write_whole(folder / run_folder.RUN, msgspec.structs.replace(run, phases=phases))
    summary = analyse(folder).summary
    assert summary.verdict == verdict
    if verdict == "INVALID":
        assert summary.reason == (
            "4 uploads that were due in long-1, short-1, short-2, long-2 were neither acknowledged nor failed: "
            "the load lost count of them"
            if surplus > 0
            else "4 more uploads were acknowledged or failed in long-1, short-1, short-2, long-2 than were due: "
            "the load sent or counted them twice"
        )


def test_an_open_phase_that_was_cut_off_is_not_judged_by_what_was_offered(tmp_path):
    summary = summarise(tmp_path / "run", model="open", cut_off_at_s=9.5, ended=None, dropped_per_s=250)
    assert summary.verdict == "VALID"
    assert summary.phases[-1].achieved_share is None
    assert summary.modes[0].offered_per_s is None


# --- users ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["closed", "open"])
def test_uploads_without_an_answer_are_in_percentiles_of_the_open_model_only(tmp_path, model):
    changes = {"model": model, "plan": ONE_PHASE, "failures_per_s": 1, "failure_code": "timeout"}
    summary = summarise(tmp_path / "run", **changes)
    assert summary.verdict == {"closed": "INVALID", "open": "VALID"}[model]
    assert ("10 uploads were never answered" in summary.reason) == (model == "closed")


@pytest.mark.parametrize(("idle", "verdict"), [(0.0, "VALID"), (0.045, "VALID"), (0.06, "INVALID")])
def test_uploads_and_pauses_fill_the_users_time(tmp_path, idle, verdict):
    """A cycle of 20 ms at the end of a phase of 10 s is let go, and 50 µs of the load itself in each cycle."""
    summary = summarise(tmp_path / "run", plan=ONE_PHASE, idle=idle)
    assert summary.verdict == verdict
    if verdict == "INVALID":
        assert summary.reason.startswith("users spent 5.56 %")
        assert "% of phase long-1 neither uploading nor pausing" in summary.reason


IDLE = {"plan": ONE_PHASE, "idle": 0.3}


def test_a_generator_that_was_the_limit_is_not_invalid_for_it(tmp_path):
    assert summarise(tmp_path / "run", **IDLE, long=BUSY_GENERATOR).verdict == "LOWER BOUND"


def test_the_users_time_cannot_be_accounted_for_with_failures(tmp_path):
    assert summarise(tmp_path / "run", **IDLE, failures_per_s=1).verdict == "VALID"


def test_nor_when_their_number_changed(tmp_path):
    folder = run_folders.write(tmp_path / "run", **IDLE)
    lines = list(run_folder.read_uploads(folder))
    rewrite(folder / run_folder.UPLOADS, [msgspec.structs.replace(lines[0], users=19), *lines[1:]])
    assert analyse(folder).summary.verdict == "VALID"


def test_a_change_of_users_after_the_phase_does_not_matter(tmp_path):
    folder = run_folders.write(tmp_path / "run", **IDLE)
    after = UploadsLine(**run_folders.stamp(11.5), phase="long-1", users=0, names={})
    run_folders.append(folder / run_folder.UPLOADS, after)
    assert analyse(folder).summary.verdict == "INVALID"


@pytest.mark.parametrize("kept", [("transaction",), ("think",)])
def test_nor_without_both_histograms(tmp_path, kept):
    folder = run_folders.write(tmp_path / "run", **IDLE)
    rewrite(folder / run_folder.UPLOADS, [_only(line, kept) for line in run_folder.read_uploads(folder)])
    assert analyse(folder).summary.verdict == "VALID"


def _only(line, durations):
    if not isinstance(line, HistogramsLine):
        return line
    names = {name: {key: found[key] for key in durations} for name, found in line.names.items()}
    return msgspec.structs.replace(line, names=names)


@pytest.mark.parametrize(("uploads", "verdict"), [(8, "INVALID"), (6, "VALID")])
def test_nor_in_a_phase_of_few_cycles(tmp_path, uploads, verdict):
    """With 20 users, 30 % of them idle, and 6 uploads a second, a user's turn comes after 2.3 s: 4.3 times in 10 s."""
    assert summarise(tmp_path / "run", **IDLE, long=Rate(uploads, 0.1, 0.4, 1.0, 200)).verdict == verdict
