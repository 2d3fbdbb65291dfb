"""TCP as the kernel counts it: how full the accept queues of a port are, the states of its connections, and what was
dropped, sent again or reset on the whole machine. psutil has none of it but the states, for which it looks through all
descriptors of a process: 15 to 128 ms each.

It is the evidence for what no process can tell of itself: a connection that waits in an accept queue is nobody's yet,
and one that was dropped there never was. No privilege is needed. Counters are cumulative and of the whole network
namespace, not of the server alone: what they say is what happened meanwhile.
"""

from collections import Counter
from operator import attrgetter

from reports.run_folder import AcceptQueue
from server.ports import sockets

# include/net/tcp_states.h. TIME_WAIT is not asked for: there may be tens of thousands, and sockstat counts them.
_STATES = {
    1: "established",
    2: "syn-sent",
    3: "syn-received",
    4: "fin-wait-1",
    5: "fin-wait-2",
    7: "close",
    8: "close-wait",
    9: "last-ack",
    11: "closing",
}
_STATES_MASK = sum(1 << state for state in _STATES)

# Named as the kernel does: Documentation/networking/snmp_counter.rst
COUNTERS = {
    "Tcp": ("ActiveOpens", "PassiveOpens", "AttemptFails", "EstabResets", "RetransSegs", "OutRsts"),
    "TcpExt": (
        "ListenOverflows",
        "ListenDrops",
        "TCPReqQFullDrop",
        "TCPSynRetrans",
        "TCPTimeouts",
        "TCPBacklogDrop",
        "TCPRcvQDrop",
        "TCPAbortOnData",
        "TCPAbortOnMemory",
        "TCPTimeWaitOverflow",
        "PruneCalled",
    ),
}


def accept_queues(port: int) -> list[AcceptQueue] | None:
    """That of each listening socket of the port, in the order of their opening; None where the kernel does not tell."""
    try:
        rows = list(sockets.diagnosed(1 << sockets.LISTEN, local=port))
    except OSError:
        return None
    rows.sort(key=attrgetter("inode"))
    return [AcceptQueue(waiting=row.queue, limit=row.limit or 0, dropped=row.dropped) for row in rows]


def states(port: int) -> dict[str, int] | None:
    """How many connections have this local port, by their state, without those in TIME_WAIT; None where the kernel does
    not tell. It takes a pass over all of its sockets."""
    try:
        found = Counter(row.state for row in sockets.diagnosed(_STATES_MASK, local=port))
    except OSError:
        return None
    return {_STATES[state]: number for state, number in found.items()}


def in_use(path: str = "/proc/net/sockstat") -> dict[str, int]:
    """The TCP line of /proc/net/sockstat: `inuse` (IPv4), `orphan`, `tw` (TIME_WAIT), `alloc`, and `mem` in pages.
    Empty when it cannot be read."""
    for line in sockets.kernel_text(path).splitlines():
        name, _, rest = line.partition(":")
        if name == "TCP":
            words = rest.split()
            return dict(zip(words[::2], map(int, words[1::2]), strict=True))
    return {}


def counters(paths: tuple[str, ...] = ("/proc/net/snmp", "/proc/net/netstat")) -> dict[str, int]:
    """Those of COUNTERS that this kernel has."""
    found: dict[str, int] = {}
    for path in paths:
        lines = sockets.kernel_text(path).splitlines()
        for names, values in zip(lines[::2], lines[1::2], strict=False):  # in pairs: names, then values
            protocol = names.partition(":")[0]
            if wanted := COUNTERS.get(protocol):
                all_of_it = dict(zip(names.split()[1:], values.split()[1:], strict=False))
                found |= {name: int(all_of_it[name]) for name in wanted if name in all_of_it}
    return found
