"""Locust's fast HTTP user putting 4 KiB, as anybody would write it; prints its CPU per request. See
test_bench_generator.py."""

import time
from typing import Any

from locust import FastHttpUser, constant, events, task
from locust.env import Environment

BODY = bytes(range(256)) * 16
_started: list[float] = []


class PutUser(FastHttpUser):
    wait_time = constant(0)

    @task
    def put(self) -> None:
        self.client.put("/file", data=BODY, name="PUT")


@events.spawning_complete.add_listener
def _start(**_: Any) -> None:
    _started[:] = [time.process_time()]


@events.test_stop.add_listener
def _stop(environment: Environment, **_: Any) -> None:
    total = environment.stats.total
    assert total.num_failures == 0
    print(f"cpu_us_per_request={(time.process_time() - _started[0]) / total.num_requests * 1e6}")
