"""What a service manager gives a server, and is told by it: systemd's socket activation and readiness, without its
library. man 3 sd_listen_fds, man 3 sd_notify.

It passes listening sockets as descriptors from 3 on, and keeps them open itself: over a restart of the server the port
stays, and who connects meanwhile waits. It is told by datagrams when the server is ready, reloads and stops.

Both are agreed on in environment variables, which are meant for one process and therefore taken out of the environment.
"""

import logging
import os
import socket
import time
from collections.abc import MutableMapping
from itertools import chain, repeat

from server.printing import one_line

_FIRST_FD = 3

log = logging.getLogger("server")


def take_sockets(environment: MutableMapping[str, str]) -> list[tuple[socket.socket, str]]:
    """The sockets passed to this process, with their names. They close on exec. OSError for what is no socket."""
    pid, count, names = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    fds = range(_FIRST_FD, _FIRST_FD + int(count))
    named = chain(names.split(":"), repeat(""))
    for fd in fds:
        os.set_inheritable(fd, False)
    return [(socket.socket(fileno=fd), name) for fd, name in zip(fds, named, strict=False)]


class Manager:
    """The service manager, which is told what the server does, if there is one. That it cannot be told is warned of,
    and no reason to end. A `status` is one line for people."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self, status: str) -> None:
        """Every worker serves; after a reload, it is over."""
        self._tell("READY=1", status)

    def reloading(self) -> None:
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", "reloading")

    def stopping(self, status: str) -> None:
        self._tell("STOPPING=1", status)

    def _tell(self, state: str, status: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(f"{state}\nSTATUS={one_line(status)}".encode(), self._address)
        except OSError as error:
            log.warning("the service manager could not be told (%s): %s", error.strerror, status)
