"""What a command prints, to whatever takes it: whoever reads may have seen enough, as `head` has, a disk may be full, a
terminal may not have the characters, and it obeys what it is sent.

A leaf, which all rooms read.
"""

import errno
import io
import os
import sys
from contextlib import suppress


def show(text: str) -> None:
    """Print the text and a line's end, at once. That nobody reads is no failure, and changes no exit code: scripts ask
    for that alone. SystemExit with one line when it cannot be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        _to_nowhere()
        if error.errno not in (errno.EPIPE, errno.EIO):  # the latter is a terminal that was closed
            sys.exit(f"Error: stdout cannot be written: {error.strerror}")


def tell(text: str) -> None:
    """One line on standard error, past its buffer: that may be in use where a signal comes, and would make us fail at
    our exit if the terminal was closed."""
    if sys.stderr is not None:  # or its number may be one of our own files by now
        with suppress(OSError):
            os.write(sys.stderr.fileno(), f"{one_line(text)}\n".encode(errors="replace"))


def _to_nowhere() -> None:
    """What is left of the text would fail once more when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def take_any_character() -> None:
    """Have stdout replace what its encoding has not by a question mark, which keeps a table's columns: no terminal's
    locale, and no file's name, shall end a command. Each entry point calls it first; stderr takes everything anyway.
    Where stdout was closed, what is said goes nowhere, and none of our own files gets its number."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as we live
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def one_line(text: str) -> str:
    """The text with what cannot be printed escaped: it neither breaks a line, nor moves a terminal's cursor, nor turns
    the direction of what follows. Whatever another program or a stranger chose goes through here before it is shown."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
