"""What must hold, or the numbers must not be used. Each invariant that does not is one finding.

    counts        the server stored what the load had acknowledged, and no more than failed unheard; so with connections
    users         closed model: uploading and pausing fill the users' time (Little's law)
    arrivals      open model: each was acknowledged or failed, and 99 % in time, or it is known who was the limit
    processes     the server stayed, no load process was lost, the recorder was there

Two countings that agree cost a run nothing and are the only proof that neither side lost something. Little's law needs
no second side: N users who each go round upload and pause, R + Z long, make X = N / (R + Z) uploads a second. If fewer
came, users were held up somewhere that no duration shows, which is nowhere but in the load itself.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

from reports.analysis import histograms
from reports.analysis.causes import Finding, server_gone
from reports.analysis.evidence import LONGEST_GAP, Count, Evidence, Stored, count, interval_s, spans, stored
from reports.summary import ACHIEVED_LIMIT, MISSED_TICKS_LIMIT, PhaseSummary
from reports.texts import percent, significant
from server.failure_codes import NEVER_CONNECTED, NEVER_SENT

IDLE_LIMIT = 0.05  # of the users' time may go neither into uploads nor pauses
OWN_TIME_S = 50e-6  # that a user takes between uploads, to choose the next and count the last: no duration has it
SHORTEST_IN_CYCLES = 5  # phases of fewer uploads a user say nothing of Little's law
MOST_GAPS = 5
SAMPLES_MISSING_LIMIT = 0.01  # of a phase's uploads, in its histograms


def broken(evidence: Evidence, measured: Sequence[PhaseSummary], *, noisy: bool) -> list[Finding]:
    """The invariants that do not hold; only measure phases are judged. A `noisy` machine explains why uploads were not
    taken in time, and that users were held up."""
    if not any(phase.uploads for phase in measured):
        return [*_lost_load(evidence), _nothing(evidence, measured)]
    found = [
        *_lost_load(evidence),
        *_server_gone(evidence, measured),
        *missing_ticks(evidence, measured),
        *(_unaccounted(evidence, measured) if evidence.run.model == "open" else _unanswered(measured)),
    ]
    if not noisy:
        found += _not_achieved(measured) if evidence.run.model == "open" else _held_up(evidence, measured)
    if evidence.run.ended is not None:  # a killed load takes its last second of counts with it
        found += _differences(evidence)
    return found


def _nothing(evidence: Evidence, measured: Sequence[PhaseSummary]) -> Finding:
    cut_off = "the run was cut off; " if evidence.run.ended is None else ""
    failures: Counter[str] = Counter()
    for phase in measured:
        failures.update(phase.failures)
    why = "no measure phase of at least 1 s has an acknowledged upload"
    if failures:
        named = ", ".join(f"{code} {number:,}" for code, number in failures.most_common())
        why = f"all {failures.total():,} uploads of the measure phases failed ({named})"
    return Finding("nothing measured", f"{cut_off}nothing was measured: {why}")


# --- processes --------------------------------------------------------------------------------------------------------


def _lost_load(evidence: Evidence) -> list[Finding]:
    """Its users and its last second of counts are gone, whenever it was; it is missed only after a while of silence."""
    return [
        Finding("load lost", event.text, at_s=evidence.s(event.mono_ns) - event.details.get("silent_s", 0))
        for event in evidence.events
        if event.kind == "load-process-lost"
    ]


def _server_gone(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[Finding]:
    """A server that ended while it was measured, whether another took its place or not. The recorder sees it at its
    next tick, which may come after the phase."""
    gone_s = [evidence.s(event.mono_ns) for event in evidence.events if event.kind == "server-gone"]
    tick_s = interval_s(evidence.times(evidence.ticks))
    return [
        server_gone(evidence, f"the server was gone in phase {phase.name}: what was measured is its end", at_s)
        for phase in measured
        for at_s in [next((t_s for t_s in gone_s if phase.start_s <= t_s <= phase.end_s + tick_s), None)]
        if at_s is not None
    ]


def missing_ticks(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[Finding]:
    """Whether too many are, and where unless something is known that ended the recorder."""
    missed_s = sum(phase.recorder_missed_share * phase.duration_s for phase in measured)
    missed = missed_s / (sum(phase.duration_s for phase in measured) or 1.0)
    if missed <= MISSED_TICKS_LIMIT:
        return []
    text = (
        f"the recorder missed {percent(missed)} of its ticks in the measured phases (at most "
        f"{percent(MISSED_TICKS_LIMIT)} may be missing), so neither costs nor what limited the run can be trusted"
    )
    return [Finding("ticks missed", text, gaps(evidence, measured))]


def gaps(evidence: Evidence, measured: Sequence[PhaseSummary]) -> str:
    """The longest stretches without a tick, seconds since the start, in their order, to end a sentence with; what comes
    after the last tick is one too."""
    ticks = evidence.times(evidence.ticks or evidence.host)
    end_s = max(phase.end_s for phase in measured)
    edges = [float(tick) for tick in ticks if tick < end_s] + [end_s]
    found = [pair for pair in pairwise(edges) if pair[1] - pair[0] > LONGEST_GAP * interval_s(ticks)]
    longest = sorted(sorted(found, key=lambda gap: gap[0] - gap[1])[:MOST_GAPS])
    told = ", ".join(f"{start_s:,.1f} to {end_s:,.1f} s" for start_s, end_s in longest)
    return f": nothing was recorded from {told}" if told else ""


# --- arrivals: the open model -----------------------------------------------------------------------------------------


def _unaccounted(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[Finding]:
    """Whether each arrival was counted once. Only where the plan was over: who stops a run does not stop all load
    processes in the same instant."""
    if evidence.run.ended is None or evidence.run.ended.how != "completed":
        return []
    known = [phase for phase in measured if phase.offered is not None]
    missing = {phase.name: (phase.offered or 0) - phase.uploads - sum(phase.failures.values()) for phase in known}
    found = []
    if lost := {name: number for name, number in missing.items() if number > 0}:
        text = f"{sum(lost.values()):,} uploads that were due in {', '.join(lost)} were neither acknowledged nor failed"
        found.append(Finding("arrivals lost", text, ": the load lost count of them"))
    if twice := {name: -number for name, number in missing.items() if number < 0}:
        text = f"{sum(twice.values()):,} more uploads were acknowledged or failed in {', '.join(twice)} than were due"
        found.append(Finding("arrivals lost", text, ": the load sent or counted them twice"))
    return found


def _not_achieved(measured: Sequence[PhaseSummary]) -> list[Finding]:
    """An arrival that is not acknowledged in time is explained by a limit: of the generator or the machine, which makes
    the rates a lower bound, or of the server, which is a result. Without one, another load was measured than was asked
    for."""
    short = [phase for phase in measured if phase.short_of_offered and not phase.limited and not phase.at_capacity]
    if not short:
        return []
    worst = min(short, key=lambda phase: phase.achieved_share or 0)
    others = f" (and too few in {len(short) - 1} more)" if len(short) > 1 else ""  # which are in the tables
    text = (
        f"only {percent(worst.achieved_share or 0)} of the {worst.offered or 0:,} uploads offered in phase {worst.name}"
        f"{others} were acknowledged in it (at least {percent(ACHIEVED_LIMIT)} must be; {_rest(worst)})"
    )
    no_limit = ", and neither the server nor the load nor their machine is known to have been at its limit"
    return [Finding("not taken", text, no_limit)]


def _rest(phase: PhaseSummary) -> str:
    parts = {"late": phase.late, **phase.failures}
    return ", ".join(f"{code} {number:,}" for code, number in parts.items() if number) or "the rest was lost"


# --- users: the closed model ------------------------------------------------------------------------------------------


def _unanswered(measured: Sequence[PhaseSummary]) -> list[Finding]:
    """Uploads that waited for nothing. In a closed model a server that hangs also stops its load, so the few that are
    seen stand for all that were not sent, and their latency is in no percentile."""
    number = sum(phase.unanswered for phase in measured)
    text = f"{number:,} uploads were never answered, and their latency is in no percentile"
    return [Finding("unanswered", text, ": did the server hang?")] if number else []


def _held_up(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[Finding]:
    """Users that were held up, by Little's law. Where a generator or machine was the limit, that is said already."""
    idle = {phase.name: _idle_share(evidence, phase) or 0 for phase in measured if not phase.limited}
    worst = max(idle, key=lambda name: idle[name], default="")
    if not worst or idle[worst] <= IDLE_LIMIT:
        return []
    text = (
        f"users spent {percent(idle[worst])} of phase {worst} neither uploading nor pausing (at most "
        f"{percent(IDLE_LIMIT)} may be lost)"
    )
    return [Finding("held up", text, ": the load process held them up")]


