"""An INVALID run has one cause, what happened first; what is broken since is told beneath it, without guesses."""

import msgspec
import pytest

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.pages import report_files
from reports.run_folder import Ending, Event
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import rewrite

ONE_PHASE = (("long-1", "measure", 0),)  # from second 1 to 11
LOST = "a load process was lost: 1 of 2 are left"
FAILED = Ending(how="failed", reason=LOST)
RECORDER = "the recorder, pid 30, ended with exit code -9 before the run did"
GONE = "server (port 12345): pid 1000 is gone"
NO_DISK = "the run cannot go on: No space left on device"
SKEW = "the clock of far is +0.3 s off ours (at most 0.2 s): have both follow NTP"


def invalid(folder, *events, more=0, **changes):
    """What is said of a run in which these happened, whose server stored so many `more` uploads than the load knows
    of, and accepted their connections."""
    run_folders.write(folder, **{"plan": ONE_PHASE, **changes})
    happened = [
        Event(**run_folders.stamp(at_s), source="load", kind=kind, text=text, details=details)
        for at_s, kind, text, details in events
    ]
    run_folders.append(folder / run_folder.EVENTS, *happened)
    *ticks, last = run_folder.read_host(folder)
    slot, *others = last.scoreboard
    risen = {name: getattr(slot, name) + more for name in ("uploads_stored", "bytes_stored", "connections_accepted")}
    board = [msgspec.structs.replace(slot, **risen), *others]
    rewrite(folder / run_folder.HOST, [*ticks, msgspec.structs.replace(last, scoreboard=board)])
    analysis = analyse(folder)
    assert analysis.summary.verdict == "INVALID"
    return analysis.summary


def happened(at_s, kind, text, **details):
    return at_s, kind, text, details


def kinds(texts):
    """What each sentence is about, in a word."""
    words = {"users spent": "users", "uploads, but": "uploads", "connections, but": "connections", "MB, but": "bytes"}
    words |= {"ticks": "ticks", "never answered": "unanswered", "was gone": "server", "due in": "arrivals"}
    return [next(word for said, word in words.items() if said in text) for text in texts]


def test_a_load_process_that_was_lost_is_the_cause_of_all_that_differs(tmp_path):
    lost = (happened(9, "load-process-lost", LOST), happened(9.001, "run-failed", LOST))
    summary = invalid(tmp_path / "run", *lost, more=1, idle=0.3, ended=FAILED)
    assert summary.reason == LOST
    assert kinds(summary.also_broken) == ["users", "uploads", "connections", "bytes"]
    assert not any("something else" in text or "held them up" in text for text in summary.also_broken)
    assert not any("failed" in warning for warning in summary.warnings), "it is told already"


def test_without_it_the_first_that_differs_is_the_cause_and_has_a_guess(tmp_path):
    summary = invalid(tmp_path / "run", more=1)
    assert summary.reason.endswith("may be there (did something else upload to this server?)")
    assert kinds(summary.also_broken) == ["connections", "bytes"]
    assert not any("something else" in text for text in summary.also_broken)


def test_what_follows_from_nothing_keeps_its_own_explanation(tmp_path):
    summary = invalid(tmp_path / "run", more=1, idle=0.3)
    assert summary.reason.endswith("the load process held them up")
    assert "(did something else upload to this server?)" in summary.also_broken[0]


def test_what_happened_first_is_the_cause(tmp_path):
    """A server whose end the recorder saw at second 5, half a second before the load gave up for it, or the other way
    round; a load process is missed after 5 s of silence."""
    gone = happened(5, "server-gone", GONE)
    failed = happened(4.8, "run-failed", "no upload can succeed")
    ended = Ending(how="failed", reason="no upload can succeed")
    assert kinds([invalid(tmp_path / "a", gone, failed, ended=ended).reason]) == ["server"]
    lost = happened(8, "load-process-lost", LOST, silent_s=5)
    summary = invalid(tmp_path / "b", gone, lost, ended=FAILED)
    assert (summary.reason, kinds(summary.also_broken)) == (LOST, ["server"])
    later = happened(11, "load-process-lost", LOST, silent_s=5)
    summary = invalid(tmp_path / "c", gone, later, ended=FAILED)
    assert (kinds([summary.reason]), summary.also_broken) == (["server"], [LOST])


def test_a_server_that_is_gone_before_the_first_phase_leaves_nothing_to_measure(tmp_path):
    gone = happened(0.5, "server-gone", GONE)
    none = run_folders.Rate(0, 0, 0.1, 0.1, 200)
    summary = invalid(tmp_path / "run", gone, long=none, failures_per_s=3, failure_code="connect_refused")
    assert summary.reason == f"{GONE}, since 0.5 s"
    assert summary.also_broken == [
        "nothing was measured: all 30 uploads of the measure phases failed (connect_refused 30)"
    ]
    assert not any("failed" in warning for warning in summary.warnings)


