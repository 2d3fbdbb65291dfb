"""From a run folder to numbers: what the load got, what every process paid for it, and whether to believe it.

Everything is derived here from cumulative counters and merged histograms; nothing is drawn and nothing is printed.
`analyse` returns frozen values: a `Summary`, which is summary.json, and a `Timeline` of arrays, which the charts show.

Rules, and why:
- Numbers come from the measure phases only. Phases of one mode are pooled: their uploads over their time.
- Percentiles are read from added HDR histograms, never averaged, and only where at least 30 samples lie beyond them:
  with fewer, the next run would show another number.
- CPU of a phase is the difference of a cumulative counter, interpolated linearly at the phase's two ends.
- CPU of the server counts every process once, whether it was seen alive, seen until shortly before its death, or
  never (`server_cpu`).
- The verdict comes before the numbers (`_verdict`). What lowers trust but breaks nothing is a warning.

All times here are seconds since the run's start; all CPU is in core-seconds; a share is of one core.
"""

import binascii
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from hdrh.codec import HdrCookieException, HdrLengthException
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from reports import run_folder
from reports.run_folder import (
    Event,
    HistogramsLine,
    HostTick,
    Phase,
    PhaseKind,
    ProcessSample,
    ProcessTick,
    Role,
    RunFolderError,
    RunInfo,
    UploadsLine,
)

SUMMARY_VERSION = 1

GENERATOR_LIMIT = 0.80  # a load process above this share of a core was itself the limit
GENERATOR_WARNING = 0.60
CAPACITY = 0.95  # a worker at or above it has no time left
MISSED_TICKS_LIMIT = 0.20
SHORTEST_PHASE_S = 1.0
SAMPLES_BEYOND = 30  # that a percentile needs

Verdict = Literal["VALID", "LOWER BOUND", "INVALID"]
Floats = NDArray[np.float64]


# --- what comes out ---------------------------------------------------------------------------------------------------


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Of the transactions of all samples together, in microseconds; None where there are too few samples."""

    samples: int
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None


class SizeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One size class within a mode."""

    size_class: str
    uploads: int
    uploads_per_s: float
    bytes_per_s: float
    transaction_us: Latency
    failures: dict[str, int]


class ModeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """All measure phases of one mode. Rates are only a lower bound where the generator was the limit."""

    mode: str
    phases: list[str]
    duration_s: float
    uploads: int
    bytes: int
    uploads_per_s: float
    bytes_per_s: float
    lower_bound: bool
    at_capacity: bool
    transaction_us: Latency
    busy_core_us_per_upload: float | None
    """CPU of the whole machine that was neither idle nor waiting for a disk: load, server, kernel and all else."""
    server_core_us_per_upload: float | None
    """CPU as the kernel charged it to the server's processes. On loopback, part of the server's TCP work is charged
    to the client instead, which is why the number above stands beside it."""
    failures: dict[str, int]
    sizes: list[SizeSummary]


class PhaseSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One phase as it went. CPU is None where it was not recorded."""

    name: str
    kind: PhaseKind
    mode: str
    start_s: float
    duration_s: float
    uploads: int
    bytes: int
    connections: int
    failures: dict[str, int]
    busy_core_s: float | None
    server_cpu_s: float | None
    busiest_worker_share: float | None
    generator_share: float | None
    """Of the load process that used most."""
    recorder_missed_share: float

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s

    @property
    def measured(self) -> bool:
        return self.kind == "measure" and self.duration_s >= SHORTEST_PHASE_S

    @property
    def generator_limited(self) -> bool:
        return self.generator_share is not None and self.generator_share > GENERATOR_LIMIT

    @property
    def at_capacity(self) -> bool:
        worker, generator = self.busiest_worker_share, self.generator_share
        return worker is not None and generator is not None and worker >= CAPACITY and generator <= GENERATOR_LIMIT


class ProcessSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One process over the run. `share` is its mean share of a core while it lived in measure phases."""

    pid: int
    role: Role
    slot: int | None
    started_s: float
    last_seen_s: float
    ended: bool
    """Gone before the recording was over."""
    cpu_user_s: float | None
    cpu_system_s: float | None
    share: float | None
    rss_max_bytes: int | None
    uss_max_bytes: int | None
    threads: int | None
    fds: int | None
    voluntary_switches: int | None
    involuntary_switches: int | None


class ServerSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The server as a whole. `cpu_total_s` is from its birth on, workers that were replaced included."""

    workers: int
    """Slots, or the most workers alive at once where slots are unknown."""
    cpu_total_s: float | None
    uploads_stored: int | None
    """Between the first and the last tick, from its scoreboard."""


class LoadSummary(msgspec.Struct, frozen=True, kw_only=True):
    """All phases together, as the load counted them."""

    uploads: int
    failures: dict[str, int]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """summary.json."""

    schema_version: int = SUMMARY_VERSION
    run: str
    verdict: Verdict
    reason: str
    warnings: list[str]
    modes: list[ModeSummary]
    phases: list[PhaseSummary]
    processes: list[ProcessSummary]
    server: ServerSummary
    load: LoadSummary


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one line, in order of time; NaN breaks it."""

    t_s: Floats
    values: Floats


