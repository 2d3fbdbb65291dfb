"""Run folders made up from known numbers, so that tests can say what a report must say.

Everything that costs or counts is a rate that is constant within a phase, and its counter is that rate integrated over
time: whatever a reader derives from two ticks must be the rate again. A worker that dies hands all it cost to its
supervisor's `children_*`, the part after its last tick included, as the kernel does.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from hdrh.histogram import HdrHistogram

from reports import run_folder
from reports.analysis import histograms
from reports.analysis.evidence import Count, count
from reports.analysis.summarise import analyse
from reports.run_folder import (
    AcceptQueue,
    CoreTimes,
    Ending,
    Event,
    HistogramsLine,
    HostTick,
    LoadTick,
    NetworkBytes,
    Percentiles,
    Phase,
    PhaseKind,
    ProcessSample,
    ProcessTick,
    Role,
    RunInfo,
    SecondOfUploads,
    ServerInfo,
    SlotCounters,
    UploadsLine,
)
from reports.summary import Summary

NS = 1_000_000_000
START_NS = 5_000 * NS  # CLOCK_MONOTONIC at the run's start
WALL_NS = 1_790_000_000 * NS
COMPLETED = Ending(how="completed", reason="the plan was over")
MIB = 1 << 20

SMALL, LARGE = 4_000, 1_000_000  # bytes of the two sizes that are uploaded
SMALL_SHARE = 0.9


@dataclass(frozen=True)
class Rate:
    """What happens in one mode, per second: uploads, and the shares of a core they take."""

    uploads: int
    worker_share: float
    load_share: float
    busy: float
    """Of all cores together."""
    latency_us: float
    """Typical; the slowest of each second takes 10 times as long."""


@dataclass(frozen=True)
class Scenario:
    """A run. The defaults are a small one that is valid, with round numbers."""

    workers: int = 2
    phase_s: float = 10.0
    plan: tuple[tuple[str, PhaseKind, int], ...] = (
        ("warm-up", "warm-up", 0),
        ("long-1", "measure", 0),
        ("short-1", "measure", 1),
        ("short-2", "measure", 1),
        ("long-2", "measure", 0),
    )
    warm_up_s: float = 2.0
    interval_s: float = 0.5
    long: Rate = field(default_factory=lambda: Rate(1000, 0.10, 0.40, 1.00, 200))
    short: Rate = field(default_factory=lambda: Rate(400, 0.25, 0.50, 1.20, 500))
    others_share: float = 1.0
    """What each worker but the first uses, of what that one does."""
    supervisor_share: float = 0.01
    killed_at_s: float | None = None
    """When the worker in slot 0 dies and is replaced."""
    failures_per_s: int = 0
    failure_code: str = "connection_lost"
    ended: Ending | None = COMPLETED
    cut_off_at_s: float | None = None
    recorder_gap_s: tuple[float, float] | None = None
    with_server: bool = True
    noise: float = 0.0
    label: str = "synthetic"
    thresholds: tuple[str, ...] = ()
    hiccup_us: float = 80.0
    sleeps_per_s: int = 1000
    queued: int = 0
    drops_per_s: float = 0
    """Typical; of 100, one is three times as long."""
    run_delay_share: float = 0.02
    other_load_share: float | None = None
    """Of a load process on another host, which the recorder does not see."""
    idle: float = 0.0
    """Closed model: the share of its users' time that no duration tells of."""
    model: Literal["closed", "open"] = "closed"
    response_factor: float = 1.5
    """Open model: what a response takes, of the latency of its rate."""
    schedule_lag_us: float = 100.0
    dropped_per_s: int = 0
    unanswered_per_s: int = 0
    unanswered_us: float = 9_000_000.0
    late: int = 0
    """Uploads of each phase that are acknowledged half a second after it."""

    @cached_property
    def phases(self) -> list[Phase]:
        """Back to back from second 1 on; those that were cut off or never came are left open or out."""
        found, start_s = [], 1.0
        for name, kind, per_connection in self.plan:
            end_s = start_s + (self.warm_up_s if kind == "warm-up" else self.phase_s)
            if start_s < self.until_s:
                whole = end_s <= self.until_s
                found.append(
                    Phase(
                        name=name,
                        kind=kind,
                        uploads_per_connection=per_connection,
                        start_ns=mono(start_s),
                        end_ns=mono(end_s) if whole else None,
                    )
                )
            start_s = end_s
        return found

    @property
    def planned_s(self) -> float:
        return 1.0 + sum(self.warm_up_s if kind == "warm-up" else self.phase_s for _, kind, _ in self.plan)

    @property
    def until_s(self) -> float:
        return self.cut_off_at_s if self.cut_off_at_s is not None else self.planned_s + 1.0

    def rate(self, phase: Phase) -> Rate:
        return self.long if phase.uploads_per_connection == 0 else self.short

    @property
    def users(self) -> int:
        return 20 if self.model == "closed" else 0

    @property
    def failures_by_code(self) -> dict[str, int]:
        """Of each second."""
        found = {self.failure_code: self.failures_per_s}
        if self.model == "open":
            found |= {"unfinished": self.unanswered_per_s, "dropped": self.dropped_per_s}
        return {code: number for code, number in found.items() if number}

    def integral(self, name: str, start_s: float, end_s: float) -> float:
        """One field of Rate, summed over this stretch of time."""
        total = 0.0
        for phase in self.phases:
            low = max(start_s, seconds(phase.start_ns))
            high = min(end_s, self.until_s if phase.end_ns is None else seconds(phase.end_ns))
            total += getattr(self.rate(phase), name) * max(0.0, high - low)
        return total


