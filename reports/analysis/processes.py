"""The table of processes, and the server as a whole."""

from collections.abc import Iterable, Sequence
from typing import Any

from reports.analysis.accounts import Account, Track
from reports.analysis.evidence import Evidence, stored
from reports.analysis.memory import uss_per_connection
from reports.analysis.server_cpu import reported_cpu
from reports.summary import PhaseSummary, ProcessSummary, ServerSummary


def process_summary(track: Track, phases: Sequence[PhaseSummary]) -> ProcessSummary:
    return ProcessSummary(
        pid=track.pid,
        role=track.role,
        slot=track.slot,
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
        cores=next((sample.cores for sample in reversed(track.samples) if sample.cores is not None), None),
    )


def _largest(track: Track, field: str) -> Any:
    """Of a counter that is its last value, of a level its peak; None when it never could be read."""
    return max((value for sample in track.samples if (value := getattr(sample, field)) is not None), default=None)


def _share_while_alive(track: Track, phases: Sequence[PhaseSummary]) -> float | None:
    """Mean share of a core over the measure phases, as far as the process lived in them."""
    measured = [phase for phase in phases if phase.measured]
    lives = [life for phase in measured if (life := track.alive(phase.start_s, phase.end_s)) is not None]
    alive_s = sum(end_s - start_s for start_s, end_s in lives)
    return sum(track.account.between(*life) for life in lives) / alive_s if alive_s else None


def server_summary(evidence: Evidence, tracks: Sequence[Track], account: Account | None) -> ServerSummary:
    """`account` is of the whole server."""
    slots = {track.slot for track in tracks if track.is_server} - {None}
    alive = [sum(sample.role == "server-worker" for sample in tick.processes) for tick in evidence.ticks]
    board = stored(evidence)
    ticks = [[sample for sample in tick.processes if sample.role.startswith("server-")] for tick in evidence.ticks]
    pss = _sums([[sample.pss_bytes for sample in samples] for samples in ticks])
    rss = _sums([[sample.rss_bytes for sample in samples] for samples in ticks])
    return ServerSummary(
        workers=len(slots) or max(alive, default=0),
        cpu_total_s=None if account is None else _server_total_s(evidence, account),
        uploads_stored=None if board is None else board.uploads,
        memory_peak_bytes=max(pss or rss, default=None),
        memory_kind="PSS" if pss else "RSS",
        memory_readings=len(pss or rss),
        rss_peak_bytes=max(rss, default=None),
        uss_per_connection_bytes=uss_per_connection(evidence),
    )


def _sums(ticks: Iterable[Sequence[int | None]]) -> list[int]:
    """Of each tick that knows all of its values."""
    known = [[value for value in values if value is not None] for values in ticks if None not in values]
    return [sum(values) for values in known if values]


def _server_total_s(evidence: Evidence, account: Account) -> float:
    """When it ends, the server reports its rusage, with what ended after the last tick. No account can exceed the
    truth, so the largest is the nearest to it."""
    keys = ("cpu_user_s", "cpu_system_s", "children_user_s", "children_system_s")
    reports = [reported_cpu(event, *keys) for event in evidence.events if event.kind == "server-ended"]
    return max([account.total_s, *(cpu_s for cpu_s in reports if cpu_s is not None)])
