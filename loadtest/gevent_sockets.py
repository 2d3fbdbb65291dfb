"""How users wait for their sockets under gevent, so that all others run meanwhile.

A `HubWaiter` keeps its watchers for the life of a connection; gevent's own sockets set a timer for each wait besides.
Here one sweep a process looks for waits that have lasted too long, so a limit is kept to `SWEEP_S`.
"""

import time
from functools import cache
from typing import Any

import gevent
from gevent.hub import Hub

SWEEP_S = 0.1

_READ, _WRITE = 1, 2


class HubWaiter:
    """Waits for one descriptor in the calling greenlet. See `link.Waiter`."""

    __slots__ = ("_fd", "_hub", "_read", "_sweep", "_write", "timeout_s")

    def __init__(self, fd: int, timeout_s: float) -> None:
        self._fd, self.timeout_s = fd, timeout_s
        self._hub: Hub = gevent.get_hub()
        self._sweep = _sweep_of(self._hub)
        self._read: Any = self._hub.loop.io(fd, _READ)
        self._write: Any = None

    def readable(self) -> None:
        self._wait(self._read)

    def writable(self) -> None:
        if self._write is None:
            self._write = self._hub.loop.io(self._fd, _WRITE)
        self._wait(self._write)

    def _wait(self, watcher: Any) -> None:
        waiting = self._sweep.waiting
        greenlet = gevent.getcurrent()
        waiting[greenlet] = time.monotonic() + self.timeout_s
        try:
            self._hub.wait(watcher)
        finally:
            del waiting[greenlet]

    def close(self) -> None:
        self._read.close()
        if self._write is not None:
            self._write.close()


class _Sweep:
    """Ends the waits of one hub that have lasted too long."""

    def __init__(self, hub: Hub) -> None:
        self.waiting: dict[Any, float] = {}
        """greenlet -> when it has waited too long, in monotonic seconds"""
        self._timer = hub.loop.timer(SWEEP_S, SWEEP_S, ref=False)
        self._timer.start(self._look)

    def _look(self) -> None:
        """In the hub, as gevent's own timeouts are thrown."""
        now = time.monotonic()
        for greenlet in [greenlet for greenlet, end in self.waiting.items() if end < now]:
            greenlet.throw(TimeoutError())


@cache
def _sweep_of(hub: Hub) -> _Sweep:
    return _Sweep(hub)
