"""A test's load without Locust, which lists what uploaders and Locust were told.

gevent's hub runs in the test's own thread, so conditions are awaited with `soon`, not with `eventually`, which would
hold up the hub.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import gevent
from servers import DEADLINE_S

from loadtest.alarm import Alarm
from loadtest.client import Upload
from loadtest.load import Load, RunningPhase, row_of
from loadtest.options import DEFAULTS, validate
from loadtest.payloads import Payload
from loadtest.telemetry import Arrival

T = TypeVar("T")


class Ended(NamedTuple):
    phase: RunningPhase
    row: str
    payload: Payload
    done: Upload
    arrival: Arrival | None

    @property
    def code(self) -> str:
        return "ok" if self.done.error is None else self.done.error.code


class FakeLoad(Load):
    def __init__(self, host: str, *, fires_all: bool = False, worker_index: int = 0, **options: str | bool) -> None:
        made = validate(host, DEFAULTS | {"payloads": "1KiB", "warm_up": "0", "phase_seconds": "1"} | options)
        self.ended: list[Ended] = []
        self.dropped: list[tuple[RunningPhase, str]] = []
        self.fired: list[dict[str, Any]] = []
        super().__init__(
            made, made.load_payloads(), Alarm(), self._fired, fires_all=fires_all, worker_index=worker_index
        )

    def _fired(self, **event: Any) -> None:
        self.fired.append(event)

    def record(self, phase: RunningPhase, payload: Payload, name: str, done: Upload, arrival: Arrival | None) -> None:
        row = row_of(phase.uploads_per_connection, payload.size_bytes)
        self.ended.append(Ended(phase, row, payload, done, arrival))
        super().record(phase, payload, name, done, arrival)

    def drop(self, phase: RunningPhase, payload: Payload) -> None:
        self.dropped.append((phase, row_of(phase.uploads_per_connection, payload.size_bytes)))
        super().drop(phase, payload)

    def codes(self) -> list[str]:
        return [ended.code for ended in self.ended]


@contextmanager
def fake_load(host: str, **options: Any) -> Iterator[FakeLoad]:
    load = FakeLoad(host, **options)
    try:
        yield load
    finally:
        load.alarm.close()


def soon(condition: Callable[[], T], what: str) -> T:
    """As `servers.eventually`, while the hub runs."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        gevent.sleep(0.002)
    return value