def mono(second: float) -> int:
    return START_NS + round(second * NS)


def seconds(mono_ns: int) -> float:
    return (mono_ns - START_NS) / NS


def stamp(second: float) -> dict[str, int]:
    return {"mono_ns": mono(second), "wall_ns": WALL_NS + round(second * NS)}


def write(folder: Path, scenario: Scenario | None = None, **changes: object) -> Path:
    """A run folder at `folder`, of the default scenario with these changes."""
    scenario = replace(scenario or Scenario(), **changes)
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.write_whole(folder / run_folder.RUN, run_info(scenario))
    for name, lines in files(scenario).items():
        with (folder / name).open("ab") as file:
            file.write(lines)
    return folder


@lru_cache(maxsize=32)
def files(scenario: Scenario) -> dict[str, bytes]:
    """Files of lines by name. Many tests have the same ones."""
    times = [t for t in np.arange(0.0, scenario.until_s + 1e-9, scenario.interval_s) if not _in_gap(scenario, t)]
    return {
        run_folder.UPLOADS: encoded_lines(uploads(scenario)),
        run_folder.LOAD: encoded_lines(load_ticks(scenario)),
        run_folder.EVENTS: encoded_lines(events(scenario)),
        run_folder.PROCESSES: encoded_lines(process_tick(scenario, float(t)) for t in times),
        run_folder.HOST: encoded_lines(host_tick(scenario, float(t)) for t in times),
    }


def summarise(folder: Path, **changes: object) -> Summary:
    """What the analysis says of a run folder that is made at `folder`."""
    return analyse(write(folder, **changes)).summary


def append(path: Path, *lines: msgspec.Struct) -> None:
    with path.open("ab") as file:
        file.write(encoded_lines(lines))


def rewrite(path: Path, lines: Iterable[msgspec.Struct]) -> None:
    """Other lines for a file of the folder."""
    path.write_bytes(encoded_lines(lines))


def encoded_lines(lines: Iterable[msgspec.Struct]) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def _in_gap(scenario: Scenario, t: float) -> bool:
    gap = scenario.recorder_gap_s
    return gap is not None and gap[0] <= t < gap[1]


def run_info(scenario: Scenario) -> RunInfo:
    options = {"workers": str(scenario.workers), "store": "/dev/shm/store", "accept": "per-worker"}
    return RunInfo(
        id=f"20260102T030405Z-{scenario.label}",
        label=scenario.label,
        command=["python", "-m", "loadtest", "run", "--label", scenario.label],
        host="tcp://127.0.0.1:12345",
        users=scenario.users,
        model=scenario.model,
        thresholds=list(scenario.thresholds),
        load_options={"plan": "compare", "payloads": "mix", "wait": 0.01, "digest": True},
        seed=7,
        git_commit="0123456789abcdef0123456789abcdef01234567",
        git_dirty=False,
        environment={
            "kernel": "Linux 6.18.0",
            "cpu": "Some CPU @ 3 GHz",
            "cores": 2,
            "python": "3.11.2",
            "governor": None,
        },
        started_mono_ns=START_NS,
        started_wall_ns=WALL_NS,
        server=ServerInfo(
            pid=1000,
            create_time=WALL_NS / NS - 3,
            command=["python", "-m", "server", "--port", "12345"],
            options=options,
        )
        if scenario.with_server
        else None,
        phases=[msgspec.structs.replace(phase, offered=offered(scenario, phase)) for phase in scenario.phases],
        ended=scenario.ended,
    )


