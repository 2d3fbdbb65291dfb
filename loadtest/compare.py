"""Two sets of options, run in turn and compared: `python -m loadtest compare`, which is `make compare`.

The runs are interleaved as A B B A, so that what changes on the machine meanwhile falls on both sets alike. Whether
there is a difference is for the reports to say: this file only runs what they need, in the order they need.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest import run as main_job
from loadtest.option_error import OptionError
from loadtest.run import FAILED, OK, Interrupts, Job
from reports.signals import INTERRUPTED
from server.printing import one_line

THRESHOLD_BROKEN = 3  # as a run ends when a --fail-if condition came true
START_AND_END_S = 4.0  # of server, Locust, recorder and report, beside what is planned


@dataclass(frozen=True, slots=True)
class Side:
    """One set of options; `job` makes a new run of it, which has a folder of its own."""

    label: str
    job: Callable[[], Job]


def compare_sides(sides: Sequence[Side], pairs: int, tolerance: float) -> int:
    """Run both sides `pairs` times, compare them, and return the exit code: the comparison's, or where that is 0 the
    worst of the runs that failed or broke a condition. OptionError and RunError as from `run`;
    what was run until then is compared nevertheless."""
    interrupts = Interrupts()
    first, second = sides
    if first.label == second.label:
        raise OptionError(f"both sets have the label {first.label!r}: runs of one label are repeats of one thing")
    lasts_s = sum(main_job.check(side.job()).planned_s + START_AND_END_S for side in sides) * pairs
    order = list(_in_turn(first, second, pairs))
    print(
        f"{len(order)} runs, about {max(1.0, lasts_s / 60):.0f} min: {one_line(first.label)}, {one_line(second.label)}",
        flush=True,
    )
    folders: list[Path] = []
    worst = OK
    try:
        for number, side in enumerate(order, 1):
            print(f"\nrun {number} of {len(order)}: {one_line(side.label)}", flush=True)
            ended, folder = main_job.run(side.job(), interrupts)
            if interrupts.count:
                break
            folders.append(folder)
            worst = max(worst, ended if ended in (FAILED, THRESHOLD_BROKEN) else OK)
    finally:
        code = _compare(folders, first.label, tolerance) if len(folders) > 1 else OK
    return INTERRUPTED if interrupts.count else code or worst


def _in_turn(first: Side, second: Side, pairs: int) -> Iterator[Side]:
    for pair in range(pairs):
        yield from (second, first) if pair % 2 else (first, second)


def _compare(folders: Sequence[Path], baseline: str, tolerance: float) -> int:
    print(flush=True)
    command = [sys.executable, "-m", "reports", "compare", *map(str, folders)]
    command += ["--baseline", baseline, "--tolerance", f"{tolerance:f}"]
    return subprocess.run(command, start_new_session=True, check=False).returncode
