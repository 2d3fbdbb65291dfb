"""Listening on a path: taking it from a dead server, never from a living one, and leaving it so that nobody is reset.

A unix socket has no handshake: who connects is in its queue at once, and is reset when that is closed. So the path is
removed first, which keeps others from finding it. Who found it just before is kept out by shutting its receiving side
down, after which the kernel refuses to queue anybody, and still hands out who waits (net/unix/af_unix.c).

Between bind() and listen() a living server looks like a dead one. So those that start in one folder take turns.
"""

import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

TURN_S = 1.0
"""How long to wait for others at the most."""
_UCRED = struct.Struct("3i")  # pid, uid and gid: man 7 unix


class PathError(OSError):
    """The path cannot be listened on; the text says why and what to do."""


class Bound(NamedTuple):
    """A path with the file that is ours there: another server may have put its own in place."""

    path: Path
    device: int
    inode: int


def listen(path: Path, backlog: int) -> tuple[socket.socket, Bound]:
    """A socket there, close-on-exec and non-blocking. Who may connect is what the umask leaves to read and write.
    PathError when it cannot be had."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _turn(path.parent):
            _bind(sock, path)
            path.chmod(0o666 & ~_umask())  # bind() gives the right to execute too
            info = path.lstat()
            sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise PathError(error.strerror or str(error)) from None
    return sock, Bound(path, info.st_dev, info.st_ino)


def find_problem(path: Path) -> str | None:
    """What to do about something else than a socket that has the path; None for a socket, or nothing. It only looks."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return None
    return None if is_socket else "there is a file that is no socket; remove it or name another path"


def remove(bound: Bound) -> None:
    """Take the path away, if it is still ours."""
    with suppress(OSError):  # it is gone, or somebody closed the folder to us
        info = bound.path.lstat()
        if (info.st_dev, info.st_ino) == (bound.device, bound.inode):
            bound.path.unlink()


def deafen(sock: socket.socket) -> None:
    """Let nobody into the queue any more; who is in it can still be accepted."""
    with suppress(OSError):  # it is closed already
        sock.shutdown(socket.SHUT_RD)


@contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Have the folder's turn: nobody else starts in it meanwhile. An abstract name (man 7 unix) tells who has it, which
    leaves no file behind and does not outlive its process. Any user may hold it, so it is not waited for for ever."""
    info = folder.stat()
    until_s = time.monotonic() + TURN_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mark:
        while time.monotonic() < until_s:
            try:
                mark.bind(f"\0socketswarm-{info.st_dev}-{info.st_ino}")
                break
            except OSError:
                time.sleep(0.005)
        yield


def _bind(sock: socket.socket, path: Path) -> None:
    try:
        sock.bind(str(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        _clear(path)
        sock.bind(str(path))


def _clear(path: Path) -> None:
    """Remove what a dead server left. PathError for anything else."""
    if problem := find_problem(path):
        raise PathError(problem)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except PermissionError:
            raise PathError("another user's socket is there; name another path") from None
        except BlockingIOError:  # its queue is full
            raise PathError("a server that is busy listens there; stop it or name another path") from None
        pid, _, _ = _UCRED.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    raise PathError(f"pid {pid} listens there; stop it with: make killport SOCKET={path}, or name another path")


def _umask() -> int:
    umask = os.umask(0o777)
    os.umask(umask)
    return umask
