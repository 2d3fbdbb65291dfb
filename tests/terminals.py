"""A terminal of a test's own, and commands at it.

Ctrl-C is then the key, which reaches what is in the foreground and nothing else, and closing the terminal is what the
kernel makes of it: SIGHUP to the session's leader, and an error for whoever writes to it later.
"""

import errno
import os
import pty
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from loads import END_S, Command, started
from servers import eventually, session


class Terminal:
    """A terminal as its emulator has it; commands get the other end."""

    def __init__(self) -> None:
        self._ours, self._theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self._shown = b""
        self.is_closed = False

    def start(self, cwd: Path, *command: str) -> "contextmanager[Command]":
        """A command in a session of its own, whose terminal this is."""
        ends = dict.fromkeys(("stdin", "stdout", "stderr"), self._theirs)
        return started(cwd, "setsid", "--ctty", *command, start_new_session=False, **ends)

    def leave_to_them(self) -> None:
        """Only commands have the other end from now on."""
        os.close(self._theirs)
        self._theirs = -1

    def shown(self) -> str:
        """All that it has shown so far."""
        while not self.is_closed:
            try:
                self._shown += os.read(self._ours, 1 << 16)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EIO):  # nothing now; nobody has the other end any more
                    raise
                break
        return self._shown.decode(errors="replace")

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            for fd in (self._ours, self._theirs):
                if fd >= 0:
                    os.close(fd)


@contextmanager
def at_a_terminal(cwd: Path, *command: str) -> Iterator[tuple[Command, Terminal]]:
    """A command with its terminal, in this new folder. At the end its session is empty, beside all that `started` asks
    for."""
    cwd.mkdir()
    with closing(Terminal()) as terminal, terminal.start(cwd, *command) as job:
        terminal.leave_to_them()
        yield job, terminal
        eventually(lambda: not session(job.process.pid), "its session is empty")
        assert "Traceback" not in terminal.shown(), terminal.shown()


def exit_code(job: Command, terminal: Terminal) -> int:
    """Wait for its end, and read on meanwhile: it would wait for us if the terminal were full."""
    shown_until(terminal, lambda: job.process.poll() is not None, "its end")
    assert job.process.returncode is not None
    return job.process.returncode


def shown_until(terminal: Terminal, condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + END_S
    while terminal.shown() is not None and not condition():
        assert time.monotonic() < deadline_s, f"not in time: {what}; it showed:\n{terminal.shown()}"
        time.sleep(0.01)


# ── ways to end what runs there ───────────────────────────────────────────────────────────────────────────────────


def ctrl_c(job: Command, terminal: Terminal) -> None:
    terminal.type(b"\x03")


def term(job: Command, terminal: Terminal) -> None:
    job.process.send_signal(signal.SIGTERM)


def close_the_terminal(job: Command, terminal: Terminal) -> None:
    terminal.close()


WAYS = (ctrl_c, term, close_the_terminal)