@dataclass(frozen=True, slots=True)
class LatencyCurves:
    """One-second percentiles of the transactions of one name, in microseconds."""

    mode: str
    size_class: str
    uploads: int
    p50: Curve
    p99: Curve


@dataclass(frozen=True, slots=True)
class ProcessCurves:
    process: ProcessSummary
    share: Curve
    uss_bytes: Curve


@dataclass(frozen=True, slots=True)
class Timeline:
    end_s: float
    uploads_per_s: dict[str, Curve]
    """By mode."""
    latency: list[LatencyCurves]
    processes: list[ProcessCurves]


@dataclass(frozen=True, slots=True)
class Analysis:
    run: RunInfo
    summary: Summary
    timeline: Timeline
    events: list[Event]

    def seconds(self, event: Event) -> float:
        return (event.mono_ns - self.run.started_mono_ns) / 1e9


def significant(value: float, digits: int = 3) -> str:
    """A number for people: `digits` significant digits, thousands separated: 0.0123, 1.20, 12,300."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    if rounded and math.floor(math.log10(abs(rounded))) > math.floor(math.log10(abs(value))):
        decimals -= 1  # 9.999 became 10.0
    return f"{rounded:,.{max(0, decimals)}f}"


def percent(share: float) -> str:
    return f"{significant(share * 100)} %"


# --- what goes in -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Evidence:
    """The folder's files, read. Times in seconds since the run's start."""

    run: RunInfo
    seconds: list[UploadsLine]
    histograms: dict[str, HistogramsLine]
    """The last line of each phase."""
    ticks: list[ProcessTick]
    host: list[HostTick]
    events: list[Event]

    def s(self, mono_ns: int) -> float:
        return (mono_ns - self.run.started_mono_ns) / 1e9

    def times(self, lines: Iterable[ProcessTick | HostTick | UploadsLine]) -> Floats:
        return np.array([self.s(line.mono_ns) for line in lines], dtype=np.float64)


def _read(folder: Path) -> _Evidence:
    if not folder.is_dir():
        raise RunFolderError(f"there is no run folder {folder}")
    run = run_folder.read_run(folder)
    if not (folder / run_folder.UPLOADS).exists():
        raise RunFolderError(f"{folder} has no {run_folder.UPLOADS}: the load never started, so there is no report")
    seconds: list[UploadsLine] = []
    histograms: dict[str, HistogramsLine] = {}
    for line in run_folder.read_uploads(folder):
        if isinstance(line, UploadsLine):
            seconds.append(line)
        else:
            histograms[line.phase] = line
    return _Evidence(
        run=run,
        seconds=seconds,
        histograms=histograms,
        ticks=list(run_folder.read_processes(folder)),
        host=list(run_folder.read_host(folder)),
        events=sorted(run_folder.read_events(folder), key=lambda event: event.mono_ns),
    )


# --- CPU --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Account:
    """What something had cost by when: cumulative core-seconds at rising times; the last value holds for ever."""

    t_s: Floats
    cpu_s: Floats

    def at(self, t_s: Floats | float) -> Floats:
        return np.asarray(np.interp(t_s, self.t_s, self.cpu_s), dtype=np.float64)

    def between(self, start_s: float, end_s: float) -> float:
        return float(self.at(end_s) - self.at(start_s))


@dataclass(frozen=True, slots=True)
class _Track:
    """One process through all ticks it was seen at."""

    t_s: Floats
    samples: list[ProcessSample]
    born_s: float
    ended: bool

    @property
    def last(self) -> ProcessSample:
        return self.samples[-1]

    def account(self) -> Account:
        return _account(self, [_sum(sample.cpu_user_s, sample.cpu_system_s) for sample in self.samples], born=True)

    def children(self) -> Account:
        """CPU of its reaped children. Nothing is known from before its first sample: that value holds backwards."""
        values = [_sum(sample.children_user_s, sample.children_system_s) for sample in self.samples]
        return _account(self, values, born=False)


def _sum(user_s: float | None, system_s: float | None) -> float | None:
    return None if user_s is None or system_s is None else user_s + system_s


def _account(track: _Track, values: Sequence[float | None], *, born: bool) -> Account:
    known = [(t, value) for t, value in zip(track.t_s, values, strict=True) if value is not None]
    if not known:
        return Account(np.zeros(1), np.zeros(1))
    start = [(track.born_s, 0.0)] if born else []
    t_s, cpu_s = np.array(start + known, dtype=np.float64).T
    return Account(t_s, np.maximum.accumulate(cpu_s))


def _tracks(evidence: _Evidence) -> list[_Track]:
    """Every process that was ever seen, in the order it was first seen.

    Its birth is its create_time, but not before the tick that did not show it yet: the kernel's boot time, which
    create_time counts from, is kept in whole seconds only.
    """
    seen: dict[tuple[int, float], list[tuple[int, ProcessSample]]] = defaultdict(list)
    for index, tick in enumerate(evidence.ticks):
        for sample in tick.processes:
            seen[sample.pid, sample.create_time].append((index, sample))
    times = evidence.times(evidence.ticks)
    tracks = []
    for (_, create_time), points in seen.items():
        first, last = points[0][0], points[-1][0]
        tick = evidence.ticks[first]
        born_s = evidence.s(tick.mono_ns - tick.wall_ns + round(create_time * 1e9))
        if first:
            born_s = max(born_s, float(times[first - 1]))
        tracks.append(
            _Track(
                t_s=times[[index for index, _ in points]],
                samples=[sample for _, sample in points],
                born_s=min(born_s, float(times[first]) - 1e-6),
                ended=last < len(times) - 1,
            )
        )
    return tracks


def _is_server(track: _Track) -> bool:
    return track.last.role.startswith("server-")


def _is_load(track: _Track) -> bool:
    return track.last.role.startswith("load-")


def server_cpu(tracks: Iterable[_Track], endings: dict[tuple[int, float], float]) -> Account | None:
    """CPU of all server processes together, from birth; None when no server process was recorded.

    Each process counts once. At any time the total is
      the supervisor's own + its children as last seen + what reaped children cost beyond what was seen of them,
    the last being `children_*` of the supervisor minus all that was seen of children that have ended. A child counts as
    ended from its last sample on, so that one reaped between two reads of the same tick is not counted twice.
    `endings` gives the CPU of reaped children by (pid, second of their end), as wait4 told the supervisor: it
    fills in for children that died after the supervisor's last sample.
    """
    server = [track for track in tracks if _is_server(track)]
    if not server:
        return None
    supervisors = [track for track in server if track.last.role == "server-master"]
    children = _children([track for track in server if track.last.role != "server-master"], endings)
    own = [track.account() for track in supervisors]
    reaped = [track.children() for track in supervisors]

    t_s = np.unique(np.concatenate([account.t_s for account in [*own, *reaped, *(child for child, _ in children)]]))
    total = np.zeros_like(t_s)
    seen_of_ended = np.zeros_like(t_s)
    for account in own:
        total += account.at(t_s)
    for account, ended in children:
        total += account.at(t_s)
        if ended:
            seen_of_ended += np.where(t_s >= account.t_s[-1], account.cpu_s[-1], 0.0)
    reaped_s = np.sum([account.at(t_s) for account in reaped], axis=0) if reaped else np.zeros_like(t_s)
    total += np.maximum(0.0, reaped_s - seen_of_ended)
    return Account(t_s, np.maximum.accumulate(total))


def _children(tracks: Iterable[_Track], endings: dict[tuple[int, float], float]) -> list[tuple[Account, bool]]:
    """(account, has ended) of every worker and helper, those included that lived between two ticks."""
    unmatched = dict(endings)
    accounts = []
    for track in tracks:
        account, ended = track.account(), track.ended
        ends = [key for key in unmatched if key[0] == track.last.pid and key[1] >= track.t_s[0]]
        if ends:
            key = min(ends, key=lambda end: end[1])
            t_s = max(key[1], float(account.t_s[-1]) + 1e-6)
            cpu_s = max(unmatched.pop(key), float(account.cpu_s[-1]))
            account, ended = Account(np.append(account.t_s, t_s), np.append(account.cpu_s, cpu_s)), True
        accounts.append((account, ended))
    for (_, end_s), cpu_s in unmatched.items():
        accounts.append((Account(np.array([end_s - 1e-6, end_s]), np.array([0.0, cpu_s])), True))
    return accounts


def _worker_endings(evidence: _Evidence) -> dict[tuple[int, float], float]:
    """CPU of reaped workers by (pid, second), where the server's events report it."""
    found = {}
    for event in evidence.events:
        pid, cpu_s = event.details.get("pid"), _reported_cpu(event, "cpu_user_s", "cpu_system_s")
        if event.kind == "worker-ended" and isinstance(pid, int) and cpu_s is not None:
            found[pid, evidence.s(event.mono_ns)] = cpu_s
    return found


