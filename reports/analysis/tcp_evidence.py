"""What the kernel saw of TCP during a run: how full the accept queues were, what was dropped, sent again or reset.

The recorder writes counters of the whole machine, so what is told here happened meanwhile, not necessarily to this
server; only queues and states are of its port. A queue is looked at once a tick, and one that fills and empties in
between is not seen; what overflowed is, since that is counted.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from reports.analysis.evidence import Evidence
from reports.missing_values import known, most, total
from reports.run_folder import AcceptQueue, HostTick
from reports.summary import TcpSummary


def tcp_summary(evidence: Evidence) -> TcpSummary | None:
    """What happened from the first to the last tick of the host; None without two of them."""
    ticks = evidence.host
    if len(ticks) < 2:
        return None
    counted = [tick for tick in ticks if tick.kernel] or ticks
    first, last = counted[0], counted[-1]
    fullest = max((queue for tick in ticks for queue in tick.accept_queues or ()), key=_fullness, default=None)
    return TcpSummary(
        queue_waiting=None if fullest is None else fullest.waiting,
        queue_limit=None if fullest is None else fullest.limit,
        dropped=_dropped(ticks),
        states=_states(ticks),
        time_wait=most(tick.tcp_time_wait for tick in ticks),
        counters={name: last.kernel[name] - before for name, before in first.kernel.items() if name in last.kernel},
        sent_bytes={
            name: last.network[name].sent - before.sent
            for name, before in first.network.items()
            if name in last.network
        },
    )


def _fullness(queue: AcceptQueue) -> tuple[float, int]:
    return queue.waiting / max(1, queue.limit), queue.waiting


def _dropped(ticks: Sequence[HostTick]) -> int | None:
    """Connections that the sockets of the port dropped. Those of a server that was started anew begin at 0."""
    told = known(total(queue.dropped for queue in tick.accept_queues or ()) for tick in ticks)
    return sum(max(0, after - before) for before, after in pairwise(told)) if told else None


def _states(ticks: Sequence[HostTick]) -> dict[str, int]:
    """The most connections that were in each state at one tick, the most frequent state first."""
    found: Counter[str] = Counter()
    for tick in ticks:
        found |= Counter(tick.tcp_states)
    return dict(found.most_common())
