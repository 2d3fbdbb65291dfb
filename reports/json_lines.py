"""Files that survive a kill at any moment: JSON lines that are appended, and whole files that are replaced. A leaf.

A line is appended with one write(), so that at most the last one is torn. Readers skip what is torn. A file that is
replaced is written beside its place and moved there.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

# What msgspec raises for bytes that are no value: the second for bad UTF-8 within a string, the third for what is
# nested a thousand deep.
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encoded(value: Any) -> bytes:
    """The value as JSON, which is UTF-8. A path or an argument may be any bytes, which Python keeps as surrogates: of
    these, what is UTF-8 is written as that, and the rest is replaced."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
        return text.encode(errors="surrogateescape").decode(errors="replace").encode()


class Appender:
    """Appends lines to one file."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._torn = False

    def append(self, line: msgspec.Struct) -> None:
        """OSError when not all of it could be written. What is left of it then costs no other line: the next one begins
        with a line end, and an empty line is none."""
        rest = (b"\n" if self._torn else b"") + encoded(line) + b"\n"
        self._torn = True
        while rest:  # a disk that is filling up takes a part
            rest = rest[os.write(self._fd, rest) :]
        self._torn = False

    def is_removed(self) -> bool:
        return os.fstat(self._fd).st_nlink == 0

    def close(self) -> None:
        os.close(self._fd)


def decoded(lines: Iterable[bytes], decoder: "msgspec.json.Decoder[T]") -> Iterator[T]:
    """Each line that can be read. A torn one is skipped: a kill leaves one at the end, and a writer that was restarted
    after a kill goes on behind it."""
    for line in lines:
        try:
            yield decoder.decode(line)
        except UNDECODABLE:
            continue


def write_whole(path: Path, value: Any) -> None:
    """Replace a JSON file, see `replace_all`."""
    replace_all({path: json_of(value)})


def json_of(value: Any) -> bytes:
    """A JSON file's content."""
    return msgspec.json.format(encoded(value), indent=2) + b"\n"


def replace_all(contents: Mapping[Path, bytes]) -> None:
    """Replace files, each atomically: readers see the old or the new one. None is replaced before all are written.
    OSError when one cannot be written: then nothing has changed."""
    temporaries = {path: path.with_name(f".{path.name}") for path in contents}
    try:
        for path, content in contents.items():
            temporaries[path].write_bytes(content)
        for path, temporary in temporaries.items():
            temporary.rename(path)
    except BaseException:
        for temporary in temporaries.values():
            with suppress(OSError):  # what is wrong is wrong with the first one
                temporary.unlink()
        raise
