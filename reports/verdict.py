"""Whether to believe a run: the verdict, which comes before the numbers, and the warnings that come with it.

    INVALID       an invariant is broken: the numbers must not be used
    LOWER BOUND   the load generator, not the server, was the limit: the server may hold more
    VALID         neither; "at capacity" only where the server had no time left and the generator had

What lowers trust but breaks nothing is a warning; each says what to make of it. Only measure phases are judged.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from reports import run_folder
from reports.evidence import Evidence, count, spans, stored
from reports.run_folder import ProcessTick
from reports.summary import GENERATOR_LIMIT, GENERATOR_WARNING, MISSED_TICKS_LIMIT, ModeSummary, PhaseSummary, Verdict
from reports.texts import percent

MISSED_TICKS_WARNING = 0.005
SAMPLES_MISSING_WARNING = 0.01


def judge(evidence: Evidence, phases: Sequence[PhaseSummary]) -> tuple[Verdict, str]:
    """The verdict and its reason, a sentence without a full stop."""
    measured = [phase for phase in phases if phase.measured]
    broken = _broken(evidence, measured)
    if broken:
        return "INVALID", "; ".join(broken)
    limited = [phase for phase in measured if phase.generator_limited]
    if limited:
        worst = max(limited, key=lambda phase: phase.generator_share or 0)
        return "LOWER BOUND", (
            f"the load generator was the limit, not the server: its busiest process used "
            f"{percent(worst.generator_share or 0)} of one core in phase {worst.name} (over {percent(GENERATOR_LIMIT)})"
        )
    full = [phase.name for phase in measured if phase.at_capacity]
    if full:
        where = "" if len(full) == len(measured) else f" in {', '.join(full)}"
        return "VALID", f"the server was at capacity{where}: {_busiest(measured)}"
    return "VALID", f"the server held the offered load: {_busiest(measured)}"


def _busiest(measured: Sequence[PhaseSummary]) -> str:
    workers = [phase.busiest_worker_share for phase in measured if phase.busiest_worker_share is not None]
    generators = [phase.generator_share for phase in measured if phase.generator_share is not None]
    found = [
        f"{who} used at most {percent(max(shares))} of one core"
        for who, shares in (("its busiest worker", workers), ("the busiest load process", generators))
        if shares
    ]
    return ", ".join(found) or "CPU was not recorded"


# --- invariants -------------------------------------------------------------------------------------------------------


def _broken(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[str]:
    """The invariants that do not hold."""
    if not any(phase.uploads for phase in measured):
        cut_off = "the run was cut off; " if evidence.run.ended is None else ""
        return [f"{cut_off}nothing was measured: no measure phase of at least 1 s has an acknowledged upload"]
    found = [*_server_gone(evidence, measured), *_unanswered(measured), *_missing_ticks(measured)]
    if evidence.run.ended is not None:  # a killed load takes its last second of counts with it
        found += _lost_uploads(evidence)
    return found


def _server_gone(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[str]:
    """A server that ended while it was measured, whether another took its place or not."""
    gone_s = [evidence.s(event.mono_ns) for event in evidence.events if event.kind == "server-gone"]
    return [
        f"the server was gone in phase {phase.name}: what was measured is its end"
        for phase in measured
        if any(phase.start_s <= t_s <= phase.end_s for t_s in gone_s)
    ]


def _unanswered(measured: Sequence[PhaseSummary]) -> list[str]:
    """Uploads that waited for nothing. In a closed model a server that hangs also stops its load, so the few that are
    seen stand for all that were not sent, and their latency is in no percentile."""
    number = sum(phase.failures.get(code, 0) for phase in measured for code in ("timeout", "unfinished"))
    return [f"{number:,} uploads were never answered, and their latency is in no percentile: did the server hang?"] * (
        number > 0
    )


def _missing_ticks(measured: Sequence[PhaseSummary]) -> list[str]:
    missed_s = sum(phase.recorder_missed_share * phase.duration_s for phase in measured)
    missed = missed_s / sum(phase.duration_s for phase in measured)
    if missed <= MISSED_TICKS_LIMIT:
        return []
    return [
        f"the recorder missed {percent(missed)} of its ticks in the measured phases (at most "
        f"{percent(MISSED_TICKS_LIMIT)} may be missing): neither costs nor what limited the run can be trusted"
    ]


def _lost_uploads(evidence: Evidence) -> list[str]:
    """Uploads the load counted against uploads the server counted, over the whole run.

    They may differ by the failures, since an upload may be stored and its reply lost, and by what was uploaded in
    stretches that the scoreboard's ticks do not surround.
    """
    board = stored(evidence)
    if board is None:
        return []
    outside = [span.line for span in spans(evidence) if span.start_s < board.first_s or span.end_s > board.last_s]
    total = count(evidence.seconds)
    failed = sum(total.failures.values())
    if abs(board.uploads - total.uploads) <= failed + count(outside).uploads:
        return []
    return [
        f"the server stored {board.uploads:,} uploads, but {total.uploads:,} were acknowledged to the load and "
        f"{failed:,} failed there: the two may differ by the failures only (did something else upload to this server?)"
    ]


# --- warnings ---------------------------------------------------------------------------------------------------------


def warnings(evidence: Evidence, phases: Sequence[PhaseSummary], modes: Sequence[ModeSummary]) -> list[str]:
    """What lowers trust, but not the verdict."""
    measured = [phase for phase in phases if phase.measured]
    return [
        *_ending(evidence),
        *_left_out(evidence, phases),
        *_failures(measured),
        *_recorder(evidence, measured),
        *_deaths(evidence, measured),
        *_generator(measured),
        *_samples(modes),
    ]


def _ending(evidence: Evidence) -> list[str]:
    ended = evidence.run.ended
    if ended is None:
        return ["the run was cut off (or is still going on): this is what was measured until then"]
    if ended.how == "completed":
        return []
    return [f"the run {'was stopped early' if ended.how == 'stopped' else 'failed'}: {ended.reason}"]


def _left_out(evidence: Evidence, phases: Sequence[PhaseSummary]) -> list[str]:
    found = []
    short = [phase.name for phase in phases if phase.kind == "measure" and not phase.measured]
    if short:
        found.append(f"measure phases under 1 s were left out: {', '.join(short)}")
    named = {phase.name for phase in phases}
    stray = count(line for line in evidence.seconds if line.phase not in named).uploads
    if stray:
        found.append(f"{stray:,} uploads belong to phases that {run_folder.RUN} does not name and were left out")
    return found


def _failures(measured: Sequence[PhaseSummary]) -> list[str]:
    failures: Counter[str] = Counter()
    for phase in measured:
        failures.update(phase.failures)
    if not failures:
        return []
    codes = ", ".join(f"{code} {number:,}" for code, number in failures.most_common())
    total = failures.total()
    attempts = total + sum(phase.uploads for phase in measured)
    return [
        f"{total:,} of {attempts:,} uploads in the measured phases failed ({codes}); they are in no latency or rate"
    ]


def _recorder(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[str]:
    if not measured or not (evidence.ticks or evidence.host):
        return []
    found = []
    missed = max(phase.recorder_missed_share for phase in measured)
    if missed > MISSED_TICKS_WARNING:
        found.append(f"the recorder missed up to {percent(missed)} of its ticks in a measured phase")
    if all(phase.server_cpu_s is None for phase in measured):
        found.append("the server was not recorded (not on this machine, or not visible): its costs are unknown")
    if all(phase.busy_core_s is None for phase in measured):
        found.append("the machine's CPU was not recorded: busy core-µs per upload are unknown")
    if all(phase.generator_share is None for phase in measured):
        found.append("the load's CPU was not recorded: the rates may be a lower bound")
    if stored(evidence) is None:
        found.append("the server shows no scoreboard: uploads it stored could not be compared with those acknowledged")
    return found


def _deaths(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[str]:
    """Workers that ended before the last measured phase was over, by the server's events or by their absence."""
    end_s = max((phase.end_s for phase in measured), default=0.0)
    pids = {
        event.details.get("pid", event.text)
        for event in evidence.events
        if event.kind == "worker-ended" and 0 <= evidence.s(event.mono_ns) < end_s
    }
    for tick, following in pairwise(evidence.ticks):
        if evidence.s(following.mono_ns) < end_s:
            pids |= _worker_pids(tick) - _worker_pids(following)
    if not pids:
        return []
    names = ", ".join(str(pid) for pid in sorted(pids, key=str))
    return [f"{len(pids)} server worker{'s' if len(pids) > 1 else ''} ended during the run: {names}"]


def _worker_pids(tick: ProcessTick) -> set[int]:
    return {sample.pid for sample in tick.processes if sample.role == "server-worker"}


def _generator(measured: Sequence[PhaseSummary]) -> list[str]:
    share = max((phase.generator_share or 0 for phase in measured), default=0)
    if not GENERATOR_WARNING < share <= GENERATOR_LIMIT:
        return []
    return [
        f"the busiest load process used {percent(share)} of one core: above {percent(GENERATOR_WARNING)} its own "
        "delays begin to show in the latencies"
    ]


def _samples(modes: Sequence[ModeSummary]) -> list[str]:
    """After a kill the histograms are up to ten seconds older than the counts."""
    return [
        f"latencies of {mode.mode} are of {mode.transaction_us.samples:,} of its {mode.uploads:,} uploads"
        for mode in modes
        if abs(mode.transaction_us.samples - mode.uploads) > SAMPLES_MISSING_WARNING * mode.uploads
    ]
