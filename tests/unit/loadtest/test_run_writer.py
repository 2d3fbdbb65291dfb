"""What a run writes into its folder: phases with what was due in them, seconds, and what happened."""

import time

import pytest
from fake_load import fake_load

from loadtest.load import RunningPhase
from loadtest.options import DEFAULTS, validate
from loadtest.plan import PlannedPhase
from loadtest.run_writer import RunWriter
from loadtest.telemetry import batch_of
from reports import run_folder
from reports.run_folder import Ending, HistogramsLine, RunInfo, UploadsLine

NOWHERE = "tcp://127.0.0.1:1"
NS = 1_000_000_000


def writer(folder, **options):
    made = validate(NOWHERE, DEFAULTS | options)
    now = time.monotonic_ns()
    described = {"id": "run", "label": "load", "command": [], "host": NOWHERE, "users": 1, "load_options": {}}
    machine = {"seed": 1, "git_commit": None, "git_dirty": None, "environment": {}}
    return RunWriter(folder, RunInfo(**described, **machine, started_mono_ns=now, started_wall_ns=now), made)


def a_batch(*phases):
    """A load process's batch of one dropped upload in each of these phases."""
    with fake_load(NOWHERE) as load:
        for phase in phases:
            load.drop(RunningPhase(phase, 0), load.payloads.pick(0, 0)[0])
        tallied = load.telemetry.take()
    tick = {"host": "h", "pid": 1, "cpu_s": 0.5, "run_delay_ns": None, "in_flight": 0, "queued": 0}
    return {"batch": batch_of(tallied), "hiccups": [], "tick": tick, "final": False}


def test_phases_end_where_the_next_begins(tmp_path):
    written = writer(tmp_path)
    written.begin(PlannedPhase("ramp-up", "warm-up", 0, 0), NS)
    written.begin(PlannedPhase("long-1", "measure", 0, 2), 3 * NS)
    assert written.phase.name == "long-1"
    written.end(5 * NS, 1)
    written.change(ended=Ending(how="completed", reason="its plan was over"))
    written.close()
    run = run_folder.read_run(tmp_path)
    assert [(phase.name, phase.start_ns, phase.end_ns) for phase in run.phases] == [
        ("ramp-up", NS, 3 * NS),
        ("long-1", 3 * NS, 5 * NS),
    ]
    assert [phase.offered for phase in run.phases] == [None, None]  # closed model
    assert run.ended is not None
    assert [event.text for event in run_folder.read_events(tmp_path)] == ["phase ramp-up", "phase long-1"]


@pytest.mark.parametrize(("lasted_s", "offered"), [(2, 200), (1, 100), (3, 200)])
def test_what_was_due_in_a_phase(tmp_path, lasted_s, offered):
    """Of one that was stopped early only what was due until then; before the plan, nothing was."""
    written = writer(tmp_path, arrival_rate="100")
    written.begin(PlannedPhase("ramp-up", "warm-up", 0, 0), 0)
    written.begin(PlannedPhase("long-1", "measure", 0, 2), NS)
    written.begin(PlannedPhase("drain", "drain", 0, 0), NS + lasted_s * NS)
    assert [phase.offered for phase in written.phases] == [0, offered, None]
    written.close()


def test_a_second_is_a_line_for_each_phase(tmp_path):
    written = writer(tmp_path)
    written.begin(PlannedPhase("long-1", "measure", 0, 2), 0)
    written.add(a_batch("ramp-up", "long-1"))
    written.add(a_batch("long-1"))
    assert not written.pulse.any_failed
    written.write_second(7)
    assert written.pulse.any_failed
    assert written.silent_s < 60
    written.write_second(7)  # nothing new
    written.end(NS, 7)
    written.close()
    lines = list(run_folder.read_uploads(tmp_path))
    seconds = [line for line in lines if isinstance(line, UploadsLine)]
    assert [
        (line.phase, line.users, sum(sum(n.failures.values()) for n in line.names.values())) for line in seconds
    ] == [
        ("ramp-up", 7, 1),
        ("long-1", 7, 2),
    ]
    assert [line.phase for line in lines if isinstance(line, HistogramsLine)] == ["long-1", "ramp-up", "long-1"]
    assert len(list(run_folder.read_load(tmp_path))) == 2
