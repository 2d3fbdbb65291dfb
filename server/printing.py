"""What a command prints, to whatever takes it: whoever reads may have seen enough, as `head` has, a disk may be full, a
terminal may not have the characters, and it obeys what it is sent.

A leaf, which all rooms read.
"""

import codecs
import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial

OUR_SIGNS = dict(zip("≤≥±−–×÷→…µ", ["<=", ">=", "+-", "-", "-", "x", "/", "->", "...", "u"], strict=True))
"""What our texts have beyond ASCII."""


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
            encoding, errors = sys.stderr.encoding or "utf-8", sys.stderr.errors or "replace"
            os.write(sys.stderr.fileno(), f"{one_line(text)}\n".encode(encoding, errors))


def _to_nowhere() -> None:
    """What is left of the text would fail once more when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def take_any_character() -> None:
    """Have stdout and stderr write our own signs in words of ASCII where their encoding has them not: `≥` as a question
    mark would be `≤` as well. Whatever else it lacks is a question mark on stdout, which keeps a table's columns, and
    escaped on stderr: no terminal's locale, and no file's name, shall end a command. Each entry point calls it first.
    Where stdout was closed, what is said goes nowhere, and none of our own files gets its number."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as we live
    for stream, otherwise in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            codecs.register_error(f"signs-or-{otherwise}", partial(_spelled_out, codecs.lookup_error(otherwise)))
            stream.reconfigure(errors=f"signs-or-{otherwise}")


def _spelled_out(
    otherwise: Callable[[UnicodeError], tuple[str | bytes, int]], error: UnicodeError
) -> tuple[str | bytes, int]:
    """A codec's error handler: the first character that it has not, and where to go on."""
    assert isinstance(error, UnicodeEncodeError)
    error.end = error.start + 1
    sign = OUR_SIGNS.get(error.object[error.start])
    return otherwise(error) if sign is None else (sign, error.end)


def as_shown(text: str) -> str:
    """The text as stdout will show it, which may be wider: what is set in columns is measured by that."""
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    return text.encode(encoding, errors or "strict").decode(encoding) if encoding else text


def in_words(error: Exception) -> str:
    """What is wrong, without the kernel's number for it, and with the file where it has one."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


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
