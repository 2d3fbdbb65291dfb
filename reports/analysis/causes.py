"""Why a run is INVALID: one cause, which is what happened first, and beneath it what else is broken.

A load process that is lost takes its counts with it, so that server and load count differently, users are missing, and
the run is ended early: many broken invariants, one cause. Which of them may follow from which is a table here. What
follows needs no explanation of its own, so guesses at one are left out, and events that explain nothing are not told.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from reports.analysis.evidence import Evidence, interval_s

CLOCK_STEP_S = 0.2  # between two lines: no clock that is only slowed or hurried gets so far

Happening = Literal["load lost", "server gone", "recorder gone", "run failed", "clock set"]
Broken = Literal["nothing measured", "ticks missed", "arrivals lost", "not taken", "unanswered", "held up"]
Difference = Literal["uploads differ", "connections differ", "bytes differ"]
Kind = Happening | Broken | Difference


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not be, as a sentence without a full stop. `guess` ends it where nothing else explains it."""

    kind: Kind
    text: str
    guess: str = ""
    at_s: float = math.inf
    """When it happened, seconds since the run's start; what is only seen in the sums at the end has no time."""


_IN_THE_LOAD: set[Kind] = {"nothing measured", "arrivals lost", "not taken", "unanswered", "held up"}
_COUNTS: set[Kind] = {"uploads differ", "connections differ", "bytes differ"}
_EXPLAINS: dict[Kind, set[Kind]] = {
    "load lost": _IN_THE_LOAD | _COUNTS | {"run failed"},
    "server gone": _IN_THE_LOAD | _COUNTS | {"run failed"},
    "recorder gone": {"ticks missed"},
    "run failed": _IN_THE_LOAD | _COUNTS | {"ticks missed", "load lost"},
    "clock set": _IN_THE_LOAD,
    "uploads differ": {"connections differ", "bytes differ"},
}


def in_order(evidence: Evidence, broken: Sequence[Finding]) -> list[str]:
    """The cause of what is `broken`, then all else that is, as sentences; none where nothing is."""
    kinds = {finding.kind for finding in broken}
    happened = [event for event in _happened(evidence) if event.kind not in kinds and kinds & _EXPLAINS[event.kind]]
    told: list[Finding] = []
    for finding in sorted([*happened, *broken], key=lambda finding: finding.at_s):
        if not any(finding.kind in _EXPLAINS.get(before.kind, ()) for before in told):
            told.append(replace(finding, text=finding.text + finding.guess))
        elif finding in broken:
            told.append(finding)
    return [finding.text for finding in told]


def _happened(evidence: Evidence) -> Iterator[Finding]:
    """What may explain that something is broken, and is no broken invariant itself."""
    yield from _failed(evidence)
    yield from _clock_set(evidence)
    for event in evidence.events:
        at_s = evidence.s(event.mono_ns)
        if event.kind == "recorder-failed":
            yield Finding("recorder gone", event.text, at_s=at_s)
        elif event.kind == "server-gone" and at_s <= _load_end_s(evidence):
            yield server_gone(evidence, f"{event.text}, since {at_s:.1f} s", at_s)


def server_gone(evidence: Evidence, text: str, seen_s: float) -> Finding:
    """The recorder sees it at its next tick; what the load noticed meanwhile comes after it."""
    return Finding("server gone", text, at_s=seen_s - interval_s(evidence.times(evidence.ticks)))


def _load_end_s(evidence: Evidence) -> float:
    """From then on the server is not needed."""
    return min((evidence.s(phase.start_ns) for phase in evidence.run.phases if phase.kind == "drain"), default=math.inf)


def _failed(evidence: Evidence) -> Iterator[Finding]:
    """Why the load gave up. On a full disk run.json may not say it, or no event."""
    for event in evidence.events:
        if event.kind == "run-failed":
            yield Finding("run failed", event.text, at_s=evidence.s(event.mono_ns))
            return
    ended = evidence.run.ended
    if ended is not None and ended.how == "failed":
        yield Finding("run failed", ended.reason, at_s=_load_end_s(evidence))


def _clock_set(evidence: Evidence) -> Iterator[Finding]:
    """Load processes of several hosts follow wall clocks. CLOCK_MONOTONIC stands still while a machine sleeps."""
    for before, after in pairwise(evidence.host):
        step_s = ((after.wall_ns - before.wall_ns) - (after.mono_ns - before.mono_ns)) / 1e9
        if abs(step_s) >= CLOCK_STEP_S:
            at_s = evidence.s(after.mono_ns)
            yield Finding("clock set", f"the clock was set by {step_s:+.1f} s, or the machine slept", at_s=at_s)
            return
