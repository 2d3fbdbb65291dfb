"""Our uploads in Locust's own tables: rows UPLOAD, CONNECT and CLOSE, filled once a second from the raw durations.

Locust's way, one `request` event for each, costs 5 µs a row and upload; here it is nearly nothing. Who listens to that
event besides Locust still gets one for every upload (`LoadProcess.record`), and everybody gets one for each failure.
Percentiles there are Locust's, in whole milliseconds; ours are in the report.
"""

import time
from collections.abc import Iterable

import numpy as np
from locust import stats as locust_stats
from locust.stats import RequestStats, StatsEntry

from loadtest.telemetry import Nanoseconds, Tallied
from reports.run_folder import split_name

# "Aggregated" counts uploads: a connection is opened for one, not instead of one.
_PARTS = (("CONNECT", "connect"), ("CLOSE", "close"))


def add(stats: RequestStats, tallied: Iterable[Tallied], *, uploads: bool) -> None:
    """Add what was counted. `uploads` False leaves out the rows UPLOAD, which events have filled already."""
    for part in tallied:
        if uploads and part.count:
            times = part.durations.get("response", part.durations["transaction"])
            entry = _entry(stats, "UPLOAD", part.name, times, part.bytes)
            stats.entries[part.name, "UPLOAD"].extend(entry)
            stats.total.extend(entry)
        mode, _ = split_name(part.name)
        for method, duration in _PARTS:
            if duration in part.durations:
                stats.entries[mode, method].extend(_entry(stats, method, mode, part.durations[duration], 0))


def _entry(stats: RequestStats, method: str, name: str, times_ns: Nanoseconds, size_bytes: int) -> StatsEntry:
    """These durations as one of Locust's entries, which knows how to be added to another."""
    times_ms = times_ns / 1e6
    entry = StatsEntry(stats, name, method)
    entry.num_requests = len(times_ms)
    entry.total_response_time = float(times_ms.sum())  # type: ignore[assignment]  # Locust's own are floats too
    entry.min_response_time = float(times_ms.min())  # type: ignore[assignment]
    entry.max_response_time = float(times_ms.max())  # type: ignore[assignment]
    entry.total_content_length = size_bytes
    entry.last_request_timestamp = time.time()
    entry.num_reqs_per_sec[int(entry.last_request_timestamp)] = len(times_ms)
    whole, counts = np.unique(np.rint(times_ms), return_counts=True)
    for value, count in zip(whole.tolist(), counts.tolist(), strict=True):
        entry.response_times[locust_stats.bucket_response_time(value)] += count
    return entry