def _reported_cpu(event: Event, *keys: str) -> float | None:
    values = [event.details.get(key) for key in keys]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return sum(numbers) if len(numbers) == len(keys) else None


def _busy(evidence: _Evidence) -> Account:
    """CPU of all cores that was neither idle nor waiting for a disk."""
    busy = [
        sum(core.user + core.nice + core.system + core.irq + core.softirq + core.steal for core in tick.cores)
        for tick in evidence.host
    ]
    return Account(evidence.times(evidence.host), np.array(busy, dtype=np.float64))


def _overlap(start_s: float, end_s: float, ticks: Floats) -> tuple[float, float] | None:
    """The part of a phase that ticks surround; None when that is under 80 % of it, too little to speak for the rest."""
    if not len(ticks):
        return None
    first, last = max(start_s, float(ticks[0])), min(end_s, float(ticks[-1]))
    return (first, last) if last - first >= (1 - MISSED_TICKS_LIMIT) * (end_s - start_s) > 0 else None


def _missed_share(start_s: float, end_s: float, ticks: Floats, interval_s: float) -> float:
    """Share of a phase without ticks. A tick stands for 3/4 of an interval on either side, so jitter costs nothing."""
    if end_s <= start_s:
        return 0.0
    edges = np.concatenate(([-np.inf], ticks, [np.inf]))
    holes_start = np.maximum(edges[:-1] + 0.75 * interval_s, start_s)
    holes_end = np.minimum(edges[1:] - 0.75 * interval_s, end_s)
    return float(np.maximum(0.0, holes_end - holes_start).sum()) / (end_s - start_s)


