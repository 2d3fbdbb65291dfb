"""Something dies in the middle of a run: the run goes on as far as it can, and its report says what happened."""

import os
import re
import shutil
import signal

import msgspec
import psutil
import pytest
from loads import LOADTEST, acked, assert_complete, assert_report, built, events, failures, started
from msgspec import structs
from servers import eventually
from slow import first_of
from small_disks import fill, small_disk

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.pages import charts
from reports.run_folder import HistogramsLine
from server import scoreboard

USERS = 4
START = [*LOADTEST, "run", "--workers", "2", "--plan", "long", "--payloads", "4KiB,64KiB"]
RUN = [*START, "--users", str(USERS)]
RATE, MEASURE_S = 100, 6
PAGE_BYTES = 4096


def workers(job):
    """Pids of the server's workers by slot, as the recorder saw them last."""
    samples = [sample for tick in run_folder.read_processes(job.runs()[-1]) for sample in tick.processes]
    return {sample.slot: sample.pid for sample in samples if sample.role == "server-worker"}


@pytest.mark.parametrize("model", first_of(["closed", "open"]))
def test_a_worker_is_killed(tmp_path, model):
    command = RUN if model == "closed" else [*START, "--arrival-rate", str(RATE)]
    with started(tmp_path, *command, "--phase-seconds", str(MEASURE_S)) as job:
        job.in_phase("long-1")
        before = eventually(lambda: len(now := workers(job)) == 2 and now, "the recorder has seen them")
        os.kill(before[0], signal.SIGKILL)
        after = eventually(
            lambda: (now := workers(job))[0] != before[0] and now,
            "the recorder has seen the new one",
        )
        job.wait()
    [folder] = job.runs()
    assert assert_complete(folder).ended.how == "completed"
    assert after[1] == before[1]
    assert set(failures(folder)) <= {"connection_lost"}
    lost = sum(failures(folder).values())  # those that were under way, and no other
    if model == "closed":
        assert lost <= USERS
    else:
        assert acked(folder, "long-1") + lost == RATE * MEASURE_S
    assert job.ends_with_failures() if lost else job.ends_well(), job.said()

    [ended] = [event for event in events(folder, "worker-ended") if event.details["pid"] == before[0]]
    assert (ended.source, ended.details["slot"]) == ("server", 0)
    markdown = (folder / run_folder.REPORT_MD).read_text()
    for text in (markdown, (folder / run_folder.REPORT_HTML).read_text(), (folder / run_folder.SUMMARY).read_text()):
        assert str(before[0]) in text
        assert str(after[0]) in text
        assert str(before[1]) in text
    assert ended.text in markdown


def test_the_server_is_killed(tmp_path):
    with started(tmp_path, *RUN, "--phase-seconds", "6") as job:
        server = job.in_phase("long-1").server.pid
        os.kill(server, signal.SIGKILL)
        assert job.wait() == 4, job.said()
        # Nobody was left to remove what it shared; the next server does.
        shutil.rmtree(scoreboard.runtime_root(os.geteuid()) / str(server), ignore_errors=True)
    [folder] = job.runs()
    assert assert_complete(folder).ended.how == "completed"
    assert acked(folder)
    # "failed" is a connection that was being made just then.
    assert set(failures(folder)) <= {"connection_lost", "connect_refused", "connect_failed"}
    assert "connect_refused" in failures(folder)
    assert [event.details["pid"] for event in events(folder, "server-gone")] == [server]
    markdown = (folder / run_folder.REPORT_MD).read_text().replace("\\_", "_")
    assert "connect_refused" in markdown
    outcome = run_folder.read_outcome(folder)
    assert outcome.verdict == "INVALID"
    assert "the server was gone in phase long-1" in outcome.reason


@pytest.mark.parametrize("stopped", first_of([False, True]), ids=["going on", "stopped"])
def test_the_run_itself_is_killed(tmp_path, stopped):
    """Nobody is left to end what it started, or to remove its store: `started` looks for both."""
    with started(tmp_path, *RUN, "--phase-seconds", "600") as job:
        job.in_phase("warm-up")
        job.find_store()
        for pid in job.living() if stopped else ():
            os.kill(pid, signal.SIGSTOP)
        job.process.kill()
        eventually(lambda: not job.living(), "all of it has ended")
    [folder] = job.runs()
    assert "the run was killed; what it had started has ended; " in job.said()
    assert f"python -m reports build reports/runs/{folder.name}\n" in job.said()
    assert run_folder.read_run(folder).ended.how == "stopped"
    assert not failures(folder)


def test_a_comparison_is_killed_before_its_first_server_listens(tmp_path):
    with started(tmp_path, *LOADTEST, "compare", "--a", "--workers 1", "--b", "--workers 2") as job:
        server = job.find("-m server --port")
        job.process.kill()
        job.process.wait()
        eventually(lambda: not psutil.pid_exists(server), "the server has ended")


