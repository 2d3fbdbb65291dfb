"""A comparison as texts: what HTML, Markdown and the terminal show, so that all three say the same.

As report_texts.py is to one run. Besides texts there are places: where a change lies on the axis that all rows share,
and where each run lies among its kind, for the small pictures of the page.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from reports.comparison.result import (
    FEWEST_PAIRS,
    NOT_COMPARABLE,
    REGRESSION,
    SIGNIFICANCE,
    Against,
    ComparedRun,
    Comparison,
    ContextValue,
    Finding,
    Repeats,
)
from reports.pages.table import NONE, Column, Row, Table, rounded, text_column
from reports.texts import at_least, percent, significant

NOTE = (
    "Medians of the runs of each label, with the interval that surrounds the true median in at least 95 % of "
    "comparisons; the change is Hodges and Lehmann's estimate of candidate ÷ baseline, with its 95 % interval. "
    "~: no difference that these runs can tell from chance. p is of Wilcoxon's signed-rank test (of fewer than 8 "
    "pairs, Student's t; of groups, the rank-sum test), corrected by Holm for all {tests} tests made here; an interval "
    f"alone is not. At least {FEWEST_PAIRS} pairs are needed. "
    "What is worse by more than {tolerance} is a regression; that it is so much more is not tested. "
)
PAIRED_NOTE = (
    f"A thing compared with itself is called better or worse in at most {percent(SIGNIFICANCE)} of such comparisons."
)
GROUPS_NOTE = "These runs were not interleaved: whatever changed over time is among the differences."
CONTEXT_NOTE = "Medians of all runs; not tested, so no difference here is more than a hint."
NARROWEST = 0.05  # of the axis of changes, to either side: what is smaller should look small
WIDEST = 1.0


@dataclass(frozen=True, slots=True)
class Point:
    """A run in a picture: its place from 0 to 1, left to right and bottom to top."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Picture:
    """All runs of one finding in the order of time."""

    title: str
    lowest: str
    highest: str
    baseline: list[Point]
    candidate: list[Point]


@dataclass(frozen=True, slots=True)
class Interval:
    """A change on the axis, from 0 (`-extent`) to 1 (`+extent`)."""

    low: float
    at: float
    high: float
    tone: str
    """Colour of the palette."""


@dataclass(frozen=True, slots=True)
class Section:
    """One label against the baseline."""

    title: str
    label: str
    findings: Table
    intervals: list[Interval | None]
    """One for each row of the findings; the axis goes as far as `extent` to either side."""
    extent: str
    pictures: list[Picture]
    differences: Table
    context: Table


@dataclass(frozen=True, slots=True)
class ComparisonView:
    title: str
    subtitle: str
    verdict: str
    tone: str
    sentence: str
    baseline: str
    warnings: list[str]
    sections: list[Section]
    runs: Table


def view(comparison: Comparison) -> ComparisonView:
    verdict, tone = _verdict(comparison)
    labels = [one.label for one in comparison.against]
    return ComparisonView(
        title=f"{', '.join(labels)} against {comparison.baseline}",
        subtitle=_subtitle(comparison.runs),
        verdict=verdict,
        tone=tone,
        sentence=" ".join(_sentence(one, comparison) for one in comparison.against),
        baseline=comparison.baseline,
        warnings=comparison.warnings,
        sections=[_section(one, comparison) for one in comparison.against],
        runs=_runs(comparison.runs),
    )


def _verdict(comparison: Comparison) -> tuple[str, str]:
    """The word, and the colour of the palette it stands in."""
    if comparison.exit_code == REGRESSION:
        return "REGRESSION", "bad"
    outcomes = {finding.outcome for one in comparison.against for finding in one.findings}
    if comparison.exit_code == NOT_COMPARABLE:
        return "NOT COMPARABLE", "warn"
    if "worse" in outcomes:
        return "WITHIN TOLERANCE", "warn"
    return ("BETTER", "good") if "better" in outcomes else ("NO DIFFERENCE FOUND", "muted")


