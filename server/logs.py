"""The server's log on stderr: one line an incident, for people or as JSON, and never so many that they fill a disk.

An upload that is stored is no incident and writes nothing. One that fails is one, and clients decide how many fail: so
of each kind of line a process writes the first 20, counts what follows within 10 s, and then tells the number in one
line. The kind is the failure's code, or for other lines the text before its values are filled in. Nothing is lost by
it: every failure is counted in the scoreboard. There is no timer: a count that is due is told before the next line of
any kind, and at the end of the process.

What clients chose, such as a file's name, cannot begin a line or move a terminal's cursor: it is escaped.

To give a line's slot and code fields of their own: `log.info("…", extra={"slot": 2, "code": "bad_header"})`.
"""

import json
import logging
import os
import sys
import time
from dataclasses import dataclass
from typing import TextIO

from server.options import LogFormat
from server.printing import one_line

LINES = 20
WINDOW_S = 10.0
_FIELDS = ("slot", "code")

log = logging.getLogger("server")


def set_up(log_format: LogFormat, stream: TextIO = sys.stderr) -> None:
    """Send all that is logged to `stream`. Processes that are forked later count their lines themselves."""
    limit = RateLimit()
    os.register_at_fork(after_in_child=limit.forget)
    handler = _LimitedHandler(stream, limit)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:34:56,789 INFO worker 2: …`; a traceback follows, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return one_line(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]
        return "\n".join(f"    {one_line(line)}" for line in lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII: time (UTC), level, pid, message, and slot, code and traceback if there are."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "pid": record.process,
            "message": record.getMessage(),
        }
        entry |= _fields(record, *_FIELDS)
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


@dataclass(slots=True)
class _Window:
    """Lines of one kind since the first of them was written."""

    told_as: dict[str, object]
    """What the line with their number has of the first. Not the record: it may hold a traceback, and that a client."""
    began_s: float
    last_s: float
    lines: int = 0


class RateLimit:
    """Which lines are written, by a clock that the caller reads (seconds)."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    def admit(self, record: logging.LogRecord, now_s: float) -> list[logging.LogRecord]:
        """What is to be written now: counts that are due, and the record unless too many were like it."""
        due = [kind for kind, window in self._windows.items() if now_s - window.began_s >= WINDOW_S]
        written = self._tell(due)
        kind = getattr(record, "code", None) or repr(record.msg)
        if kind not in self._windows:
            self._windows[kind] = _Window(_fields(record, "name", "levelno", "levelname", *_FIELDS), now_s, now_s)
        window = self._windows[kind]
        window.last_s = now_s
        window.lines += 1
        if window.lines <= LINES:
            written.append(record)
        return written

    def rest(self) -> list[logging.LogRecord]:
        """The counts that nobody was told of yet."""
        return self._tell(list(self._windows))

    def forget(self) -> None:
        """Begin anew, as a process does that was forked: its parent tells the parent's counts."""
        self._windows.clear()

    def _tell(self, kinds: list[str]) -> list[logging.LogRecord]:
        windows = [(kind, self._windows.pop(kind)) for kind in kinds]
        return [_summary(kind, window) for kind, window in windows if window.lines > LINES]


def _fields(record: logging.LogRecord, *names: str) -> dict[str, object]:
    return {name: value for name in names if (value := getattr(record, name, None)) is not None}


def _summary(kind: str, window: _Window) -> logging.LogRecord:
    within_s = max(1, round(window.last_s - window.began_s))
    text = f"and {window.lines - LINES:,} more {kind} within {within_s} s"
    return logging.makeLogRecord({**window.told_as, "msg": text})


class _LimitedHandler(logging.StreamHandler[TextIO]):
    def __init__(self, stream: TextIO, limit: RateLimit) -> None:
        super().__init__(stream)
        self._limit = limit

    def emit(self, record: logging.LogRecord) -> None:
        for admitted in self._limit.admit(record, time.monotonic()):
            super().emit(admitted)

    def close(self) -> None:
        for record in self._limit.rest():
            super().emit(record)
        super().close()
