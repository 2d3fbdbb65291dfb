"""What a connection costs in memory, from a run in which their number changed: USS of the server = fixed + each · N.

Only such a ramp carries a line: with a number of connections that hardly changes, whatever else grew would be charged
to them. It is the server's own count of its connections, so a server that shows none has no such number.
"""

from collections.abc import Iterator

import numpy as np

from reports.analysis.evidence import Evidence
from reports.run_folder import ProcessTick

LEAST_RANGE = 100  # connections, between the fewest and the most
LEAST_TICKS = 5
LEAST_R_SQUARED = 0.9


def uss_per_connection(evidence: Evidence) -> float | None:
    """Bytes; None where the data do not carry it."""
    points = list(_points(evidence))
    if len(points) < LEAST_TICKS:
        return None
    connections, uss = np.array(points, dtype=np.float64).T
    if np.ptp(connections) < LEAST_RANGE or not np.ptp(uss):
        return None
    slope, intercept = np.polyfit(connections, uss, 1)
    unexplained = ((uss - intercept - slope * connections) ** 2).sum()
    explained = 1 - unexplained / ((uss - uss.mean()) ** 2).sum()
    return float(slope) if explained >= LEAST_R_SQUARED and slope > 0 else None


def _points(evidence: Evidence) -> Iterator[tuple[int, int]]:
    """(connections, USS of the whole server) at each tick that knows both."""
    connections = {
        tick.mono_ns: sum(slot.connections_now for slot in tick.scoreboard)
        for tick in evidence.host
        if tick.scoreboard is not None
    }
    for tick in evidence.ticks:
        uss = _uss(tick)
        if uss is not None and tick.mono_ns in connections:
            yield connections[tick.mono_ns], uss


def _uss(tick: ProcessTick) -> int | None:
    values = [sample.uss_bytes for sample in tick.processes if sample.role.startswith("server-")]
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None
