"""Listening sockets: made by the supervisor, or lent to it by a service manager, and inherited by the workers.

Two ways to accept, which scale alike and differ in balance:

    per-worker   one socket per worker slot, all on one port with SO_REUSEPORT: the kernel spreads new connections over
                 them, so 8 workers got 110 to 148 of 1,000 connections each
    shared       one socket for all: whoever is awake first accepts, which gave the first two of 8 nearly all. For
                 sockets that cannot be made anew, and where one worker that is slow must not hold a queue of its own

Because the supervisor keeps them, the queue of a killed worker waits for its replacement and no connection is reset.

SO_REUSEPORT has a trap: a second server of the same user would silently share the port. So the first socket is bound
without it, which fails when the port is in use; only then is the option set, and the others join.

Each address is a group of sockets. Of a unix socket there can be only one, and one that is lent is always shared. How a
group ends without resetting anybody depends on its kind:

    TCP    new connections are dropped before they are made (see `steering`), those that wait are accepted
    unix   the path goes first and then the socket is deaf, those that wait are accepted
    lent   it is only put down: who waits there is served by whoever takes it next
"""

import errno
import logging
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from server.addresses import Address, write_host_port
from server.listening import steering, unix_sockets
from server.listening.unix_sockets import PathError
from server.options import AcceptMode, find_folder_problem
from server.ports import sockets
from server.printing import in_words, quoted

log = logging.getLogger("server")

SYN_RECEIVED = 1 << 3  # as a mask of TCP states: handshakes that wait for their last packet
TLS_NAME = "tls"
"""A lent socket with this name speaks TLS."""


class PortInUseError(Exception):
    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} is in use")
        self.port = port


class AddressError(Exception):
    """The address cannot be listened on; the text says why."""


class Door(NamedTuple):
    """A socket that a worker accepts from."""

    sock: socket.socket
    is_tls: bool = False
    is_lent: bool = False
    """Whether who waits there can wait for the next server."""


