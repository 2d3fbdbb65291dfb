"""comparison.json: what a comparison of runs says, as data, and what its words mean.

As summary.py is to one run, so is this file to several: values only, of which all outputs are texts. A ratio is always
candidate ÷ baseline; None means "not known" and is never 0. The limits that an outcome stands on are named here.
"""

from typing import Literal

import msgspec

from reports.summary import Verdict

COMPARISON_VERSION = 1

SIGNIFICANCE = 0.05
"""The probability that runs of one and the same thing give any alarm at all, over all findings of a comparison."""
FEWEST_PAIRS = 6
"""With fewer, the lowest and the highest ratio surround the true median in less than 95 % of comparisons: 1 - 2 ÷ 2^6
is 97 %, 1 - 2 ÷ 2^5 is 94 %."""
UNSTABLE = 0.10
"""Where the middle half of a label's repeats spreads over more than this share of their median, they do not repeat
well."""

NO_REGRESSION, NOT_COMPARABLE, REGRESSION = 0, 4, 5  # exit codes

Outcome = Literal["better", "worse", "~", "too few", "not known"]
"""`~`: no difference that these runs can tell from chance. `too few`: fewer than FEWEST_PAIRS. `not known`: no run of
one side has the value."""


class ComparedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run that was named, in the order of time."""

    id: str
    label: str
    started_wall_ns: int
    verdict: Verdict
    reason: str
    left_out: bool
    """INVALID, or without a load: its numbers say nothing."""


class Repeats(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of all runs of a label: its median, and a confidence interval of that of at least 95 %."""

    runs: list[str]
    """Ids, in the order of time; `values` are theirs."""
    values: list[float]
    median: float | None
    low: float | None
    """None, and `high` too, where the runs are too few for an interval."""
    high: float | None
    is_bound: bool = False
    """Some of the values are lower bounds: the load or the machine was the limit, or uploads had no answer."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One primary metric of one mode, candidate beside baseline."""

    mode: str
    metric: str
    unit: str
    less_is_better: bool
    baseline: Repeats
    candidate: Repeats
    pairs: int
    """How many pairs of runs both know the metric; of independent groups, how many runs the smaller one has."""
    pair_ratios: list[float]
    """Candidate ÷ baseline of each pair, in the order of time; empty for independent groups."""
    ratio: float | None
    """Hodges and Lehmann's estimate; under 8 pairs, or 6 runs of a group, geometric means."""
    low: float | None
    """Ends of its 95 % confidence interval, for itself alone."""
    high: float | None
    p: float | None
    """The probability that chance alone makes such a difference, corrected by Holm for all findings together. None:
    untested."""
    outcome: Outcome
    regression: bool
    """Worse, and `ratio` says by more than the tolerance."""


class ContextValue(msgspec.Struct, frozen=True, kw_only=True):
    """A metric that is shown and not tested: the medians of both sides."""

    mode: str
    """Empty for what belongs to whole runs."""
    metric: str
    unit: str
    baseline: float | None
    candidate: float | None


class Against(msgspec.Struct, frozen=True, kw_only=True):
    """One label beside the baseline."""

    label: str
    paired: bool
    """Their runs were interleaved, so that neighbours are compared with each other. Else as independent groups."""
    findings: list[Finding]
    context: list[ContextValue]
    differences: dict[str, tuple[str, str]]
    """What was set differently, as (baseline, candidate): options of load and server, commit."""
    failed_share: tuple[float, float]
    """What share of the uploads failed in measured phases of the runs that are compared, as (baseline, candidate)."""
    fails_more: bool
    """More uploads fail, by more than the tolerance: a regression that no metric of acknowledged uploads shows."""
    loses_more: bool
    """More of its runs were left out than of the baseline's: those that are left flatter it."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """comparison.json."""

    schema_version: int = COMPARISON_VERSION
    baseline: str
    tolerance: float
    runs: list[ComparedRun]
    warnings: list[str]
    against: list[Against]
    exit_code: int
    """5: a regression; 4: of some label no finding could be tested, or runs that are INVALID are missing; else 0."""
