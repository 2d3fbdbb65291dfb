"""The status helper as its supervisor has it: born, heard, replaced, and ended last. What it does is `page`.

It is looked after like a worker, but no upload depends on it. So its deaths are no worker's deaths; the server neither
waits for it to start nor ends because it cannot; and it is replaced ever later while it keeps dying.

It is a new program, not only a fork: whoever could make it say what its memory holds would find neither the token nor
the TLS key, which this process has read.

The two are joined by a pair of sockets. Down goes the server's state, at first and whenever that changes: the helper
may be another user by then, and cannot open files. Up come beats, an empty line a second, and what the helper has to
say, for its stderr is the other end: a process that must not write files could not write a log. The supervisor looks
there once a second and takes a bounded number of messages, so that a helper gone mad does not keep it from its workers.
"""

import logging
import math
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial

import msgspec

from server.addresses import Address
from server.listening.listener import Group
from server.options import ServerConfig
from server.processes import cpu_of, fork, how_it_ended
from server.scoreboard import ServerState

COMMAND = (sys.executable, "-P", "-m", "server.status.page")
NICENESS = 19  # while it starts; later it gives way altogether
BACKLOG = 100  # until it is there
START_TIMEOUT_S = 60.0  # beside uploads that take all cores, loading a web framework is slow
LONG_LIFE_S = 10.0
MAX_DELAY_S = 60.0
_MESSAGE_BYTES = 16 << 10
_MESSAGES_AT_ONCE = 64

log = logging.getLogger("server")


def open_page(config: ServerConfig) -> Group | None:
    """The status page's listening socket, if there is to be a page. Errors as from Group.open."""
    if config.status_port is None:
        return None
    return Group.open(Address("tcp", config.status_host, config.status_port), 1, BACKLOG, "shared")


class StatusHelper:
    """The process behind the page, one after another; with no socket there is none, and nothing happens. `state` gives
    what is shown of the server, `note` writes an event down. Only `end` waits for the helper, which it has killed."""

    def __init__(self, group: Group | None, state: Callable[[], ServerState], note: Callable[..., None]) -> None:
        self.due_s = math.inf if group is None else 0.0
        """When it is to be started (monotonic)."""
        self._group = group
        self._state = state
        self._note = note
        self._pid = 0
        self._channel: socket.socket | None = None
        self._born_s = self._heard_s = 0.0
        self._killed_because: str | None = None
        self._quick_deaths = 0
        self._untold = False
        self._over = False

    def start(self) -> None:
        """Fork it. What fails is due again later."""
        self._born_s, self.due_s = time.monotonic(), math.inf
        try:
            if self._group is not None:
                self._fork(self._group)
        except OSError as error:
            self._again(f"the status page could not be forked: {error.strerror}")

    def _fork(self, group: Group) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            ours.send(msgspec.json.encode(self._state()))
            self._pid = fork(partial(self._become, group, theirs), "the status page")
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._channel, self._untold = ours, False
        self._heard_s, self._killed_because = 0.0, None
        self._note("status-started", f"the status page started as pid {self._pid}", pid=self._pid)

    def _become(self, group: Group, channel: socket.socket) -> None:
        """In the child, which ignores what `fork` let it ignore, and dies with its parent further on. It finds its
        imports where this process did, and runs on the same Python, whatever has become of that one's path."""
        os.nice(NICENESS)
        listener = group.door_of(0).sock
        for inherited in (listener, channel):
            inherited.set_inheritable(True)
        command = [*COMMAND, str(listener.fileno()), str(channel.fileno()), str(os.getppid())]
        os.execve("/proc/self/exe", command, os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})

    def close(self) -> None:
        """Let go of it in a worker, whose business it is not."""
        if self._group is not None:
            self._group.close()
        if self._channel is not None:
            self._channel.close()

    def tell(self) -> None:
        """The state has changed."""
        if self._channel is None:
            return
        try:
            self._channel.send(msgspec.json.encode(self._state()))
            self._untold = False
        except OSError:  # it does not listen, or is about to be buried
            self._untold = True

    def look(self, patience_s: float, trusted_from_s: float) -> None:
        """Hear what it says, and kill it when that was nothing for `patience_s`, counted from `trusted_from_s` on."""
        self._listen()
        if not self._pid:
            return
        if self._untold:
            self.tell()
        silent_s = time.monotonic() - max(self._born_s, self._heard_s, trusted_from_s)
        if silent_s > (patience_s if self._heard_s else max(patience_s, START_TIMEOUT_S)):
            self._kill(f"it hung: it has not been heard for {silent_s:.0f} s")

    def _listen(self) -> None:
        if self._channel is None:
            return
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                message = self._channel.recv(_MESSAGE_BYTES)
            except OSError:
                return
            if not message:  # its end; or it wrote nothing, and there is more
                continue
            self._heard_s = time.monotonic()
            for line in message.decode(errors="replace").splitlines():
                if line:
                    log.warning("status page (pid %d): %s", self._pid, line)

    def _kill(self, why: str) -> None:
        if self._killed_because is None:
            log.warning("the status page (pid %d) is killed: %s", self._pid, why)
            self._killed_because = why
            os.kill(self._pid, signal.SIGKILL)

    def bury(self, pid: int, status: int, usage: resource.struct_rusage) -> bool:
        """Whether the child that was just reaped was this one; then its successor is due."""
        if pid != self._pid:
            return False
        self._listen()
        assert self._channel is not None
        self._channel.close()
        how = how_it_ended(status, self._killed_because)
        text = f"the status page (pid {pid}) {how}"
        self._note("status-ended", text, pid=pid, how=how, **cpu_of(usage))
        self._pid, self._channel = 0, None
        if not self._over:
            self._again(text)
        return True

    def _again(self, why: str) -> None:
        self._quick_deaths = 0 if time.monotonic() - self._born_s > LONG_LIFE_S else self._quick_deaths + 1
        delay_s = min(MAX_DELAY_S, 0.5 * 2.0 ** min(self._quick_deaths, 10))
        log.warning("%s; replacing it in %g s", why, delay_s)
        self.due_s = time.monotonic() + delay_s

    def end(self) -> None:
        """It ends last, so that until then whoever asks is told that the server drains."""
        self._over = True
        if self._pid:
            self._killed_because = self._killed_because or "the server ends"
            os.kill(self._pid, signal.SIGKILL)
            self.bury(*os.wait4(self._pid, 0))
