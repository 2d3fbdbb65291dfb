"""What ends a command of the load or of the reports, and what does not. The server's supervisor has rules of its own.

Ctrl-C, TERM, QUIT and a closed terminal end it, in order; under nohup it outlives its terminal. What else people, tools
and timers send would end a process that does not know it, without a word, and does nothing. Left as they are: what
tells of a fault, and the signals of job control and of children.

It imports next to nothing, since `hold` comes before all other imports, which take up to half a second.
"""

import math
import os
import signal
from types import FrameType
from typing import NoReturn

from server.printing import tell

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
INTERRUPTED = 130  # as shells have it after Ctrl-C, whichever of them it was
_UNUSED = [  # what of these the system has
    getattr(signal, name)
    for name in ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGSTKFLT")
    if hasattr(signal, name)
] + [number for number in signal.valid_signals() if number >= getattr(signal, "SIGRTMIN", math.inf)]


def ending() -> list[signal.Signals]:
    """What ends us: SIGHUP is a closed terminal's, and who started us with nohup wants us to outlive it."""
    outlives = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in ENDING if number != signal.SIGHUP or not outlives]


def hold() -> None:
    """From the first line of a command until it knows better: nothing was begun yet, and its end is one line. Not by
    an exception, which can be lost while Python imports, in a destructor for one."""
    ignore_unused()
    for number in ending():
        signal.signal(number, _end_at_once)


def ignore_unused() -> None:
    """Also of all that we start."""
    for number in _UNUSED:
        signal.signal(number, signal.SIG_IGN)


def give_back() -> None:
    """In a child that becomes somebody else's program: a shell cannot trap what was ignored when it began."""
    for number in _UNUSED:
        signal.signal(number, signal.SIG_DFL)


def interrupt() -> None:
    """From here on the first that comes is a KeyboardInterrupt, and a second one an end at once."""
    for number in ending():
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    for each in ending():
        signal.signal(each, _end_at_once)
    raise KeyboardInterrupt


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    tell(f"Stopped by {signal.Signals(number).name}")
    os._exit(INTERRUPTED)
