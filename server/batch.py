"""Small uploads that arrived whole, stored and answered together at the end of a turn of the event loop.

Why: a worker under load wakes to many readable connections. Taken one by one, each upload goes through reading,
parsing, opening, writing, closing, renaming and sending, and each of these steps, in the interpreter and in the kernel,
throws the others' code out of the caches. Taken step by step for all of them, every step finds its code where it left
it: 34 instead of 54 µs of CPU for a 4-KiB upload to tmpfs, with the same system calls (median of 9, one worker, 50
connections). The reply to one upload waits for its turn's other reads, which take less time than this saves.

So reads go into an arena, and a body stays where it was read until its turn is over. An upload that arrives in pieces
takes the other way, in `connection.py`.
"""

import logging
import time
from collections.abc import Sequence
from typing import Protocol, TypeVar

from msgspec import UNSET
from xxhash import xxh3_128_hexdigest

from server.protocol import DigestAlgorithm, Hasher, Timing, UploadStarted, digest_of, new_hasher
from server.storage.store import Incoming, StoreError
from server.worker_context import WorkerContext

log = logging.getLogger("server")

RECEIVE_BYTES = 256 << 10  # the most that is read at once
ARENA_BYTES = 2 * RECEIVE_BYTES
AT_ONCE = 64  # uploads settled in one go: each has a file open meanwhile, and descriptors must not run out


class Sender(Protocol):
    """Who an upload came from."""

    accepted_ns: int

    def has_more(self) -> bool:
        """Whether there are uploads of it here that are answered after this one."""

    def answer(self, reply: bytes, *, keep: bool) -> None:
        """The upload is stored, or refused by the store: send the reply, and close unless `keep`."""

    def wait(self) -> None:
        """Its uploads are on their way to a slow disk: no more of it until all of them are answered."""

    def close(self) -> None:
        """Its answer failed for a reason nobody foresaw: close without one, rather than let the client wait."""


Content = TypeVar("Content")
Item = tuple[Sender, UploadStarted, Content, int, int]
"""(sender, upload, its bytes, when header and last byte had arrived in monotonic nanoseconds): a bare tuple, made for
every upload."""
Results = tuple[list[str | None], list[str | StoreError]]
"""The digests of some uploads, and the names that they got or why they are not stored."""


class InPieces:
    """An upload that arrives in pieces, between its header and its last byte."""

    __slots__ = (
        "begun_s",
        "expected",
        "hashers",
        "header_ns",
        "incoming",
        "keep",
        "received",
        "refusal",
        "started",
        "want",
    )

    def __init__(
        self, started: UploadStarted, incoming: Incoming, begun_s: float, refusal: StoreError | None = None
    ) -> None:
        """One with a `refusal` is received only to be told so: what follows on the connection can be served."""
        header = started.header
        self.started = started
        self.incoming = incoming
        self.refusal = refusal
        self.received = 0
        self.begun_s = begun_s
        self.header_ns = time.monotonic_ns()
        self.keep = header.connection != "close"
        self.want: DigestAlgorithm | None = "xxh3_128"
        if header.want_digest is not UNSET:
            self.want = None if header.want_digest == "none" else header.want_digest
        self.hashers: dict[str, Hasher] = {}
        if self.want:
            self.hashers[self.want] = new_hasher(self.want)
        self.expected: str | None = None
        if header.digest is not UNSET:
            self.expected = header.digest.lower()
            algorithm: DigestAlgorithm = "sha256" if self.expected.startswith("sha256") else "xxh3_128"
            self.hashers.setdefault(algorithm, new_hasher(algorithm))

    def write(self, view: memoryview) -> None:
        self.incoming.write(view)
        self.received += len(view)
        for hasher in self.hashers.values():
            hasher.update(view)

    def digest(self) -> str | None:
        return f"{self.want}:{self.hashers[self.want].hexdigest()}" if self.want else None

    def trouble(self) -> tuple[str, str] | None:
        """Why it is not to be stored though all of it is here, as code and message."""
        if self.refusal is not None:
            return self.refusal.code, self.refusal.message
        if self.expected is None:
            return None
        algorithm = self.expected.partition(":")[0]
        actual = f"{algorithm}:{self.hashers[algorithm].hexdigest()}"
        if actual == self.expected:
            return None
        return "digest_mismatch", f"the bytes have {actual}, the header said {self.expected}"


