"""What the supervisor asks of the kernel: to be woken by signals and by workers, to fork, and what the end of a child
means. No policy: when to fork and what to do about a death is the supervisor's.

A fork copies only the thread that calls it, and locks held by the others would stay locked for ever in the child. So
the supervisor must have one thread, which is asserted at each birth.

Workers cannot outlive their parent: each asks the kernel (PR_SET_PDEATHSIG) to be killed when it dies, which also ends
a worker that is stopped or hangs, so a port is never held by orphans.
"""

import ctypes
import gc
import logging
import math
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from server.printing import in_words, tell

PR_SET_PDEATHSIG = 1
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_CHANGES = (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
UNUSED: dict[int, str] = {
    signal.SIGUSR1: "USR1 does nothing: the log goes to standard error, there is no file to reopen",
    signal.SIGUSR2: "USR2 does nothing: another version takes a restart, another configuration HUP",
}
"""At these other servers do what ours has no need for."""
CAUGHT = (*STOPS, *_CHANGES, *UNUSED, signal.SIGCHLD)
"""What the supervisor listens to."""
_FAULTS = {signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGSYS}
_DEFAULT = {*_FAULTS, signal.SIGXCPU, signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP}
IGNORED = signal.valid_signals() - {*CAUGHT, *_DEFAULT}
"""All others: most would end a process that does not know them."""

log = logging.getLogger("server")


def hold_signals() -> None:
    """Until there is a supervisor: what it would ignore is ignored, to change anything has time until then, and a stop
    is an exit at once, which says so and takes back what was made so far."""
    for number in (*IGNORED, *UNUSED):
        signal.signal(number, signal.SIG_IGN)
    for number in STOPS:
        signal.signal(number, _exit)
    signal.pthread_sigmask(signal.SIG_SETMASK, _CHANGES)


_stops: list[int] = []
"""Numbers of the signals that were an exit. An exception can be lost, in a destructor for one, so what begins the
supervisor's work looks here."""


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    _stops.append(number)
    tell(f"Stopped by {signal.Signals(number).name}")
    sys.exit(128 + number)


class Wakeups:
    """Signals, and pids of workers that became ready. Both come through pipes, so that nothing happens inside a signal
    handler. Both ends of both are non-blocking: a full pipe must not stop a signal or a worker."""

    def __init__(self) -> None:
        self._signals_read, self._signals_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._ready_read, self._ready_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._signals_read, select.POLLIN)
        self._poll.register(self._ready_read, select.POLLIN)

    def catch_signals(self) -> None:
        """SystemExit where a stop came before."""
        if _stops:
            sys.exit(128 + _stops[0])
        signal.set_wakeup_fd(self._signals_write, warn_on_full_buffer=False)
        for number in CAUGHT:
            signal.signal(number, _woken)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)

    def wait(self, until_s: float) -> tuple[bytes, set[int]]:
        """Sleep until something comes, or until then (monotonic; inf for ever). Returns the numbers of signals, and the
        pids of workers that are ready: if one has died, and that is among the signals, then so are these."""
        self._poll.poll(None if until_s == math.inf else max(0.0, (until_s - time.monotonic()) * 1000))
        signals, pids = _read(self._signals_read), _read(self._ready_read)
        return signals, {int.from_bytes(pids[start : start + 4], "little") for start in range(0, len(pids), 4)}

    def become_worker(self) -> None:
        """Keep only what `tell_ready` needs, in the child."""
        for fd in (self._signals_read, self._signals_write, self._ready_read):
            os.close(fd)

    def tell_ready(self) -> None:
        os.write(self._ready_write, os.getpid().to_bytes(4, "little"))
        os.close(self._ready_write)

    def close(self) -> None:
        """Hear nothing more: Python would give each signal back its default action before it ends."""
        for number in CAUGHT:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        for fd in (self._signals_read, self._signals_write, self._ready_read, self._ready_write):
            os.close(fd)


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, 4096)
    except BlockingIOError:
        return b""


def _woken(number: int, frame: FrameType | None) -> None:
    """The pipe has the signal's number already; the loop does the rest."""


def has_terminal() -> bool:
    """Whether this process would be told of its terminal's end."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@contextmanager
def no_longer_than(seconds: float, error: Exception) -> Iterator[None]:
    """Raise it in whatever system call the block still waits then: whoever waits for ever hears no signal."""

    def give_up(number: int, frame: FrameType | None) -> None:
        if time.monotonic() >= until_s:  # or somebody else sent it
            raise error

    until_s = time.monotonic() + seconds
    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fork(become: Callable[[], None], name: str, ended_by: int | None = None) -> int:
    """Fork a child that calls `become` and ends; returns its pid. `name` is what its errors are logged under. Of the
    signals that people send it ignores all but `ended_by`. OSError when there can be no child."""
    threads = Path("/proc/self/task").stat().st_nlink - 2  # one folder a thread
    assert threads == 1, f"the supervisor has {threads} threads and must not fork"
    # Signals wait until the child has its own handlers: it must not write into our pipe.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*CAUGHT, *IGNORED))
    parent = os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            _live(become, name, ended_by, parent, mask)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _live(
    become: Callable[[], None], name: str, ended_by: int | None, parent: int, mask: set[int | signal.Signals]
) -> NoReturn:
    """Be the child, which never returns into the supervisor's code."""
    code = 1
    try:
        die_with(parent)
        signal.set_wakeup_fd(-1)
        # A terminal, a service manager or pkill sends these to all; they are meant for the supervisor, which decides:
        # a worker that drained by itself would leave its slot without service.
        for number in CAUGHT:
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGCHLD, *([] if ended_by is None else [ended_by])):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.enable()
        become()
        code = 0
    except OSError as error:
        log.error("%s: %s", name, in_words(error))
    except BaseException:
        log.exception("%s: ended by an error", name)
    finally:
        logging.shutdown()
        os._exit(code)


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies (prctl(2)); for a parent already dead, end here."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(1)


def show_title(title: str) -> None:
    """Set what `ps` shows of this process. Its environment stays readable in /proc: tools find processes by it."""
    os.environ["SPT_NOENV"] = "1"
    from setproctitle import setproctitle

    setproctitle(title)


def cpu_of(usage: resource.struct_rusage, whose: str = "cpu") -> dict[str, float]:
    """CPU time in seconds, by its names in events."""
    return {f"{whose}_user_s": usage.ru_utime, f"{whose}_system_s": usage.ru_stime}


def how_it_ended(status: int, killed_because: str | None) -> str:
    if not os.WIFSIGNALED(status):
        return f"ended with exit code {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time one
        name = f"signal {number}"
    by = f"the supervisor, because {killed_because}" if killed_because else "somebody else"
    return f"was ended by {name} from {by}" if number in (signal.SIGKILL, signal.SIGTERM) else f"died of {name}"


def is_accident(status: int) -> bool:
    """Whether somebody or something from outside ended it. The kernel's OOM killer does so too."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGTERM)