def _idle_share(evidence: Evidence, phase: PhaseSummary) -> float | None:
    """1 - X (R + Z) / N, less the cycle of each user that the phase's end cut: its pause is in no histogram of this
    phase. None where a user's time cannot be accounted for."""
    users = _constant_users(evidence, phase)
    transaction, think = _mean_s(evidence, phase, "transaction"), _mean_s(evidence, phase, "think", missing=users or 0)
    if not users or phase.failures or transaction is None or think is None:
        return None
    cycle_s = transaction + think + OWN_TIME_S
    if phase.duration_s < SHORTEST_IN_CYCLES * cycle_s:
        return None
    busy = phase.uploads * cycle_s / (users * phase.duration_s)
    return 1 - busy - cycle_s / phase.duration_s


def _constant_users(evidence: Evidence, phase: PhaseSummary) -> int | None:
    """None where their number changed."""
    lines = [line for line in evidence.seconds if line.phase == phase.name and evidence.s(line.mono_ns) <= phase.end_s]
    numbers = {line.users for line in lines}
    return numbers.pop() if len(numbers) == 1 else None


def _mean_s(evidence: Evidence, phase: PhaseSummary, duration: str, missing: int = 0) -> float | None:
    """The mean of a duration in a phase. None unless its histogram has all uploads but 1 %, and so many `missing`."""
    line = evidence.histograms.get(phase.name)
    if line is None:
        return None
    histogram = histograms.of_all([line], duration)
    if histogram.get_total_count() < phase.uploads * (1 - SAMPLES_MISSING_LIMIT) - missing:
        return None
    return histograms.mean(histogram) / 1e6


