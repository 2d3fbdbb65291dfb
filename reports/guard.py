"""What a process has started ends with it, however it ends: who is killed can end nothing.

Beside the starter another process runs, which is this file as a program. It waits for the end of a socket whose other
end only the starter has, and which the kernel closes whatever ends that. Then it does what the starter would have done:
it ends what it was told of, the last first, by TERM, a grace and KILL, and removes the folders. When the starter has
done so itself, nothing is left to do.

PR_SET_PDEATHSIG is no such end: it is one signal without a grace, forgotten by a program that changes its user, and it
removes no folder. Processes are handed over as pidfds, since a pid may be somebody else's by then.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

_MESSAGE_BYTES = 4096  # a path is no longer


class Guard:
    """That process, as the starter has it: a context, within which it ends what it starts itself if it can."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # or what is sent to our group would end it with us
            )

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
        with suppress(OSError):
            self._orders.send(os.fsencode(folder))


def _main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    processes, folders = _listen(socket.socket(fileno=0))
    for pidfd, grace_s in reversed(processes):
        _end(pidfd, grace_s)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


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


def _end(pidfd: int, grace_s: float) -> None:
    has_ended = select.poll()
    has_ended.register(pidfd, select.POLLIN)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        if not has_ended.poll(grace_s * 1000):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return
    has_ended.poll()


if __name__ == "__main__":
    _main()
