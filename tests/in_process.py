"""Commands called in this process, where they have nothing to start: as a process of its own each would first import
for a quarter of a second what is here already. What a shell sees is asked of a few of each kind."""

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import psutil

from reports.signals import ENDING


def called(main: Callable[[], object], cwd: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """What `main` makes of these arguments in `cwd`: its exit code and all it says. It leaves no process behind."""
    handlers = [signal.getsignal(number) for number in ENDING]
    command = ["command", *map(str, arguments)]
    out, err = StringIO(), StringIO()
    before = psutil.Process().children()
    try:
        with chdir(cwd), patch.object(sys, "argv", command), redirect_stdout(out), redirect_stderr(err):
            code = _exit_code(main)
    finally:
        for number, handler in zip(ENDING, handlers, strict=True):
            signal.signal(number, handler)
    assert psutil.Process().children() == before
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def _exit_code(main: Callable[[], object]) -> int:
    """As Python has it at the end of a process: of a text it makes a line on standard error, and 1."""
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return ended.code or 0
    return 0
