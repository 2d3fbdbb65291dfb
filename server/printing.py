"""What a command prints, to whatever takes it: whoever reads may have seen enough, as `head` has, a disk may be full, a
terminal may not have the characters, and it obeys what it is sent.

A leaf, which all rooms read.
"""

import errno
import io
import os
import sys


def show(text: str) -> None:
    """Print the text and a line's end, at once. That nobody reads is no failure, and changes no exit code: scripts ask
    for that alone. SystemExit with one line when it cannot be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        _to_nowhere()
        if error.errno not in (errno.EPIPE, errno.EIO):  # the latter is a terminal that was closed
            sys.exit(f"Error: stdout cannot be written: {error.strerror}")


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


def quoted(value: object) -> str:
    """The value in quotes, for an error that says why it is no address; "what was given" where a password may be in it,
    however that is written: errors end in logs."""
    from unicodedata import normalize  # both are for a mistake to wait for
    from urllib.parse import unquote

    text = repr(value)
    return "what was given" if set("@?#") & set(normalize("NFKC", unquote(text))) else text
