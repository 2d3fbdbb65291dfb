"""What each phase of a run got and what it cost.

The load's counts belong to a phase by name. Costs belong to it by time: the recorder ticks on a clock of its own, so
CPU of a phase is the difference of an account at the phase's two ends. Where ticks surround at least 80 % of a phase,
its cost is extended from that part; below, it is unknown.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reports.analysis import histograms
from reports.analysis.accounts import Account, LoadAccounts, Track, busy_cpu, busy_load_core, load_accounts, mean_core
from reports.analysis.drift import drift
from reports.analysis.evidence import Evidence, Floats, Span, count, interval_s, spans
from reports.analysis.histograms import Samples
from reports.analysis.quotas import Quota, quotas
from reports.missing_values import most
from reports.run_folder import HistogramsLine, Phase, UploadsLine
from reports.summary import MISSED_TICKS_LIMIT, Latency, PhaseSummary

SHORTEST_SPAN_S = 0.5  # less gives a wild rate
SHORTEST_SHARE_S = 0.2  # the kernel counts CPU in steps of 10 ms: of less, a step is over 5 %


@dataclass(frozen=True, slots=True)
class _Stretch:
    """A phase, or the part of it that was recorded."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class _Costs:
    """All accounts that a phase is charged from."""

    machine: Account | None
    load_core: Account | None
    """Busy time of one core, the mean of those that the load may run on; None where no load runs here."""
    steal: Account | None
    disk_wait: Account | None
    """This and `steal` are the mean over all cores of this machine."""
    server: Account | None
    workers: list[Track]
    load: list[Account]
    """The load processes that the recorder saw."""
    others: list[Account]
    """All recorded processes but the server's."""
    load_itself: list[LoadAccounts]
    """What each load process says of itself, on whatever host."""
    quotas: list[Quota]
    ticks: Floats
    """Seconds at which processes.jsonl has a line."""


def phase_summaries(evidence: Evidence, tracks: Sequence[Track], server: Account | None) -> list[PhaseSummary]:
    """Every phase that run.json names, in its order. `server` is the account of the whole server."""
    costs = _Costs(
        machine=busy_cpu(evidence),
        load_core=busy_load_core(evidence) if _load_is_here(evidence, tracks) else None,
        steal=mean_core(evidence, "steal"),
        disk_wait=mean_core(evidence, "iowait"),
        server=server,
        workers=_workers(tracks),
        load=[track.account for track in tracks if track.is_load],
        others=[track.account for track in tracks if not track.is_server],
        load_itself=load_accounts(evidence),
        quotas=quotas(evidence),
        ticks=evidence.times(evidence.ticks),
    )
    own: dict[str, list[Span]] = defaultdict(list)
    for span in spans(evidence):
        own[span.line.phase].append(span)
    # Whether the recorder was there is told by either of its files.
    ticks = costs.ticks if len(costs.ticks) else evidence.times(evidence.host)
    found: list[PhaseSummary] = []
    for phase in evidence.run.phases:
        carried = found[-1].late if found else 0
        found.append(_phase(evidence, phase, own[phase.name], costs, ticks, carried))
    return found


def _workers(tracks: Sequence[Track]) -> list[Track]:
    """The server's workers; where it has none, its one process, which does their work."""
    for role in ("server-worker", "server-master"):
        if found := [track for track in tracks if track.role == role]:
            return found
    return []


def _load_is_here(evidence: Evidence, tracks: Sequence[Track]) -> bool:
    """Whether uploads are sent from this machine. Who sends some writes load.jsonl: a master whose workers are
    elsewhere does not."""
    sending = {tick.pid for tick in evidence.load}
    return any(track.is_load and (track.pid in sending or not sending) for track in tracks)


def _phase(
    evidence: Evidence, phase: Phase, own: Sequence[Span], costs: _Costs, ticks: Floats, carried: int
) -> PhaseSummary:
    lines = [span.line for span in own]
    whole = _Stretch(evidence.s(phase.start_ns), _end_s(evidence, phase, lines))
    recorded = _surrounded(whole, costs.ticks)
    counted = count(lines)
    written = [line for name, line in evidence.histograms.items() if name == phase.name]
    transactions = histograms.of_all(written, "transaction")
    is_open = evidence.run.model == "open"
    busy_s = _used(costs.machine, whole, None if costs.machine is None else _surrounded(whole, costs.machine.t_s))
    server_s = _used(costs.server, whole, recorded)
    return PhaseSummary(
        name=phase.name,
        kind=phase.kind,
        mode=phase.mode,
        uploads_per_connection=phase.uploads_per_connection,
        start_s=whole.start_s,
        duration_s=whole.duration_s,
        uploads=counted.uploads,
        late=counted.late,
        carried=carried,
        in_flight_at_end=_in_flight_at_end(own, whole) if is_open else None,
        bytes=counted.bytes,
        connections=counted.connections,
        failures=counted.failures,
        offered=phase.offered,
        offered_per_s=None if phase.offered is None or not whole.duration_s else phase.offered / whole.duration_s,
        achieved_share=counted.in_time / phase.offered if phase.offered else None,
        transaction_mean_us=histograms.mean(transactions) if transactions.get_total_count() else None,
        drift=drift(evidence, own, whole.start_s, whole.end_s, costs.machine),
        schedule_lag_us=_latency(written, "schedule_lag") if is_open else None,
        pool_wait_us=_latency(written, "pool_wait") if is_open else None,
        hiccup_us=histograms.latency(Samples(histograms.hiccups(written))),
        busy_core_s=busy_s,
        foreign_share=_foreign_share(busy_s, server_s, costs.others, whole, recorded),
        machine_share=_own_share(costs.load_core, whole),
        steal_share=_own_share(costs.steal, whole),
        disk_wait_share=_own_share(costs.disk_wait, whole),
        server_cpu_s=server_s,
        busiest_worker_share=most(_share(worker.account, recorded) for worker in costs.workers),
        mean_worker_share=_mean_share(costs.workers, recorded),
        generator_share=_generator_share(costs, whole, recorded),
        generator_run_delay_share=most(_own_share(load.run_delay, whole) for load in costs.load_itself),
        recorder_missed_share=_missed_share(whole, ticks),
        server_throttled_share=_throttled_share(costs.quotas, "server-", whole),
        load_throttled_share=_throttled_share(costs.quotas, "load-", whole),
    )


