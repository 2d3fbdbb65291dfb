"""How a child of the supervisor is born, a worker or the status helper, and what its end means. No policy: when to fork
and what to do about a death is the supervisor's.

A fork copies only the thread that calls it, and locks held by the others would stay locked for ever in the child. So
the supervisor must have one thread, which is asserted at each birth.

Workers cannot outlive their parent: each asks the kernel (PR_SET_PDEATHSIG) to be killed when it dies, which also ends
a worker that is stopped or hangs, so a port is never held by orphans.
"""

import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from server import scoreboard
from server.config import ServerConfig

PR_SET_PDEATHSIG = 1
CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD)
"""What the supervisor listens to."""

log = logging.getLogger("server")


@dataclass(slots=True, eq=False)
class Offspring:
    """A worker process as its supervisor knows it. Times are monotonic."""

    pid: int
    slot: int
    seat: int
    record: memoryview
    """Its words of the scoreboard."""
    config: ServerConfig
    """It was born with, and has until its end."""
    born_s: float
    is_ready: bool = False
    killed_because: str | None = None

    @property
    def beat_s(self) -> float:
        """When its event loop turned last; its birth, before that."""
        return max(self.born_s, self.record[scoreboard.HEARTBEAT_NS] / 1e9)

    @property
    def may_accept(self) -> bool:
        """Whether it still has its listening socket: it says that it drains when it has closed that."""
        return self.record[scoreboard.STATE] in (scoreboard.STARTING, scoreboard.READY)


def fork(become: Callable[[], None], name: str) -> int:
    """Fork a child that calls `become` and ends; returns its pid. `name` is what its errors are logged under. OSError
    when there can be no child."""
    threads = Path("/proc/self/task").stat().st_nlink - 2  # one folder a thread
    assert threads == 1, f"the supervisor has {threads} threads and must not fork"
    # Signals wait until the child has its own handlers: it must not write into our pipe.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)
    parent = os.getpid()
    try:
        pid = os.fork()
        if pid == 0:
            _live(become, name, parent, mask)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _live(become: Callable[[], None], name: str, parent: int, mask: set[int | signal.Signals]) -> NoReturn:
    """In the child: never return into the supervisor's code."""
    code = 1
    try:
        die_with(parent)
        signal.set_wakeup_fd(-1)
        # A terminal or a service manager sends these to the whole group; they are meant for the supervisor, which
        # decides: a worker that drained by itself would leave its slot without service.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.enable()
        become()
        code = 0
    except OSError as error:
        log.error("%s: %s", name, error)
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
    """As `ps` shows this process. Its environment stays readable in /proc: tools find processes by it."""
    os.environ["SPT_NOENV"] = "1"
    from setproctitle import setproctitle

    setproctitle(title)


def how_it_ended(status: int, killed_because: str | None) -> str:
    if not os.WIFSIGNALED(status):
        return f"ended with exit code {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    by = f"the supervisor, because {killed_because}" if killed_because else "somebody else"
    return f"was ended by {name} from {by}" if number in (signal.SIGKILL, signal.SIGTERM) else f"died of {name}"


def is_accident(status: int) -> bool:
    """Whether somebody or something from outside ended it. The kernel's OOM killer does so too."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGTERM)
