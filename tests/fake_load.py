"""What an uploader asks of a load process, without Locust: options, payloads and an alarm; and lists of what it did.

gevent's hub runs in the test's own thread, so conditions are awaited with `soon`, not with `eventually`, which would
hold up the hub.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import gevent
from servers import DEADLINE_S

from loadtest.alarm import Alarm
from loadtest.client import Upload
from loadtest.options import DEFAULTS, validate
from loadtest.payloads import Payload
from loadtest.telemetry import Arrival
from loadtest.uploader import RunningPhase

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


class FakeLoad:
    """As `load_process.LoadProcess`."""

    def __init__(self, host: str, **options: str | bool) -> None:
        self.options = validate(host, DEFAULTS | {"payloads": "1KiB", "warm_up": "0", "phase_seconds": "1"} | options)
        self.payloads = self.options.load_payloads()
        self.wire = self.options.wire
        self.alarm = Alarm()
        self.in_flight = 0
        self.mistakes = 0
        self.addresses: dict[object, object] = {}
        self.ended: list[Ended] = []
        self.dropped: list[tuple[RunningPhase, str]] = []

    def record(self, *upload: object) -> None:
        self.ended.append(Ended(*upload))  # type: ignore[arg-type]

    def drop(self, phase: RunningPhase, row: str) -> None:
        self.dropped.append((phase, row))

    def codes(self) -> list[str]:
        return [ended.code for ended in self.ended]


@contextmanager
def fake_load(host: str, **options: str | bool) -> Iterator[FakeLoad]:
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