def _end_s(evidence: Evidence, phase: Phase, lines: Sequence[UploadsLine]) -> float:
    """End of a phase; of one that was cut off, the last line that counted something in it."""
    if phase.end_ns is not None:
        return evidence.s(max(phase.end_ns, phase.start_ns))
    return evidence.s(max([phase.start_ns, *(line.mono_ns for line in lines)]))


def _in_flight_at_end(own: Sequence[Span], whole: _Stretch) -> float:
    """See PhaseSummary. The rate rises towards the end where it is not constant; of the seconds' typical responses the
    shortest is the one that no backlog is in, so that a backlog does not excuse itself."""
    rates, responses_us = [0.0], []
    for span in own:
        seconds = span.line.names.values()
        duration_s = min(span.end_s, whole.end_s) - span.start_s
        if duration_s >= SHORTEST_SPAN_S:
            rates.append(sum(second.count - second.late for second in seconds) / duration_s)
        responses_us += [second.response_us.p50 for second in seconds if second.response_us is not None]
    return max(rates) * min(responses_us, default=0.0) / 1e6


def _latency(written: Iterable[HistogramsLine], duration: str) -> Latency:
    return histograms.latency(Samples(histograms.of_all(written, duration)))


def _surrounded(whole: _Stretch, ticks: Floats) -> _Stretch | None:
    """The part of a phase that ticks surround; None when it is too little to speak for the rest."""
    if not len(ticks):
        return None
    part = _Stretch(max(whole.start_s, float(ticks[0])), min(whole.end_s, float(ticks[-1])))
    return part if part.duration_s >= (1 - MISSED_TICKS_LIMIT) * whole.duration_s > 0 else None


def _used(account: Account | None, whole: _Stretch, recorded: _Stretch | None) -> float | None:
    """CPU of the whole phase, extended from the recorded part of it."""
    if account is None or recorded is None:
        return None
    return account.between(recorded.start_s, recorded.end_s) * whole.duration_s / recorded.duration_s


def _foreign_share(
    busy_s: float | None, server_s: float | None, others: Sequence[Account], whole: _Stretch, recorded: _Stretch | None
) -> float | None:
    if not busy_s or server_s is None:
        return None
    known_s = server_s + sum(_used(account, whole, recorded) or 0.0 for account in others)
    return max(0.0, 1 - known_s / busy_s)


def _share(account: Account | None, part: _Stretch | None) -> float | None:
    """The share of this part's time."""
    if account is None or part is None or part.duration_s < SHORTEST_SHARE_S:
        return None
    return account.between(part.start_s, part.end_s) / part.duration_s


def _own_share(account: Account | None, whole: _Stretch) -> float | None:
    """The share of the time in which the account's own ticks surround the phase."""
    return None if account is None else _share(account, _surrounded(whole, account.t_s))


def _throttled_share(found: Sequence[Quota], roles: str, whole: _Stretch) -> float | None:
    """Of the quota that was used up most often, of those that processes with such roles are under."""
    shares = []
    for quota in found:
        part = _surrounded(whole, quota.periods.t_s)
        if part is not None and any(role.startswith(roles) for role in quota.group.roles):
            periods = quota.periods.between(part.start_s, part.end_s)
            throttled = quota.throttled.between(part.start_s, part.end_s)
            shares.append(throttled / periods if periods >= 1 else 0.0)
    return most(shares)


def _generator_share(costs: _Costs, whole: _Stretch, recorded: _Stretch | None) -> float | None:
    """The largest, as the recorder saw it or as a process says itself: either may know one that the other does not."""
    seen = [_share(account, recorded) for account in costs.load]
    return most([*seen, *(_own_share(load.cpu, whole) for load in costs.load_itself)])


def _mean_share(workers: Sequence[Track], recorded: _Stretch | None) -> float | None:
    """CPU of all workers over the time that they lived, all together: one that was replaced is not two idle ones."""
    if recorded is None:
        return None
    lives = [(worker, worker.alive(recorded.start_s, recorded.end_s)) for worker in workers]
    told = [(worker.account.between(*life), life[1] - life[0]) for worker, life in lives if life is not None]
    return sum(cpu_s for cpu_s, _ in told) / sum(alive_s for _, alive_s in told) if told else None


def _missed_share(whole: _Stretch, ticks: Floats) -> float:
    """Share of a phase without ticks. A tick stands for 3/4 of an interval on either side, so jitter costs nothing."""
    if whole.duration_s <= 0:
        return 0.0
    reach_s = 0.75 * interval_s(ticks)
    edges = np.concatenate(([-np.inf], ticks, [np.inf]))
    holes_start = np.maximum(edges[:-1] + reach_s, whole.start_s)
    holes_end = np.minimum(edges[1:] - reach_s, whole.end_s)
    return float(np.maximum(0.0, holes_end - holes_start).sum()) / whole.duration_s
