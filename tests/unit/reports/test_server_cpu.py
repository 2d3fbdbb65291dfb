"""CPU of processes and of the server as a whole: everything once, at whatever moment a worker dies."""

import msgspec
import pytest

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.run_folder import Event, ProcessTick
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import Scenario, rewrite, summarise


@pytest.mark.parametrize("with_event", [True, False])
@pytest.mark.parametrize("killed_at_s", [13.0, 16.99, 17.01, 17.3, 43.6])
def test_a_replaced_worker_is_counted_once(tmp_path, killed_at_s, with_event):
    folder = run_folders.write(tmp_path / "run", killed_at_s=killed_at_s)
    if not with_event:
        _forget_endings(folder)
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
    rewrite(folder / run_folder.PROCESSES, [_with_reaped(tick, 1.5) for tick in run_folder.read_processes(folder)])
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
    _forget_endings(folder)
    cpu_s = run_folders.worker_cpu(Scenario(), 0, 17.01)
    ticks = [
        _with_children(tick, cpu_s) if run_folders.seconds(tick.mono_ns) == 17.0 else tick
        for tick in run_folder.read_processes(folder)
    ]
    rewrite(folder / run_folder.PROCESSES, ticks)
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


def test_a_status_helper_that_was_never_seen_is_counted_by_its_end(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    cpu = {"pid": 3000, "cpu_user_s": 0.5, "cpu_system_s": 0.25}
    end = Event(**run_folders.stamp(20.0), source="server", kind="status-ended", text="ended", details=cpu)
    run_folders.append(folder / run_folder.EVENTS, end)
    summary = analyse(folder).summary
    assert summary.server.cpu_total_s == pytest.approx(run_folders.server_total(Scenario(), 44.0) + 0.75)
    assert not any("worker" in warning for warning in summary.warnings)


def test_shares_are_of_the_measured_phases_while_the_process_lived(tmp_path):
    shares = {process.pid: process.share for process in summarise(tmp_path / "run", killed_at_s=23.0).processes}
    assert shares[20] == pytest.approx(0.45)
    assert shares[1002] == pytest.approx(0.175)
    assert shares[1001] == pytest.approx(0.175, abs=0.01), "10 s of long, 10 s of short"
    assert shares[2000] == pytest.approx(0.175, abs=0.02)


def _forget_endings(folder):
    """As if the server had not said how its workers ended."""
    events = [event for event in run_folder.read_events(folder) if event.kind != "worker-ended"]
    rewrite(folder / run_folder.EVENTS, events)
