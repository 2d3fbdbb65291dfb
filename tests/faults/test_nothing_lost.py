"""Nothing that was acknowledged is lost, whatever happens to the server meanwhile.

Under load, workers and supervisor are treated as machines and people treat them: workers are killed with -9, the server
is told to reload and to have more or fewer workers, processes stand still and go on. Afterwards every acknowledged
upload is in the store with its digest, and only uploads failed that were in flight at a worker that was killed.

12 s in the tests; `make soak` takes SOAK_SECONDS=600.
"""

import itertools
import os
import random
import signal
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Authority
from crowd import Crowd, crowd
from servers import Client, Server, eventually, running
from slow import first_of

SECONDS = float(os.environ.get("SOAK_SECONDS", "12"))
LONG, SHORT = 8, 8
KILLED_LATELY_S = 15.0  # a client that waits for its core may see it that late


class Mischief:
    """What is done to a server, at random but as the seed says."""

    def __init__(self, server: Server, load: Crowd, seed: int) -> None:
        self._server = server
        self._load = load
        self._chance = random.Random(seed)
        self.kills: dict[int, list[float]] = {}
        """When, by pid."""
        self.done: dict[str, int] = {}

    def do(self) -> None:
        all_sorts = [self.kill, self.kill, self.reload, self.more, self.fewer, self.stop]
        what: Callable[[], None] = self._chance.choice(all_sorts)
        self.done[what.__name__] = self.done.get(what.__name__, 0) + 1
        what()
        self._load_goes_on()

    def kill(self) -> None:
        workers = self._server.workers()
        before_s = time.monotonic()  # a client may see it before we run again
        if workers and send(pid := self._chance.choice(workers), signal.SIGKILL):
            self.kills.setdefault(pid, []).append(before_s)  # until it is buried it can be killed once more

    def reload(self) -> None:
        self._server.process.send_signal(signal.SIGHUP)

    def more(self) -> None:
        if len(self._server.workers()) < 6:
            self._server.process.send_signal(signal.SIGTTIN)

    def fewer(self) -> None:
        self._server.process.send_signal(signal.SIGTTOU)

    def stop(self) -> None:
        """One process stands still until the others have done some work, or alone held it up."""
        pids = [*self._server.workers(), self._server.pid]
        pid = self._chance.choice(pids)
        before = len(self._load.acknowledged)
        until = time.monotonic() + 0.3
        if send(pid, signal.SIGSTOP):
            eventually(lambda: len(self._load.acknowledged) > before + 20 or time.monotonic() > until, "a while")
            send(pid, signal.SIGCONT)

    def _load_goes_on(self) -> None:
        """Some uploads, so that the next mischief meets a server at work again."""
        before = len(self._load.acknowledged)
        eventually(lambda: len(self._load.acknowledged) > before + 40, "the load goes on")


def send(pid: int, number: signal.Signals) -> bool:
    """Whether it was still there: a worker that was reloaded may have ended meanwhile."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


KINDS = ("per-worker", *first_of(["tls", "shared", "unix"]))


def listening(kind: str, folder: Path) -> list[str]:
    """Options of a server with sockets of this kind."""
    if kind == "tls":
        return ["--tls-cert", str(Authority(folder).server())]
    return ["--listen", f"unix://{folder}/s"] if kind == "unix" else ["--accept", kind]


def connects(kind: str, server: Server, folder: Path) -> Callable[[], Client]:
    """How the crowd comes to it."""
    if kind == "tls":
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        return lambda: Client(server.port, tls=context)
    return lambda: Client(f"{folder}/s" if kind == "unix" else server.port)


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.timeout(SECONDS * 3 + 60)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_acknowledged_is_lost(kind: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("SOAK_SEED", "1"))
    store = tmp_path / "store"
    options = (*listening(kind, tmp_path), "--max-deaths", "1000")
    with running(*options, store=store, workers=3) as server:
        files = open_files(server.pid)
        with crowd(connects(kind, server, tmp_path), long=LONG, short=SHORT) as load:
            mischief = Mischief(server, load, seed)
            end_s = time.monotonic() + SECONDS / len(KINDS)  # each kind takes its part
            while time.monotonic() < end_s:
                mischief.do()
            print(f"{kind}, seed {seed}: {mischief.done}, {len(load.acknowledged)} uploads, {load.codes()}")
        for at_s, code, worker in load.failures:
            assert code == "connection_lost", load.codes()
            kills = mischief.kills.get(worker, []) if worker else itertools.chain(*mischief.kills.values())
            known = [event for event in server.events() if event.get("pid") == worker]
            assert any(0 <= at_s - kill_s < KILLED_LATELY_S for kill_s in kills), f"{worker} was alive: {known}"
        assert len(load.failures) <= sum(map(len, mischief.kills.values())) * (LONG + SHORT)
        load.assert_stored(store)
        eventually(lambda: all(slot.state in ("ready", "empty") for slot in server.slots()), "all have settled")
        eventually(lambda: not any(slot.retiring for slot in server.slots()), "nobody drains any more")
        eventually(
            lambda: open_files(server.pid) <= files + max(0, len(server.workers()) - 3), "no descriptor stays open"
        )
        assert set(load.acknowledged) <= set(server.files())
