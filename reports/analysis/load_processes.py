"""What each load process says of itself: its CPU, and the time it was kept from one.

The recorder sees the load processes of its own host only. These lines come from all hosts, once a second, so a
generator that was the limit elsewhere is seen as well. They tell one thing more: how long a process was ready to run
and waited, which nobody can see in its CPU.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from reports.analysis.accounts import Account
from reports.analysis.evidence import Evidence
from reports.run_folder import LoadTick


@dataclass(frozen=True, slots=True)
class LoadAccounts:
    """One load process over time, both in seconds."""

    cpu: Account
    run_delay: Account | None
    """None where its kernel does not say."""


def load_accounts(evidence: Evidence) -> list[LoadAccounts]:
    """Every load process that wrote at least one line, by host and pid."""
    ticks: dict[tuple[str, int], list[LoadTick]] = defaultdict(list)
    for tick in evidence.load:
        ticks[tick.host, tick.pid].append(tick)
    return [_accounts(evidence, own) for own in ticks.values()]


def _accounts(evidence: Evidence, ticks: list[LoadTick]) -> LoadAccounts:
    delays = [(evidence.s(tick.mono_ns), tick.run_delay_ns / 1e9) for tick in ticks if tick.run_delay_ns is not None]
    return LoadAccounts(
        cpu=_account([(evidence.s(tick.mono_ns), tick.cpu_s) for tick in ticks]),
        run_delay=_account(delays) if delays else None,
    )


def _account(points: list[tuple[float, float]]) -> Account:
    t_s, values = np.array(sorted(points), dtype=np.float64).T
    return Account(t_s, np.maximum.accumulate(values))
