"""Where bytes go: a folder of files, or nowhere. No sockets, no protocol.

A file becomes visible under its name whole or not at all: it is written to `STORE/.incoming/<slot>/` and renamed into
place when it is complete. Each worker slot has a folder of its own there, so that what a killed worker left can be
removed before its replacement starts, without asking whose it was.

Paths are never joined from what a client said: files are opened relative to folder descriptors, by a name that
`protocol.safe_file_name` has already reduced to one component, and a symbolic link of that name is replaced, not
followed.
"""

import errno
import os
import shutil
from pathlib import Path
from typing import Protocol

INCOMING = ".incoming"

_OPEN_TEMPORARY = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
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
    """Takes files: in pieces with `begin`, or in one with `put`. Both raise StoreError when the name or the store
    refuses."""

    def begin(self, file_name: str) -> Incoming: ...
    def put(self, file_name: str, content: memoryview) -> None: ...


class _DiscardedFile:
    def write(self, view: memoryview) -> None: ...
    def commit(self) -> None: ...
    def abort(self) -> None: ...


class DiscardStore:
    """Takes every file and keeps none: measures the server without a disk."""

    _file = _DiscardedFile()

    def begin(self, file_name: str) -> Incoming:
        return self._file

    def put(self, file_name: str, content: memoryview) -> None: ...


class FileStore:
    """Keeps files in the folder `root`, which `prepare_store` made; one object per worker."""

    def __init__(self, root: Path, slot: int) -> None:
        self.root_fd = os.open(root, _OPEN_FOLDER)
        self.incoming_fd = os.open(root / INCOMING / str(slot), _OPEN_FOLDER)
        self._count = 0

    def begin(self, file_name: str) -> Incoming:
        """Open a temporary file for `file_name`. StoreError `name_rejected` for the store's own folder."""
        if file_name == INCOMING:
            raise StoreError("name_rejected", f"{INCOMING} is the store's own")
        self._count += 1
        temporary = str(self._count)
        try:
            fd = os.open(temporary, _OPEN_TEMPORARY, 0o600, dir_fd=self.incoming_fd)
        except OSError as error:
            raise _store_error(error) from error
        return _IncomingFile(self, file_name, temporary, fd)

    def put(self, file_name: str, content: memoryview) -> None:
        """Store a file whose bytes are all at hand. As `begin`, `write` and `commit`, without an object in between."""
        if file_name == INCOMING:
            raise StoreError("name_rejected", f"{INCOMING} is the store's own")
        self._count += 1
        temporary = str(self._count)
        try:
            fd = os.open(temporary, _OPEN_TEMPORARY, 0o600, dir_fd=self.incoming_fd)
            try:
                written = os.write(fd, content)
            finally:
                os.close(fd)
            if written == len(content):
                os.rename(temporary, file_name.encode(), src_dir_fd=self.incoming_fd, dst_dir_fd=self.root_fd)
                return
        except IsADirectoryError:
            error = StoreError("name_rejected", f"{file_name!r} is a folder in the store")
        except OSError as failed:
            error = _store_error(failed)
        else:
            error = StoreError("no_space", "the store took only a part of the file")
        self.remove(temporary)
        raise error

    def remove(self, temporary: str) -> None:
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

    def __init__(self, store: FileStore, name: str, temporary: str, fd: int) -> None:
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
        store = self._store
        try:
            self._close()
            os.rename(self._temporary, self._name.encode(), src_dir_fd=store.incoming_fd, dst_dir_fd=store.root_fd)
        except IsADirectoryError:
            raise StoreError("name_rejected", f"{self._name!r} is a folder in the store") from None
        except OSError as error:
            raise _store_error(error) from error

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
