"""Two or more sets of runs, compared: is one better or worse than the other, by how much, and how sure is that?

The run is the unit: whatever was counted within one run shares its server process, its memory layout and its minute of
the machine, so a thousand uploads of one run are one sample of how such runs turn out. Repeats are the runs of one
label. All primary metrics of all labels form one family, corrected together, so that comparing a thing with itself
raises an alarm in at most 5 % of comparisons however many metrics it has.

    folders ─► runs and their pairs ─► metrics ─► significance ─► comparison.json
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import msgspec

from reports import run_folder
from reports.comparison import metrics, significance
from reports.comparison.metrics import Metric
from reports.comparison.result import (
    FEWEST_PAIRS,
    NO_REGRESSION,
    NOT_COMPARABLE,
    REGRESSION,
    SIGNIFICANCE,
    UNSTABLE,
    Against,
    Comparison,
    ContextValue,
    Finding,
    Repeats,
)
from reports.comparison.runs import Read, pairs, read
from reports.summary import Summary
from reports.texts import percent

# Of the environment, what is different in each run and says nothing about the machine.
PASSING = ("load_1min", "load_5min", "load_15min", "store")
OWN_TO_A_RUN = ("label", "pid_file", "port", "store")


class LabelError(Exception):
    """The runs' labels do not say what is to be compared with what; the text says how they would."""


def compare(folders: Sequence[Path], baseline: str | None, tolerance: float) -> Comparison:
    """`baseline` is a label, by default that of the first folder. RunFolderError for what cannot be read; LabelError
    where there are not two labels or no such baseline."""
    return compare_runs(read(folders), baseline or run_folder.read_run(folders[0]).label, tolerance)


def compare_runs(runs: Sequence[Read], baseline: str, tolerance: float) -> Comparison:
    """The comparison of runs that are in the order of time, see `compare`."""
    labels = list(dict.fromkeys(run.info.label for run in runs))
    _check_labels(labels, baseline)
    against = _judged([_against(runs, baseline, label, tolerance) for label in labels if label != baseline], tolerance)
    return Comparison(
        baseline=baseline,
        tolerance=tolerance,
        runs=[run.compared for run in runs],
        warnings=list(_warnings(runs, against, baseline)),
        against=against,
        exit_code=_exit_code(against),
    )


def _check_labels(labels: Sequence[str], baseline: str) -> None:
    if baseline not in labels:
        raise LabelError(f"no run has the label {baseline!r} (--baseline); there are: {', '.join(labels)}")
    if len(labels) == 1:
        raise LabelError(
            f"all runs have the label {baseline!r}: runs of one label are repeats of one thing; name what is to be "
            "compared with it by another --label when you run it"
        )


def _exit_code(against: Sequence[Against]) -> int:
    if any(one.fails_more or any(finding.regression for finding in one.findings) for one in against):
        return REGRESSION
    tested = [any(finding.p is not None for finding in one.findings) and not one.loses_more for one in against]
    return NO_REGRESSION if all(tested) else NOT_COMPARABLE


# --- one label against the baseline -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sides:
    """The runs of two labels, in the order of time; `paired` is None where they were not interleaved."""

    baseline: list[Read]
    candidate: list[Read]
    paired: list[tuple[Read, Read]] | None

    @property
    def summaries(self) -> list[Summary]:
        return [run.summary for run in (*self.baseline, *self.candidate)]


def _against(runs: Sequence[Read], baseline: str, label: str, tolerance: float) -> Against:
    """One label beside the baseline, not yet tested: that is for `_judged`, which knows all labels."""
    labelled = [(run.info.label, run) for run in runs if run.usable]
    left_out = Counter(run.info.label for run in runs if not run.usable)
    sides = _Sides(
        [run for name, run in labelled if name == baseline],
        [run for name, run in labelled if name == label],
        pairs(labelled, baseline, label),
    )
    known = sides.baseline and sides.candidate
    modes = metrics.modes(sides.summaries) if known else []
    before, after = (metrics.failed_share(run.summary for run in side) for side in (sides.baseline, sides.candidate))
    return Against(
        label=label,
        paired=sides.paired is not None,
        findings=[_finding(sides, mode, metric) for mode in modes for metric in metrics.primary(mode, sides.summaries)],
        context=list(_context(sides, modes)) if known else [],
        differences=_differences(sides) if known else {},
        failed_share=(before, after),
        fails_more=after - before > tolerance,
        loses_more=left_out[label] > left_out[baseline],
    )