def offered(scenario: Scenario, phase: Phase) -> int | None:
    """Every upload of the open model was due, whatever became of it."""
    if scenario.model == "closed" or phase.end_ns is None:
        return None
    lines = (line for line in uploads(scenario) if isinstance(line, UploadsLine) and line.phase == phase.name)
    counted = count(lines)
    return counted.uploads + sum(counted.failures.values())


# --- the load ---------------------------------------------------------------------------------------------------------


@cache
def uploads(scenario: Scenario) -> list[UploadsLine | HistogramsLine]:
    """In the order they are written."""
    random = np.random.default_rng(1)
    lines = [line for phase in scenario.phases for line in phase_uploads(scenario, phase, random)]
    return sorted(lines, key=lambda line: line.mono_ns)


def phase_uploads(
    scenario: Scenario, phase: Phase, random: np.random.Generator
) -> Iterator[UploadsLine | HistogramsLine]:
    rate, start_s = scenario.rate(phase), seconds(phase.start_ns)
    end_s = scenario.until_s if phase.end_ns is None else seconds(phase.end_ns)
    small, large = run_folder.upload_name(phase.mode, SMALL), run_folder.upload_name(phase.mode, LARGE)
    found = {small: Durations(scenario), large: Durations(scenario)}
    for second in range(1, int(end_s - start_s) + 1):
        uploads = round(rate.uploads * (1 + scenario.noise * random.standard_normal()))
        few = round(uploads * (1 - SMALL_SHARE))
        many = uploads - few
        typical_us = rate.latency_us * float(np.exp(scenario.noise * random.standard_normal()))
        response_us = typical_us * scenario.response_factor if scenario.model == "open" else None
        found[small].add(many, typical_us)
        found[small].give_up(scenario.unanswered_per_s)
        found[large].add(few, typical_us * 5)
        yield uploads_line(
            scenario,
            start_s + second,
            phase.name,
            {
                small: second_of(
                    many,
                    SMALL,
                    typical_us,
                    scenario.failures_by_code,
                    connections=opened(phase, second, many + few),
                    response_us=response_us,
                ),
                large: second_of(few, LARGE, typical_us * 5, response_us=response_us and response_us * 5),
            },
        )
    if scenario.late:
        found[small].add(scenario.late, rate.latency_us)
        late = second_of(scenario.late, SMALL, rate.latency_us, late=scenario.late)
        yield uploads_line(scenario, end_s + 0.5, phase.name, {small: late})
    if scenario.model == "closed":
        add_pauses(scenario, found[small], found[large], end_s - start_s)
    hiccups = histogram()
    fill(hiccups, int(scenario.sleeps_per_s * (end_s - start_s)), scenario.hiccup_us)
    yield HistogramsLine(
        **stamp(end_s + (0.5 if scenario.late else 0)),
        phase=phase.name,
        names={name: durations.encoded() for name, durations in found.items()},
        hiccups=encoded(hiccups),
    )


def uploads_line(scenario: Scenario, at_s: float, phase: str, names: dict[str, SecondOfUploads]) -> UploadsLine:
    return UploadsLine(
        **stamp(at_s), phase=phase, users=scenario.users, names=names, hiccup_us=percentiles(scenario.hiccup_us)
    )


def opened(phase: Phase, second: int, uploads: int) -> int:
    """Short connections have one upload each, long ones are opened once a phase."""
    if phase.uploads_per_connection:
        return uploads
    return 20 if second == 1 else 0


class Durations:
    """The histograms of one name in one phase."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.histograms: dict[str, HdrHistogram] = defaultdict(histogram)

    def add(self, number: int, typical_us: float) -> None:
        parts = {"transaction": typical_us, "service": typical_us * 0.8}
        if self.scenario.model == "open":
            parts |= {"response": typical_us * self.scenario.response_factor, "pool_wait": 50}
            parts |= {"schedule_lag": self.scenario.schedule_lag_us}
        for duration, us in parts.items():
            fill(self.histograms[duration], number, us)

    def give_up(self, number: int) -> None:
        if number:
            self.histograms["unanswered"].record_value(round(self.scenario.unanswered_us), number)

    def encoded(self) -> dict[str, str]:
        return {duration: encoded(found) for duration, found in self.histograms.items()}


def add_pauses(scenario: Scenario, small: Durations, large: Durations, duration_s: float) -> None:
    """So long that uploads and pauses fill the users' time, but for what is idle."""
    transactions = [durations.histograms["transaction"] for durations in (small, large)]
    number = sum(found.get_total_count() for found in transactions)
    if not number:
        return
    busy_us = sum(histograms.mean(found) * found.get_total_count() for found in transactions)
    pause_us = (scenario.users * duration_s * 1e6 * (1 - scenario.idle) - busy_us) / number
    for durations, found in zip((small, large), transactions, strict=True):
        durations.histograms["think"].record_value(max(1, round(pause_us)), found.get_total_count())