def test_a_token_that_is_refused(tmp_path):
    none = run_folders.Rate(0, 0, 0.1, 0.1, 200)
    summary = invalid(tmp_path / "run", long=none, failures_per_s=3, failure_code="unauthorized")
    assert summary.reason == "nothing was measured: all 30 uploads of the measure phases failed (unauthorized 30)"
    assert summary.also_broken == []


def test_a_recorder_that_was_killed_is_the_cause_of_missed_ticks(tmp_path):
    killed = happened(4, "recorder-failed", RECORDER)
    summary = invalid(tmp_path / "run", killed, recorder_gap_s=(4.0, 99.0))
    assert (summary.reason, kinds(summary.also_broken)) == (RECORDER, ["ticks"])
    assert "nothing was recorded from" not in summary.also_broken[0]
    assert summary.warnings == []


def test_but_not_of_what_the_load_lost(tmp_path):
    """And an event that explains nothing is not told."""
    killed = happened(4, "recorder-failed", RECORDER)
    assert RECORDER not in invalid(tmp_path / "run", killed, idle=0.3).reason


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("reason", [NO_DISK, SKEW])
def test_why_the_load_gave_up_is_the_cause(tmp_path, reason, told):
    """A full disk may have no room for the event, and run.json says it all the same."""
    none = run_folders.Rate(0, 0, 0.1, 0.1, 200)
    events = [happened(4, "run-failed", reason)] if told else []
    summary = invalid(tmp_path / "run", *events, long=none, ended=Ending(how="failed", reason=reason))
    assert summary.reason == reason
    assert [text.partition(":")[0] for text in summary.also_broken] == ["nothing was measured"]
    assert summary.warnings[:1] != [f"the run failed: {reason}"]


def test_a_load_process_that_is_lost_for_want_of_a_disk_is_not_the_cause(tmp_path):
    lost = happened(9, "load-process-lost", "a load process was lost: 0 of 1 are left", silent_s=5)
    summary = invalid(tmp_path / "run", happened(3, "run-failed", NO_DISK), lost)
    assert summary.reason == NO_DISK
    assert summary.also_broken[0] == lost[2]


def test_a_clock_that_was_set_explains_what_was_not_sent_in_time(tmp_path):
    folder = tmp_path / "run"
    invalid(folder, model="open", dropped_per_s=200)
    ticks = [
        msgspec.structs.replace(tick, wall_ns=tick.wall_ns + (3 * run_folders.NS if at > 8 else 0))
        for at, tick in enumerate(run_folder.read_host(folder))
    ]
    rewrite(folder / run_folder.HOST, ticks)
    summary = analyse(folder).summary
    assert summary.reason == "the clock was set by +3.0 s, or the machine slept"
    assert not any("is known to have been at its limit" in text for text in summary.also_broken)


def test_a_clock_that_was_set_breaks_nothing_by_itself(tmp_path):
    folder = run_folders.write(tmp_path / "run", plan=ONE_PHASE)
    first, *others = run_folder.read_host(folder)
    rewrite(folder / run_folder.HOST, [msgspec.structs.replace(first, wall_ns=1), *others])
    assert analyse(folder).summary.verdict == "VALID"


def test_nothing_is_made_of_numbers_that_nobody_may_use(tmp_path):
    """No limit, no lower bound, no drift, no comparison: in none of the four places."""
    folder = tmp_path / "run"
    lost = happened(9, "load-process-lost", LOST)
    full = run_folders.Rate(1000, 0.10, 0.90, 1.00, 200)
    summary = invalid(folder, lost, more=1, plan=run_folders.Scenario().plan, noise=0.3, long=full)
    assert (summary.binding, summary.contrast, summary.sweep) == ("", None, None)
    assert not any(mode.lower_bound or mode.at_capacity for mode in summary.modes)
    assert {phase.drift for phase in summary.phases} == {None}
    terminal = report_files.build(folder)
    assert terminal.startswith(f"INVALID: {LOST}\n  also broken: the server stored ")
    markdown = (folder / run_folder.REPORT_MD).read_text()
    assert f"**INVALID**: {LOST}\n\n- also broken: the server stored " in markdown
    html = (folder / run_folder.REPORT_HTML).read_text()
    assert f"<strong>INVALID</strong> {LOST}</p>\n<details>\n<summary>3 more broken, which may follow" in html
    for text in (terminal, markdown, html):
        assert "What binds" not in text and "drifted" not in text and "times the CPU of a long one" not in text
        assert "≥" not in text and "short ÷ long" not in text
        assert "must not be used" in text
    outcome = run_folder.read_outcome(folder)
    assert (outcome.reason, outcome.also_broken) == (LOST, summary.also_broken)
