"""The plan of a run, as values: which phases, in which order, how long, with how many uploads per connection.

Long and short connections are compared in phases of their own, never side by side: run together, one worker's CPU
serves both and cannot be split. `compare` runs long, short, short, long, so that whatever drifts evenly during a run
(temperature, caches, a filling disk) weighs on both alike. `sweep` does the same for any number of values: it runs
them forward, then backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.option_error import OptionError
from reports.run_folder import PhaseKind

LONG, SHORT = 0, 1  # uploads per connection; 0 means no end
PLANS = ("compare", "long", "short", "sweep")
WARM_UP_S = 2.0
MAX_PHASES = 64
MAX_UPLOADS_PER_CONNECTION = 1_000_000

_FIXED = {"compare": (LONG, SHORT, SHORT, LONG), "long": (LONG,), "short": (SHORT,)}
_SWEEP = "1,2,5,20,0"


@dataclass(frozen=True, slots=True)
class PlannedPhase:
    """One phase to come. Only phases of kind `measure` count in the report."""

    name: str
    kind: PhaseKind
    uploads_per_connection: int
    duration_s: float


def make_plan(
    name: str, phase_s: float, *, warm_up_s: float = WARM_UP_S, uploads_per_connection: str = ""
) -> tuple[PlannedPhase, ...]:
    """The phases of plan `name` (one of PLANS, or `sweep:K,K,...`), each measured one `phase_s` seconds long, behind a
    warm-up as the first of them, unless `warm_up_s` is 0. A text of `uploads_per_connection`, such as `5` or `1,2,5`,
    is used in place of the plan's: one measured phase for each, in this order. OptionError when a text is wrong."""
    modes = _modes(name)
    if uploads_per_connection.strip():
        modes = _numbers(uploads_per_connection)
    if len(modes) > MAX_PHASES:
        raise OptionError(f"{len(modes)} measured phases: a plan may have at most {MAX_PHASES}")
    warm_up = [PlannedPhase("warm-up", "warm-up", modes[0], warm_up_s)] if warm_up_s > 0 else []
    return (*warm_up, *_measured(modes, phase_s))


def _modes(name: str) -> tuple[int, ...]:
    if name in _FIXED:
        return _FIXED[name]
    kind, colon, numbers = name.partition(":")
    if kind != "sweep":
        raise OptionError(f"plan is {name!r}, not one of {', '.join(PLANS)}, sweep:K,K,...")
    forward = _numbers(numbers if colon else _SWEEP)
    return forward + forward[::-1]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_number(part.strip()) for part in text.split(","))


def _number(text: str) -> int:
    digits = text.isascii() and text.isdecimal() and len(text) < 19
    if not (digits and int(text) <= MAX_UPLOADS_PER_CONNECTION):
        limits = f"0 (no end) to {MAX_UPLOADS_PER_CONNECTION:,}"
        raise OptionError(f"uploads per connection is {text!r}, not a whole number from {limits}")
    return int(text)


def _measured(modes: Sequence[int], phase_s: float) -> list[PlannedPhase]:
    measured = []
    for place, mode in enumerate(modes):
        text = {LONG: "long", SHORT: "short"}.get(mode, f"{mode}-per-connection")
        count = modes[: place + 1].count(mode)
        measured.append(PlannedPhase(f"{text}-{count}", "measure", mode, phase_s))
    return measured