# --- uploads and phases -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Count:
    uploads: int
    bytes: int
    connections: int
    failures: dict[str, int]


def _count(lines: Iterable[UploadsLine], size_class: str | None = None) -> _Count:
    """Sums of all lines, of one size class if named."""
    uploads = size = connections = 0
    failures: Counter[str] = Counter()
    for line in lines:
        for name, second in line.names.items():
            if size_class is not None and run_folder.split_name(name)[1] != size_class:
                continue
            uploads += second.count
            size += second.bytes
            connections += second.connections
            failures.update(second.failures)
    return _Count(uploads, size, connections, dict(failures.most_common()))


def _phases(evidence: _Evidence, tracks: list[_Track], server: Account | None) -> list[PhaseSummary]:
    ticks = evidence.times(evidence.ticks or evidence.host)
    interval_s = float(np.median(np.diff(ticks))) if len(ticks) > 1 else 1.0
    by_phase: dict[str, list[UploadsLine]] = defaultdict(list)
    for line in evidence.seconds:
        by_phase[line.phase].append(line)
    busy = _busy(evidence)
    workers = [track.account() for track in tracks if track.last.role == "server-worker"] or [
        track.account() for track in tracks if track.last.role == "server-master"
    ]
    load = [track.account() for track in tracks if _is_load(track)]

    found = []
    for phase in evidence.run.phases:
        lines = by_phase[phase.name]
        start_s, end_s = evidence.s(phase.start_ns), _end_s(evidence, phase, lines)
        count = _count(lines)
        recorded = _overlap(start_s, end_s, evidence.times(evidence.ticks))
        found.append(
            PhaseSummary(
                name=phase.name,
                kind=phase.kind,
                mode=phase.mode,
                start_s=start_s,
                duration_s=end_s - start_s,
                uploads=count.uploads,
                bytes=count.bytes,
                connections=count.connections,
                failures=count.failures,
                busy_core_s=_used(busy, _overlap(start_s, end_s, busy.t_s), end_s - start_s),
                server_cpu_s=_used(server, recorded, end_s - start_s),
                busiest_worker_share=_largest_share(workers, recorded),
                generator_share=_largest_share(load, recorded),
                recorder_missed_share=_missed_share(start_s, end_s, ticks, interval_s),
            )
        )
    return found


def _end_s(evidence: _Evidence, phase: Phase, lines: Sequence[UploadsLine]) -> float:
    """End of a phase; of one that was cut off, the last second that was counted."""
    if phase.end_ns is not None:
        return evidence.s(max(phase.end_ns, phase.start_ns))
    return evidence.s(max([phase.start_ns, *(line.mono_ns for line in lines)]))


def _used(account: Account | None, recorded: tuple[float, float] | None, duration_s: float) -> float | None:
    """CPU of a whole phase, extended from the recorded part of it."""
    if account is None or recorded is None:
        return None
    return account.between(*recorded) * duration_s / (recorded[1] - recorded[0])


def _largest_share(accounts: Sequence[Account], recorded: tuple[float, float] | None) -> float | None:
    if not accounts or recorded is None:
        return None
    return max(account.between(*recorded) for account in accounts) / (recorded[1] - recorded[0])


def _modes(evidence: _Evidence, phases: Sequence[PhaseSummary]) -> list[ModeSummary]:
    pools: dict[str, list[PhaseSummary]] = defaultdict(list)
    for phase in phases:
        if phase.measured:
            pools[phase.mode].append(phase)
    return [_mode(evidence, mode, pool) for mode, pool in pools.items()]