def histogram() -> HdrHistogram:
    return HdrHistogram(1, 3_600_000_000, 3)


def fill(into: HdrHistogram, count: int, typical_us: float) -> None:
    """94 % at typical, 4 % at twice, the rest at three times, one at ten times of it."""
    twice, thrice, tenfold = round(count * 0.04), round(count * 0.02), min(count, 1)
    for factor, number in ((1, count - twice - thrice - tenfold), (2, twice), (3, thrice), (10, tenfold)):
        if number > 0:
            into.record_value(round(typical_us * factor), number)


def encoded(found: HdrHistogram) -> str:
    return str(found.encode().decode())


def percentiles(typical_us: float) -> Percentiles:
    return Percentiles(p50=typical_us, p95=typical_us * 2, p99=typical_us * 3, max=typical_us * 10)


def second_of(
    count: int,
    size: int,
    typical_us: float,
    failures: dict[str, int] | None = None,
    *,
    connections: int = 0,
    late: int = 0,
    response_us: float | None = None,
) -> SecondOfUploads:
    return SecondOfUploads(
        count=count,
        bytes=count * size,
        failures=failures or {},
        connections=connections,
        late=late,
        service_us=percentiles(typical_us * 0.8),
        transaction_us=percentiles(typical_us),
        response_us=None if response_us is None else percentiles(response_us),
    )


def load_ticks(scenario: Scenario) -> list[LoadTick]:
    return [
        LoadTick(
            **stamp(t),
            host=host,
            pid=20,
            cpu_s=1.0 + cpu_s,
            run_delay_ns=round(scenario.run_delay_share * t * NS),
            in_flight=3,
            queued=0,
        )
        for t in np.arange(0.0, scenario.until_s + 1e-9, 1.0).tolist()
        for host, cpu_s in load_cpu(scenario, t).items()
    ]


def load_cpu(scenario: Scenario, t: float) -> dict[str, float]:
    found = {"here": scenario.integral("load_share", 0, t)}
    if scenario.other_load_share is not None:
        found["there"] = scenario.other_load_share * t
    return found


# --- the processes ----------------------------------------------------------------------------------------------------


def worker_cpu(scenario: Scenario, start_s: float, end_s: float, slot: int = 0) -> float:
    """What one worker costs over this stretch: its share in the phases, and 0.2 s for its start."""
    return 0.2 + scenario.integral("worker_share", start_s, end_s) * (scenario.others_share if slot else 1)


def server_total(scenario: Scenario, at_s: float) -> float:
    """CPU of the whole server since its birth."""
    total = 0.5 + scenario.supervisor_share * at_s
    total += sum(worker_cpu(scenario, 0, at_s, slot) for slot in range(scenario.workers))
    return total + (0.2 if scenario.killed_at_s is not None and at_s >= scenario.killed_at_s else 0.0)


def process_tick(scenario: Scenario, t: float) -> ProcessTick:
    processes = [
        sample(30, "recorder", t, cpu_s=0.02 * t, uss=30 * MIB, born_s=-0.5),
        sample(20, "load-master", t, cpu_s=1.0 + scenario.integral("load_share", 0, t), uss=90 * MIB, born_s=-2),
    ]
    if scenario.with_server:
        processes += server_samples(scenario, t)
    return ProcessTick(**stamp(t), processes=processes)


def server_samples(scenario: Scenario, t: float) -> list[ProcessSample]:
    killed_s = scenario.killed_at_s
    dead = killed_s is not None and t >= killed_s
    found = [
        sample(
            1000,
            "server-master",
            t,
            cpu_s=0.5 + scenario.supervisor_share * t,
            children_s=worker_cpu(scenario, 0, killed_s) if dead and killed_s is not None else 0.0,
            uss=12 * MIB,
            born_s=-3,
        )
    ]
    for slot in range(scenario.workers):
        if slot == 0 and dead and killed_s is not None:
            cpu_s, pid, born_s = worker_cpu(scenario, killed_s, t), 2000, killed_s
        else:
            cpu_s, pid, born_s = worker_cpu(scenario, 0, t, slot), 1001 + slot, -2.9
        spread = 1 + scenario.noise * math.sin(t * (1 + slot / 7)) / (8 + 4 * max(0.0, t))
        found.append(
            sample(
                pid,
                "server-worker",
                t,
                slot=slot,
                cpu_s=cpu_s * spread,
                uss=(9 + slot / 8 + t / 40) * MIB,
                born_s=born_s,
            )
        )
    return found


