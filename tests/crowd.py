"""A crowd of clients that upload without a pause, for tests that do something to the server meanwhile.

They are threads with the project's own client, each file under a name of its own with bytes of its own, so that
afterwards each acknowledged upload can be looked up in the store. What fails is kept with its time; nothing is retried.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from servers import eventually
from xxhash import xxh3_128_hexdigest

from loadtest.client import UploadClient
from loadtest.wires import parse_target

SIZES = (0, 100, 4_000, 4_000, 30_000, 300_000)


@dataclass(frozen=True)
class Bytes:
    """A body in memory, as the client wants one."""

    content: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def pieces(self) -> Iterable[memoryview]:
        return [memoryview(self.content)]

    def digest(self) -> str | None:
        return f"xxh3_128:{xxh3_128_hexdigest(self.content)}"


@dataclass
class Crowd:
    port: int
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Digest by name."""
    failures: list[tuple[float, str]] = field(default_factory=list)
    """(monotonic second, code)."""
    _over: threading.Event = field(default_factory=threading.Event)

    def codes(self) -> Counter[str]:
        return Counter(code for _, code in self.failures)

    def go_on(self, uploads: int = 50) -> None:
        """Wait until so many more have been acknowledged."""
        target = len(self.acknowledged) + uploads
        eventually(lambda: len(self.acknowledged) >= target or self.failures, f"{uploads} more uploads")

    def assert_stored(self, store: Path) -> None:
        """Every acknowledged upload is there, with its bytes; nothing half-made is."""
        for name, digest in self.acknowledged.items():
            assert f"xxh3_128:{xxh3_128_hexdigest((store / name).read_bytes())}" == digest, name
        assert not list(store.glob(".incoming/*/*"))

    def _user(self, number: int, per_connection: int) -> None:
        chance = random.Random(number)
        client = UploadClient(parse_target(f"tcp://127.0.0.1:{self.port}"), timeout_s=30)
        upload = 0
        while not self._over.is_set():
            upload += 1
            name = f"user-{number}-{upload}"
            body = Bytes(chance.randbytes(chance.choice(SIZES)))
            done = client.upload(name, body, last=bool(per_connection) and upload % per_connection == 0)
            if done.error is None:
                self.acknowledged[name] = str(body.digest())
            else:
                self.failures.append((time.monotonic(), str(done.error.code)))
                self._over.wait(0.02)  # a server that is gone refuses 10,000 times a second
        client.close()


@contextmanager
def crowd(port: int, *, long: int = 6, short: int = 6) -> Iterator[Crowd]:
    """Users over long and over short connections until the block ends."""
    found = Crowd(port)
    kinds = [0] * long + [1] * short
    threads = [threading.Thread(target=found._user, args=user) for user in enumerate(kinds)]
    for thread in threads:
        thread.start()
    try:
        found.go_on(len(kinds))
        yield found
    finally:
        found._over.set()
        for thread in threads:
            thread.join(40)
        assert not any(thread.is_alive() for thread in threads)
