"""Who uploads: a connection's owner, which keeps, ends and replaces it as the phase says, and records each upload.

Both models use it: a user of the closed model is one with pauses between, the open model has a pool of them.
"""

import logging
import time

import gevent

from loadtest.client import NOT, Upload, UploadClient, UploadError
from loadtest.gevent_sockets import HubWaiter
from loadtest.load import Load, RunningPhase
from loadtest.payloads import Payload
from loadtest.telemetry import Arrival

log = logging.getLogger("socketswarm")


class Uploader:
    """Uploads one file after the other over one connection at a time. Not shared between greenlets."""

    def __init__(self, load: Load) -> None:
        options = load.options
        self._load = load
        load.uploaders += 1
        self._phase: RunningPhase | None = None
        self._on_connection = 0  # uploads so far
        self._client = UploadClient(
            options.target,
            wire=options.wire,
            tls=options.tls,
            waiter=HubWaiter,
            timeout_s=options.timeout_s,
            closer=options.closer,
            close=options.close,
            addresses=load.addresses,
        )

    def upload(self, phase: RunningPhase, payload: Payload, name: str, arrival: Arrival | None = None) -> Upload:
        """One upload of `phase`, recorded; its failure is in the result, also a mistake of ours or of a wire. One in
        which the greenlet is killed is recorded as unfinished."""
        if phase is not self._phase:
            self._phase = phase
            self.close()
        last = self._on_connection + 1 == phase.uploads_per_connection  # never, with 0
        load = self._load
        load.in_flight += 1
        start_ns = time.monotonic_ns()
        done = None
        try:
            done = self._client.upload(name, payload, last=last)
        except gevent.GreenletExit:  # a server that hangs must not go uncounted
            done = _failed("unfinished", start_ns)
            raise
        except Exception as error:
            if not load.mistakes:  # the others are most likely the same, and thousands
                log.exception("an upload failed for a reason nobody foresaw; others like it are only counted")
            load.mistakes += 1
            done = _failed("client_failed", start_ns, f"{type(error).__name__}: {error}")
        finally:
            load.in_flight -= 1
            if done is not None:
                load.record(phase, payload, name, done, arrival)
        self._count(done)
        return done

    def _count(self, done: Upload) -> None:
        """The server may have closed the connection before this upload, so that it was the first of another one."""
        before = 0 if done.connected else self._on_connection
        closed = done.error is not None or done.close_ns != NOT
        self._on_connection = 0 if closed else before + 1

    def close(self) -> None:
        self._client.close()
        self._on_connection = 0


def _failed(code: str, start_ns: int, message: str = "") -> Upload:
    return Upload(error=UploadError(code, message), start_ns=start_ns, end_ns=time.monotonic_ns(), connected=False)