def sample(
    pid: int,
    role: Role,
    t: float,
    *,
    cpu_s: float,
    uss: float,
    born_s: float,
    children_s: float = 0.0,
    slot: int | None = None,
) -> ProcessSample:
    """USS and PSS are on a slower tick than the rest: every other second. RSS has all that is shared, PSS a part."""
    return ProcessSample(
        pid=pid,
        create_time=WALL_NS / NS + born_s,
        role=role,
        slot=slot,
        cpu_user_s=cpu_s * 0.25,
        cpu_system_s=cpu_s * 0.75,
        children_user_s=children_s * 0.25,
        children_system_s=children_s * 0.75,
        rss_bytes=int(uss) + 20 * MIB,
        uss_bytes=int(uss) if t % 2 == 0 else None,
        pss_bytes=int(uss) + 5 * MIB if t % 2 == 0 else None,
        threads=1,
        fds=12,
        voluntary_switches=int(1000 * t),
        involuntary_switches=int(10 * t),
    )


def host_tick(scenario: Scenario, t: float) -> HostTick:
    busy = 50.0 + scenario.integral("busy", 0, t)
    core = {"nice": 0.0, "iowait": 7.0 + 0.05 * t, "irq": 0.0, "steal": 1.0}
    uploaded = uploaded_until(scenario, t)
    board = [
        SlotCounters(
            slot=slot,
            pid=1001 + slot,
            state="ready",
            births=1,
            connections_now=10,
            connections_accepted=100 + (uploaded.connections if slot == 0 else 0),
            uploads_stored=500 + (uploaded.uploads if slot == 0 else 0),
            bytes_stored=700 + (uploaded.bytes if slot == 0 else 0),
            failures={},
        )
        for slot in range(scenario.workers)
    ]
    return HostTick(
        **stamp(t),
        cores=[
            CoreTimes(user=busy * 0.25, system=busy * 0.5, idle=900 + 0.95 * t - busy, softirq=busy * 0.25, **core),
            CoreTimes(user=0.0, system=0.0, idle=1000 + 0.95 * t, softirq=0.0, **core),
        ],
        memory_available_bytes=5 << 30,
        load_1min=0.5,
        tcp_in_use=40,
        tcp_time_wait=0,
        scoreboard=board if scenario.with_server else None,
        accept_queues=[AcceptQueue(waiting=scenario.queued, limit=100, dropped=round(scenario.drops_per_s * t))]
        if scenario.with_server
        else None,
        tcp_states={"established": 20} if scenario.with_server and t % 2 == 0 else None,
        kernel={"PassiveOpens": uploaded.connections, "ListenDrops": round(scenario.drops_per_s * t)},
        network={"lo": NetworkBytes(received=uploaded.bytes, sent=uploaded.bytes)},
    )


def uploaded_until(scenario: Scenario, t: float) -> Count:
    return count(line for line in uploads(scenario) if isinstance(line, UploadsLine) and seconds(line.mono_ns) <= t)


def events(scenario: Scenario) -> list[Event]:
    found = [
        Event(**stamp(seconds(phase.start_ns)), source="load", kind="phase-started", text=f"phase {phase.name}")
        for phase in scenario.phases
    ]
    killed_s = scenario.killed_at_s
    if killed_s is not None:
        cpu_s = worker_cpu(scenario, 0, killed_s)
        found += [
            Event(
                **stamp(killed_s),
                source="server",
                kind="worker-ended",
                text="worker 0 (pid 1001) was killed by signal 9",
                details={"pid": 1001, "slot": 0, "cpu_user_s": cpu_s * 0.25, "cpu_system_s": cpu_s * 0.75},
            ),
            Event(
                **stamp(killed_s + 0.05),
                source="server",
                kind="worker-replaced",
                text="worker 0 started as pid 2000 in place of pid 1001",
                details={"pid": 2000, "slot": 0, "replaces": 1001},
            ),
        ]
    return found
