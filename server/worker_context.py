"""What all connections of one worker share, and the replies they give: counting and answering are one step here, so
that a counter and what clients were told cannot differ."""

import asyncio
import logging
import os
from dataclasses import dataclass, field
from typing import Protocol

from server import scoreboard
from server.failure_codes import FAILURES, SERVER_CODES
from server.protocol import KeepOrClose, Limits, Reply, Timing, encode_reply
from server.storage.store import Store

log = logging.getLogger("server")

_FAILURE_WORD = {code: scoreboard.FAILURES + i for i, code in enumerate(SERVER_CODES)}
_STATUS = {failure.code: failure.status for failure in FAILURES if failure.status is not None}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long clients may take, in seconds; `min_rate` is bytes a second, 0 for any."""

    header_s: float
    idle_s: float
    min_rate: int
    grace_s: float


class Client(Protocol):
    """One client, as the worker looks after all that are open."""

    due_s: float
    """When to look at its clocks."""

    def look_at_clocks(self, now_s: float) -> None:
        """`due_s` has come: end what has taken too long, or find when to look again."""

    def shut_down(self) -> None:
        """The drain timeout has passed: refuse what is under way, close what is idle."""

    def abort(self) -> None:
        """End at once, whatever is unsent."""


@dataclass(slots=True)
class WorkerContext:
    """One worker's store, limits and counters."""

    slot: int
    store: Store
    limits: Limits
    record: memoryview
    """The slot's words of the scoreboard."""
    max_connections: int
    patience: Patience
    loop: asyncio.AbstractEventLoop
    clock_s: float = 0.0
    """The clock for patience, set at each of the worker's beats to the time of the next: reading it costs nothing, and
    nobody is cut off too early. Time in which the worker itself did not run, because it was stopped or hung, does not
    count: it would look like the clients' silence."""
    draining: bool = False
    pid: int = field(default_factory=os.getpid)

    def accepted(self) -> None:
        self.record[scoreboard.CONNECTIONS_ACCEPTED] += 1

    def stored(self, uploads: int, size_bytes: int) -> None:
        """Count uploads that are in the store, as durable as was asked for. Due before their replies."""
        self.record[scoreboard.UPLOADS_STORED] += uploads
        self.record[scoreboard.BYTES_STORED] += size_bytes

    def ok(self, name: str, size_bytes: int, digest: str | None, keep: bool, timing: Timing) -> bytes:
        connection: KeepOrClose = "keep-alive" if keep else "close"
        return encode_reply(
            Reply("stored", "ok", "", name, size_bytes, digest, connection, self.slot, self.pid, timing)
        )

    def failed(self, code: str, message: str, timing: Timing, name: str | None, received: int, keep: bool) -> bytes:
        """Count a failure, and the reply that tells it."""
        self.count_failure(code, message)
        connection: KeepOrClose = "keep-alive" if keep else "close"
        return encode_reply(
            Reply(_STATUS[code], code, message, name, received, None, connection, self.slot, self.pid, timing)
        )

    def count_failure(self, code: str, message: str) -> None:
        """Count and log a failure that nobody is left to be told of."""
        self.record[_FAILURE_WORD[code]] += 1
        log.info("worker %d: %s: %s", self.slot, code, message, extra={"slot": self.slot, "code": code})
