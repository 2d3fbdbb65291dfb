"""What control groups allowed server and load of CPU and memory, and how often that was not enough.

A quota that is used up stops all processes of its group until the next period, 0.1 s long as a rule: no core is full
meanwhile, and no other figure shows why nothing goes on. Groups are read on the recorder's slower tick, so what a phase
had of it is interpolated.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from reports.analysis.accounts import Account
from reports.analysis.evidence import Evidence
from reports.missing_values import most
from reports.run_folder import ControlGroup
from reports.summary import ControlGroupSummary

Seen = list[tuple[float, ControlGroup]]
"""One group, with the times at which it was read."""


@dataclass(frozen=True, slots=True)
class Quota:
    """A CPU quota over time: its periods so far, and those in which it was used up."""

    group: ControlGroup
    periods: Account
    throttled: Account


def quotas(evidence: Evidence) -> list[Quota]:
    """Every quota that was read, of server and load."""
    return [
        Quota(
            group=seen[-1][1],
            periods=_account(seen, lambda group: group.periods),
            throttled=_account(seen, lambda group: group.throttled_periods),
        )
        for seen in _groups(evidence)
        if any(group.periods is not None for _, group in seen)
    ]


def control_group_summaries(evidence: Evidence) -> list[ControlGroupSummary]:
    """Every group that limited server or load."""
    return [_summary(seen) for seen in _groups(evidence)]


def _groups(evidence: Evidence) -> list[Seen]:
    """In the order in which they came."""
    found: defaultdict[str, Seen] = defaultdict(list)
    for tick in evidence.host:
        for group in tick.control_groups:
            if any(role.startswith(("server-", "load-")) for role in group.roles):
                found[group.path].append((evidence.s(tick.mono_ns), group))
    return list(found.values())


def _summary(seen: Seen) -> ControlGroupSummary:
    last = seen[-1][1]
    limits = [limit for limit in (last.memory_max_bytes, last.memory_high_bytes) if limit is not None]
    throttled_us = _risen(seen, lambda group: group.throttled_us)
    return ControlGroupSummary(
        path=last.path,
        roles=last.roles,
        quota_cores=last.quota_cores,
        periods=_risen(seen, lambda group: group.periods),
        throttled_periods=_risen(seen, lambda group: group.throttled_periods),
        throttled_s=None if throttled_us is None else throttled_us / 1e6,
        memory_limit_bytes=min(limits, default=None),
        memory_peak_bytes=most(group.memory_bytes for _, group in seen),
        memory_limit_hits=_risen(seen, lambda group: group.memory_limit_hits),
        oom_kills=_risen(seen, lambda group: group.oom_kills),
    )


def _risen(seen: Seen, counter: Callable[[ControlGroup], int | None]) -> int | None:
    """None where it was never told."""
    return round(_account(seen, counter).total_s) if any(counter(group) is not None for _, group in seen) else None


def _account(seen: Seen, counter: Callable[[ControlGroup], int | None]) -> Account:
    """What it rose by since it was first told; a group that was made anew begins at 0 again."""
    told: Sequence[tuple[float, int]] = [(t_s, at) for t_s, group in seen if (at := counter(group)) is not None]
    rises = [0, *(max(0, after - before) for (_, before), (_, after) in pairwise(told))]
    return Account(np.array([t_s for t_s, _ in told]), np.cumsum(rises, dtype=np.float64)[: len(told)])