def _subtitle(runs: Sequence[ComparedRun]) -> str:
    first, last = (datetime.fromtimestamp(run.started_wall_ns / 1e9, UTC) for run in (runs[0], runs[-1]))
    end = f"{last:%H:%M}" if first.date() == last.date() else f"{last:%d %B %Y, %H:%M}"
    numbers = Counter(run.label for run in runs)
    counted = ", ".join(f"{number} × {label}" for label, number in numbers.items())
    return f"{counted}; {first:%d %B %Y, %H:%M} to {end} UTC"


# --- in words ---------------------------------------------------------------------------------------------------------


def _sentence(one: Against, comparison: Comparison) -> str:
    told = [_clause(finding) for finding in one.findings if finding.outcome in ("better", "worse")]
    tested = [finding for finding in one.findings if finding.p is not None]
    if one.fails_more:
        before, after = (percent(share) for share in one.failed_share)
        told.insert(0, f"worse in uploads that failed: {after}, not {before}")
    if not tested:
        return f"{one.label} cannot be compared with {comparison.baseline}: {_why_not(one)}."
    if not told:
        widest = max((max(f.high or 1, 1 / (f.low or 1)) for f in tested), default=1.0)
        return (
            f"Between {one.label} and {comparison.baseline} no difference was found, in {len(tested)} metrics; one of "
            f"up to {percent(widest - 1)} may have stayed hidden."
        )
    rest = len(tested) - len(told)
    return f"Beside {comparison.baseline}, {one.label} is {'; '.join(told)}" + (
        f". In {rest} other metric{'s' if rest > 1 else ''} no difference was found." if rest else "."
    )


def _why_not(one: Against) -> str:
    if not one.findings:
        return "they have no mode in common, or no run is left"
    most = max(finding.pairs for finding in one.findings)
    return f"{most} {_pairs(one, most)}, at least {FEWEST_PAIRS} are needed"


def _clause(finding: Finding) -> str:
    mode = finding.mode
    connections = f"{mode} connections" if mode in ("long", "short") else f"connections of {mode.split()[0]} uploads"
    return f"{finding.outcome} in {finding.metric} over {connections}: {_change(finding)}"


def _pairs(one: Against, number: int) -> str:
    what = "pair" if one.paired else "run"
    return f"{what}{'' if number == 1 else 's'}"


def _signed(ratio: float) -> str:
    change = ratio - 1
    if abs(change) < 0.00005:
        return "±0.00 %"
    return f"{'+' if change > 0 else '−'}{percent(abs(change))}"


def _change(finding: Finding) -> str:
    if finding.ratio is None or finding.low is None or finding.high is None:
        return NONE
    return f"{_signed(finding.ratio)} ({_signed(finding.low)} to {_signed(finding.high)})"


# --- one label --------------------------------------------------------------------------------------------------------


def _section(one: Against, comparison: Comparison) -> Section:
    extent = _extent(one.findings)
    order = {run.id: place for place, run in enumerate(comparison.runs)}
    return Section(
        title=f"{one.label} against {comparison.baseline}",
        label=one.label,
        findings=_findings(one, comparison),
        intervals=[_interval(finding, extent) for finding in one.findings],
        extent=f"±{percent(extent)}",
        pictures=[_picture(finding, order) for finding in one.findings if finding.outcome != "not known"],
        differences=_differences(one, comparison.baseline),
        context=_context(one, comparison.baseline),
    )


def _findings(one: Against, comparison: Comparison) -> Table:
    tests = sum(finding.p is not None for found in comparison.against for finding in found.findings)
    columns = [
        *(text_column("Metric"), text_column("Outcome"), Column("Change")),
        *(Column(comparison.baseline), Column(one.label), Column("p")),
        Column("Pairs" if one.paired else "Runs"),
    ]
    return Table(
        columns,
        [_row(finding) for finding in one.findings],
        NOTE.format(tests=tests, tolerance=percent(comparison.tolerance))
        + (PAIRED_NOTE if one.paired else GROUPS_NOTE),
    )