def test_locust_is_killed(tmp_path):
    with started(tmp_path, *RUN, "--phase-seconds", "600") as job:
        job.in_phase("warm-up")
        os.kill(job.find("-m locust"), signal.SIGKILL)
        assert job.wait() == 1
    [error] = [line for line in job.said().splitlines() if line.startswith("Error: ")]
    assert error == "Error: the load process was killed by SIGKILL"
    [folder] = job.runs()
    outcome = run_folder.read_outcome(folder)
    assert (outcome.verdict, outcome.reason) == ("INVALID", "the load process was killed by SIGKILL")
    assert run_folder.read_run(folder).ended is None
    assert acked(folder)
    assert_report(folder)


def test_the_recorder_is_killed(tmp_path):
    """The report says from when on nothing is known of costs, and its charts have a mark where their lines end."""
    with started(tmp_path, *RUN, "--phase-seconds", "1", "--warm-up", "5s") as job:
        recorder = job.find("-m reports record")
        job.in_phase("warm-up")
        os.kill(recorder, signal.SIGKILL)
        assert job.wait() == 4, job.said()
    [folder] = job.runs()
    info = assert_complete(folder)
    assert info.ended.how == "completed"
    assert failures(folder) == {}
    assert acked(folder, "long-1")
    outcome = run_folder.read_outcome(folder)
    assert outcome.verdict == "INVALID"
    [missed] = outcome.also_broken
    assert missed.startswith("the recorder missed 100 % of its ticks in the measured phases")
    [event] = events(folder, "recorder-failed")
    assert outcome.reason == event.text
    assert event.mono_ns == list(run_folder.read_host(folder))[-1].mono_ns < info.phases[-1].start_ns
    from_s = (event.mono_ns - info.started_mono_ns) / 1e9
    text, _, to_s = event.text.removesuffix(" s").rpartition(" ")
    assert text == (
        f"the recorder, pid {recorder}, ended with exit code -9 before the run did: nothing was recorded from "
        f"{from_s:.1f} s to the end at"
    )
    assert float(to_s) >= (info.phases[-1].end_ns - info.started_mono_ns) / 1e9 - 0.1
    assert event.text in (folder / run_folder.REPORT_MD).read_text()
    marks = [(mark.at_s, mark.text) for mark in charts.marks(analyse(folder))]
    assert (pytest.approx(from_s), event.text) in marks
    for curves in analyse(folder).timeline.processes:
        assert max(curves.share.t_s, default=0.0) <= from_s  # no line where nothing is known


@pytest.mark.slow
def test_the_hiccup_meter_is_killed(tmp_path):
    """Nobody can say how quiet the machine was, but everything else is known."""
    with started(tmp_path, *RUN, "--phase-seconds", "1", "--warm-up", "8s") as job:
        meter = job.find("hiccups.py")
        job.in_phase("warm-up")
        os.kill(meter, signal.SIGKILL)
        assert job.ends_well(), job.said()
    [folder] = job.runs()
    assert assert_complete(folder).ended.how == "completed"
    assert failures(folder) == {}
    lines = [line for line in run_folder.read_uploads(folder) if line.phase == "long-1"]
    assert lines
    assert not any(line.hiccups if isinstance(line, HistogramsLine) else line.hiccup_us for line in lines)


def fill_page(lines):
    """With an event, so that the next one takes a page more, which a full disk has not."""
    event = run_folder.Event(**run_folder.now_ns(), source="load", kind="note", text="x" * PAGE_BYTES)
    appender = run_folder.Appender(lines)
    too_long = len(msgspec.json.encode(event)) + lines.stat().st_size + 1
    appender.append(structs.replace(event, text=event.text[too_long % PAGE_BYTES :]))
    appender.close()


@pytest.mark.parametrize("moment", first_of(["long-1", "locust.log"]))
def test_the_disk_is_full(tmp_path, moment):
    """Also when Locust cannot even say so: its log is on the same disk. With room again, the report says it."""
    with small_disk(tmp_path / "reports" / "runs", "4m") as disk:
        with started(tmp_path, *RUN, "--phase-seconds", "600") as job:
            if moment == "long-1":
                job.in_phase(moment)
                fill_page(job.runs()[0] / run_folder.EVENTS)
            else:
                eventually(lambda: list(disk.glob(f"*/{moment}")), moment)
            taken = fill(disk)
            assert job.wait() == 1, job.said()
        assert "No space left on device" in job.said() or "no space is left for" in job.said()
        taken.unlink()
        [folder] = job.runs()
        assert not list(folder.glob(".*"))
        assert not (folder / run_folder.REPORT_HTML).exists()
        if moment == "long-1":
            assert built(folder).exit_code in (1, 4)
            verdict = re.search(r"^\*\*INVALID\*\*: .*", (folder / run_folder.REPORT_MD).read_text(), re.MULTILINE)
            assert verdict, (folder / run_folder.REPORT_MD).read_text()
            assert "No space left on device" in verdict[0]
