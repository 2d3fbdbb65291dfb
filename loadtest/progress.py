"""What a person sees of a run while it goes on: a bar at a terminal, else a plain line now and then.

It is fed from the run folder that the run is writing. Rates are of the time that passed between two lines of
uploads.jsonl, which has none while nothing ends; what came before the plan began is in none.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Never

from tqdm import tqdm

from reports import run_folder
from reports.run_folder import Phase, RunFolderError, UploadsTail

SILENT_S = 3.0  # a line a second is due, and may be late
RATE_OVER_S = 0.8  # of shorter times a rate would be chance: where a phase changes, a line is of less than a second
LINE_EVERY_S = 5.0  # where it cannot be drawn over
RAMP_UP = "ramp-up"


class Rates:
    """How many uploads there are a second now, and how many have failed in all."""

    def __init__(self, folder: Path) -> None:
        self._tail = UploadsTail(folder)
        self._since_ns = self._failed = self._uploads = self._bytes = 0
        self.text = ""

    def take(self, plan_start_ns: int) -> None:
        """Read what was written since the last call; the plan began then, on the monotonic clock."""
        lines = [line for line in self._tail.take() if line.phase != RAMP_UP]
        for line in lines:
            self._failed += sum(sum(name.failures.values()) for name in line.names.values())
            self._uploads += sum(name.count for name in line.names.values())
            self._bytes += sum(name.bytes for name in line.names.values())
        since_ns = self._since_ns or plan_start_ns
        until_ns = lines[-1].mono_ns if lines else time.monotonic_ns()
        if (passed_s := (until_ns - since_ns) / 1e9) < (RATE_OVER_S if lines else SILENT_S):
            return
        mb_per_s = self._bytes / passed_s / 1e6
        self.text = f"{self._uploads / passed_s:,.0f} uploads/s  {self._failed:,} failed  {mb_per_s:,.1f} MB/s"
        if lines:
            self._since_ns, self._uploads, self._bytes = until_ns, 0, 0


class Progress:
    """One bar for the whole plan; the lines of who is no terminal say the same. A context of `closing`."""

    def __init__(self, folder: Path, total_s: float, say: Callable[[str], None]) -> None:
        """`say` writes a line to standard error."""
        self._folder, self._total_s, self._say = folder, total_s, say
        self._bar = _new_bar(total_s)
        self._rates = Rates(folder)
        self._line_due_s = time.monotonic() + LINE_EVERY_S

    def close(self) -> None:
        self._bar.close()

    def say(self, text: str) -> None:
        """Something besides, in a line of its own."""
        self._bar.clear()
        self._say(text)
        self._bar.refresh()

    def update(self) -> None:
        """Show how far the run is. To be called several times a second."""
        try:
            phases = run_folder.read_run(self._folder).phases
        except RunFolderError:
            phases = []  # not begun yet
        planned = [phase for phase in phases if phase.name != RAMP_UP]
        if planned:
            self._rates.take(planned[0].start_ns)
        name, elapsed_s = self._where(planned)
        if not self._bar.disable:
            self._bar.set_description_str(name, refresh=False)
            self._bar.set_postfix_str(self._rates.text, refresh=False)
            self._bar.update(max(0.0, elapsed_s - self._bar.n))
        elif time.monotonic() >= self._line_due_s:
            self._line_due_s += LINE_EVERY_S
            self._say(f"{name:<9} {elapsed_s:.0f}/{self._total_s:.0f} s  {self._rates.text}".rstrip())

    def _where(self, planned: list[Phase]) -> tuple[str, float]:
        """(the phase that is now, how much of the plan is over)"""
        if not planned:
            return "starting", 0.0
        elapsed_s = (time.monotonic_ns() - planned[0].start_ns) / 1e9
        return planned[-1].name, max(0.0, min(elapsed_s, self._total_s))


def _new_bar(total_s: float) -> "tqdm[Never]":
    """As wide as the terminal is now; what is too much is cut off at the end. Disabled where there is none."""
    tqdm.monitor_interval = 0  # or a thread watches over bars, and compare forks beside it at its next run
    layout = "{desc:<9} {n:.0f}/{total:.0f} s{postfix}  |{bar}|"
    return tqdm(desc="starting", total=total_s, bar_format=layout, mininterval=0.2, dynamic_ncols=True, disable=None)
