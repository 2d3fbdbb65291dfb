"""What is shown of a text that a stranger chose."""

import errno
import io
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import ROOT

from server.printing import OUR_SIGNS, as_shown, in_words, one_line, take_any_character


@given(st.text())
def test_what_is_shown_is_one_line(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert line == text or not text.isprintable()
    line.encode()  # no lone surrogate is left


def test_control_characters_are_shown_as_python_writes_them() -> None:
    assert one_line("a\nb\x1b[2J\u2028\udcff é\\") == r"a\nb\x1b[2J\u2028\udcff é" + "\\"


@pytest.mark.parametrize("character", "\r\0\x07\x7f\x85\x9b\u200e\u202e\u2066\u2069\ufeff\u2029\U000e0041")
def test_nothing_moves_a_cursor_or_turns_the_direction_of_what_follows(character: str) -> None:
    assert one_line(f"a{character}b").isascii()


def test_what_is_said_to_a_closed_stdout_goes_nowhere() -> None:
    said = "import os, sys; from server.printing import show, take_any_character as t; t(); show('x'); sys.exit(3)"
    closed = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, said]
    done = subprocess.run(closed, cwd=ROOT, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (3, b"")


def said_in(encoding: str, text: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The text on stdout and on stderr of this encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    take_any_character()
    for stream in streams:
        stream.write(text)
    assert as_shown(text) == streams[0].buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)  # type: ignore[attr-defined]
    return out, err


@pytest.mark.parametrize(
    ("encoding", "out", "err"),
    [
        ("utf-8", "≤≥ 4 µs ü→😀", "≤≥ 4 µs ü→😀"),
        ("ascii", "<=>= 4 us ?->?", r"<=>= 4 us \xfc->\U0001f600"),
        ("latin-1", "<=>= 4 µs ü->?", r"<=>= 4 µs ü->\U0001f600"),
        ("iso8859-7", "<=>= 4 us ?->?", r"<=>= 4 us \xfc->\U0001f600"),
    ],
)
def test_our_signs_are_spelled_out_where_an_encoding_has_them_not(
    encoding: str, out: str, err: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert said_in(encoding, "≤≥ 4 µs ü→😀", monkeypatch) == (out, err)


def test_every_sign_of_ours_has_its_own_words_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = said_in("ascii", "".join(OUR_SIGNS), monkeypatch)
    assert out == err == "".join(OUR_SIGNS.values())
    assert "?" not in out


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "/x"), "/x: Permission denied"),
        (OSError("a size of 0"), "a size of 0"),
        (ValueError("[Errno 28]"), "[Errno 28]"),
    ],
)
def test_an_error_in_words(error: Exception, words: str) -> None:
    assert in_words(error) == words
