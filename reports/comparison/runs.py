"""The runs of a comparison: what each was, what its summary says, and which is compared with which.

Machines drift: they warm up, neighbours come and go. Runs that follow each other share most of that, so their ratio is
free of it, and in turned order (A B B A) what drifts steadily falls on both labels alike. Only runs that were
interleaved can be paired; others are compared as two groups, where all that changed over time counts as a difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from reports import run_folder
from reports.analysis.connection_cost import neighbours
from reports.analysis.summarise import analyse
from reports.comparison.result import FEWEST_PAIRS, ComparedRun
from reports.json_lines import UNDECODABLE
from reports.run_folder import RunFolderError, RunInfo
from reports.summary import SUMMARY_VERSION, Summary

T = TypeVar("T")

PAIRED_SHARE = 0.8  # of the runs of both labels: a few may have lost their partner


@dataclass(frozen=True, slots=True)
class Read:
    """One run folder."""

    info: RunInfo
    summary: Summary

    @property
    def usable(self) -> bool:
        return self.summary.verdict not in ("INVALID", "RECORDED")

    @property
    def compared(self) -> ComparedRun:
        return ComparedRun(
            id=self.info.id,
            label=self.info.label,
            started_wall_ns=self.info.started_wall_ns,
            verdict=self.summary.verdict,
            reason=self.summary.reason,
            left_out=not self.usable,
        )


def read(folders: Sequence[Path]) -> list[Read]:
    """These runs in the order of time. RunFolderError as from `analyse`, and when a run is named twice."""
    runs: dict[tuple[str, int], Read] = {}
    for folder in folders:
        info = run_folder.read_run(folder)
        key = (info.id, info.started_wall_ns)
        if key in runs:
            raise RunFolderError(f"{folder} is run {info.id}, which was named before: each run counts once")
        runs[key] = Read(info, _summary(folder))
    return sorted(runs.values(), key=lambda run: run.info.started_wall_ns)


def _summary(folder: Path) -> Summary:
    """The summary that `build` wrote; made anew where it is missing, unreadable, or of another version."""
    try:
        summary = msgspec.json.decode((folder / run_folder.SUMMARY).read_bytes(), type=Summary)
    except (OSError, *UNDECODABLE):
        return analyse(folder).summary
    return summary if summary.schema_version == SUMMARY_VERSION else analyse(folder).summary


def pairs(ordered: Sequence[tuple[str, T]], baseline: str, candidate: str) -> list[tuple[T, T]] | None:
    """Neighbours of different labels as (baseline, candidate), each run in one pair at most, of (label, run) in the
    order of time. None where too few have such a neighbour: they were not interleaved, or not evenly, and as two groups
    they say more."""
    found = neighbours(ordered, baseline, candidate)
    labels = [label for label, _ in ordered if label in (baseline, candidate)]
    interleaved = 2 * len(found) >= PAIRED_SHARE * len(labels)
    fewest = min(labels.count(baseline), labels.count(candidate))
    return found if interleaved and not len(found) < FEWEST_PAIRS <= fewest else None