def _mode(evidence: _Evidence, mode: str, pool: Sequence[PhaseSummary]) -> ModeSummary:
    names = {phase.name for phase in pool}
    lines = [line for line in evidence.seconds if line.phase in names]
    duration_s = sum(phase.duration_s for phase in pool)
    total = _count(lines)
    histograms = _histograms(evidence, names)
    return ModeSummary(
        mode=mode,
        phases=[phase.name for phase in pool],
        duration_s=duration_s,
        uploads=total.uploads,
        bytes=total.bytes,
        uploads_per_s=total.uploads / duration_s,
        bytes_per_s=total.bytes / duration_s,
        lower_bound=any(phase.generator_limited for phase in pool),
        at_capacity=all(phase.at_capacity for phase in pool),
        transaction_us=_latency(list(histograms.values())),
        busy_core_us_per_upload=_per_upload_us([phase.busy_core_s for phase in pool], total.uploads),
        server_core_us_per_upload=_per_upload_us([phase.server_cpu_s for phase in pool], total.uploads),
        failures=total.failures,
        sizes=_sizes(lines, duration_s, histograms),
    )


def _sizes(lines: Sequence[UploadsLine], duration_s: float, histograms: dict[str, HdrHistogram]) -> list[SizeSummary]:
    seen = {run_folder.split_name(name)[1] for line in lines for name in line.names}
    found = []
    for size_class in (known for known in run_folder.SIZE_CLASSES if known in seen):
        count = _count(lines, size_class)
        found.append(
            SizeSummary(
                size_class=size_class,
                uploads=count.uploads,
                uploads_per_s=count.uploads / duration_s,
                bytes_per_s=count.bytes / duration_s,
                transaction_us=_latency([histograms[size_class]] if size_class in histograms else []),
                failures=count.failures,
            )
        )
    return found


def _per_upload_us(costs: Sequence[float | None], uploads: int) -> float | None:
    """Core-microseconds an upload; None where nothing was uploaded or a phase was not recorded."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) / uploads * 1e6 if uploads and len(known) == len(costs) else None


def _new_histogram() -> HdrHistogram:
    return HdrHistogram(1, 3_600_000_000, 3)


def _histograms(evidence: _Evidence, phases: set[str]) -> dict[str, HdrHistogram]:
    """The transactions of these phases by size class, added up."""
    found: dict[str, HdrHistogram] = defaultdict(_new_histogram)
    for line in (evidence.histograms[name] for name in sorted(phases) if name in evidence.histograms):
        for name, durations in line.names.items():
            try:
                found[run_folder.split_name(name)[1]].decode_and_add(durations["transaction"])
            except (
                KeyError,
                ValueError,
                TypeError,
                binascii.Error,
                zlib.error,
                HdrCookieException,
                HdrLengthException,
            ):
                raise RunFolderError(
                    f"{run_folder.UPLOADS} has a histogram of {name!r} in phase {line.phase!r} that cannot be decoded"
                ) from None
    return found


def _latency(histograms: Sequence[HdrHistogram]) -> Latency:
    merged = _new_histogram()
    for histogram in histograms:
        merged.add(histogram)
    samples = merged.get_total_count()
    values = merged.get_percentile_to_value_dict([50, 95, 99]) if samples else {}

    def value(percentile: int) -> float | None:
        return float(values[percentile]) if samples * (100 - percentile) >= 100 * SAMPLES_BEYOND else None

    return Latency(
        samples=samples,
        p50=value(50),
        p95=value(95),
        p99=value(99),
        max=float(merged.get_max_value()) if samples else None,
    )


# --- processes --------------------------------------------------------------------------------------------------------


def _process(track: _Track, phases: Sequence[PhaseSummary]) -> ProcessSummary:
    last = track.last
    return ProcessSummary(
        pid=last.pid,
        role=last.role,
        slot=next((sample.slot for sample in reversed(track.samples) if sample.slot is not None), None),
        started_s=track.born_s,
        last_seen_s=float(track.t_s[-1]),
        ended=track.ended,
        cpu_user_s=_largest(track, "cpu_user_s"),
        cpu_system_s=_largest(track, "cpu_system_s"),
        share=_share_while_alive(track, phases),
        rss_max_bytes=_largest(track, "rss_bytes"),
        uss_max_bytes=_largest(track, "uss_bytes"),
        threads=_largest(track, "threads"),
        fds=_largest(track, "fds"),
        voluntary_switches=_largest(track, "voluntary_switches"),
        involuntary_switches=_largest(track, "involuntary_switches"),
    )


def _largest(track: _Track, field: str) -> Any:
    """Of a counter that is its last value, of a level its peak; None when it never could be read."""
    return max((value for sample in track.samples if (value := getattr(sample, field)) is not None), default=None)


def _share_while_alive(track: _Track, phases: Sequence[PhaseSummary]) -> float | None:
    account = track.account()
    spans = [
        (max(phase.start_s, track.born_s), min(phase.end_s, float(track.t_s[-1]))) for phase in phases if phase.measured
    ]
    spans = [(start_s, end_s) for start_s, end_s in spans if end_s > start_s]
    alive_s = sum(end_s - start_s for start_s, end_s in spans)
    return sum(account.between(*span) for span in spans) / alive_s if alive_s else None


def _server(evidence: _Evidence, tracks: Sequence[_Track], account: Account | None) -> ServerSummary:
    slots = {sample.slot for track in tracks if _is_server(track) for sample in track.samples} - {None}
    alive = max((sum(s.role == "server-worker" for s in tick.processes) for tick in evidence.ticks), default=0)
    total = None if account is None else float(account.cpu_s[-1])
    if total is not None:
        # When it ends, the server reports its rusage, with what ended after the last tick. No account can exceed the
        # truth, so the largest is the nearest to it.
        keys = ("cpu_user_s", "cpu_system_s", "children_user_s", "children_system_s")
        reports = [_reported_cpu(event, *keys) for event in evidence.events if event.kind == "server-ended"]
        total = max([total, *(cpu_s for cpu_s in reports if cpu_s is not None)])
    boards = _scoreboards(evidence)
    return ServerSummary(
        workers=len(slots) or alive,
        cpu_total_s=total,
        uploads_stored=boards[-1][1] - boards[0][1] if boards else None,
    )


def _scoreboards(evidence: _Evidence) -> list[tuple[float, int]]:
    """(second, uploads stored so far) at the first and the last tick that show the server's scoreboard."""
    ticks = [tick for tick in evidence.host if tick.scoreboard is not None]
    return [
        (evidence.s(tick.mono_ns), sum(slot.uploads_stored for slot in tick.scoreboard or ()))
        for tick in (ticks[:1] + ticks[-1:])
    ]


