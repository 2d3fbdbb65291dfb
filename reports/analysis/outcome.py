"""What a command that judges a run by its report exits with, the worst first.

4   INVALID or NOISY: the numbers say nothing, whatever they are
3   a threshold is broken
1   the run failed, or an upload did and no threshold says how many may
0   none of these
"""

from collections.abc import Sequence

from reports.run_folder import Ending
from reports.summary import LoadSummary, ThresholdResult, Verdict


def exit_code(verdict: Verdict, thresholds: Sequence[ThresholdResult], load: LoadSummary, ended: Ending | None) -> int:
    """`ended` is None of a run that was cut off, which is judged as far as it went."""
    if verdict in ("INVALID", "NOISY"):
        return 4
    if any(result.broken for result in thresholds):
        return 3
    if ended is not None and ended.how == "failed":
        return 1
    allowed = any(result.condition.startswith("failures ") for result in thresholds)
    return 1 if load.failures and not allowed else 0
