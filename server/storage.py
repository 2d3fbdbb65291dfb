"""Where bytes go: a folder of files, or nowhere. No sockets, no protocol.

A file becomes visible under its name whole or not at all: it is written to `STORE/.incoming/<slot>/` and renamed into
place when it is complete. Each worker slot has a folder of its own there, so that what a killed worker left can be
removed before its replacement starts, without asking whose it was.

Nothing leads out of the store. Its root may be a symbolic link, which is followed once, when the root is opened; below
it everything is opened relative to a folder's descriptor and no link is followed: names are one component, as
`protocol.safe_file_name` made them, and a link of that name is replaced, or counts as taken.

Disk space is looked up before an upload is taken, and nothing is reserved: a header that claims the whole disk takes it
from nobody. A large file is preallocated at most as far ahead as it has already come, which keeps it in few pieces.

What survives the loss of power is what was fsynced, a file's bytes and then its folder's entry (fsync(2)). Both take
the time of a disk, so `put_all_durably` does them for many files together, and belongs on a thread of its own.
"""

import ctypes
import errno
import fcntl
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol

from server.config import Collision, Durability
from server.quota import Quota
from server.units import format_size

INCOMING = ".incoming"
_NAME_MAX = 255  # bytes, of every file system that matters here (limits.h)
_LONGEST_CHARACTER = 4  # bytes, in UTF-8