# --- whether to believe it --------------------------------------------------------------------------------------------


def _broken(evidence: _Evidence, phases: Sequence[PhaseSummary]) -> list[str]:
    """The invariants that do not hold; with any of them the numbers must not be used."""
    measured = [phase for phase in phases if phase.measured]
    cut_off = "the run was cut off; " if evidence.run.ended is None else ""
    if not any(phase.uploads for phase in measured):
        return [f"{cut_off}nothing was measured: no measure phase of at least 1 s has an acknowledged upload"]
    found = []
    missed = sum(phase.recorder_missed_share * phase.duration_s for phase in measured)
    missed /= sum(phase.duration_s for phase in measured)
    if missed > MISSED_TICKS_LIMIT:
        found.append(
            f"the recorder missed {percent(missed)} of its ticks in the measured phases (at most "
            f"{percent(MISSED_TICKS_LIMIT)} may be missing): neither costs nor what limited the run can be trusted"
        )
    if evidence.run.ended is not None:  # a killed load takes its last second of counts with it
        found += _lost_uploads(evidence)
    return found


def _lost_uploads(evidence: _Evidence) -> list[str]:
    """Uploads the load counted against uploads the server counted.

    They may differ by the failures, since an upload may be stored and its reply lost, and by what was uploaded in
    seconds that the scoreboard's ticks do not surround.
    """
    boards = _scoreboards(evidence)
    if not boards:
        return []
    (first_s, before), (last_s, after) = boards[0], boards[-1]
    starts = {phase.name: phase.start_ns for phase in evidence.run.phases}
    outside = [
        line
        for line in evidence.seconds
        if evidence.s(line.mono_ns) > last_s
        or evidence.s(max(line.mono_ns - 1_000_000_000, starts.get(line.phase, 0))) < first_s
    ]
    total, stored = _count(evidence.seconds), after - before
    failed = sum(total.failures.values())
    if abs(stored - total.uploads) <= failed + _count(outside).uploads:
        return []
    return [
        f"the server stored {stored:,} uploads, but {total.uploads:,} were acknowledged to the load and {failed:,} "
        "failed there: the two may differ by the failures only (did something else upload to this server?)"
    ]


def _verdict(evidence: _Evidence, phases: Sequence[PhaseSummary]) -> tuple[Verdict, str]:
    broken = _broken(evidence, phases)
    if broken:
        return "INVALID", "; ".join(broken)
    measured = [phase for phase in phases if phase.measured]
    limited = [phase for phase in measured if phase.generator_limited]
    if limited:
        worst = max(limited, key=lambda phase: phase.generator_share or 0)
        return "LOWER BOUND", (
            f"the load generator was the limit, not the server: its busiest process used "
            f"{percent(worst.generator_share or 0)} of one core in phase {worst.name} (over {percent(GENERATOR_LIMIT)})"
        )
    workers = [phase.busiest_worker_share for phase in measured if phase.busiest_worker_share is not None]
    generators = [phase.generator_share for phase in measured if phase.generator_share is not None]
    evidence_text = ", ".join(
        f"{who} used at most {percent(max(shares))} of one core"
        for who, shares in (("its busiest worker", workers), ("the busiest load process", generators))
        if shares
    )
    full = [phase.name for phase in measured if phase.at_capacity]
    if full:
        where = "" if len(full) == len(measured) else f" in {', '.join(full)}"
        return "VALID", f"the server was at capacity{where}: {evidence_text}"
    return "VALID", f"the server held the offered load: {evidence_text or 'CPU was not recorded'}"