def _finding(sides: _Sides, mode: str, metric: Metric) -> Finding:
    baseline, candidate = _repeats(sides.baseline, metric), _repeats(sides.candidate, metric)
    if sides.paired is None:
        number = min(len(baseline.values), len(candidate.values))
        ratios: list[float] = []
        change = significance.independent_change(baseline.values, candidate.values) if number >= 2 else None
    else:
        both = [(metric.of(one.summary), metric.of(other.summary)) for one, other in sides.paired]
        known = [(one, other) for one, other in both if one and other]
        number = len(known)
        ratios = [other / one for one, other in known]
        change = significance.paired_change(known) if number >= 2 else None
    return Finding(
        mode=mode,
        metric=metric.name,
        unit=metric.unit,
        less_is_better=metric.less_is_better,
        baseline=baseline,
        candidate=candidate,
        pairs=number,
        pair_ratios=ratios,
        **(asdict(change) if change else dict.fromkeys(("ratio", "low", "high", "p"))),
        outcome="too few" if baseline.values and candidate.values else "not known",
        regression=False,
    )


def _repeats(runs: Sequence[Read], metric: Metric) -> Repeats:
    known = [(run.info.id, value) for run in runs if (value := metric.of(run.summary))]  # of 0 there is no ratio
    values = [value for _, value in known]
    low, high = significance.median_interval(values) or (None, None)
    return Repeats(
        runs=[name for name, _ in known],
        values=values,
        median=median(values) if values else None,
        low=low,
        high=high,
        is_bound=any(metric.is_bound(run.summary) for run in runs),
    )


def _context(sides: _Sides, modes: Sequence[str]) -> Iterator[ContextValue]:
    named = [(mode, metric) for mode in modes for metric in metrics.context(mode, sides.summaries)]
    for mode, metric in (*named, *(("", metric) for metric in metrics.of_whole_runs())):
        before, after = (_median(runs, metric) for runs in (sides.baseline, sides.candidate))
        if before is not None or after is not None:
            yield ContextValue(mode=mode, metric=metric.name, unit=metric.unit, baseline=before, candidate=after)


def _median(runs: Sequence[Read], metric: Metric) -> float | None:
    """Unlike `_repeats`, nothing is left out for being 0: of failures that is the best value."""
    values = [value for run in runs if (value := metric.of(run.summary)) is not None]
    return median(values) if values else None


# --- what is significant ----------------------------------------------------------------------------------------------


def _judged(against: Sequence[Against], tolerance: float) -> list[Against]:
    """All of them with p corrected over the findings that have enough pairs, and with what follows from that."""
    enough = [finding.p for one in against for finding in one.findings if finding.pairs >= FEWEST_PAIRS]
    corrected = iter(significance.holm([p for p in enough if p is not None]))
    return [
        msgspec.structs.replace(
            one,
            findings=[
                _outcome(finding, next(corrected), tolerance)
                if finding.pairs >= FEWEST_PAIRS
                else msgspec.structs.replace(finding, p=None)
                for finding in one.findings
            ],
        )
        for one in against
    ]


def _outcome(finding: Finding, p: float, tolerance: float) -> Finding:
    ratio = finding.ratio or 1.0
    worse = ratio > 1 if finding.less_is_better else ratio < 1
    significant = p < SIGNIFICANCE
    by = ratio - 1 if finding.less_is_better else 1 - ratio
    return msgspec.structs.replace(
        finding,
        p=p,
        outcome=("worse" if worse else "better") if significant else "~",
        regression=significant and by > tolerance,
    )


# --- what differs, and what to be wary of -----------------------------------------------------------------------------


def _settings(run: Read) -> dict[str, str]:
    """What a person or a commit decided about a run, by name."""
    info = run.info
    server = info.server.options if info.server is not None and info.server.options is not None else {}
    commit = "unknown" if info.git_commit is None else info.git_commit[:12] + ("+" if info.git_dirty else "")
    found = {f"load {name}": value for name, value in info.load_options.items() if name not in OWN_TO_A_RUN}
    found |= {f"server {name}": value for name, value in server.items() if name not in OWN_TO_A_RUN}
    found |= {"model": info.model, "users": info.users, "seed": info.seed, "commit": commit}
    return {name.replace("_", " "): str(value) for name, value in found.items()}


def _differences(sides: _Sides) -> dict[str, tuple[str, str]]:
    """Settings that are one on each side, and not the same one; those that differ within a side are warned of."""
    before, after = (_values(runs) for runs in (sides.baseline, sides.candidate))
    return {
        name: (next(iter(one)), next(iter(other)))
        for name, one in before.items()
        if len(one) == 1 and len(other := after.get(name, Counter(["unknown"]))) == 1 and one.keys() != other.keys()
    }


