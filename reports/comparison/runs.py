"""The runs of a comparison, read: what each was, and what its summary says."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.comparison.result import ComparedRun
from reports.run_folder import RunFolderError, RunInfo
from reports.summary import SUMMARY_VERSION, Summary


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
    """All of them, in the order of time. RunFolderError as from `analyse`, and when a run is named twice."""
    runs: dict[tuple[str, int], Read] = {}
    for folder in folders:
        info = run_folder.read_run(folder)
        key = (info.id, info.started_wall_ns)
        if key in runs:
            raise RunFolderError(f"{folder} is run {info.id}, which was named before: each run counts once")
        runs[key] = Read(info, _summary(folder))
    return sorted(runs.values(), key=lambda run: run.info.started_wall_ns)


def _summary(folder: Path) -> Summary:
    """As `build` wrote it; made anew where it is missing, unreadable, or of another version."""
    try:
        summary = msgspec.json.decode((folder / run_folder.SUMMARY).read_bytes(), type=Summary)
    except (OSError, *run_folder.UNDECODABLE):
        return analyse(folder).summary
    return summary if summary.schema_version == SUMMARY_VERSION else analyse(folder).summary