def _warnings(evidence: _Evidence, phases: Sequence[PhaseSummary], modes: Sequence[ModeSummary]) -> list[str]:
    """What lowers trust, but not the verdict; each says what to make of it."""
    measured = [phase for phase in phases if phase.measured]
    return [
        *_ending_warnings(evidence, phases),
        *_failure_warnings(measured),
        *_recorder_warnings(evidence, measured),
        *_death_warnings(evidence, measured),
        *_generator_warnings(measured),
        *_sample_warnings(modes),
    ]


def _ending_warnings(evidence: _Evidence, phases: Sequence[PhaseSummary]) -> list[str]:
    found = []
    ended = evidence.run.ended
    if ended is None:
        found.append("the run was cut off (or is still going on): this is what was measured until then")
    elif ended.how != "completed":
        found.append(f"the run {'was stopped early' if ended.how == 'stopped' else 'failed'}: {ended.reason}")
    short = [phase.name for phase in phases if phase.kind == "measure" and not phase.measured]
    if short:
        found.append(f"measure phases under 1 s were left out: {', '.join(short)}")
    named = {phase.name for phase in phases}
    stray = _count(line for line in evidence.seconds if line.phase not in named).uploads
    if stray:
        found.append(f"{stray:,} uploads belong to phases that {run_folder.RUN} does not name and were left out")
    return found


def _failure_warnings(measured: Sequence[PhaseSummary]) -> list[str]:
    failures: Counter[str] = Counter()
    for phase in measured:
        failures.update(phase.failures)
    if not failures:
        return []
    codes = ", ".join(f"{code} {count:,}" for code, count in failures.most_common())
    total = failures.total()
    attempts = total + sum(phase.uploads for phase in measured)
    return [
        f"{total:,} of {attempts:,} uploads in the measured phases failed ({codes}); they are in no latency or rate"
    ]


def _recorder_warnings(evidence: _Evidence, measured: Sequence[PhaseSummary]) -> list[str]:
    if not measured or not (evidence.ticks or evidence.host):
        return []
    found = []
    missed = max(phase.recorder_missed_share for phase in measured)
    if missed > 0.005:
        found.append(f"the recorder missed up to {percent(missed)} of its ticks in a measured phase")
    if all(phase.server_cpu_s is None for phase in measured):
        found.append("the server was not recorded (not on this machine, or not visible): its costs are unknown")
    if all(phase.busy_core_s is None for phase in measured):
        found.append("the machine's CPU was not recorded: busy core-µs per upload are unknown")
    if all(phase.generator_share is None for phase in measured):
        found.append("the load's CPU was not recorded: the rates may be a lower bound")
    if not _scoreboards(evidence):
        found.append("the server shows no scoreboard: uploads it stored could not be compared with those acknowledged")
    return found


def _death_warnings(evidence: _Evidence, measured: Sequence[PhaseSummary]) -> list[str]:
    """Workers that ended before the last measured phase was over, by the server's events or by their absence."""
    if not measured:
        return []
    end_s = max(phase.end_s for phase in measured)
    pids = {
        event.details.get("pid", event.text)
        for event in evidence.events
        if event.kind == "worker-ended" and 0 <= evidence.s(event.mono_ns) < end_s
    }
    for tick, following in zip(evidence.ticks, evidence.ticks[1:], strict=False):
        if evidence.s(following.mono_ns) < end_s:
            pids |= _worker_pids(tick) - _worker_pids(following)
    if not pids:
        return []
    names = ", ".join(str(pid) for pid in sorted(pids, key=str))
    return [f"{len(pids)} server worker{'s' if len(pids) > 1 else ''} ended during the run: {names}"]


def _worker_pids(tick: ProcessTick) -> set[int]:
    return {sample.pid for sample in tick.processes if sample.role == "server-worker"}


def _generator_warnings(measured: Sequence[PhaseSummary]) -> list[str]:
    share = max((phase.generator_share or 0 for phase in measured), default=0)
    if not GENERATOR_WARNING < share <= GENERATOR_LIMIT:
        return []
    return [
        f"the busiest load process used {percent(share)} of one core: above {percent(GENERATOR_WARNING)} its own "
        "delays begin to show in the latencies"
    ]


def _sample_warnings(modes: Sequence[ModeSummary]) -> list[str]:
    """After a kill the histograms are up to ten seconds older than the counts."""
    return [
        f"latencies of {mode.mode} are of {mode.transaction_us.samples:,} of its {mode.uploads:,} uploads"
        for mode in modes
        if abs(mode.transaction_us.samples - mode.uploads) > 0.01 * mode.uploads
    ]


# --- curves -----------------------------------------------------------------------------------------------------------


