"""CPU of the whole server, from its birth on, with every process counted once: a worker may be killed at any moment.

A dead worker's CPU is in three places at different times: in its own counters, until the last tick that shows it; in
its supervisor's `children_*`, once it was reaped; and in the event that the supervisor wrote then, from wait4. The last
tick can miss the most expensive part of a worker's life, or all of it, and a supervisor's last sample may be older than
a worker's end. So at any time the total is

    what supervisors used + what their children used, as last seen + what reaped children used beyond what was seen

the last being `children_*` minus all that was seen of children that have ended. No term can exceed the truth, so
the total never does; tests/unit/reports/test_server_cpu.py kills workers at every kind of moment.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reports.analysis.accounts import Account, Track
from reports.analysis.evidence import Evidence, Floats
from reports.run_folder import Event


@dataclass(frozen=True, slots=True)
class _Child:
    """A worker or a helper."""

    account: Account
    ended: bool

    def seen_of_ended(self, t_s: Floats) -> Floats:
        """Ended from its last sample on: a child reaped between two reads of one tick would else be counted twice."""
        if not self.ended:
            return np.zeros_like(t_s)
        seen: Floats = self.account.total_s * (t_s >= self.account.t_s[-1])
        return seen


@dataclass(frozen=True, slots=True)
class _Ending:
    """A child's end as the supervisor wrote it down, with all CPU that it ever used."""

    pid: int
    at_s: float
    cpu_s: float


def server_cpu(evidence: Evidence, tracks: Iterable[Track]) -> Account | None:
    """CPU of all server processes together; None when no server process was recorded."""
    server = [track for track in tracks if track.is_server]
    if not server:
        return None
    supervisors = [track for track in server if track.role == "server-master"]
    children = _children([track for track in server if track.role != "server-master"], _endings(evidence))
    own = [track.account for track in supervisors] + [child.account for child in children]
    reaped = [track.children for track in supervisors]

    t_s = np.unique(np.concatenate([account.t_s for account in [*own, *reaped]]))
    seen_of_ended = _total([child.seen_of_ended(t_s) for child in children], t_s)
    unseen = np.maximum(0.0, _total([account.at(t_s) for account in reaped], t_s) - seen_of_ended)
    total = _total([account.at(t_s) for account in own], t_s) + unseen
    return Account(t_s, np.maximum.accumulate(total))


def _total(parts: Sequence[Floats], t_s: Floats) -> Floats:
    return sum(parts, np.zeros_like(t_s))


def _children(tracks: Iterable[Track], endings: Iterable[_Ending]) -> list[_Child]:
    """All that were seen, completed by their endings, and those that only their ending tells of."""
    unmatched = list(endings)
    children = []
    for track in tracks:
        own = [ending for ending in unmatched if ending.pid == track.pid and ending.at_s >= track.t_s[0]]
        if own:
            unmatched.remove(own[0])
            children.append(_Child(_completed(track.account, own[0]), ended=True))
        else:
            children.append(_Child(track.account, track.ended))
    for ending in unmatched:
        account = Account(np.array([ending.at_s - 1e-6, ending.at_s]), np.array([0.0, ending.cpu_s]))
        children.append(_Child(account, ended=True))
    return children


def _completed(account: Account, ending: _Ending) -> Account:
    end_s = max(ending.at_s, float(account.t_s[-1]) + 1e-6)
    cpu_s = max(ending.cpu_s, account.total_s)
    return Account(np.append(account.t_s, end_s), np.append(account.cpu_s, cpu_s))


def _endings(evidence: Evidence) -> list[_Ending]:
    """Every worker and helper whose end the supervisor wrote down, in the order of time."""
    found = []
    for event in evidence.events:
        pid, cpu_s = event.details.get("pid"), reported_cpu(event, "cpu_user_s", "cpu_system_s")
        if event.kind in ("worker-ended", "status-ended") and isinstance(pid, int) and cpu_s is not None:
            found.append(_Ending(pid, evidence.s(event.mono_ns), cpu_s))
    return found


def reported_cpu(event: Event, *keys: str) -> float | None:
    """The sum of these details of an event; None when it does not have them all."""
    values = [event.details.get(key) for key in keys]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return sum(numbers) if len(numbers) == len(keys) else None
