"""Halves of a phase, beside each other."""

import msgspec
import pytest

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.run_folder import HistogramsLine
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import rewrite

ONE = (("long-1", "measure", 0),)
EVEN = {"shape": "none", "arrival_profile": "constant"}


def slower(folder, factor, at_s):
    """From this second on, `factor` times as many uploads, by the same CPU. No histogram and no scoreboard says that
    there were others."""
    lines = []
    for line in run_folder.read_uploads(folder):
        if isinstance(line, HistogramsLine):
            continue
        if line.mono_ns > run_folders.mono(at_s):
            names = {
                name: msgspec.structs.replace(second, count=round(second.count * factor))
                for name, second in line.names.items()
            }
            line = msgspec.structs.replace(line, names=names)
        lines.append(line)
    rewrite(folder / run_folder.UPLOADS, lines)
    run = msgspec.structs.replace(run_folder.read_run(folder), load_options=EVEN)
    run_folder.write_whole(folder / run_folder.RUN, run)
    return analyse(folder).summary


def test_an_even_phase_does_not_drift(tmp_path):
    summary = slower(run_folders.write(tmp_path / "run", plan=ONE, with_server=False), 1, 0)
    [phase] = [phase for phase in summary.phases if phase.measured]
    assert phase.drift.rate == pytest.approx(0, abs=0.01)
    assert phase.drift.busy_core_us == pytest.approx(0, abs=0.02)
    assert not any("drifted" in warning for warning in summary.warnings)


def test_a_phase_that_slows_down_is_warned_of(tmp_path):
    folder = run_folders.write(tmp_path / "run", plan=ONE, with_server=False)
    [phase] = [phase for phase in run_folder.read_run(folder).phases if phase.kind == "measure"]
    middle_s = run_folders.seconds((phase.start_ns + phase.end_ns) // 2)
    summary = slower(folder, 0.5, middle_s)
    [warning] = [warning for warning in summary.warnings if "drifted" in warning]
    assert warning.startswith("phase long-1 drifted: from its first half to its second, uploads/s fell by 50.0 % and ")
    assert " and CPU an upload rose by " in warning


def test_a_load_that_asked_for_another_rate_does_not_drift(tmp_path):
    folder = run_folders.write(tmp_path / "run", plan=ONE, with_server=False)
    slower(folder, 0.5, 8)
    run = msgspec.structs.replace(run_folder.read_run(folder), load_options={"shape": "ramp"})
    run_folder.write_whole(folder / run_folder.RUN, run)
    [phase] = [phase for phase in analyse(folder).summary.phases if phase.measured]
    assert phase.drift.rate is None


def test_short_phases_have_no_halves(tmp_path):
    folder = run_folders.write(tmp_path / "run", plan=ONE, phase_s=4)
    assert [phase.drift for phase in analyse(folder).summary.phases if phase.measured] == [None]