def _timeline(evidence: _Evidence, tracks: Sequence[_Track], processes: Sequence[ProcessSummary]) -> Timeline:
    ends = [evidence.s(lines[-1].mono_ns) for lines in (evidence.seconds, evidence.ticks) if lines]
    ends += [evidence.s(phase.end_ns) for phase in evidence.run.phases if phase.end_ns is not None]
    return Timeline(
        end_s=max(ends, default=0.0),
        uploads_per_s=_upload_curves(evidence),
        latency=_latency_curves(evidence),
        processes=[
            ProcessCurves(process, _share_curve(track), _uss_curve(track))
            for process, track in zip(processes, tracks, strict=True)
        ],
    )


@dataclass(frozen=True, slots=True)
class _Span:
    """The part of a phase that one line of uploads.jsonl speaks of."""

    line: UploadsLine
    phase: Phase
    start_s: float
    end_s: float
    first: bool
    """Of its phase."""

    @property
    def middle_s(self) -> float:
        return (self.start_s + self.end_s) / 2


def _spans(evidence: _Evidence) -> Iterator[_Span]:
    """Every line that a rate can be read from.

    Lines are written on a clock of their own, so a phase's first and last ones cover less than a second of it. What is
    under 0.2 s would give a wild rate, and what came in after the end, none at all: neither is drawn.
    """
    phases = {phase.name: phase for phase in evidence.run.phases}
    until: dict[str, float] = {}
    for line in evidence.seconds:
        phase = phases.get(line.phase)
        if phase is None:
            continue
        end_ns = line.mono_ns if phase.end_ns is None else min(line.mono_ns, phase.end_ns)
        start_s, end_s = until.get(phase.name, evidence.s(phase.start_ns)), evidence.s(end_ns)
        if end_s - start_s >= 0.2:
            yield _Span(line, phase, start_s, end_s, phase.name not in until)
        until[phase.name] = max(start_s, end_s)


def _upload_curves(evidence: _Evidence) -> dict[str, Curve]:
    """Uploads a second by mode, with a break between phases."""
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for span in _spans(evidence):
        uploads = sum(second.count for second in span.line.names.values())
        if span.first:
            points[span.phase.mode].append((span.start_s, math.nan))
        points[span.phase.mode].append((span.middle_s, uploads / (span.end_s - span.start_s)))
    return {mode: _curve(found) for mode, found in points.items()}


def _latency_curves(evidence: _Evidence) -> list[LatencyCurves]:
    """Percentiles of each second as they were written, with a break between phases."""
    points: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    uploads: Counter[str] = Counter()
    for span in _spans(evidence):
        for name, second in span.line.names.items():
            uploads[name] += second.count
            if span.first:
                points[name].append((span.start_s, math.nan, math.nan))
            if second.transaction_us is not None:
                points[name].append((span.middle_s, second.transaction_us.p50, second.transaction_us.p99))
    return [
        LatencyCurves(
            *run_folder.split_name(name),
            uploads[name],
            _curve([(t_s, p50) for t_s, p50, _ in found]),
            _curve([(t_s, p99) for t_s, _, p99 in found]),
        )
        for name, found in points.items()
        if uploads[name]
    ]


def _share_curve(track: _Track) -> Curve:
    """Share of one core from tick to tick, at the middle of each pair."""
    account = track.account()
    t_s, cpu_s = account.t_s[1:], account.cpu_s[1:]  # without its birth
    return Curve((t_s[1:] + t_s[:-1]) / 2, np.diff(cpu_s) / np.diff(t_s))


def _uss_curve(track: _Track) -> Curve:
    pairs = zip(track.t_s, track.samples, strict=True)
    return _curve([(float(t_s), float(sample.uss_bytes)) for t_s, sample in pairs if sample.uss_bytes is not None])


def _curve(points: Sequence[tuple[float, float]]) -> Curve:
    t_s, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return Curve(t_s, values)


def analyse(folder: Path) -> Analysis:
    """All that can be said about the run in this folder.

    A folder of a run that was killed is analysed as far as it goes. Raises RunFolderError when it is no run folder, is
    of another schema, or the load never wrote a line.
    """
    evidence = _read(folder)
    tracks = _tracks(evidence)
    server = server_cpu(tracks, _worker_endings(evidence))
    phases = _phases(evidence, tracks, server)
    modes = _modes(evidence, phases)
    processes = [_process(track, phases) for track in tracks]
    verdict, reason = _verdict(evidence, phases)
    total = _count(evidence.seconds)
    summary = Summary(
        run=evidence.run.id,
        verdict=verdict,
        reason=reason,
        warnings=_warnings(evidence, phases, modes),
        modes=modes,
        phases=phases,
        processes=processes,
        server=_server(evidence, tracks, server),
        load=LoadSummary(uploads=total.uploads, failures=total.failures),
    )
    return Analysis(evidence.run, summary, _timeline(evidence, tracks, processes), evidence.events)
