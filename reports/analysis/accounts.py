"""Accounts: what something had cost by when, of the machine and of each process.

The recorder stores cumulative counters; an `Account` is such a counter over time, and a cost is the difference between
two of its values, interpolated linearly between ticks. Nothing is averaged before that, so costs of adjoining stretches
add up, whatever the ticks' distance.

A process is known by (pid, create_time), since pids are used again. Its account starts with 0 at its birth, so what
it cost before the first tick that shows it is counted. The server as a whole is more than the sum of its processes: see
server_cpu.py.

The recorder sees the load processes of its own host only. What each says of itself comes from all hosts, so a generator
that was the limit elsewhere is seen as well; and it tells how long it was ready to run and waited for a core, which
nobody can see in its CPU.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from reports.analysis.evidence import Evidence, Floats
from reports.missing_values import total
from reports.run_folder import HostTick, LoadTick, ProcessSample, Role
from reports.texts import cores_of

_ROLES = get_args(Role)


@dataclass(frozen=True, slots=True)
class Account:
    """Cumulative core-seconds at rising times; the first value holds backwards, the last for ever."""

    t_s: Floats
    cpu_s: Floats

    def at(self, t_s: Floats | float) -> Floats:
        return np.asarray(np.interp(t_s, self.t_s, self.cpu_s), dtype=np.float64)

    def between(self, start_s: float, end_s: float) -> float:
        return float(self.at(end_s) - self.at(start_s))

    @property
    def total_s(self) -> float:
        return float(self.cpu_s[-1])


@dataclass(frozen=True, slots=True)
class Track:
    """One process through all ticks that show it, at least one."""

    t_s: Floats
    samples: list[ProcessSample]
    born_s: float
    ended: bool
    """The last tick does not show it."""
    account: Account
    children: Account
    """CPU of its reaped children."""

    @property
    def pid(self) -> int:
        return self.samples[0].pid

    @property
    def role(self) -> Role:
        return self.samples[-1].role

    @property
    def slot(self) -> int | None:
        return next((sample.slot for sample in reversed(self.samples) if sample.slot is not None), None)

    @property
    def is_server(self) -> bool:
        return self.role.startswith("server-")

    @property
    def is_load(self) -> bool:
        return self.role.startswith("load-")

    def alive(self, start_s: float, end_s: float) -> tuple[float, float] | None:
        """The part of this time in which it is known to have lived."""
        life = max(start_s, self.born_s), min(end_s, float(self.t_s[-1]))
        return life if life[0] < life[1] else None


def tracks(evidence: Evidence) -> list[Track]:
    """Every process that was ever seen: by role, slot and birth, which is the order of all tables and legends."""
    seen: dict[tuple[int, float], list[tuple[int, ProcessSample]]] = defaultdict(list)
    for index, tick in enumerate(evidence.ticks):
        for sample in tick.processes:
            seen[sample.pid, sample.create_time].append((index, sample))
    times = evidence.times(evidence.ticks)
    found = [_track(evidence, times, [i for i, _ in points], [s for _, s in points]) for points in seen.values()]
    return sorted(found, key=_place)


def _place(track: Track) -> tuple[int, int, float]:
    return _ROLES.index(track.role), -1 if track.slot is None else track.slot, track.born_s


def _track(evidence: Evidence, times: Floats, indices: Sequence[int], samples: list[ProcessSample]) -> Track:
    t_s, born_s = times[indices], _birth_s(evidence, times, indices[0], samples[0].create_time)
    return Track(
        t_s=t_s,
        samples=samples,
        born_s=born_s,
        ended=indices[-1] < len(times) - 1,
        account=_account(
            [(born_s, 0.0), *((t, total((s.cpu_user_s, s.cpu_system_s))) for t, s in zip(t_s, samples, strict=True))]
        ),
        children=_account(
            (t, total((s.children_user_s, s.children_system_s))) for t, s in zip(t_s, samples, strict=True)
        ),
    )


def _birth_s(evidence: Evidence, times: Floats, first: int, create_time: float) -> float:
    """Its create_time, but not before the tick that did not show it yet: the kernel's boot time, which create_time
    counts from, is kept in whole seconds only."""
    tick = evidence.ticks[first]
    born_s = evidence.s(tick.mono_ns - tick.wall_ns + round(create_time * 1e9))
    if first:
        born_s = max(born_s, float(times[first - 1]))
    return min(born_s, float(times[first]) - 1e-6)


def _account(points: Iterable[tuple[float, float | None]]) -> Account:
    """(time, value) in any order, as far as values are known: 0 for ever where none is."""
    found = sorted((t_s, value) for t_s, value in points if value is not None)
    t_s, values = np.array(found or [(0.0, 0.0)], dtype=np.float64).T
    return Account(t_s, np.maximum.accumulate(values))


@dataclass(frozen=True, slots=True)
class LoadAccounts:
    """What one load process says of itself over time, both in seconds."""

    cpu: Account
    run_delay: Account | None
    """None where its kernel does not say."""


def load_accounts(evidence: Evidence) -> list[LoadAccounts]:
    """Every load process that wrote at least one line, on whatever host."""
    ticks: dict[tuple[str, int], list[LoadTick]] = defaultdict(list)
    for tick in evidence.load:
        ticks[tick.host, tick.pid].append(tick)
    return [_load_accounts(evidence, own) for own in ticks.values()]


def _load_accounts(evidence: Evidence, ticks: Sequence[LoadTick]) -> LoadAccounts:
    delays = [(evidence.s(tick.mono_ns), tick.run_delay_ns / 1e9) for tick in ticks if tick.run_delay_ns is not None]
    return LoadAccounts(
        cpu=_account((evidence.s(tick.mono_ns), tick.cpu_s) for tick in ticks),
        run_delay=_account(delays) if delays else None,
    )


def busy_cpu(evidence: Evidence) -> Account | None:
    """CPU of all cores of this machine together, neither idle nor waiting for a disk; None when it was not recorded."""
    host = _with_cores(evidence)
    return Account(evidence.times(host), _busy_s(evidence, host).sum(axis=1)) if host else None


def busy_load_core(evidence: Evidence) -> Account | None:
    """The same for one core: the mean of those that the load may run on, or of all where run.json does not say."""
    host = _with_cores(evidence)
    if not host:
        return None
    busy_s = _busy_s(evidence, host)
    usable = cores_of(str(evidence.run.environment.get("cpus_usable")))
    cores = [core for core in range(busy_s.shape[1]) if core in usable] or slice(None)
    return Account(evidence.times(host), busy_s[:, cores].mean(axis=1))


def mean_core(evidence: Evidence, kind: Literal["steal", "iowait"]) -> Account | None:
    """This kind of time, as the mean over all cores of this machine; None when it was not recorded."""
    host = _with_cores(evidence)
    kinds = [[getattr(core, kind) for core in tick.cores] for tick in host]
    if not host or any(None in times for times in kinds):
        return None
    mean_s = [sum(times) / len(times) for times in kinds]
    return Account(evidence.times(host), np.array(mean_s, dtype=np.float64))


def _with_cores(evidence: Evidence) -> list[HostTick]:
    """The ticks at which the kernel told of cores."""
    return [tick for tick in evidence.host if tick.cores]


def _busy_s(evidence: Evidence, host: Sequence[HostTick]) -> Floats:
    """Busy seconds so far, one row a tick, one column a core. Cores may come and go while a run goes on: those that are
    missing at some tick have no column.

    It is the time that has passed, less the time without work. That the kernel measures (get_idle_time() in
    fs/proc/stat.c), while it only samples what else a core does, at every tick: a load of short bursts, such as small
    uploads, is then missed by up to a seventh, and 5 s of it scatter by a tenth.
    """
    always = min(len(tick.cores) for tick in host)
    workless = [[core.idle + core.iowait for core in tick.cores[:always]] for tick in host]
    passed_s = evidence.times(host)[:, np.newaxis]
    return np.maximum.accumulate(passed_s - np.array(workless, dtype=np.float64))
