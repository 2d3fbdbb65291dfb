"""Wakes callbacks at absolute times, to about 0.1 ms. The clock of both models: arrivals that are due, pauses that end.

libev rounds its own timers up to the next millisecond and more: at 2,000 arrivals a second the median was 0.58 ms late.
So there is one timerfd a process, set to the earliest time that anybody waits for, and watched like any descriptor. It
is read with its absolute time on CLOCK_MONOTONIC, so nothing drifts. (`os.timerfd_create` came with Python 3.13; below,
it is called through ctypes.)
"""

import ctypes
import heapq
import logging
import os
import sys
import time
from collections.abc import Callable

import gevent

_TFD_NONBLOCK, _TFD_CLOEXEC, _TFD_TIMER_ABSTIME = os.O_NONBLOCK, os.O_CLOEXEC, 1  # sys/timerfd.h
_READ = 1

log = logging.getLogger("socketswarm")


class Alarm:
    """Needs Linux; OSError elsewhere. Callbacks run in gevent's hub: they may switch, not wait."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise OSError("load is made on Linux only: it needs timerfd")
        libc = ctypes.CDLL(None, use_errno=True)
        self._settime = libc.timerfd_settime
        self._fd: int = libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        # struct itimerspec: an interval, which is not used, and the time, both in s and ns
        self._spec = (ctypes.c_long * 4)()
        self._heap: list[tuple[int, int, Callable[[], object]]] = []
        self._count = 0  # callbacks cannot be compared, so a number goes before them
        self._set_ns: int | None = None
        self._ringing = False
        self._watcher = gevent.get_hub().loop.io(self._fd, _READ)
        self._watcher.start(self._ring)

    def at(self, due_ns: int, callback: Callable[[], object]) -> None:
        """Call back at this time of CLOCK_MONOTONIC, or at once if it is over."""
        self._count += 1
        heapq.heappush(self._heap, (due_ns, self._count, callback))
        if not self._ringing and self._heap[0][0] != self._set_ns:
            self._set(self._heap[0][0])

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        os.close(self._fd)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew before we got here
            return
        self._set_ns = None
        self._ringing = True
        try:
            for callback in self._due():
                try:
                    callback()
                except Exception:  # one's mistake must not lose the others' time
                    log.exception("a callback failed")
        finally:
            self._ringing = False
            if self._heap:
                self._set(self._heap[0][0])

    def _due(self) -> list[Callable[[], object]]:
        """What is due now. What it adds waits for the next ring, so that sockets have their turn between."""
        now_ns, due = time.monotonic_ns(), []
        while self._heap and self._heap[0][0] <= now_ns:
            due.append(heapq.heappop(self._heap)[2])
        return due

    def _set(self, due_ns: int) -> None:
        self._set_ns = due_ns
        self._spec[2], self._spec[3] = divmod(max(1, due_ns), 1_000_000_000)  # 0 would disarm it
        self._settime(self._fd, _TFD_TIMER_ABSTIME, self._spec, None)
