"""A run folder as evidence: its files read once, on one clock, and what can be said of them without arithmetic on CPU.

Everything else in the analysis works from an `Evidence` and never opens a file. Times are seconds since the run's
start: run.json's `started_mono_ns` is zero.

A line of uploads.jsonl is stamped when the last load process had reported, and lines are also written at each change of
phase: it speaks of the time since the line of its phase before it (`spans`), which is about a second and may be
a few milliseconds.
"""

import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from reports import run_folder
from reports.run_folder import (
    Ending,
    Event,
    HistogramsLine,
    HostTick,
    Line,
    LoadTick,
    ProcessTick,
    RunFolderError,
    RunInfo,
    SlotCounters,
    UploadsLine,
)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The folder's files, read."""

    run: RunInfo
    seconds: list[UploadsLine]
    histograms: dict[str, HistogramsLine]
    """The last line of each phase."""
    ticks: list[ProcessTick]
    host: list[HostTick]
    load: list[LoadTick]
    events: list[Event]
    """All events in the order of time, whoever wrote them."""

    def s(self, mono_ns: int) -> float:
        """Seconds since the run's start."""
        return (mono_ns - self.run.started_mono_ns) / 1e9

    def times(self, ticks: Iterable[Line]) -> Floats:
        return np.array([self.s(tick.mono_ns) for tick in ticks], dtype=np.float64)


def read(folder: Path) -> Evidence:
    """All files of a run folder. RunFolderError when it is none of ours, or when the load never started."""
    _look_for(folder)
    run = run_folder.read_run(folder)
    if run.model != "none" and not (folder / run_folder.UPLOADS).exists():
        raise RunFolderError(f"{folder} has no {run_folder.UPLOADS}: the load never started, so there is no report")
    seconds: list[UploadsLine] = []
    histograms: dict[str, HistogramsLine] = {}
    for line in run_folder.read_uploads(folder):
        if isinstance(line, UploadsLine):
            seconds.append(line)
        else:
            histograms[line.phase] = line
    ticks = list(run_folder.read_processes(folder))
    events = sorted(run_folder.read_events(folder), key=lambda event: event.mono_ns)
    run = _with_its_end(run, events)
    return Evidence(
        run=_until_its_last_tick(run, ticks) if run.model == "none" else run,
        seconds=seconds,
        histograms=histograms,
        ticks=ticks,
        host=list(run_folder.read_host(folder)),
        load=list(run_folder.read_load(folder)),
        events=events,
    )


def _look_for(folder: Path) -> None:
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise RunFolderError(f"there is no run folder {folder}") from None
    except OSError as error:
        raise RunFolderError(f"the run folder {folder} cannot be read: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise RunFolderError(f"{folder} is a file; give the run folder, which has {run_folder.RUN} in it")


def _with_its_end(run: RunInfo, events: Sequence[Event]) -> RunInfo:
    """A full disk had no room for another run.json, but perhaps for one more event."""
    reason = next((event.text for event in events if event.kind == run_folder.RUN_FAILED), None)
    if run.ended is not None or reason is None:
        return run
    return msgspec.structs.replace(run, ended=Ending(how="failed", reason=reason))


def _until_its_last_tick(run: RunInfo, ticks: Sequence[ProcessTick]) -> RunInfo:
    """A recording whose recorder was killed ends nowhere by its run.json. What was recorded until then is known."""
    last_ns = ticks[-1].mono_ns if ticks else None
    phases = [phase if phase.end_ns else msgspec.structs.replace(phase, end_ns=last_ns) for phase in run.phases]
    return msgspec.structs.replace(run, phases=phases)


LONGEST_GAP = 1.75  # intervals between two ticks; beyond it, some are missing


def interval_s(ticks: Floats) -> float:
    """The typical distance of two ticks; a second where there are too few to tell."""
    return float(np.median(np.diff(ticks))) if len(ticks) > 1 else 1.0


@dataclass(frozen=True, slots=True)
class Count:
    """What the load counted in some lines of uploads.jsonl; `uploads` are those that were acknowledged."""

    uploads: int
    bytes: int
    connections: int
    failures: dict[str, int]
    """Failures by code, the most frequent first."""
    late: int
    """Uploads that were acknowledged only after the end of their phase."""

    @property
    def in_time(self) -> int:
        """Uploads that were acknowledged before the end of their phase: what rates and costs are about."""
        return self.uploads - self.late


def count(lines: Iterable[UploadsLine], size_class: str | None = None) -> Count:
    """Sums of all lines, of one size class if named."""
    uploads = size_bytes = connections = late = 0
    failures: Counter[str] = Counter()
    for line in lines:
        for name, second in line.names.items():
            if size_class is not None and run_folder.split_name(name)[1] != size_class:
                continue
            uploads += second.count
            size_bytes += second.bytes
            connections += second.connections
            late += second.late
            failures.update(second.failures)
    return Count(uploads, size_bytes, connections, dict(failures.most_common()), late)


@dataclass(frozen=True, slots=True)
class Span:
    """The stretch of time that one line of uploads.jsonl speaks of."""

    line: UploadsLine
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def middle_s(self) -> float:
        return (self.start_s + self.end_s) / 2


def spans(evidence: Evidence) -> Iterator[Span]:
    """Every line, in order. A phase's first begins with the phase, or with the run where run.json does not name it."""
    until = {phase.name: evidence.s(phase.start_ns) for phase in evidence.run.phases}
    for line in evidence.seconds:
        end_s = evidence.s(line.mono_ns)
        yield Span(line, until.get(line.phase, 0.0), end_s)
        until[line.phase] = end_s


@dataclass(frozen=True, slots=True)
class Stored:
    """What the server says it took between the first and the last tick that show its scoreboard."""

    uploads: int
    bytes: int
    connections: int
    first_s: float
    last_s: float


def stored(evidence: Evidence) -> Stored | None:
    """None when the server shows no scoreboard: it is not one of ours, or elsewhere."""
    boards = [(tick.mono_ns, tick.scoreboard) for tick in evidence.host if tick.scoreboard is not None]
    if not boards:
        return None
    (first_ns, before), (last_ns, after) = boards[0], boards[-1]

    def risen(counter: Callable[[SlotCounters], int]) -> int:
        return sum(map(counter, after)) - sum(map(counter, before))

    return Stored(
        uploads=risen(lambda slot: slot.uploads_stored),
        bytes=risen(lambda slot: slot.bytes_stored),
        connections=risen(lambda slot: slot.connections_accepted),
        first_s=evidence.s(first_ns),
        last_s=evidence.s(last_ns),
    )
