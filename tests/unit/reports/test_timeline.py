"""Curves over time: rates of what lines really speak of, with a break wherever something did not run."""

import math

import msgspec
import numpy as np
import pytest

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.analysis.timeline import Curve, Timeline
from reports.run_folder import Phase, UploadsLine
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import rewrite


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


def test_of_ticks_that_nearly_coincide_no_share_is_drawn(tmp_path):
    """10 ms of CPU, the kernel's least, would be five cores of the 2 ms before the last tick."""
    folder = run_folders.write(tmp_path / "run")
    *ticks, before = run_folder.read_processes(folder)
    last = msgspec.structs.replace(
        before,
        mono_ns=before.mono_ns + 2_000_000,
        processes=[
            msgspec.structs.replace(process, cpu_user_s=process.cpu_user_s + 0.01) for process in before.processes
        ],
    )
    rewrite(folder / run_folder.PROCESSES, [*ticks, before, last])
    for process in analyse(folder).timeline.processes:
        assert process.share.values[~np.isnan(process.share.values)].max() < 1


def test_no_line_is_drawn_over_a_gap(tmp_path):
    """Of the recorder, from 10 to 14 s: whoever sees a line believes that it was measured."""
    timeline = analyse(run_folders.write(tmp_path / "run", recorder_gap_s=(10.0, 14.0))).timeline
    curves = [timeline.accept_queue, *timeline.connections.values()]
    curves += [
        curve for process in timeline.processes for curve in (process.share, process.rss_bytes, process.uss_bytes)
    ]
    for curve in curves:
        within = (curve.t_s > 10) & (curve.t_s < 13.5)
        assert len(curve.t_s) < 10 or math.isnan(curve.values[within].max())
        assert not [value for value in curve.values[within] if not math.isnan(value)]
    whole = analyse(run_folders.write(tmp_path / "whole")).timeline
    assert not any(math.isnan(value) for process in whole.processes for value in process.share.values)


def test_the_open_model_has_curves_of_response_and_service(tmp_path):
    latency = analyse(run_folders.write(tmp_path / "run", model="open")).timeline.latency
    assert {curves.duration for curves in latency} == {"response", "service"}
    found = {curves.duration: curves for curves in latency if (curves.mode, curves.size_class) == ("long", "≤4 KiB")}
    assert [float(found[name].p50.values[-1]) for name in ("response", "service")] == [300, 160]
    closed = analyse(run_folders.write(tmp_path / "closed")).timeline.latency
    assert {curves.duration for curves in closed} == {"transaction"}


def _uploads(folder, phases, lines):
    """Another history of uploads for a folder: phases by (name, per connection, start, end), lines by (second, phase,
    uploads)."""
    named = [
        Phase(
            name=name,
            kind="measure",
            uploads_per_connection=per_connection,
            start_ns=run_folders.mono(start_s),
            end_ns=run_folders.mono(end_s),
        )
        for name, per_connection, start_s, end_s in phases
    ]
    run = msgspec.structs.replace(run_folder.read_run(folder), phases=named)
    run_folder.write_whole(folder / run_folder.RUN, run)
    modes = {phase.name: phase.mode for phase in named}
    rewrite(
        folder / run_folder.UPLOADS,
        [
            UploadsLine(
                **run_folders.stamp(at_s),
                phase=name,
                users=1,
                names={f"{modes[name]} ≤4 KiB": run_folders.second_of(uploads, 1, 100, 0)},
            )
            for at_s, name, uploads in lines
        ],
    )


def _timeline(folder) -> Timeline:
    return analyse(folder).timeline


def _pieces(curve: Curve) -> list[list[tuple[float, float]]]:
    """The points of a curve, apart where it is broken."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for t_s, value in zip(curve.t_s.tolist(), curve.values.tolist(), strict=True):
        if math.isnan(value):
            pieces.append([])
        else:
            pieces[-1].append((round(t_s, 3), round(value, 3)))
    return [piece for piece in pieces if piece]


def test_a_line_across_the_end_of_a_phase_speaks_of_its_part_of_it(tmp_path):
    """Stragglers are counted in a line after the phase."""
    folder = run_folders.write(tmp_path / "run")
    lines = [(3.0, "long-1", 70), (4.0, "long-1", 100), (5.0, "long-1", 80), (6.0, "long-1", 3)]
    _uploads(folder, [("long-1", 0, 2.3, 4.8)], lines)
    assert _pieces(_timeline(folder).uploads_per_s["long"]) == [[(2.65, 100), (3.5, 100), (4.4, 100)]]


def test_a_line_speaks_of_the_time_since_the_one_before_however_long_that_is(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    _uploads(folder, [("long-1", 0, 2.0, 6.0)], [(3.9, "long-1", 190), (4.4, "long-1", 50), (6.0, "long-1", 160)])
    assert _pieces(_timeline(folder).uploads_per_s["long"]) == [[(2.95, 100), (4.15, 100), (5.2, 100)]]


def test_a_phase_of_a_second_is_as_long_as_what_its_only_line_speaks_of(tmp_path):
    """A point alone would be no line."""
    folder = run_folders.write(tmp_path / "run")
    phases = [("long-1", 0, 2.0, 3.0), ("short-1", 1, 3.0, 4.0), ("long-2", 0, 4.0, 5.03)]
    lines = [(3.0, "long-1", 10), (4.0, "short-1", 5), (5.0, "long-2", 20), (5.03, "long-2", 1)]
    _uploads(folder, phases, lines)
    timeline = _timeline(folder)
    assert _pieces(timeline.uploads_per_s["long"]) == [[(2, 10), (3, 10)], [(4, 20), (5, 20)]]
    assert _pieces(timeline.uploads_per_s["short"]) == [[(3, 5), (4, 5)]]
    assert [len(piece) for piece in _pieces(timeline.latency[0].p99)] == [2, 2]


def test_no_line_is_drawn_across_phases_in_which_its_mode_did_not_run(tmp_path):
    """A phase whose first line comes a moment after its start, too soon for a rate, is broken off nevertheless."""
    folder = run_folders.write(tmp_path / "run")
    phases = [("long-1", 0, 2.0, 4.0), ("short-1", 1, 4.0, 6.0), ("long-2", 0, 6.0, 8.0)]
    lines = [(3.0, "long-1", 10), (4.0, "long-1", 10)]
    lines += [(4.05, "short-1", 1), (5.0, "short-1", 5), (6.0, "short-1", 5)]
    lines += [(6.05, "long-2", 1), (7.0, "long-2", 10), (8.0, "long-2", 10)]
    _uploads(folder, phases, lines)
    timeline = _timeline(folder)
    long = [[2.5, 3.5], [6.525, 7.5]]
    assert [[t_s for t_s, _ in piece] for piece in _pieces(timeline.uploads_per_s["long"])] == long
    [latency] = [curves for curves in timeline.latency if curves.mode == "long"]
    for curve in (latency.p50, latency.p99):
        assert [[t_s for t_s, _ in piece] for piece in _pieces(curve)] == long