_OPEN_TEMPORARY = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_libc = ctypes.CDLL(None, use_errno=True)
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
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
    """Keeps files in the folder `root`, which `prepare_store` made; one object per worker.

    `collision` says what becomes of an upload whose name is taken. With durability `power` use `put_all_durably` in
    place of `put_all` and `commit`.
    """

    def __init__(
        self,
        root: Path,
        slot: int | str,
        collision: Collision = "replace",
        durability: Durability = "process",
        quota: Quota | None = None,
        most_open: int | None = None,
    ) -> None:
        """`most_open` is how many files may arrive at once by `begin`. OSError when the store's folders are not there,
        or are links."""
        self._most_open = most_open
        self.open_fds: set[int] = set()  # of files that arrive; a set, since the disk's thread takes from it too
        self._collision = collision
        self._quota = quota
        self._numbers = itertools.count()  # a temporary file's name, taken by the loop and by the disk's thread
        self.root_fd = os.open(root, _OPEN_FOLDER)
        self.incoming_fd = -1
        try:
            self.incoming_fd = _open_slot(self.root_fd, root, slot)
            self._preallocates = not _is_tmpfs(self.incoming_fd)  # memory has no pieces that could be apart
            if durability == "power":
                _sync_names(self.root_fd, root)
        except OSError:
            self.close()
            raise

    def begin(self, file_name: str, size_bytes: int) -> "IncomingFile":
        """Open a temporary file for `file_name`. StoreError `name_rejected` for the store's own folder, `exists` when
        the name is taken and would be refused in the end, `no_space` when there is none for so many bytes, and `busy`
        when too many files arrive already."""
        if file_name == INCOMING:
            raise StoreError("name_rejected", f"{INCOMING} is the store's own")
        temporary = b"%d" % next(self._numbers)
        try:
            if self._collision == "reject" and self._is_taken(file_name):
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
                results[index] = self.publish(temporaries[index], *files[index])
            if isinstance(results[index], StoreError):
                self.remove(temporaries[index])
        return results

    def put_all_durably(self, files: Sequence["tuple[str, bytes] | IncomingFile"]) -> list[str | StoreError]:
        """Store files, whole ones and such as have arrived in pieces, so that they survive the loss of power; the name
        that each got, or why it could not be stored. Blocks for as long as the disk takes.

        All are written out, then renamed, then one fsync of the folder makes all names durable. When it is this one
        that fails, the files are visible, and are an error all the same: nobody knows whether they will stay.
        """
        outcomes: list[IncomingFile | StoreError] = [
            self._write_whole(*file) if isinstance(file, tuple) else file for file in files
        ]
        # Starting all before waiting for one is what makes a group cheap: one commit of the journal is enough for all
        # of them (ext4, 50 files: 260 us a file, and 360 us without).
        for step in (IncomingFile.start_writing_out, IncomingFile.sync, IncomingFile.publish):
            outcomes = [_after(step, outcome) for outcome in outcomes]
        unsynced = self._sync_root() if any(isinstance(outcome, IncomingFile) for outcome in outcomes) else None
        return [outcome if isinstance(outcome, StoreError) else unsynced or outcome.file_name for outcome in outcomes]

    def publish(self, temporary: bytes, file_name: str, content: Sized) -> str | StoreError:
        """Make a complete temporary file visible; returns the name that it got, or what is wrong with that."""
        if file_name == INCOMING:
            return StoreError("name_rejected", f"{INCOMING} is the store's own")
        try:
            if self._collision == "replace":
                replaced = self._replace(temporary, file_name.encode())
            else:
                file_name, replaced = self._publish_beside(temporary, file_name), 0
            if self._quota:
                self._quota.kept(len(content) - replaced)
            return file_name
        except IsADirectoryError:
            return StoreError("name_rejected", f"{file_name!r} is a folder in the store")
        except FileExistsError:
            return _taken(file_name)
        except OSError as error:
            return _store_error(error)

    def arrived(self, size_bytes: int) -> None:
        """Bytes are about to be written to a temporary file, or a negative number are gone from one. StoreError
        `no_space` when the quota has no room for them."""
        if self._quota:
            if 0 < size_bytes > self._quota.room():
                raise self._over_quota()
            self._quota.arrived(size_bytes)

    def remove(self, temporary: bytes) -> None:
        """Remove a temporary file; what cannot be removed the supervisor does when this worker is gone."""
        _unlinked(temporary, self.incoming_fd)

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

    def _replace(self, temporary: bytes, name: bytes) -> int:
        """Publish, whatever has the name. Returns how many bytes that had, if the quota wants to know."""
        if self._quota:
            return _rename_over(temporary, self.incoming_fd, name, self.root_fd)
        os.rename(temporary, name, src_dir_fd=self.incoming_fd, dst_dir_fd=self.root_fd)
        return 0

    def _publish_beside(self, temporary: bytes, file_name: str) -> str:
        """Publish without replacing anything, whoever else publishes meanwhile. FileExistsError with `reject`."""
        name, number = file_name, 0
        while True:
            try:
                _rename_beside(temporary, self.incoming_fd, name.encode(), self.root_fd)
                return name
            except FileExistsError:
                if self._collision == "reject":
                    raise
            number = self._free_number(file_name, number)
            name = numbered_name(file_name, number)

    def _free_number(self, file_name: str, taken: int) -> int:
        """A number over `taken` that is free for the name, when numbers are given without gaps the lowest. Looks at few
        of them: the name that a whole load test uploads to has a hundred thousand."""
        step = 1
        while self._is_taken(numbered_name(file_name, taken + step)):
            step *= 2
        free, taken = taken + step, taken + step // 2
        while free - taken > 1:
            middle = (free + taken) // 2
            if self._is_taken(numbered_name(file_name, middle)):
                taken = middle
            else:
                free = middle
        return free

    def _is_taken(self, file_name: str) -> bool:
        """Whether anything has this name: a folder, or a link that leads nowhere, has it too."""
        try:
            os.stat(file_name.encode(), dir_fd=self.root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _write_whole(self, file_name: str, content: bytes) -> "IncomingFile | StoreError":
        try:
            incoming = self.begin(file_name, len(content))
        except StoreError as error:
            return error
        return _after(lambda file: file.write(memoryview(content)), incoming)

    def _sync_root(self) -> StoreError | None:
        try:
            os.fsync(self.root_fd)
        except OSError as error:
            return _store_error(error)
        return None


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

    def __len__(self) -> int:
        return self._size

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
        try:
            self._close()
        except OSError as error:
            raise _store_error(error) from error
        self.publish()
        return self.file_name

    def abort(self) -> None:
        try:
            self._close()
        except OSError:
            pass
        self._store.remove(self._temporary)
        self._store.arrived(-self._size)
        self._size = 0

    def start_writing_out(self) -> None:
        """Let the disk begin, without waiting for it. A hint: what goes wrong `sync` will tell."""
        _libc.sync_file_range(self._fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)

    def sync(self) -> None:
        """Wait until the bytes are on the disk. Through the descriptor that wrote them: a later one may not be told
        what went wrong before it was opened."""
        try:
            os.fsync(self._fd)
            self._close()
        except OSError as error:
            raise _store_error(error) from error

    def publish(self) -> None:
        """Make it visible. StoreError when that cannot be."""
        published = self._store.publish(self._temporary, self.file_name, self)
        if isinstance(published, StoreError):
            raise published
        self._store.arrived(-self._size)
        self.file_name = published

    def _preallocate(self) -> None:
        """As far ahead as it has come: so a client must send something for what it takes from others (fallocate(2))."""
        ahead = min(self._size, PREALLOCATE_MOST, self._expected - self._size)
        start, length = ctypes.c_int64(self._size), ctypes.c_int64(ahead)
        self._allocated = self._size + ahead
        if _libc.fallocate(self._fd, _FALLOC_FL_KEEP_SIZE, start, length) != 0:
            self._expected = 0  # no more of it: the file system cannot, or is about to be full, which write() will tell

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._store.open_fds.discard(fd)  # before another file can get this number
            os.close(fd)


def numbered_name(file_name: str, number: int) -> str:
    """`name-<number>.ext` for `name.ext`, shortened where it would be over 255 bytes: the stem, between characters, or
    the whole name when its extension leaves no room for a stem."""
    stem, extension = PurePosixPath(file_name).stem, PurePosixPath(file_name).suffix
    mark = f"-{number}"
    room = _NAME_MAX - len(mark) - len(extension.encode())
    if room < _LONGEST_CHARACTER:
        stem, extension, room = file_name, "", _NAME_MAX - len(mark)
    return stem.encode()[:room].decode(errors="ignore") + mark + extension


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


def _rename_beside(old: bytes, old_folder: int, new: bytes, new_folder: int) -> None:
    """Rename, but never replace: FileExistsError when anything has the new name. One atomic step where the file system
    knows renameat2's RENAME_NOREPLACE (Linux 3.15; glibc 2.28), otherwise two, of which the first decides."""
    if not _renameat2(old, old_folder, new, new_folder, _RENAME_NOREPLACE):
        os.link(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder, follow_symlinks=False)
        _unlinked(old, old_folder)


def _rename_over(old: bytes, old_folder: int, new: bytes, new_folder: int) -> int:
    """Rename, and return the size of the file that was replaced. The two change places, and only then it is looked at:
    of two workers that replace one file at the same moment, both would have seen it before."""
    while True:
        try:
            _rename_beside(old, old_folder, new, new_folder)
            return 0
        except FileExistsError:
            pass
        try:
            info = os.stat(new, dir_fd=new_folder, follow_symlinks=False)
            if stat.S_ISDIR(info.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if _renameat2(old, old_folder, new, new_folder, _RENAME_EXCHANGE):
                info = os.stat(old, dir_fd=old_folder, follow_symlinks=False)
                _unlinked(old, old_folder)
            else:
                os.rename(old, new, src_dir_fd=old_folder, dst_dir_fd=new_folder)
            return info.st_size if stat.S_ISREG(info.st_mode) else 0
        except FileNotFoundError:
            pass  # somebody has just removed it


def _renameat2(old: bytes, old_folder: int, new: bytes, new_folder: int, flag: int) -> bool:
    """False where the file system or the C library does not know that flag (rename(2))."""
    try:
        if _libc.renameat2(old_folder, old, new_folder, new, flag) == 0:
            return True
    except AttributeError:
        return False
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(number, os.strerror(number))


def _is_tmpfs(fd: int) -> bool:
    found = ctypes.create_string_buffer(256)  # struct statfs, whose first word is f_type (statfs(2))
    return _libc.fstatfs(fd, found) == 0 and int.from_bytes(found.raw[:4], "little") == _TMPFS_MAGIC


def _taken(file_name: str) -> StoreError:
    return StoreError("exists", f"{file_name!r} is in the store already")


def _store_error(error: OSError) -> StoreError:
    if error.errno in _FULL:
        return StoreError("no_space", f"the store cannot hold the file: {error.strerror}")
    return StoreError("internal", f"the store failed: {error.strerror}")


def lock_store(root: Path) -> int:
    """Make the store's folder and take it for this server: two servers would empty each other's temporary folders.

    Returns a descriptor; the lock lasts while a process has it open. BlockingIOError when another server has the
    store, OSError when the folder cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    fd = os.open(root, _OPEN_FOLDER)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def prepare_store(root: Path, slots: int) -> None:
    """Make the store's folders and empty those for temporary files. OSError when that cannot be done."""
    root.mkdir(parents=True, exist_ok=True)
    with _closing(os.open(root, _OPEN_FOLDER)) as root_fd:
        try:
            os.mkdir(INCOMING, 0o700, dir_fd=root_fd)
        except FileExistsError:
            pass
        with _closing(_open_below(root_fd, root / INCOMING)) as incoming_fd:
            for entry in list(os.scandir(incoming_fd)):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.name, dir_fd=incoming_fd)
                else:
                    os.unlink(entry.name, dir_fd=incoming_fd)
            for slot in range(slots):
                os.mkdir(str(slot), 0o700, dir_fd=incoming_fd)


def empty_slot(root: Path, slot: int | str) -> int:
    """Make the folder for a worker's temporary files where there is none, and remove what one that is gone left there;
    returns how many files. Errors are for the next boot, and for the worker that finds no folder."""
    try:
        with _closing(os.open(root, _OPEN_FOLDER)) as root_fd:
            with _closing(_open_below(root_fd, root / INCOMING)) as incoming_fd:
                try:
                    os.mkdir(str(slot), 0o700, dir_fd=incoming_fd)
                except FileExistsError:
                    pass
            with _closing(_open_slot(root_fd, root, slot)) as slot_fd:
                return sum(_unlinked(entry.name, slot_fd) for entry in list(os.scandir(slot_fd)))
    except OSError:
        return 0


def _open_slot(root_fd: int, root: Path, slot: int | str) -> int:
    incoming = root / INCOMING
    with _closing(_open_below(root_fd, incoming)) as incoming_fd:
        return _open_below(incoming_fd, incoming / str(slot))


def _open_below(above_fd: int, folder: Path) -> int:
    """Open a folder by its last component, in the folder above it. OSError with its whole path."""
    try:
        return os.open(folder.name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=above_fd)
    except NotADirectoryError as error:
        raise NotADirectoryError(error.errno, "is no folder, or a symbolic link", str(folder)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _unlinked(name: bytes | str, folder_fd: int) -> bool:
    try:
        os.unlink(name, dir_fd=folder_fd)
    except OSError:
        return False
    return True


def _sync_names(folder_fd: int, folder: Path) -> None:
    """Make the names durable that lead to a folder, up to the root of its file system: its own, or any above it, may
    be new. One that may not be read was not made by us. OSError naming the folder."""
    try:
        above = os.open("..", _OPEN_FOLDER, dir_fd=folder_fd)
    except PermissionError:
        return
    with _closing(above):
        here, there = os.fstat(folder_fd), os.fstat(above)
        if here.st_dev != there.st_dev or here.st_ino == there.st_ino:
            return
        try:
            os.fsync(above)
        except OSError as error:
            raise OSError(error.errno, f"cannot be made durable: {error.strerror}", str(folder)) from error
        _sync_names(above, folder)
