"""The store's folders: made and emptied by the supervisor, opened by the workers.

    STORE/name                   a file
    STORE/.incoming/<slot>/<n>   a file that is arriving

Each worker slot has a folder of its own for what is arriving, so that what a killed worker left can be removed before
its replacement starts, without asking whose it was.

Nothing leads out of the store. Its root may be a symbolic link, which is followed once, when the root is opened; below
it everything is opened relative to a folder's descriptor and no link is followed.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INCOMING = ".incoming"

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def lock_store(root: Path) -> int:
    """Make the store's folder and take it for this server: two servers would empty each other's temporary folders.
    Returns a descriptor; the lock lasts while a process has it open. BlockingIOError when another server has the store,
    OSError when the folder cannot be made."""
    root.mkdir(parents=True, exist_ok=True)
    fd = os.open(root, OPEN_FOLDER)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, f"cannot be locked: {error.strerror}", str(root)) from error
    return fd


def holder_of(root: Path) -> int | None:
    """Pid of the server that has taken the store, if the kernel tells (man 5 proc_locks): not of another container, nor
    on a file system that shows another device than it has."""
    try:
        info = root.stat()
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    place = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    found = (int(words[4]) for words in map(str.split, locks) if words[1] == "FLOCK" and words[5] == place)
    return next((pid for pid in found if pid > 0), None)


def prepare_store(root: Path, slots: int) -> None:
    """Make the store's folders and empty those for temporary files. OSError when that cannot be done."""
    root.mkdir(parents=True, exist_ok=True)
    with closing(os.open(root, OPEN_FOLDER)) as root_fd:
        _make(root_fd, root / INCOMING)
        with closing(_open_below(root_fd, root / INCOMING)) as incoming_fd:
            for entry in list(os.scandir(incoming_fd)):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.name, dir_fd=incoming_fd)
                else:
                    os.unlink(entry.name, dir_fd=incoming_fd)
            for slot in range(slots):
                _make(incoming_fd, root / INCOMING / str(slot))


def empty_slot(root: Path, slot: int | str) -> int:
    """Make the folder for a worker's temporary files where there is none, and remove what one that is gone left there;
    returns how many files. Errors are for the next boot, and for the worker that finds no folder."""
    incoming = root / INCOMING
    try:
        with closing(os.open(root, OPEN_FOLDER)) as root_fd, closing(_open_below(root_fd, incoming)) as incoming_fd:
            _make(incoming_fd, incoming / str(slot))
            with closing(_open_below(incoming_fd, incoming / str(slot))) as slot_fd:
                return sum(try_to_remove(entry.name, slot_fd) for entry in list(os.scandir(slot_fd)))
    except OSError:
        return 0


def open_slot(root_fd: int, root: Path, slot: int | str) -> int:
    """A descriptor of the folder for a worker's temporary files. OSError when there is none, or a link."""
    incoming = root / INCOMING
    with closing(_open_below(root_fd, incoming)) as incoming_fd:
        return _open_below(incoming_fd, incoming / str(slot))


def try_to_remove(name: bytes | str, folder_fd: int) -> bool:
    """Remove a file; False when that cannot be done, or there is none."""
    try:
        os.unlink(name, dir_fd=folder_fd)
    except OSError:
        return False
    return True


def sync_names(folder_fd: int, folder: Path) -> None:
    """Make the names durable that a folder has, and those that lead to it, up to the root of its file system: its own,
    or any above it, may be new. One that may not be read was not made by us. OSError naming the folder."""
    try:
        os.fsync(folder_fd)
    except OSError as error:
        raise OSError(error.errno, f"cannot be made durable: {error.strerror}", str(folder)) from error
    try:
        above = os.open("..", OPEN_FOLDER, dir_fd=folder_fd)
    except PermissionError:
        return
    with closing(above):
        here, there = os.fstat(folder_fd), os.fstat(above)
        if here.st_dev == there.st_dev and here.st_ino != there.st_ino:
            sync_names(above, folder)


def _make(above_fd: int, folder: Path) -> None:
    """Make a folder by its last component, in the one above it, unless it is there. OSError with its whole path."""
    try:
        os.mkdir(folder.name, 0o700, dir_fd=above_fd)
    except FileExistsError:
        pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def _open_below(above_fd: int, folder: Path) -> int:
    """Open a folder by its last component, in the folder above it. OSError with its whole path."""
    try:
        return os.open(folder.name, OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=above_fd)
    except NotADirectoryError as error:
        raise NotADirectoryError(error.errno, "is no folder, or a symbolic link", str(folder)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


@contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
