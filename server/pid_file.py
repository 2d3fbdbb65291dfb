"""The file with the server's pid, for scripts and init systems that want one.

It appears whole, by a rename, when the server is ready, and goes at the end. Whether it can be written is found out at
the start.
"""

import os
from pathlib import Path

from server.options import find_folder_problem, printable
from server.scoreboard import read_state

_LONGEST_BYTES = 4096  # a block of a file system


class PidFileError(Exception):
    """The file cannot be had; the text says why and what to do."""


class PidFile:
    """One that is prepared, but not to be seen before `publish`."""

    def __init__(self, path: Path) -> None:
        """PidFileError when it cannot be written, or belongs to a living server."""
        self._path = path.absolute()
        self._prepared = self._path.with_name(f".{path.name}.{os.getpid()}")
        if problem := find_problem(self._path):
            raise PidFileError(problem)
        pid = _pid_in(self._path)
        if pid is not None and read_state(pid) is not None:
            raise PidFileError(f"pid_file {printable(path)} is that of a running server, pid {pid}; name another file")
        try:
            self._prepared.write_text(f"{os.getpid()}\n")
            self._prepared.chmod(0o644)  # a pid is no secret, and the store's umask is not meant for it
        except OSError as error:
            self._prepared.unlink(missing_ok=True)  # a full disk still takes an empty file
            raise PidFileError(f"pid_file {printable(path)} cannot be written: {error.strerror}") from None

    def publish(self) -> None:
        """OSError as from rename()."""
        self._prepared.rename(self._path)

    def remove(self) -> None:
        """If it is still ours."""
        self._prepared.unlink(missing_ok=True)
        if _pid_in(self._path) == os.getpid():
            self._path.unlink(missing_ok=True)


def find_problem(path: Path) -> str | None:
    """Why no server could have this file; None when one can, or has. It only looks."""
    if problem := find_folder_problem(path.absolute().parent):
        return f"pid_file {printable(path)} cannot be written: {problem}"
    if path.exists() and _text_in(path) != "" and _pid_in(path) is None:
        return f"pid_file {printable(path)} exists and holds no pid; remove it or name another file"
    return None


def _pid_in(path: Path) -> int | None:
    text = _text_in(path)
    return int(text) if text and text.isdigit() else None


def _text_in(path: Path) -> str | None:
    """What it holds but blanks, and but NULs, which are what a file system has of it after the power went; None when
    that cannot be read, or it is too long. A device or a pipe is no file: reading may take for ever, and a rename would
    put an end to it."""
    try:
        if not path.is_file() or path.stat().st_size > _LONGEST_BYTES:
            return None
        return path.read_bytes().decode("ascii", "replace").strip(" \t\r\n\0")
    except OSError:
        return None
