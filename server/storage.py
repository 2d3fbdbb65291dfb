"""Where bytes go: a folder of files, or nowhere. No sockets, no protocol.

A file becomes visible under its name whole or not at all: it is written to `STORE/.incoming/<slot>/` and renamed into
place when it is complete. Each worker slot has a folder of its own there, so that what a killed worker left can be
removed before its replacement starts, without asking whose it was.

Paths are never joined from what a client said: files are opened relative to folder descriptors, by a name that
`protocol.safe_file_name` has already reduced to one component, and a symbolic link of that name is replaced, not
followed.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

INCOMING = ".incoming"

_OPEN_TEMPORARY = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StoreError(Exception):
    """The store cannot take this file. `code` is one of protocol.FAILURE_CODES."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Incoming(Protocol):
    """A file that is arriving: any number of `write`, then one `commit` or one `abort`. `write` and `commit` raise
    StoreError, after which `abort` is still due; `abort` raises nothing."""

    def write(self, view: memoryview) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


class Store(Protocol):
    """Takes files: one in pieces with `begin`, which raises StoreError, or many whole ones with `put_all`, which
    returns an error or None for each."""

    def begin(self, file_name: str) -> Incoming: ...
    def put_all(self, files: Sequence[tuple[str, memoryview]]) -> list[StoreError | None]: ...


class _DiscardedFile:
    def write(self, view: memoryview) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


class DiscardStore:
    """Takes every file and keeps none: measures the server without a disk."""

    _file = _DiscardedFile()

    def begin(self, file_name: str) -> Incoming:
        return self._file

    def put_all(self, files: Sequence[tuple[str, memoryview]]) -> list[StoreError | None]:
        return [None] * len(files)


class FileStore:
    """Keeps files in the folder `root`, which `prepare_store` made; one object per worker."""

    def __init__(self, root: Path, slot: int) -> None:
        self.root_fd = os.open(root, _OPEN_FOLDER)
        self.incoming_fd = os.open(root / INCOMING / str(slot), _OPEN_FOLDER | os.O_NOFOLLOW)
        self._count = 0

    def begin(self, file_name: str) -> Incoming:
        """Open a temporary file for `file_name`. StoreError `name_rejected` for the store's own folder."""
        if file_name == INCOMING:
            raise StoreError("name_rejected", f"{INCOMING} is the store's own")
        temporary = b"%d" % self._count
        self._count += 1
        try:
            fd = os.open(temporary, _OPEN_TEMPORARY, 0o600, dir_fd=self.incoming_fd)
        except OSError as error:
            raise _store_error(error) from error
        return _IncomingFile(self, file_name, temporary, fd)

    def put_all(self, files: Sequence[tuple[str, memoryview]]) -> list[StoreError | None]:
        """Store files whose bytes are all at hand; an error for each that could not be. Step by step for all, not file
        by file: why, `batch` says."""
        errors: list[StoreError | None] = [None] * len(files)
        temporaries = [b"%d" % number for number in range(self._count, self._count + len(files))]
        self._count += len(files)
        opened: list[tuple[int, int]] = []
        for index, temporary in enumerate(temporaries):
            try:
                opened.append((index, os.open(temporary, _OPEN_TEMPORARY, 0o600, dir_fd=self.incoming_fd)))
            except OSError as error:
                errors[index] = _store_error(error)
        for index, fd in opened:
            content = files[index][1]
            try:
                if os.write(fd, content) < len(content):
                    errors[index] = StoreError("no_space", "the store took only a part of the file")
            except OSError as error:
                errors[index] = _store_error(error)
        for index, fd in opened:
            try:
                os.close(fd)
            except OSError as error:  # a file system may tell only now that it is full
                errors[index] = _store_error(error)
        for index, _ in opened:
            if errors[index] is None:
                errors[index] = self.publish(temporaries[index], files[index][0])
            if errors[index] is not None:
                self.remove(temporaries[index])
        return errors

    def publish(self, temporary: bytes, file_name: str) -> StoreError | None:
        """Make a complete temporary file visible under its name; returns what is wrong with that."""
        if file_name == INCOMING:
            return StoreError("name_rejected", f"{INCOMING} is the store's own")
        try:
            os.rename(temporary, file_name.encode(), src_dir_fd=self.incoming_fd, dst_dir_fd=self.root_fd)
        except IsADirectoryError:
            return StoreError("name_rejected", f"{file_name!r} is a folder in the store")
        except OSError as error:
            return _store_error(error)
        return None

    def remove(self, temporary: bytes) -> None:
        """Remove a temporary file; what cannot be removed the supervisor does when this worker is gone."""
        try:
            os.unlink(temporary, dir_fd=self.incoming_fd)
        except OSError:
            pass

    def close(self) -> None:
        os.close(self.root_fd)
        os.close(self.incoming_fd)


class _IncomingFile:
    __slots__ = ("_fd", "_name", "_store", "_temporary")

    def __init__(self, store: FileStore, name: str, temporary: bytes, fd: int) -> None:
        self._store = store
        self._name = name
        self._temporary = temporary
        self._fd = fd

    def write(self, view: memoryview) -> None:
        try:
            written = os.write(self._fd, view)
            while written < len(view):  # a disk that fills up takes a part
                view = view[written:]
                written = os.write(self._fd, view)
        except OSError as error:
            raise _store_error(error) from error

    def commit(self) -> None:
        try:
            self._close()
        except OSError as error:
            raise _store_error(error) from error
        refused = self._store.publish(self._temporary, self._name)
        if refused is not None:
            raise refused

    def abort(self) -> None:
        try:
            self._close()
        except OSError:
            pass
        self._store.remove(self._temporary)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _store_error(error: OSError) -> StoreError:
    if error.errno in _FULL:
        return StoreError("no_space", f"the store cannot hold the file: {error.strerror}")
    return StoreError("internal", f"the store failed: {error.strerror}")


def lock_store(root: Path) -> int:
    """Make the store's folder and take it for this server: two servers would empty each other's temporary folders.

    Returns a descriptor; the lock lasts while a process has it open. BlockingIOError when another server has the
    store, OSError when the folder cannot be made.
    """
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(root, _OPEN_FOLDER)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def prepare_store(root: Path, slots: int) -> None:
    """Make the store's folders and empty those for temporary files. OSError when that cannot be done."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    incoming = root / INCOMING
    if incoming.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "is a symbolic link, not a folder", str(incoming))
    incoming.mkdir(mode=0o700, exist_ok=True)
    for entry in incoming.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for slot in range(slots):
        (incoming / str(slot)).mkdir(mode=0o700)


def empty_slot(root: Path, slot: int) -> int:
    """Remove what a worker that is gone left in its folder; returns how many files. Errors are for the next boot."""
    removed = 0
    for entry in (root / INCOMING / str(slot)).iterdir():
        try:
            entry.unlink()
            removed += 1
        except OSError:
            pass
    return removed
