"""One test's load in one process: what all who upload share, and where they say what they did. Knows nothing of Locust.

A `Load` is made anew for each test, by `load_process.py`. Users of the closed model and the pool of the open model ask
it for options, payloads and the phase, and tell it how each upload ended.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from loadtest.alarm import Alarm
from loadtest.client import Upload
from loadtest.hopeless import FirstFailures
from loadtest.link import Address
from loadtest.options import LoadOptions
from loadtest.payloads import Payload, PayloadSet
from loadtest.telemetry import Arrival, Telemetry
from loadtest.wires import Target
from reports.run_folder import mode_of, upload_name
from server.failure_codes import BY_CODE, DROPPED


class FailedUploadError(Exception):
    """A failed upload in Locust's tables, which group by the text: it is the same for every failure of one code."""

    def __init__(self, code: str) -> None:
        super().__init__(f"{code}: {BY_CODE[code].text}" if code in BY_CODE else code)


@dataclass(slots=True)
class RunningPhase:
    """The phase that an upload belongs to. `end_ns` is known beforehand in the open model, afterwards in the closed."""

    name: str
    uploads_per_connection: int
    end_ns: int | None = None

    def over_by(self, mono_ns: int) -> bool:
        return self.end_ns is not None and mono_ns > self.end_ns


class Load:
    """What uploaders ask for, and tell."""

    def __init__(
        self,
        options: LoadOptions,
        payloads: PayloadSet,
        alarm: Alarm,
        fire: Callable[..., object],
        *,
        fires_all: bool,
        worker_index: int,
    ) -> None:
        """`fire` is Locust's `request` event, which gets every failure, and with `fires_all` every upload.
        `worker_index` tells the load processes of a run apart."""
        self.options = options
        self.payloads = payloads
        self.alarm = alarm
        self.phase = RunningPhase("ramp-up", options.plan[0].uploads_per_connection)
        self.addresses: dict[Target, Address] = {}
        self.in_flight = 0
        self.any_acknowledged = False
        self.failed_first = FirstFailures()
        self.uploaders = 0
        """How many there have been: of the closed model's users, or of the open model's pool."""
        self.mistakes = 0
        """Uploads that failed for a reason nobody foresaw."""
        self.telemetry = Telemetry()
        self._fire = fire
        self._fires_all = fires_all
        self._next_user = worker_index

    def next_user(self) -> int:
        """A number for a new user: different for every user of a run, the same in every run."""
        number = self._next_user
        self._next_user += 1024  # the numbers of several load processes are interleaved
        return number

    def record(self, phase: RunningPhase, payload: Payload, name: str, done: Upload, arrival: Arrival | None) -> None:
        size_bytes = payload.size_bytes
        row = row_of(phase.uploads_per_connection, size_bytes)
        self.telemetry.record(phase.name, row, size_bytes, done, arrival, late=phase.over_by(done.end_ns))
        if done.error is None:
            self.any_acknowledged = True
        elif not self.any_acknowledged:
            self.failed_first.add(name, size_bytes, done.error.code, done.error.message)
        if done.error is not None or self._fires_all:
            begun_ns = done.start_ns if arrival is None else arrival.intended_ns
            code = None if done.error is None else done.error.code
            self._tell(row, done.end_ns - begun_ns, 0 if code else size_bytes, code)

    def think(self, phase: RunningPhase, payload: Payload, pause_ns: int) -> None:
        self.telemetry.think(phase.name, row_of(phase.uploads_per_connection, payload.size_bytes), pause_ns)

    def drop(self, phase: RunningPhase, payload: Payload) -> None:
        row = row_of(phase.uploads_per_connection, payload.size_bytes)
        self.telemetry.drop(phase.name, row)
        self._tell(row, 0, 0, DROPPED)

    def _tell(self, row: str, took_ns: int, size_bytes: int, code: str | None) -> None:
        self._fire(
            request_type="UPLOAD",
            name=row,
            response_time=took_ns / 1e6,
            response_length=size_bytes,
            exception=None if code is None else FailedUploadError(code),
            context={},
        )


@lru_cache
def row_of(uploads_per_connection: int, size_bytes: int) -> str:
    """The name that such an upload is counted under."""
    return upload_name(mode_of(uploads_per_connection), size_bytes)
