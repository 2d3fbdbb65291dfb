"""The plan of a run, as values: which phases, in which order, how long, with how many uploads per connection.

Long and short connections are compared in phases of their own, never side by side: run together, one worker's CPU
serves both and cannot be split. `compare` runs long, short, short, long, so that whatever drifts evenly during a run
(temperature, caches, a filling disk) weighs on both alike.
"""

from dataclasses import dataclass

from reports.run_folder import PhaseKind

LONG, SHORT = 0, 1  # uploads per connection; 0 means no end
PLANS = {"compare": (LONG, SHORT, SHORT, LONG), "long": (LONG,), "short": (SHORT,)}
WARM_UP_S = 2.0


@dataclass(frozen=True, slots=True)
class PlannedPhase:
    """One phase to come. Only phases of kind `measure` count in the report."""

    name: str
    kind: PhaseKind
    uploads_per_connection: int
    duration_s: float


def plan(name: str, phase_s: float) -> tuple[PlannedPhase, ...]:
    """The phases of plan `name` (a key of PLANS), each measured one `phase_s` seconds long, after a warm-up."""
    modes = PLANS[name]
    phases = [PlannedPhase("warm-up", "warm-up", modes[0], min(WARM_UP_S, phase_s))]
    seen: dict[int, int] = {}
    for mode in modes:
        seen[mode] = seen.get(mode, 0) + 1
        text = "long" if mode == LONG else "short"
        phases.append(PlannedPhase(f"{text}-{seen[mode]}", "measure", mode, phase_s))
    return tuple(phases)
