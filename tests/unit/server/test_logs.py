"""The log: one line an incident whatever clients chose, and never so many that they fill a disk."""

import io
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import ROOT

from server.logs import LINES, WINDOW_S, JsonFormatter, RateLimit, TextFormatter, _LimitedHandler

HOSTILE = "a\nERROR forged\r\x1b[2J\x00\u2028\udcff end"


def record(message: str = "worker %d: %s", *args: object, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("server", level, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


def failed() -> logging.LogRecord:
    """A record with a traceback, whose error has a text that tries to begin lines."""
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        return logging.LogRecord("server", logging.ERROR, __file__, 1, "oh", (), sys.exc_info())


# ── Formats ──


@given(st.text())
def test_a_line_of_text_is_one_line(text: str) -> None:
    line = TextFormatter().format(record("%s", text))
    assert line.isprintable()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO ", line)


def test_a_traceback_in_text_follows_indented() -> None:
    first, *rest = TextFormatter().format(failed()).split("\n")
    assert first.endswith("ERROR oh")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


@given(st.text())
def test_a_line_of_json_is_one_line_that_has_the_very_text(text: str) -> None:
    line = JsonFormatter().format(record("%s", text))
    assert line.isascii() and line.isprintable()
    assert json.loads(line)["message"] == text


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose local time is not UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "FAR-09:00")
        time.tzset()
        yield
    time.tzset()


def test_json_has_time_level_pid_and_what_is_known(far_east: None) -> None:
    made = record("worker %d: %s", 2, "no", level=logging.WARNING, slot=2, code="bad_header")
    made.created, made.msecs = 1_700_000_000.007, 7.0
    assert json.loads(JsonFormatter().format(made)) == {
        "time": "2023-11-14T22:13:20.007Z",
        "level": "warning",
        "pid": made.process,
        "message": "worker 2: no",
        "slot": 2,
        "code": "bad_header",
    }
    bare = json.loads(JsonFormatter().format(record("x")))
    assert bare.keys() == {"time", "level", "pid", "message"}
    assert abs(datetime.fromisoformat(bare["time"]) - datetime.now(UTC)).total_seconds() < 60


def test_json_has_the_traceback_as_one_field() -> None:
    line = JsonFormatter().format(failed())
    assert "\n" not in line
    entry = json.loads(line)
    assert entry["traceback"].startswith("Traceback (most recent call last):\n")
    assert HOSTILE in entry["traceback"]


# ── The limit ──


def messages(records: list[logging.LogRecord]) -> list[str]:
    return [each.getMessage() for each in records]


def test_the_first_lines_of_a_kind_are_written_and_the_rest_is_counted() -> None:
    limit = RateLimit()
    for number in range(LINES):
        assert messages(limit.admit(record("%d", number, code="bad_header"), 0.0)) == [str(number)]
    for _ in range(1234):
        assert limit.admit(record("x", code="bad_header", slot=3), WINDOW_S - 0.1) == []
    count, line = limit.admit(record("%s", "now", code="bad_header"), WINDOW_S)
    assert (count.getMessage(), line.getMessage()) == ("and 1,234 more bad_header within 10 s", "now")
    assert limit.rest() == []


def test_a_count_is_told_as_the_lines_that_it_stands_for() -> None:
    limit = RateLimit()
    for _ in range(LINES + 1):
        limit.admit(record("x", code="truncated", slot=3, level=logging.WARNING), 0.0)
    [count] = limit.rest()
    assert json.loads(JsonFormatter().format(count)) | {"time": "", "pid": 0} == {
        "time": "",
        "level": "warning",
        "pid": 0,
        "message": "and 1 more truncated within 1 s",
        "slot": 3,
        "code": "truncated",
    }
    assert limit.rest() == []


def test_a_kind_does_not_use_up_the_lines_of_another() -> None:
    limit = RateLimit()
    for _ in range(LINES + 5):
        limit.admit(record("x", code="bad_header"), 0.0)
    assert messages(limit.admit(record("y", code="truncated"), 0.0)) == ["y"]
    assert messages(limit.admit(record("worker %d: %s", 1, "100 %"), 0.0)) == ["worker 1: 100 %"]
    assert messages(limit.rest()) == ["and 5 more bad_header within 1 s"]


def test_without_a_code_lines_of_one_origin_are_of_one_kind() -> None:
    limit = RateLimit()
    for number in range(LINES + 2):
        limit.admit(record("worker %d: %s", number, "100 %"), 0.0)
    assert messages(limit.rest()) == ["and 2 more 'worker %d: %s' within 1 s"]


def test_a_count_that_is_due_is_told_before_a_line_of_another_kind() -> None:
    limit = RateLimit()
    for _ in range(LINES + 1):
        limit.admit(record("x", code="bad_header"), 3.0)
    assert messages(limit.admit(record("y"), 12.9)) == ["y"]
    assert messages(limit.admit(record("y"), 13.0)) == ["and 1 more bad_header within 1 s", "y"]


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from("ab")), max_size=200))
def test_every_line_is_written_or_counted(steps: list[tuple[float, str]]) -> None:
    limit, now_s, written = RateLimit(), 0.0, []
    for pause_s, code in steps:
        now_s += pause_s / 10
        written += limit.admit(record("line", code=code), now_s)
    texts = messages(written + limit.rest())
    counted = sum(int(found[1]) for text in texts if (found := re.match(r"and (\d+) more", text)))
    assert texts.count("line") + counted == len(steps)


def test_a_child_does_not_tell_its_parents_counts() -> None:
    limit = RateLimit()
    for _ in range(LINES + 1):
        limit.admit(record("x"), 0.0)
    limit.forget()
    assert limit.rest() == []


FORKING = """
import logging, os, sys
from server import logs

logs.set_up("text", sys.stderr)
for _ in range(logs.LINES + 5):
    logs.log.warning("before")
if os.fork() == 0:
    logs.log.warning("child")
    logging.shutdown()
    os._exit(0)
os.wait()
"""


def test_a_forked_process_counts_for_itself() -> None:
    done = subprocess.run([sys.executable, "-c", FORKING], cwd=ROOT, capture_output=True, text=True, check=True)
    texts = [line.split(" WARNING ")[1] for line in done.stderr.splitlines()]
    assert texts == ["before"] * LINES + ["child", "and 5 more 'before' within 1 s"]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    with io.StringIO() as stream:
        yield stream


def test_what_was_held_back_is_told_at_the_end(stream: io.StringIO) -> None:
    handler = _LimitedHandler(stream, RateLimit())
    for _ in range(LINES + 7):
        handler.handle(record("x", code="truncated"))
    assert stream.getvalue() == "x\n" * LINES
    handler.close()
    assert stream.getvalue() == "x\n" * LINES + "and 7 more truncated within 1 s\n"