def _values(runs: Sequence[Read]) -> dict[str, Counter[str]]:
    """How many of the runs have which value of each setting."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for run in runs:
        for name, value in _settings(run).items():
            found[name][value] += 1
    return found


def _warnings(runs: Sequence[Read], against: Sequence[Against], baseline: str) -> Iterator[str]:
    yield from _verdicts(runs)
    yield from _environments(runs)
    yield from _repeats_differ(runs)
    for one in against:
        yield from _unlike(runs, one, baseline)
        yield from _order(runs, one, baseline)
    yield from _unstable(against, baseline)


def _verdicts(runs: Sequence[Read]) -> Iterator[str]:
    meant = {
        "INVALID": "left out",
        "RECORDED": "without a load, left out",
        "NOISY": "the machine made their latencies",
        "LOWER BOUND": "the load or the machine was the limit, so rates differ by less than the server does",
    }
    for verdict, consequence in meant.items():
        named = [run for run in runs if run.summary.verdict == verdict]
        if named:
            reason = f"; the first: {named[0].summary.reason}" if verdict in ("INVALID", "NOISY") else ""
            yield f"{len(named)} of {len(runs)} runs are {verdict}: {consequence} ({_by_label(named)}{reason})"


def _by_label(runs: Sequence[Read]) -> str:
    numbers = Counter(run.info.label for run in runs)
    return ", ".join(f"{number} of {label}" for label, number in numbers.items())


def _environments(runs: Sequence[Read]) -> Iterator[str]:
    names = dict.fromkeys(name for run in runs for name in run.info.environment if name not in PASSING)
    for name in names:
        values: dict[str, list[Read]] = defaultdict(list)
        for run in runs:
            values[str(run.info.environment.get(name, "unknown"))].append(run)
        if len(values) > 1:
            told = "; ".join(f"{value} in {_by_label(found)}" for value, found in values.items())
            yield f"environments differ, so a difference may be theirs: {name.replace('_', ' ')} is {told}"


def _repeats_differ(runs: Sequence[Read]) -> Iterator[str]:
    for label in dict.fromkeys(run.info.label for run in runs):
        values = _values([run for run in runs if run.info.label == label])
        told = [f"{name} ({', '.join(found)})" for name, found in values.items() if len(found) > 1]
        if told:
            yield f"runs of {label} are not repeats of one thing: they differ in {'; '.join(told)}"


def _unlike(runs: Sequence[Read], one: Against, baseline: str) -> Iterator[str]:
    """What is in the runs of one side only, and so is not compared."""
    sides = [[run for run in runs if run.usable and run.info.label == label] for label in (baseline, one.label)]
    for label, side in zip((baseline, one.label), sides, strict=True):
        if not side:
            yield f"no run of {label} is left to be compared"
    if not all(sides):
        return
    summaries = [run.summary for side in sides for run in side]
    compared = metrics.modes(summaries)
    before, after = one.failed_share
    if after > before:
        yield (
            f"{one.label} failed {percent(after)} of its uploads, {baseline} {percent(before)}: rates, latencies and "
            "costs are of the others"
        )
    if one.loses_more:
        yield f"more runs of {one.label} than of {baseline} were left out: those that are left may flatter it"
    others = {mode.mode for summary in summaries for mode in summary.modes if mode.uploads} - set(compared)
    if others:
        yield f"{baseline} and {one.label}: not all runs measured mode {', '.join(sorted(others))}; it is not compared"
    if len({summary.model for summary in summaries}) > 1:
        yield f"{baseline} and {one.label}: open and closed models have different latencies; these are not compared"


def _order(runs: Sequence[Read], one: Against, baseline: str) -> Iterator[str]:
    ordered = [(run.info.label, run) for run in runs if run.usable]
    found = pairs(ordered, baseline, one.label)
    if found is None:
        yield (
            f"the runs of {baseline} and {one.label} were not interleaved, so they are compared as two groups: what "
            "changed over time counts as a difference (make compare interleaves)"
        )
    elif len(found) > 1:
        first = sum(before.info.started_wall_ns < after.info.started_wall_ns for before, after in found)
        if first in (0, len(found)):
            label = baseline if first else one.label
            yield f"in every pair {label} ran first: what steadily rises or falls over time counts as a difference"


def _unstable(against: Sequence[Against], baseline: str) -> Iterator[str]:
    """Once for each label, whatever it is compared with."""
    wide: dict[str, dict[str, float]] = defaultdict(dict)
    for one in against:
        for finding in one.findings:
            for label, repeats in ((baseline, finding.baseline), (one.label, finding.candidate)):
                if len(repeats.values) >= FEWEST_PAIRS and significance.spread(repeats.values) > UNSTABLE:
                    wide[label][f"{finding.metric}, {finding.mode}"] = significance.spread(repeats.values)
    for label, found in wide.items():
        told = "; ".join(f"{name}: {percent(share)}" for name, share in found.items())
        yield (
            f"repeats of {label} are unstable, so only large changes are found: the middle half of them spreads over "
            f"more than {percent(UNSTABLE)} of their median ({told})"
        )
