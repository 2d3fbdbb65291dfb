"""Short connections against long ones, block by block.

A run of plan `compare` goes long, short, short, long: two blocks of one phase each, in turned order, so that what
drifts over the run weighs on both modes alike. A ratio is formed within each block. The spread of these ratios is what
a single number would hide: the lowest and the highest of n blocks surround the true median with a probability of
1 - 2^(1-n), since each lies below it with a chance of one half, and only when all lie on one side it is not surrounded.
"""

from collections.abc import Callable, Sequence
from statistics import median

from reports.summary import Contrast, PhaseSummary, Ratio

Measure = Callable[[PhaseSummary], float | None]


def contrast(phases: Sequence[PhaseSummary], one: str, other: str) -> Contrast | None:
    """What mode `one` is to mode `other`; None without a block of both."""
    blocks = _blocks([phase for phase in phases if phase.measured], one, other)
    if not blocks:
        return None
    return Contrast(
        one=one,
        other=other,
        blocks=len(blocks),
        coverage=1 - 2.0 ** (1 - len(blocks)),
        uploads_per_s=_ratio(blocks, _uploads_per_s),
        transaction_us=_ratio(blocks, lambda phase: phase.transaction_mean_us),
        busy_core_us=_ratio(blocks, lambda phase: phase.busy_core_us_per_upload),
    )


def _blocks(measured: Sequence[PhaseSummary], one: str, other: str) -> list[tuple[PhaseSummary, PhaseSummary]]:
    """Neighbours of different modes, each phase in one block at most, as (of `one`, of `other`)."""
    found: list[tuple[PhaseSummary, PhaseSummary]] = []
    rest = [phase for phase in measured if phase.mode in (one, other)]
    while len(rest) > 1:
        first, second, *after = rest
        if first.mode == second.mode:
            rest = rest[1:]
            continue
        found.append((first, second) if first.mode == one else (second, first))
        rest = after
    return found


def _ratio(blocks: Sequence[tuple[PhaseSummary, PhaseSummary]], measure: Measure) -> Ratio | None:
    """None where a phase does not know it."""
    pairs = [(measure(one), measure(other)) for one, other in blocks]
    ratios = [a / b for a, b in pairs if a and b]
    if len(ratios) < len(blocks):
        return None
    return Ratio(median=median(ratios), lowest=min(ratios), highest=max(ratios))


def _uploads_per_s(phase: PhaseSummary) -> float | None:
    """Unknown where something else than the server was the limit: of a bound there is no ratio."""
    return None if phase.limited else phase.acknowledged / phase.duration_s