class Batch:
    """A worker's arena and the uploads that wait in it."""

    def __init__(self, worker: WorkerContext) -> None:
        self._worker = worker
        self._arena = memoryview(bytearray(ARENA_BYTES))
        self._used = 0
        self._items: list[Item[memoryview]] = []
        self._scheduled = False

    def buffer(self) -> memoryview:
        """Where the next RECEIVE_BYTES may be read to. Good until the next call, unless `claim` keeps it. It must not
        flush: closing or pausing a transport while libuv asks for a buffer makes that call a null pointer."""
        return self._arena[self._used : self._used + RECEIVE_BYTES]

    def received(self, nbytes: int) -> memoryview:
        """What has just been read into `buffer`."""
        return self._arena[self._used : self._used + nbytes]

    def claim(self, nbytes: int) -> None:
        """Keep what was just read until the next flush: added uploads lie in it. Flushes when another would not fit."""
        self._used += nbytes
        if self._used > ARENA_BYTES - RECEIVE_BYTES:
            self.flush()

    def add(self, sender: Sender, upload: UploadStarted, body: memoryview) -> None:
        """Store and answer this upload at the end of the turn."""
        now_ns = time.monotonic_ns()
        self._items.append((sender, upload, body, now_ns, now_ns))
        if not self._scheduled:
            self._scheduled = True
            self._worker.loop.call_soon(self._end_of_turn)

    def complete(self, sender: Sender, upload: InPieces) -> None:
        """Store and answer an upload that came in pieces, now that its last byte is here."""
        item = (sender, upload.started, upload.incoming, upload.header_ns, time.monotonic_ns())
        self._answer([item], ([upload.digest()], [self._commit(upload.incoming)]))

    def close(self) -> None:
        """Store and answer all that wait; nothing may be added any more."""
        self.flush()

    def flush(self) -> None:
        """Store and answer all that wait, in the order they came. Nothing waits afterwards."""
        items, self._items = self._items, []
        self._used = 0
        for start in range(0, len(items), AT_ONCE):
            some = items[start : start + AT_ONCE]
            self._answer(some, self._store(some))

    def _answer(self, items: Sequence[Item[Content]], results: Results) -> None:
        """Count what was stored, and answer every sender in the order of its uploads."""
        worker = self._worker
        digests, outcomes = results
        stored_ns = time.monotonic_ns()
        sizes = [item[1].header.file_size for item, name in zip(items, outcomes, strict=True) if isinstance(name, str)]
        worker.stored(len(sizes), sum(sizes))
        for index, (sender, upload, _, header_ns, last_byte_ns) in enumerate(items):
            name = outcomes[index]
            try:
                # In a drain a connection closes after the last of its uploads that are here already.
                keep = upload.header.connection != "close" and not (worker.draining and not sender.has_more())
                size = upload.header.file_size
                if isinstance(name, StoreError):
                    keep = keep and name.code == "exists"
                    timing = Timing(sender.accepted_ns, header_ns, last_byte_ns)
                    reply = worker.failed(name.code, name.message, timing, upload.file_name, size, keep)
                else:
                    timing = Timing(sender.accepted_ns, header_ns, last_byte_ns, stored_ns)
                    reply = worker.ok(name, size, digests[index], keep, timing)
                sender.answer(reply, keep=keep)
            except Exception:  # one connection's trouble must not keep the others waiting
                log.exception("worker %d: an upload could not be answered", worker.slot)
                sender.close()

    def _store(self, items: Sequence[Item[memoryview]]) -> Results:
        try:
            digests = [whole_digest(upload, body) for _, upload, body, _, _ in items]
            return digests, self._worker.store.put_all([(upload.file_name, body) for _, upload, body, _, _ in items])
        except Exception:
            return self._nobody_foresaw(len(items))

    def _commit(self, incoming: Incoming) -> str | StoreError:
        try:
            return incoming.commit()
        except StoreError as error:
            incoming.abort()
            return error
        except Exception:
            incoming.abort()
            return self._nobody_foresaw(1)[1][0]

    def _nobody_foresaw(self, count: int) -> Results:
        """Called while the exception is handled."""
        log.exception("worker %d: uploads failed for a reason nobody foresaw", self._worker.slot)
        error = StoreError("internal", "the server made a mistake; its log says which")
        return [None] * count, [error] * count

    def _end_of_turn(self) -> None:
        self._scheduled = False
        self.flush()


def whole_digest(upload: UploadStarted, body: memoryview | bytes) -> str | None:
    want = upload.header.want_digest
    if want is UNSET:
        return "xxh3_128:" + xxh3_128_hexdigest(body)
    return None if want == "none" else digest_of(want, body)