def _row(finding: Finding) -> Row:
    tolerated = finding.outcome == "worse" and not finding.regression
    cells = [
        f"{finding.mode}: {finding.metric}, {finding.unit}",
        "worse, within tolerance" if tolerated else finding.outcome,
        _change(finding),
        _median(finding.baseline),
        _median(finding.candidate),
        NONE if finding.p is None else _p(finding.p),
        str(finding.pairs),
    ]
    return Row(cells, "bad" if finding.regression else "main")


def _median(repeats: Repeats) -> str:
    if repeats.median is None:
        return NONE
    median = at_least(significant(repeats.median), repeats.is_bound)
    if repeats.low is None or repeats.high is None:
        return median
    return f"{median} ({significant(repeats.low)} to {significant(repeats.high)})"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _extent(findings: Sequence[Finding]) -> float:
    """How far the axis goes to either side of no change, so that all intervals have room."""
    ends = [abs(end - 1) for finding in findings for end in (finding.low, finding.high) if end is not None]
    return min(WIDEST, max([NARROWEST, *ends]))


def _interval(finding: Finding, extent: float) -> Interval | None:
    if finding.ratio is None or finding.low is None or finding.high is None:
        return None
    low, at, high = (
        min(1.0, max(0.0, 0.5 + (ratio - 1) / extent / 2)) for ratio in (finding.low, finding.ratio, finding.high)
    )
    tones = {"better": "good", "worse": "bad" if finding.regression else "warn"}
    return Interval(low, at, high, tones.get(finding.outcome, "muted"))


def _picture(finding: Finding, order: dict[str, int]) -> Picture:
    values = [*finding.baseline.values, *finding.candidate.values]
    low, high = min(values), max(values)
    last = max(1, len(order) - 1)

    def points(repeats: Repeats) -> list[Point]:
        return [
            Point(order[run] / last, (value - low) / (high - low or 1), f"{run}: {significant(value)}")
            for run, value in zip(repeats.runs, repeats.values, strict=True)
        ]

    return Picture(
        title=f"{finding.metric}, {finding.mode}, {finding.unit}",
        lowest=significant(low),
        highest=significant(high),
        baseline=points(finding.baseline),
        candidate=points(finding.candidate),
    )


# --- tables -----------------------------------------------------------------------------------------------------------


def _differences(one: Against, baseline: str) -> Table:
    columns = [text_column(title) for title in ("Setting", baseline, one.label)]
    rows = [Row([name, before or "none", after or "none"]) for name, (before, after) in one.differences.items()]
    return Table(columns, rows, "" if rows else "Nothing: load, server and commit were the same for both.")


def _context(one: Against, baseline: str) -> Table:
    columns = [*(text_column("Metric"), text_column("Mode")), Column(baseline), Column(one.label), Column("Change")]
    return Table(columns, [Row(_context_cells(value)) for value in one.context], CONTEXT_NOTE)


def _context_cells(value: ContextValue) -> list[str]:
    before, after = (rounded(side) for side in (value.baseline, value.candidate))
    change = _signed(value.candidate / value.baseline) if value.candidate and value.baseline else NONE
    return [f"{value.metric}, {value.unit}", value.mode or "whole run", before, after, change]


def _runs(runs: Sequence[ComparedRun]) -> Table:
    columns = [text_column("Started", "UTC"), *(text_column(title) for title in ("Label", "Run", "Verdict"))]
    return Table(columns, [_run_row(run) for run in runs])


def _run_row(run: ComparedRun) -> Row:
    started = datetime.fromtimestamp(run.started_wall_ns / 1e9, UTC)
    verdict = f"{run.verdict}, left out" if run.left_out else run.verdict
    return Row([f"{started:%d %b, %H:%M:%S}", run.label, run.id, verdict], "part" if run.left_out else "main")
