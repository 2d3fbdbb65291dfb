"""What each process used over the run, and the server as a whole."""

from collections.abc import Sequence
from typing import Any

from reports.analysis.accounts import Account, Track
from reports.analysis.connection_cost import uss_per_connection
from reports.analysis.evidence import Evidence, stored
from reports.analysis.server_cpu import reported_cpu
from reports.missing_values import known, most, total
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
        cores=next(reversed(known(sample.cores for sample in track.samples)), None),
    )


def _largest(track: Track, field: str) -> Any:
    """The last value of a counter, the peak of a level; None when it never could be read."""
    return most(getattr(sample, field) for sample in track.samples)


def _share_while_alive(track: Track, phases: Sequence[PhaseSummary]) -> float | None:
    """Mean share of a core over the measure phases, as far as the process lived in them."""
    measured = [phase for phase in phases if phase.measured]
    lives = [life for phase in measured if (life := track.alive(phase.start_s, phase.end_s)) is not None]
    alive_s = sum(end_s - start_s for start_s, end_s in lives)
    return sum(track.account.between(*life) for life in lives) / alive_s if alive_s else None


def server_summary(evidence: Evidence, tracks: Sequence[Track], account: Account | None) -> ServerSummary:
    """The server as a whole, of which `account` is the CPU."""
    slots = {track.slot for track in tracks if track.is_server} - {None}
    alive = [sum(sample.role == "server-worker" for sample in tick.processes) for tick in evidence.ticks]
    board = stored(evidence)
    ticks = [[sample for sample in tick.processes if sample.role.startswith("server-")] for tick in evidence.ticks]
    pss = known(total(sample.pss_bytes for sample in samples) for samples in ticks)
    rss = known(total(sample.rss_bytes for sample in samples) for samples in ticks)
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


def _server_total_s(evidence: Evidence, account: Account) -> float:
    """When it ends, the server reports its rusage, with what ended after the last tick. No account can exceed the
    truth, so the largest is the nearest to it."""
    keys = ("cpu_user_s", "cpu_system_s", "children_user_s", "children_system_s")
    reports = [reported_cpu(event, *keys) for event in evidence.events if event.kind == "server-ended"]
    return max([account.total_s, *known(reports)])