class Group:
    """The sockets of one address. `Listeners` says what most of its methods are for. In mode `per-worker` the kernel
    numbers the sockets of a port in the order in which they began to listen, and goes on so when the last one leaves:
    that is why slots are added and removed at the end."""

    def __init__(
        self,
        found: list[socket.socket],
        mode: AcceptMode,
        backlog: int,
        *,
        is_tls: bool = False,
        is_lent: bool = False,
        path: unix_sockets.Bound | None = None,
    ) -> None:
        self._sockets = found
        self._mode = mode
        self._backlog = backlog
        self._is_tls = is_tls
        self._is_lent = is_lent
        self._path = path
        self._is_unix = found[0].family == socket.AF_UNIX
        self.address = ("tls://" if is_tls else "") + format_address(found[0])
        self.port: int = 0 if self._is_unix else found[0].getsockname()[1]
        """0 for a unix socket."""

    @classmethod
    def open(cls, address: Address, slots: int, backlog: int, mode: AcceptMode) -> "Group":
        """Listen, close-on-exec and non-blocking; port 0 takes a free one. PortInUseError or AddressError, after which
        no socket is left open."""
        if address.scheme == "unix":
            try:
                sock, bound = unix_sockets.listen(Path(address.path), backlog)
            except PathError as error:
                raise AddressError(f"cannot listen on {address}: {error}") from None
            return cls([sock], "shared", backlog, path=bound)
        family, place = _resolve(address.host, address.port)
        found: list[socket.socket] = []
        try:
            found.append(_bind(family, place, reuse_port=False))
            if mode == "per-worker":
                found[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                bound = found[0].getsockname()
                while len(found) < slots:
                    found.append(_bind(family, bound, reuse_port=True))
            for sock in found:
                sock.listen(backlog)
        except OSError as error:
            _close_all(found)
            if error.errno == errno.EADDRINUSE:
                raise PortInUseError(address.port) from None
            needs_root = error.errno == errno.EACCES and address.port < 1024
            why = f"{error.strerror}; ports below 1024 need root: name a higher one" if needs_root else error.strerror
            raise AddressError(f"cannot listen on {address}: {why}") from error
        return cls(found, mode, backlog, is_tls=address.scheme == "tls")

    @classmethod
    def lent(cls, sock: socket.socket, name: str) -> "Group":
        """A socket that a service manager made. AddressError when it is of no use."""
        sock.setblocking(False)
        is_stream = sock.type == socket.SOCK_STREAM and sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        if not is_stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise AddressError(
                f"descriptor {sock.fileno()} ({name or 'no name'}) from the service manager does not listen for "
                "streams: its unit needs ListenStream, without Accept"
            )
        if name == TLS_NAME and sock.family == socket.AF_UNIX:
            raise AddressError(f"the unix socket from the service manager cannot have the name {TLS_NAME}")
        return cls([sock], "shared", 0, is_tls=name == TLS_NAME, is_lent=True)

    def door_of(self, slot: int) -> Door:
        sock = self._sockets[slot if self._mode == "per-worker" else 0]
        return Door(sock, self._is_tls, self._is_lent)

    def keep_only(self, slot: int) -> Door:
        own = self.door_of(slot)
        _close_all([sock for sock in self._sockets if sock is not own.sock])
        return own

    def add(self) -> None:
        if self._mode == "per-worker":
            first = self._sockets[0]
            added = _bind(first.family, first.getsockname(), reuse_port=True)
            added.listen(self._backlog)
            self._sockets.append(added)

    def steer_away(self, slots: int) -> None:
        if self._mode == "per-worker":
            _try(steering.steer, self._sockets[0], slots)

    def remove_last(self) -> None:
        if self._mode == "per-worker":
            self._sockets.pop().close()

    def steer_to_all(self) -> None:
        if self._mode == "per-worker":
            _try(steering.unsteer, self._sockets[0])

    def ignore_new(self) -> None:
        """Not of one that is lent: it would stay deaf for the next server."""
        if self._is_unix:
            self._remove_path()
        elif not self._is_lent:
            for sock in self._sockets:
                _try(steering.ignore_new, sock)

    def is_quiet(self) -> bool:
        """What the kernel does not tell is taken for quiet."""
        try:
            return self._is_lent or not self.port or not any(sockets.diagnosed(SYN_RECEIVED, local=self.port))
        except OSError:
            return True

    def end(self) -> None:
        self._remove_path()
        if self._is_unix and not self._is_lent:
            unix_sockets.deafen(self._sockets[0])
        self.close()

    def close(self) -> None:
        """Close the sockets in this process; whoever has a copy of one goes on."""
        _close_all(self._sockets)

    def _remove_path(self) -> None:
        """Once: a successor's file there may get the inode that ours had."""
        if self._path is not None:
            unix_sockets.remove(self._path)
            self._path = None


class Listeners:
    """The sockets of all addresses."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._groups = groups

    @classmethod
    def open(cls, addresses: Iterable[Address], slots: int, backlog: int, mode: AcceptMode) -> "Listeners":
        """Listen on each. PortInUseError or AddressError, after which no socket is left open."""
        groups: list[Group] = []
        try:
            for address in addresses:
                groups.append(_open_beside(groups, address, slots, backlog, mode))
        except (PortInUseError, AddressError):
            cls(groups).end()
            raise
        return cls(groups)

    @classmethod
    def lent(cls, found: Iterable[tuple[socket.socket, str]], *, has_certificate: bool) -> "Listeners":
        """Sockets with their names, from a service manager. AddressError when one cannot be used."""
        groups = [Group.lent(sock, name) for sock, name in found]
        speaks_tls = any(group.door_of(0).is_tls for group in groups)
        if speaks_tls and not has_certificate:
            raise AddressError(
                f"the socket {TLS_NAME} from the service manager needs a certificate: name it as tls_cert"
            )
        if has_certificate and not speaks_tls:
            raise AddressError(
                f"there is a tls_cert, but no socket from the service manager has the name {TLS_NAME} "
                f"(FileDescriptorName={TLS_NAME})"
            )
        return cls(groups)

    @property
    def addresses(self) -> list[str]:
        return [group.address for group in self._groups]

    @property
    def port(self) -> int:
        """The first address's that has one; 0 if none has."""
        return next((group.port for group in self._groups if group.port), 0)

    def keep_only(self, slot: int) -> list[Door]:
        """Close all sockets but those of the worker in this slot, which calls this; returns its own."""
        return [group.keep_only(slot) for group in self._groups]

    def add(self) -> None:
        """Listen for one slot more. OSError when that cannot be, after which all is as it was."""
        for number, group in enumerate(self._groups):
            try:
                group.add()
            except OSError:
                for added in self._groups[:number]:
                    added.remove_last()
                raise

    def steer_away(self, slots: int) -> None:
        """Send new connections to the first `slots` only: the others are about to go."""
        for group in self._groups:
            group.steer_away(slots)

    def remove_last(self) -> None:
        """Close the last slot's sockets here; its worker has copies until it ends."""
        for group in self._groups:
            group.remove_last()

    def steer_to_all(self) -> None:
        """Leave it to the kernel again to which socket a new connection goes."""
        for group in self._groups:
            group.steer_to_all()

    def ignore_new(self) -> None:
        """Let nobody connect any more, so that nobody is reset when the sockets are closed."""
        for group in self._groups:
            group.ignore_new()

    def is_quiet(self) -> bool:
        """Whether no connection is just being made."""
        return all(group.is_quiet() for group in self._groups)

    def end(self) -> None:
        """Close the sockets here; nobody finds or joins a unix socket any more, whose queue all processes share. Who
        waits can still be accepted."""
        for group in self._groups:
            group.end()


def find_problem(address: Address) -> str | None:
    """Why nobody could listen on this address; None when one can, unless somebody does. Touches no port or path."""
    if address.scheme == "unix":
        path = Path(address.path)
        why = find_folder_problem(path.parent) or unix_sockets.find_problem(path)
        return f"cannot listen on {address}: {why}" if why else None
    try:
        _bind(*_resolve(address.host, 0), reuse_port=False).close()
    except AddressError as error:
        return str(error)
    except OSError as error:
        return f"cannot listen on {address}: {error.strerror}"
    return None


def _open_beside(groups: Sequence[Group], address: Address, slots: int, backlog: int, mode: AcceptMode) -> Group:
    """A group more. A port that one of ours has is no other program's."""
    try:
        return Group.open(address, slots, backlog, mode)
    except PortInUseError as error:
        for group in groups:
            if group.port == error.port:
                raise AddressError(f"cannot listen on {address}: {group.address} has the port already") from None
        raise


def _try(steer: Callable[..., None], *arguments: socket.socket | int) -> None:
    """Not every sandbox knows these options; without them, some connection may be reset."""
    try:
        steer(*arguments)
    except OSError as error:
        log.warning("new connections cannot be steered: %s", error.strerror)


def _close_all(found: list[socket.socket]) -> None:
    for sock in found:
        sock.close()


def format_address(sock: socket.socket) -> str:
    """`127.0.0.1:12345`, `[::1]:12345` or `unix:///run/upload.sock`."""
    if sock.family != socket.AF_UNIX:
        return write_host_port(*sock.getsockname()[:2])
    name = sock.getsockname()
    return f"unix://{name}" if isinstance(name, str) else f"unix://@{name[1:].decode(errors='replace')}"


Place = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]


def _resolve(host: str, port: int) -> tuple[socket.AddressFamily, Place]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise AddressError(f"{quoted(host)} is not an address of this machine: {in_words(error)}") from None
    family, _, _, _, place = found[0]
    return family, place


def _bind(family: socket.AddressFamily, place: Place, *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # bind in spite of TIME_WAIT
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
    except OSError:
        sock.close()
        raise
    return sock
