"""Whether to believe a run: the verdict, which comes before the numbers, and the warnings that come with it.

    INVALID       an invariant is broken (invariants.py): the numbers must not be used
    NOISY         the machine, not the server, made the latencies: measure again on a quieter one
    LOWER BOUND   the load generator or a shared machine, not the server, was the limit: the server may hold more
    VALID         none of these; "at capacity" only where the server had no time left and the generator had
    RECORDED      there was no load of ours: costs only

What lowers trust but breaks nothing is a warning; each says what to make of it. Only measure phases are judged.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from reports import run_folder
from reports.analysis import histograms
from reports.analysis.causes import in_order
from reports.analysis.evidence import Evidence, count, stored
from reports.analysis.histograms import Samples
from reports.analysis.invariants import SAMPLES_MISSING_LIMIT, broken, gaps, missing_ticks
from reports.missing_values import most
from reports.run_folder import ProcessTick
from reports.summary import (
    CAPACITY,
    GENERATOR_LIMIT,
    GENERATOR_WARNING,
    HICCUP_LIMIT_US,
    RUN_DELAY_LIMIT,
    THROTTLED_LIMIT,
    ModeSummary,
    PhaseSummary,
    Verdict,
)
from reports.texts import duration, percent, significant
from server.failure_codes import DROPPED, UNANSWERED

ENDING_S = 2.0  # that a server takes to end with its workers
MISSED_TICKS_WARNING = 0.005
RATE_DRIFT_WARNING = 0.10
COST_DRIFT_WARNING = 0.20  # CPU of a few seconds on a shared machine scatters more than a rate
SCHEDULE_LAG_WARNING_US = 5_000.0


def judge(evidence: Evidence, phases: Sequence[PhaseSummary]) -> tuple[Verdict, str, list[str]]:
    """The verdict, its reason, a sentence without a full stop, and what else is broken where it is INVALID."""
    measured = [phase for phase in phases if phase.measured]
    if evidence.run.model == "none":
        return "RECORDED", "what the processes cost; no load of ours was there to be judged", []
    noise = _noise(evidence, measured) if measured else []
    if found := in_order(evidence, broken(evidence, measured, noisy=bool(noise))):
        return "INVALID", found[0], found[1:]
    if noise:
        return "NOISY", "; ".join(noise), []
    if limit := _limit(measured):
        return "LOWER BOUND", limit, []
    return "VALID", f"{_held(measured)}: {_busiest(measured)}", []


def _limit(measured: Sequence[PhaseSummary]) -> str:
    """What was the limit in place of the server; empty when nothing was."""
    if limited := [phase for phase in measured if phase.generator_limited]:
        worst = max(limited, key=lambda phase: phase.generator_share or 0)
        return (
            f"the load generator was the limit, not the server: its busiest process used "
            f"{percent(worst.generator_share or 0)} of one core in phase {worst.name} (over {percent(GENERATOR_LIMIT)})"
        )
    if throttled := _throttled(measured):
        return throttled
    if limited := [phase for phase in measured if phase.machine_limited]:
        worst = max(limited, key=lambda phase: phase.machine_share or 0)
        others = ", mostly with other programs" if worst.mostly_foreign else ""
        return (
            f"the machine was the limit, not the server: its cores, which load and server share, were busy for "
            f"{percent(worst.machine_share or 0)} of phase {worst.name}{others} (from {percent(CAPACITY)} on)"
        )
    return ""


def _throttled(measured: Sequence[PhaseSummary]) -> str:
    """Empty where no CPU quota held the load up."""
    worst = max(measured, key=lambda phase: phase.load_throttled_share or 0)
    if not worst.load_throttled:
        return ""
    return (
        f"the load stood still for want of its CPU quota, in {percent(worst.load_throttled_share or 0)} of the quota's "
        f"periods in phase {worst.name} (at most {percent(THROTTLED_LIMIT)})"
    )


def _noise(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[str]:
    """What kept the load from its cores."""
    found = []
    lines = [line for phase in measured if (line := evidence.histograms.get(phase.name)) is not None]
    hiccup_us = Samples(histograms.hiccups(lines)).at(99)  # of however few: a noisy machine lets few sleeps end
    if hiccup_us is not None and hiccup_us > HICCUP_LIMIT_US:
        found.append(
            f"something else kept the load from its cores: for 1 % of the time, a sleep of 1 ms beside it ended more "
            f"than {duration(hiccup_us)} late (at most {duration(HICCUP_LIMIT_US)})"
        )
    worst = max(measured, key=lambda phase: phase.generator_run_delay_share or 0)
    delay = worst.generator_run_delay_share
    if delay is not None and delay > RUN_DELAY_LIMIT:
        found.append(
            f"a load process was ready to run but waited for a CPU during {percent(delay)} of phase {worst.name} (at "
            f"most {percent(RUN_DELAY_LIMIT)}): that waiting is in the latencies"
        )
    throttled = _throttled(measured)  # then nothing else did, and the rest follows from it
    return [throttled] if found and throttled else found


def _held(measured: Sequence[PhaseSummary]) -> str:
    """Whether the server held what it was offered. That it did not is a result too, where it had no time left."""
    full = [phase for phase in measured if phase.at_capacity]
    if not full:
        return "the server held the offered load"
    where = "" if len(full) == len(measured) else f" in {', '.join(phase.name for phase in full)}"
    text = f"the server was at capacity{where}{_uneven(full)}"
    short = [phase for phase in full if phase.short_of_offered]
    if not short:
        return text
    worst = min(short, key=lambda phase: phase.achieved_share or 0)
    took = significant(worst.acknowledged / worst.duration_s)
    return f"{text} and took {took} of {significant(worst.offered_per_s or 0)} offered uploads/s in phase {worst.name}"


def _uneven(full: Sequence[PhaseSummary]) -> str:
    """Said where a quota left it no time, or one worker was full while others had time left: with another quota, or
    better spread, the server may hold more."""
    if throttled := most(phase.server_throttled_share for phase in full if phase.at_quota):
        return f" of its CPU quota, which was used up in {percent(throttled)} of the quota's periods"
    shares = [(phase.mean_worker_share or 0, phase.busiest_worker_share or 0) for phase in full]
    mean, busiest = min(shares)
    if mean >= CAPACITY:
        return ""
    return f" since its busiest worker was full ({percent(busiest)} of a core; the workers' mean {percent(mean)})"


def _busiest(measured: Sequence[PhaseSummary]) -> str:
    worker = most(phase.busiest_worker_share for phase in measured)
    generator = most(phase.generator_share for phase in measured)
    found = [
        f"{who} used at most {percent(share)} of one core"
        for who, share in (("its busiest worker", worker), ("the busiest load process", generator))
        if share is not None
    ]
    return ", ".join(found) or "CPU was not recorded"


# --- warnings ---------------------------------------------------------------------------------------------------------


def warnings(evidence: Evidence, phases: Sequence[PhaseSummary], modes: Sequence[ModeSummary]) -> list[str]:
    """What lowers trust, but not the verdict."""
    measured = [phase for phase in phases if phase.measured]
    if evidence.run.model == "none":
        untold = _told(evidence, "server-unseen", "recorder-untold")
        return [*_ending(evidence), *_missed(evidence, measured), *untold, *_deaths(evidence, measured)]
    return [
        *_ending(evidence),
        *_left_out(evidence, phases),
        *_failures(evidence, measured),
        *_schedule_lag(measured),
        *_drift(measured),
        *_recorder(evidence, measured),
        *_foreign(measured),
        *_deaths(evidence, measured),
        *_generator(measured),
        *_hiccups(measured),
        *_samples(modes),
    ]


def warnings_of_invalid(evidence: Evidence, phases: Sequence[PhaseSummary], found: Sequence[str]) -> list[str]:
    """What else happened, where nobody may use the numbers; `found` is told already. Where ticks are missing, what is
    not known for want of them is no more than that."""
    measured = [phase for phase in phases if phase.measured]
    ending = [] if evidence.run.ended is not None and evidence.run.ended.reason in found else _ending(evidence)
    failures = _failures(evidence, measured) if any(phase.uploads for phase in measured) else []
    missed = any(text.startswith(each.text) for each in missing_ticks(evidence, measured) for text in found)
    recorder = _told(evidence, "recorder-untold") if missed else _recorder(evidence, measured)
    return [*ending, *_left_out(evidence, phases), *failures, *recorder, *_deaths(evidence, measured)]


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


def _failures(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[str]:
    """Uploads that failed, by what became of them: in the open model, what had no answer has a time nevertheless, and
    what was dropped was never sent."""
    failures: Counter[str] = Counter()
    for phase in measured:
        failures.update(phase.failures)
    attempts = failures.total() + sum(phase.uploads for phase in measured)
    is_open = evidence.run.model == "open"
    others = [code for code in failures if not is_open or code not in (*UNANSWERED, DROPPED)]
    told: list[tuple[Sequence[str], str]] = [(others, "they are in no latency or rate")]
    if is_open:
        waited = "they had no answer; the time they waited is in the response percentiles, as a lower bound (≥)"
        unsent = "they were due while the most uploads were in flight, so they were never sent and are in no percentile"
        told += [(UNANSWERED, waited), ([DROPPED], unsent)]
    return [text for codes, consequence in told for text in _failed(failures, codes, attempts, consequence)]


def _failed(failures: Counter[str], codes: Sequence[str], attempts: int, consequence: str) -> list[str]:
    own = Counter({code: failures[code] for code in codes if failures[code]})
    if not own:
        return []
    named = ", ".join(f"{code} {number:,}" for code, number in own.most_common())
    return [f"{own.total():,} of {attempts:,} uploads in the measured phases failed ({named}); {consequence}"]


def _schedule_lag(measured: Sequence[PhaseSummary]) -> list[str]:
    lag_us = most(phase.schedule_lag_us.p99 for phase in measured if phase.schedule_lag_us is not None)
    if lag_us is None or lag_us <= SCHEDULE_LAG_WARNING_US:
        return []
    return [
        f"uploads were started late: 1 % of them more than {duration(lag_us)} after they were due, which is a delay of "
        "the load generator and part of the response"
    ]


def _missed(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[str]:
    missed = max((phase.recorder_missed_share for phase in measured), default=0.0)
    if missed <= MISSED_TICKS_WARNING or not (evidence.ticks or evidence.host):
        return []
    return [f"the recorder missed up to {percent(missed)} of its ticks in a measured phase{gaps(evidence, measured)}"]


def _drift(measured: Sequence[PhaseSummary]) -> list[str]:
    found = []
    for phase in measured:
        if phase.drift is None:
            continue
        changes = [
            f"{what} {'rose' if change > 0 else 'fell'} by {percent(abs(change))}"
            for change, what, limit in (
                (phase.drift.rate, "uploads/s", RATE_DRIFT_WARNING),
                (phase.drift.busy_core_us, "CPU an upload", COST_DRIFT_WARNING),
            )
            if change is not None and abs(change) > limit
        ]
        if changes:
            found.append(f"phase {phase.name} drifted: from its first half to its second, {' and '.join(changes)}")
    return found


def _recorder(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[str]:
    if not measured or not (evidence.ticks or evidence.host):
        return []
    found = _missed(evidence, measured)
    found += _told(evidence, "recorder-untold")
    if all(phase.server_cpu_s is None for phase in measured):
        found.append(f"the server was not recorded ({_why_not_recorded(evidence)}): its costs are unknown")
    if all(phase.busy_core_s is None for phase in measured):
        found.append("the machine's CPU was not recorded: busy core-µs per upload are unknown")
    if all(phase.generator_share is None for phase in measured):
        found.append("the load's CPU was not recorded: the rates may be a lower bound")
    if stored(evidence) is None:
        found.append("the server shows no scoreboard: uploads it stored could not be compared with those acknowledged")
    return found


def _foreign(measured: Sequence[PhaseSummary]) -> list[str]:
    share = most(phase.foreign_share for phase in measured if phase.mostly_foreign)
    if share is None:
        return []
    return [
        f"other programs were busy on this machine: up to {percent(share)} of all busy CPU in a measured phase "
        "was not that of server, load or recorder, so what all cores spent on an upload says little"
    ]


def _why_not_recorded(evidence: Evidence) -> str:
    if any(sample.role.startswith("server-") for tick in evidence.ticks for sample in tick.processes):
        return "too few ticks in the measured phases"
    return next(iter(_told(evidence, "server-unseen")), "not on this machine, or not visible")


def _told(evidence: Evidence, *kinds: str) -> list[str]:
    """What the recorder said once of what it could not see."""
    return [event.text for event in evidence.events if event.kind in kinds]


def _deaths(evidence: Evidence, measured: Sequence[PhaseSummary]) -> list[str]:
    """Workers that ended before the last measured phase was over, by the server's events or by their absence."""
    end_s = max((phase.end_s for phase in measured), default=0.0)
    pids = {
        event.details.get("pid", event.text)
        for event in evidence.events
        if event.kind == "worker-ended" and 0 <= evidence.s(event.mono_ns) < end_s
    }
    gone_s = [evidence.s(event.mono_ns) for event in evidence.events if event.kind == "server-gone"]
    end_s = min([end_s, *(t_s - ENDING_S for t_s in gone_s)])  # a server that ends takes its workers with it
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
    share = most(phase.generator_share for phase in measured) or 0
    if not GENERATOR_WARNING < share <= GENERATOR_LIMIT:
        return []
    return [
        f"the busiest load process used {percent(share)} of one core: above {percent(GENERATOR_WARNING)} its own "
        "delays begin to show in the latencies"
    ]


def _hiccups(measured: Sequence[PhaseSummary]) -> list[str]:
    untold = [phase.name for phase in measured if not phase.hiccup_us.samples]
    return [f"the hiccup meter told nothing of {', '.join(untold)}: it may have been killed"] if untold else []


def _samples(modes: Sequence[ModeSummary]) -> list[str]:
    """After a kill the histograms are up to ten seconds older than the counts."""
    return [
        f"latencies of {mode.mode} are of {mode.transaction_us.samples:,} of its {mode.uploads:,} uploads"
        for mode in modes
        if abs(mode.transaction_us.samples - mode.uploads) > SAMPLES_MISSING_LIMIT * mode.uploads
    ]
