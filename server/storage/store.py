"""Where bytes go: a folder of files, or nowhere. No sockets, no protocol.

A file becomes visible under its name whole or not at all: it is written to `STORE/.incoming/<slot>/` (`folders`) and
renamed into place when it is complete (`naming`).

Disk space is looked up before an upload is taken, and nothing is reserved: a header that claims the whole disk takes it
from nobody. A large file is preallocated at most as far ahead as it has already come, which keeps it in few pieces.

What survives the loss of power is what was fsynced, a file's bytes and then its folder's entry (fsync(2)). Both take
the time of a disk, so `put_all_durably` does them for many files together, and belongs on a thread of its own.
"""

import ctypes
import errno
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from server.options import Collision, Durability
from server.storage.folders import INCOMING, OPEN_FOLDER, open_slot, sync_names, try_to_remove
from server.storage.naming import Naming
from server.storage.quota import Quota
from server.units import format_size

_OPEN_TEMPORARY = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_libc = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE = 2
_FALLOC_FL_KEEP_SIZE = 1
_TMPFS_MAGIC = 0x01021994
PREALLOCATE_FROM = 1 << 20  # bytes: for smaller files it gains nothing
PREALLOCATE_MOST = 64 << 20


class StoreError(Exception):
    """The store cannot take this file. `code` is one of `failure_codes`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Incoming(Protocol):
    """A file that is arriving: any number of `write`, then one `commit`, which returns the name that the file got, or
    one `abort`. `write` and `commit` raise StoreError, after which `abort` is still due; `abort` raises nothing."""

    def write(self, view: memoryview) -> None: ...
    def commit(self) -> str: ...
    def abort(self) -> None: ...


class Store(Protocol):
    """Takes files: one in pieces with `begin`, which is told how many bytes will come and raises StoreError, or many
    whole ones with `put_all`, which returns for each the name that it got or an error."""

    def begin(self, file_name: str, size_bytes: int) -> Incoming: ...
    def put_all(self, files: Sequence[tuple[str, memoryview]]) -> list[str | StoreError]: ...


class DiscardedFile:
    """Bytes that nobody keeps."""

    def __init__(self, file_name: str) -> None:
        self._name = file_name

    def write(self, view: memoryview) -> None: ...
    def abort(self) -> None: ...

    def commit(self) -> str:
        return self._name


class DiscardStore:
    """Takes every file and keeps none: measures the server without a disk."""

    def begin(self, file_name: str, size_bytes: int) -> Incoming:
        return DiscardedFile(file_name)

    def put_all(self, files: Sequence[tuple[str, memoryview]]) -> list[str | StoreError]:
        return [name for name, _ in files]


class FileStore:
    """Keeps files in the folder `root`, which `prepare_store` made; one object per worker. With durability `power` use
    `put_all_durably` in place of `put_all` and `commit`."""

    def __init__(
        self,
        root: Path,
        slot: int | str,
        collision: Collision = "replace",
        durability: Durability = "process",
        quota: Quota | None = None,
        most_open: int | None = None,
    ) -> None:
        """`most_open` files may arrive at once by `begin`. OSError when the store's folders are not there, or links."""
        self._most_open = most_open
        self.open_fds: set[int] = set()  # of files that arrive; a set, since the disk's thread takes from it too
        self._quota = quota
        self._numbers = itertools.count()  # a temporary file's name, taken by the loop and by the disk's thread
        self.root_fd = os.open(root, OPEN_FOLDER)
        self.incoming_fd = -1
        try:
            self.incoming_fd = open_slot(self.root_fd, root, slot)
            self._naming = Naming(self.incoming_fd, self.root_fd, collision, measures=quota is not None)
            self._preallocates = not _is_tmpfs(self.incoming_fd)  # memory has no pieces that could be apart
            if durability == "power":
                sync_names(self.root_fd, root)
        except OSError:
            self.close()
            raise

    def begin(self, file_name: str, size_bytes: int) -> "IncomingFile":
        """Open a temporary file for `file_name`. StoreError `name_rejected` for the store's own folder, `exists` when
        the name is taken and would be refused in the end, `no_space` when there is none for so many bytes, and `busy`
        when too many files arrive already."""
        if file_name == INCOMING:
            raise _own_folder()
        temporary = b"%d" % next(self._numbers)
        try:
            if self._naming.refuses(file_name):
                raise _taken(file_name)
            self._look_for_room(size_bytes)
            if self._most_open is not None and len(self.open_fds) >= self._most_open:
                raise StoreError("busy", f"this worker has {len(self.open_fds)} files open, its most")
            fd = os.open(temporary, _OPEN_TEMPORARY, 0o666, dir_fd=self.incoming_fd)
        except OSError as error:
            raise _store_error(error) from error
        self.open_fds.add(fd)
        return IncomingFile(self, file_name, temporary, fd, size_bytes if self._preallocates else 0)

    def put_all(self, files: Sequence[tuple[str, memoryview]]) -> list[str | StoreError]:
        """Store files whose bytes are all at hand; the name that each got, or why it could not be stored. Step by step
        for all, not file by file: why, `batch` says."""
        results: list[str | StoreError] = [""] * len(files)
        temporaries = [b"%d" % number for number in itertools.islice(self._numbers, len(files))]
        opened: list[tuple[int, int]] = []
        room = self._quota.room() if self._quota else None
        for index, temporary in enumerate(temporaries):
            if room is not None:
                room -= len(files[index][1])
                if room < 0:
                    results[index] = self._over_quota()
                    continue
            try:
                opened.append((index, os.open(temporary, _OPEN_TEMPORARY, 0o666, dir_fd=self.incoming_fd)))
            except OSError as error:
                results[index] = _store_error(error)
        for index, fd in opened:
            content = files[index][1]
            try:
                if os.write(fd, content) < len(content):
                    results[index] = StoreError("no_space", "the store took only a part of the file")
            except OSError as error:
                results[index] = _store_error(error)
        for index, fd in opened:
            try:
                os.close(fd)
            except OSError as error:  # a file system may tell only now that it is full
                results[index] = _store_error(error)
        for index, _ in opened:
            if not results[index]:
                file_name, content = files[index]
                results[index] = self.publish(temporaries[index], file_name, len(content))
            if isinstance(results[index], StoreError):
                try_to_remove(temporaries[index], self.incoming_fd)
        return results

    def put_all_durably(self, files: Sequence["tuple[str, bytes] | IncomingFile"]) -> list[str | StoreError]:
        """Store files, whole ones and such as have arrived in pieces, so that they survive the loss of power; the name
        that each got, or why it could not be stored. Blocks for as long as the disk takes. All are written out, then
        renamed, then one fsync of the folder makes all names durable. When it is this one that fails, the files are
        visible, and are an error all the same: nobody knows whether they will stay."""
        outcomes: list[IncomingFile | StoreError] = [
            self._write_whole(*file) if isinstance(file, tuple) else file for file in files
        ]
        # Starting all before waiting for one is what makes a group cheap: one commit of the journal is enough for all
        # of them (ext4, 50 files: 260 us a file, and 360 us without).
        for step in (IncomingFile.start_writing_out, IncomingFile.sync, IncomingFile.publish):
            outcomes = [_after(step, outcome) for outcome in outcomes]
        unsynced = None
        if any(isinstance(outcome, IncomingFile) for outcome in outcomes):
            try:
                os.fsync(self.root_fd)
            except OSError as error:
                unsynced = _store_error(error)
        return [outcome if isinstance(outcome, StoreError) else unsynced or outcome.file_name for outcome in outcomes]

    def publish(self, temporary: bytes, file_name: str, size_bytes: int) -> str | StoreError:
        """Make a complete temporary file visible; returns the name that it got, or what is wrong with that."""
        if file_name == INCOMING:
            return _own_folder()
        try:
            name, replaced_bytes = self._naming.publish(temporary, file_name)
            if self._quota:
                self._quota.kept(size_bytes - replaced_bytes)
            return name
        except IsADirectoryError:
            return StoreError("name_rejected", f"{file_name!r} is a folder in the store")
        except FileExistsError:
            return _taken(file_name)
        except OSError as error:
            if self._naming.was_name(error, temporary):
                return StoreError("name_rejected", f"the store's file system cannot hold the name {file_name!r}")
            return _store_error(error)

    def arrived(self, size_bytes: int) -> None:
        """Bytes are about to be written to a temporary file, or a negative number are gone from one. StoreError
        `no_space` when the quota has no room for them."""
        if self._quota:
            if 0 < size_bytes > self._quota.room():
                raise self._over_quota()
            self._quota.arrived(size_bytes)

    def close(self) -> None:
        for fd in (self.root_fd, self.incoming_fd):
            if fd >= 0:
                os.close(fd)

    def _look_for_room(self, size_bytes: int) -> None:
        """StoreError when disk or quota have no room for a file that is about to come. Nothing is reserved."""
        disk = os.fstatvfs(self.incoming_fd)
        if disk.f_blocks and size_bytes > disk.f_bavail * disk.f_frsize:  # a file system may not know
            free = format_size(disk.f_bavail * disk.f_frsize)
            raise StoreError("no_space", f"the file has {format_size(size_bytes)}, the disk has room for {free}")
        if self._quota and size_bytes > self._quota.room():
            raise self._over_quota()

    def _over_quota(self) -> StoreError:
        assert self._quota is not None
        self._quota.count_again(self.root_fd)
        return StoreError(
            "no_space", f"the store may hold {format_size(self._quota.most_bytes)} and has no room for it"
        )

    def _write_whole(self, file_name: str, content: bytes) -> "IncomingFile | StoreError":
        try:
            incoming = self.begin(file_name, len(content))
        except StoreError as error:
            return error
        return _after(lambda file: file.write(memoryview(content)), incoming)


