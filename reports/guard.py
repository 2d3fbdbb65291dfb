"""What a process has started ends with it, however it ends: who is killed can end nothing.

Beside the starter another process runs, which is this file as a program. It waits for the end of a socket whose other
end only the starter has, and which the kernel closes whatever ends that. Then it does what the starter would have done:
it ends what it was told of, the last first, by TERM, a grace and KILL, removes the folders, and says so. When the
starter has done so itself, nothing is left to do.

One after the other, since a load that finishes its uploads needs its server until then: where both were told at once, a
load of 50 users had 20 connections refused. Who was stopped is continued, or it would not hear. KILL, which is for who
hears nothing, takes what that has started, too.

PR_SET_PDEATHSIG is no such end: it is one signal to all at once, without a grace, forgotten by a program that changes
its user, and it removes no folder. So who kills the guard together with the starter leaves the rest running. Processes
are handed over as pidfds, since a pid may be somebody else's by then.
"""

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
_MESSAGE_BYTES = 8192  # a path has at most 4096
_libc = ctypes.CDLL(None)


class Guard:
    """That process, as the starter has it: a context, within which it ends what it starts itself if it can."""

    def __init__(self, what: str, build: str) -> None:
        """`what` the starter does, and the command that makes a report of it, for who reads that it was killed."""
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL if sys.stderr is None else None,  # closed: it may be one of our files by now
                preexec_fn=_be_continued,
                start_new_session=True,  # or what is sent to our group would end it with us
            )
        self._tell(f"{what} was killed; what it had started has ended; for what was measured until then: {build}\n")

    def __enter__(self) -> "Guard":
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.close()
        self._process.wait()

    def will_end(self, grace_s: float) -> Callable[[], None]:
        """The `preexec_fn` of a process that shall be ended. It hands itself over, before it becomes what it shall run:
        whoever started it may be killed in the very next moment."""

        def hand_over() -> None:
            with suppress(OSError):  # somebody killed the guard; who starts us ends us nevertheless
                pidfd = os.pidfd_open(os.getpid())
                socket.send_fds(self._orders, [str(grace_s).encode()], [pidfd])
                os.close(pidfd)

        return hand_over

    def will_remove(self, folder: str) -> None:
        """Have a folder removed when all processes have ended."""
        self._tell(folder)

    def _tell(self, text: str) -> None:
        with suppress(OSError):  # somebody killed it
            self._orders.send(os.fsencode(text))


def _be_continued() -> None:
    """By the kernel, when the starter's main thread ends: the guard may be stopped like all the others."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)


def _main() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    orders = socket.socket(fileno=0)
    last_words = orders.recv(_MESSAGE_BYTES)
    processes, folders = _listen(orders)
    for pidfd, _ in processes:  # all of them first: who ends waits for the others
        _send(signal.SIGCONT, [pidfd, *_below(pidfd)])
    ended = [_end(pidfd, grace_s) for pidfd, grace_s in reversed(processes)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    if any(ended):
        with suppress(OSError):  # its terminal is closed
            os.write(2, last_words)


def _listen(orders: socket.socket) -> tuple[list[tuple[int, float]], list[bytes]]:
    """What it is told until nobody can tell it anything any more: (pidfd, grace) of processes, and folders."""
    processes: list[tuple[int, float]] = []
    folders: list[bytes] = []
    while True:
        message, pidfds, _, _ = socket.recv_fds(orders, _MESSAGE_BYTES, 1)
        if not message:
            return processes, folders
        if pidfds:
            processes.append((pidfds[0], float(message)))
        else:
            folders.append(message)


def _end(pidfd: int, grace_s: float) -> bool:
    """Whether there was something left to end."""
    has_ended = select.poll()
    has_ended.register(pidfd, select.POLLIN)
    if has_ended.poll(0):
        return False
    _send(signal.SIGTERM, [pidfd])
    if not has_ended.poll(grace_s * 1000):
        _send(signal.SIGKILL, [pidfd, *_below(pidfd)])
        has_ended.poll(grace_s * 1000)  # not for ever: it may be another user's
    return True


def _send(number: signal.Signals, pidfds: list[int]) -> None:
    for pidfd in pidfds:
        with suppress(OSError):  # it has ended meanwhile, or has become another user
            signal.pidfd_send_signal(pidfd, number)


def _below(pidfd: int) -> list[int]:
    """Of all that it has started, and these. A pid counts that is still its child's once we hold it."""
    found = []
    for child in _children(pidfd):
        with suppress(OSError):
            held = os.pidfd_open(child)
            if child in _children(pidfd):
                found += [held, *_below(held)]
    return found


def _children(pidfd: int) -> list[int]:
    """Of all its threads; none where the kernel does not tell (CONFIG_PROC_CHILDREN)."""
    told = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines())
    found: list[int] = []
    with suppress(OSError):  # one has ended meanwhile
        for each in Path(f"/proc/{int(told['Pid'])}/task").glob("*/children"):  # -1 of who has
            found += map(int, each.read_text().split())
    return found


if __name__ == "__main__":
    _main()
