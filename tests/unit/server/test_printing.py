"""What is shown of a text that a stranger chose."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import ROOT

from server.printing import one_line


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