class IncomingFile:
    """A temporary file. Its `file_name` is the one that was asked for until it is published, then the one it got."""

    __slots__ = ("_allocated", "_expected", "_fd", "_size", "_store", "_temporary", "file_name")

    def __init__(self, store: FileStore, file_name: str, temporary: bytes, fd: int, expected: int) -> None:
        """`expected` is how many bytes will come, or 0 for one that is not to be preallocated."""
        self._store = store
        self._temporary = temporary
        self._fd = fd
        self._size = self._allocated = 0
        self._expected = expected
        self.file_name = file_name

    def write(self, view: memoryview) -> None:
        self._store.arrived(len(view))
        self._size += len(view)
        if self._allocated < self._size < self._expected and self._size >= PREALLOCATE_FROM:
            self._preallocate()
        try:
            written = os.write(self._fd, view)
            while written < len(view):  # a disk that fills up takes a part
                view = view[written:]
                written = os.write(self._fd, view)
        except OSError as error:
            raise _store_error(error) from error

    def commit(self) -> str:
        self._close()
        self.publish()
        return self.file_name

    def abort(self) -> None:
        try:
            self._close()
        except StoreError:
            pass
        try_to_remove(self._temporary, self._store.incoming_fd)
        self._store.arrived(-self._size)
        self._size = 0

    def start_writing_out(self) -> None:
        """Let the disk begin, without waiting for it. A hint: what goes wrong `sync` will tell."""
        _libc.sync_file_range(self._fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)

    def sync(self) -> None:
        """Wait for the disk. Through the descriptor that wrote: a later one may not be told what went wrong before."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise _store_error(error) from error
        self._close()

    def publish(self) -> None:
        """Make it visible. StoreError when that cannot be."""
        published = self._store.publish(self._temporary, self.file_name, self._size)
        if isinstance(published, StoreError):
            raise published
        self._store.arrived(-self._size)
        self.file_name = published

    def _preallocate(self) -> None:
        """Reserve as much as has come: so a client must send something for what it takes from others (fallocate(2))."""
        ahead = min(self._size, PREALLOCATE_MOST, self._expected - self._size)
        start, length = ctypes.c_int64(self._size), ctypes.c_int64(ahead)
        self._allocated = self._size + ahead
        if _libc.fallocate(self._fd, _FALLOC_FL_KEEP_SIZE, start, length) != 0:
            self._expected = 0  # no more of it: the file system cannot, or is about to be full, which write() will tell

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._store.open_fds.discard(fd)  # before another file can get this number
            try:
                os.close(fd)
            except OSError as error:  # as in put_all
                raise _store_error(error) from error


def _after(step: Callable[[IncomingFile], None], outcome: IncomingFile | StoreError) -> IncomingFile | StoreError:
    """The file after one more step, or the first thing that went wrong, with nothing left of the file."""
    if isinstance(outcome, StoreError):
        return outcome
    try:
        step(outcome)
    except StoreError as error:
        outcome.abort()
        return error
    return outcome


def _is_tmpfs(fd: int) -> bool:
    found = ctypes.create_string_buffer(256)  # struct statfs, whose first word is f_type (statfs(2))
    return _libc.fstatfs(fd, found) == 0 and int.from_bytes(found.raw[:4], "little") == _TMPFS_MAGIC


def _own_folder() -> StoreError:
    return StoreError("name_rejected", f"{INCOMING} is the store's own")


def _taken(file_name: str) -> StoreError:
    return StoreError("exists", f"{file_name!r} is in the store already")


def _store_error(error: OSError) -> StoreError:
    if error.errno in _FULL:
        return StoreError("no_space", f"the store cannot hold the file: {error.strerror}")
    return StoreError("internal", f"the store failed: {error.strerror}")
