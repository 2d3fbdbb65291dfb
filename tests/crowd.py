"""A crowd of clients that upload without a pause, for tests that do something to the server meanwhile.

They are threads with the project's own client or, over TLS and to unix sockets, with the tests' own. Each file has a
name of its own with bytes of its own, so that afterwards each acknowledged upload can be looked up in the store. What
fails is kept with its time; nothing is retried.
"""

import random
import select
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from servers import DEADLINE_S, Client, eventually
from xxhash import xxh3_128_hexdigest

from loadtest.client import UploadClient
from loadtest.wires import parse_target
from server.protocol import RemoteProtocolError

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


class Uploader(Protocol):
    """Uploads one file after the other over its connection; returns the code of a failure."""

    worker: int
    """Pid of the worker that its connection is known to be with, since that answered before; 0 while it is not."""

    def upload(self, name: str, body: Bytes, last: bool) -> str | None: ...

    def close(self) -> None: ...


class LoadClient:
    """The project's own."""

    worker = 0

    def __init__(self, port: int) -> None:
        self._client = UploadClient(parse_target(f"tcp://127.0.0.1:{port}"), timeout_s=30)

    def upload(self, name: str, body: Bytes, last: bool) -> str | None:
        done = self._client.upload(name, body, last=last)
        return None if done.error is None else str(done.error.code)

    def close(self) -> None:
        self._client.close()


class OtherClient:
    """With the same manners over any connection: one that the server has closed between two uploads is made anew."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._client: Client | None = None
        self.worker = 0

    def upload(self, name: str, body: Bytes, last: bool) -> str | None:
        try:
            if self._client is None or _is_stale(self._client):
                self.close()
                self.worker = 0
                self._client = self._connect()
            reply = self._client.upload(body.content, name, **({"connection": "close"} if last else {}))
        except (ConnectionRefusedError, FileNotFoundError):
            return "connect_refused"
        except (OSError, RemoteProtocolError):
            self.close()
            return "connection_lost"
        self.worker = reply.pid
        if reply.connection == "close":
            self.close()
        if reply.code == "ok" and reply.digest != body.digest():
            return "digest_differs"
        return None if reply.code == "ok" else reply.code

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.sock.close()


def _is_stale(client: Client) -> bool:
    """Whether the server has closed it. That something can be read proves nothing over TLS, which has messages of its
    own."""
    sock = client.sock
    if not select.select([sock], [], [], 0)[0]:
        return False
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    finally:
        sock.settimeout(DEADLINE_S)


@dataclass
class Crowd:
    connect: Callable[[], Uploader]
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Digest by name."""
    failures: list[tuple[float, str, int]] = field(default_factory=list)
    """(monotonic second, code, worker)."""
    _over: threading.Event = field(default_factory=threading.Event)

    def codes(self) -> Counter[str]:
        return Counter(code for _, code, _ in self.failures)

    def go_on(self, uploads: int = 50) -> None:
        """Wait until so many more have been acknowledged."""
        target = len(self.acknowledged) + uploads
        eventually(lambda: len(self.acknowledged) >= target or self.failures, f"{uploads} more uploads")

    def assert_stored(self, store: Path) -> None:
        """Every acknowledged upload is there, with its bytes; nothing half-made is."""
        for name, digest in self.acknowledged.items():
            assert f"xxh3_128:{xxh3_128_hexdigest((store / name).read_bytes())}" == digest, name
        eventually(lambda: not list(store.glob(".incoming/*/*")), "what a killed worker left is removed")

    def _user(self, number: int, per_connection: int) -> None:
        chance = random.Random(number)
        client = self.connect()
        upload = 0
        while not self._over.is_set():
            upload += 1
            name = f"user-{number}-{upload}"
            body = Bytes(chance.randbytes(chance.choice(SIZES)))
            error = client.upload(name, body, last=bool(per_connection) and upload % per_connection == 0)
            if error is None:
                self.acknowledged[name] = str(body.digest())
            else:
                self.failures.append((time.monotonic(), error, client.worker))
                self._over.wait(0.02)  # a server that is gone refuses 10,000 times a second
        client.close()


@contextmanager
def crowd(to: int | Callable[[], Client], *, long: int = 6, short: int = 6) -> Iterator[Crowd]:
    """Users over long and over short connections until the block ends, to a port or as `to` connects."""
    found = Crowd((lambda: LoadClient(to)) if isinstance(to, int) else lambda: OtherClient(to))
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