# --- counts -----------------------------------------------------------------------------------------------------------


def _differences(evidence: Evidence) -> list[Finding]:
    """What the load counted against what the server counted, over the whole run.

    What was acknowledged is stored, so the server has at least that many. It may have more by the failures after which
    nobody knows: an upload may be stored and its reply lost, a connection made and never accepted. Either way the two
    may differ by what happened in stretches that the scoreboard's ticks do not surround.
    """
    board = stored(evidence)
    if board is None:
        return []
    total = count(evidence.seconds)
    outside = count(span.line for span in spans(evidence) if span.start_s < board.first_s or span.end_s > board.last_s)
    return [
        *_uploads_differ(board, total, outside),
        *_connections_differ(board, total, outside),
        *_bytes_differ(board, total, outside),
    ]


def _uploads_differ(board: Stored, total: Count, outside: Count) -> Iterator[Finding]:
    told = f"the server stored {board.uploads:,} uploads, but {total.uploads:,} were acknowledged to the load"
    if board.uploads < total.uploads - outside.uploads:
        yield Finding("uploads differ", f"{told}: some that it acknowledged are not there")
    unclear = _failed_but(NEVER_SENT, total)
    if board.uploads > total.uploads + unclear + outside.uploads:
        text = f"{told} and only {unclear:,} that failed may be there"
        yield Finding("uploads differ", text, " (did something else upload to this server?)")


def _connections_differ(board: Stored, total: Count, outside: Count) -> Iterator[Finding]:
    unclear = _failed_but(NEVER_CONNECTED, total)
    if abs(board.connections - total.connections) > unclear + outside.connections:
        text = (
            f"the server accepted {board.connections:,} connections, but the load opened {total.connections:,}, and no "
            f"more than {unclear:,} of failed uploads are in doubt"
        )
        yield Finding("connections differ", text, " (did something else connect to this server?)")


def _bytes_differ(board: Stored, total: Count, outside: Count) -> Iterator[Finding]:
    """Not compared where a failed upload may be stored: nobody knows how large it was."""
    if not _failed_but(NEVER_SENT, total) and abs(board.bytes - total.bytes) > outside.bytes:
        text = (
            f"the server stored {significant(board.bytes / 1e6)} MB, but {significant(total.bytes / 1e6)} MB were "
            f"acknowledged to the load ({abs(board.bytes - total.bytes):,} bytes differ)"
        )
        yield Finding("bytes differ", text, ": without failures they must agree")


def _failed_but(codes: Collection[str], total: Count) -> int:
    """Uploads that failed by any other code than these."""
    return sum(number for code, number in total.failures.items() if code not in codes)
