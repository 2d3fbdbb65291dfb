"""Prints Locust's tables as JSON, once as `loadtest.locust_tables` fills them and once as Locust does, for its test."""

import json
import random

import numpy as np
from locust.stats import RequestStats

from loadtest import locust_tables
from loadtest.telemetry import Tallied

random.seed(1)


def table(stats):
    def row(entry):
        return {
            "num_requests": entry.num_requests,
            "num_none_requests": entry.num_none_requests,
            "num_failures": entry.num_failures,
            "total_response_time": entry.total_response_time,
            "min_response_time": entry.min_response_time,
            "max_response_time": entry.max_response_time,
            "total_content_length": entry.total_content_length,
            "timed": sum(entry.response_times.values()),
            "percentiles": [entry.get_response_time_percentile(share) for share in (0.5, 0.9, 0.99, 1.0)],
            "reqs": sum(entry.num_reqs_per_sec.values()),
        }

    rows = {f"{method} {name}": row(entry) for (name, method), entry in stats.entries.items()}
    return rows | {"Aggregated": row(stats.total)}


def tallied(name, count, **durations_ms):
    durations = {key: np.array([round(ms * 1e6) for ms in values]) for key, values in durations_ms.items()}
    return Tallied("phase", name, count, count * 1000, 0, 0, {}, durations)


def some(count):
    return [random.expovariate(0.01) for _ in range(count)]


PARTS = [
    tallied("long ≤4 KiB", 200, transaction=some(200), connect=some(3)),
    tallied("short ≤64 KiB", 100, transaction=some(100), connect=some(100), close=some(100)),
    tallied("long ≤4 KiB", 50, transaction=some(50)),
]

ours = RequestStats()
locust_tables.add(ours, PARTS[:2], uploads=True)
locust_tables.add(ours, PARTS[2:], uploads=True)

locusts = RequestStats()
for part in PARTS:
    for time_ns in part.durations["transaction"].tolist():
        locusts.log_request("UPLOAD", part.name, time_ns / 1e6, 1000)
totals = locusts.total
locusts.total = RequestStats().total  # a connection is no request of its own
for part in PARTS:
    for method, duration in (("CONNECT", "connect"), ("CLOSE", "close")):
        for time_ns in part.durations.get(duration, np.array([])).tolist():
            locusts.log_request(method, part.name.split()[0], time_ns / 1e6, 0)
locusts.total = totals

fired, failed, opened = RequestStats(), RequestStats(), RequestStats()
locust_tables.add(fired, PARTS, uploads=False)
locust_tables.add(failed, [Tallied("phase", "long ≤4 KiB", 0, 0, 0, 0, {"timeout": 3}, {})], uploads=True)
locust_tables.add(opened, [tallied("long ≤4 KiB", 2, transaction=[1, 2], response=[20, 50])], uploads=True)

print(
    json.dumps(
        {
            "ours": table(ours),
            "locusts": table(locusts),
            "fired": table(fired),
            "failed": table(failed),
            "open": table(opened),
            "uploads": sum(part.count for part in PARTS),
        }
    )
)
