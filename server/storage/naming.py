"""Under which name a complete file becomes visible, and what if something has that name already.

    replace   whatever has the name is replaced, unless it is a folder
    unique    the file gets a name of its own, `name-1.ext`
    reject    the file is refused

Each is one atomic step of the file system, whoever else publishes at the same moment. Where it can neither rename
without replacing nor link, as exFAT through FUSE, the workers take turns: then only what somebody else puts into the
store in that very moment can be replaced. A name is one component, as `protocol.safe_file_name` made it, and no link is
followed: a link of that name, even a dangling one, is replaced, or counts as taken.
"""

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from server.options import Collision
from server.storage.folders import OPEN_FOLDER, closing, try_to_remove

_NAME_MAX = 255  # bytes, of every file system that matters here (limits.h)
_LONGEST_CHARACTER = 4  # bytes, in UTF-8

_libc = ctypes.CDLL(None, use_errno=True)
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_UNKNOWN_FLAG = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)  # EPERM is link(2)'s, the others come through FUSE
# What file systems say of a name that they cannot hold, such as `a:b`: vfat and NTFS the first, exFAT through FUSE the
# second, those of one encoding the third, and those that encrypt names, of which there is room for 143 bytes, the last.
_NO_NAME = (errno.EINVAL, errno.ENOENT, errno.EILSEQ, errno.ENAMETOOLONG)


class Naming:
    """Moves complete files from the folder of temporary files to the root of the store, both by their descriptors."""

    def __init__(self, incoming_fd: int, root_fd: int, collision: Collision, *, measures: bool) -> None:
        """`measures`: whether the size of a file that is replaced is wanted, which costs two more system calls."""
        self._incoming_fd = incoming_fd
        self._root_fd = root_fd
        self._collision = collision
        self._measures = measures

    def publish(self, temporary: bytes, file_name: str) -> tuple[str, int]:
        """Make a complete temporary file visible. Returns the name that it got, and the size in bytes of the file that
        it replaced, 0 for none or unmeasured. IsADirectoryError when a folder has the name and would be replaced,
        FileExistsError when anything has it and the policy is `reject`, OSError when the file system fails."""
        if self._collision != "replace":
            return self._publish_beside(temporary, file_name), 0
        if self._measures:
            return file_name, self._rename_over(temporary, file_name.encode())
        self._rename(temporary, file_name.encode())
        return file_name, 0

    def refuses(self, file_name: str) -> bool:
        """Whether a file with this name would be refused if it were complete now."""
        return self._collision == "reject" and self._is_taken(file_name)

    def was_name(self, error: OSError, temporary: bytes) -> bool:
        """Whether publishing this file failed because the file system cannot hold the name."""
        return error.errno in _NO_NAME and os.access(temporary, os.F_OK, dir_fd=self._incoming_fd)

    def _publish_beside(self, temporary: bytes, file_name: str) -> str:
        """Publish without replacing anything, under a numbered name if that is what the policy says."""
        name, number = file_name, 0
        while True:
            try:
                self._rename_beside(temporary, name.encode())
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
        return _has(self._root_fd, file_name.encode())

    def _rename_beside(self, temporary: bytes, name: bytes) -> None:
        """Rename, but never replace: FileExistsError when anything has the name. One atomic step where the file system
        knows renameat2's RENAME_NOREPLACE (Linux 3.15; glibc 2.28), otherwise two, of which the first decides."""
        if self._renameat2(temporary, name, _RENAME_NOREPLACE):
            return
        try:
            os.link(temporary, name, src_dir_fd=self._incoming_fd, dst_dir_fd=self._root_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with self._turn():
                if _has(self._root_fd, name):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
                self._rename(temporary, name)
        else:
            try_to_remove(temporary, self._incoming_fd)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """While no other worker is in here: the folder of all slots is locked, for as long as it is open."""
        with closing(os.open("..", OPEN_FOLDER, dir_fd=self._incoming_fd)) as all_slots:
            fcntl.flock(all_slots, fcntl.LOCK_EX)
            yield

    def _rename(self, temporary: bytes, name: bytes) -> None:
        os.rename(temporary, name, src_dir_fd=self._incoming_fd, dst_dir_fd=self._root_fd)

    def _rename_over(self, temporary: bytes, name: bytes) -> int:
        """Rename, and return the size of the file that was replaced. The two change places, and only then it is looked
        at: two workers that replace one file at once would both have seen it before. Or else workers take turns."""
        while True:
            try:
                self._rename_beside(temporary, name)
                return 0
            except FileExistsError:
                pass
            try:
                info = os.stat(name, dir_fd=self._root_fd, follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                if self._renameat2(temporary, name, _RENAME_EXCHANGE):
                    info = os.stat(temporary, dir_fd=self._incoming_fd, follow_symlinks=False)
                    try_to_remove(temporary, self._incoming_fd)
                else:
                    with self._turn():
                        info = os.stat(name, dir_fd=self._root_fd, follow_symlinks=False)
                        self._rename(temporary, name)
                return info.st_size if stat.S_ISREG(info.st_mode) else 0
            except FileNotFoundError:
                pass  # somebody has just removed it

    def _renameat2(self, temporary: bytes, name: bytes, flag: int) -> bool:
        """False where the file system or the C library does not know that flag (rename(2))."""
        try:
            if _libc.renameat2(self._incoming_fd, temporary, self._root_fd, name, flag) == 0:
                return True
        except AttributeError:
            return False
        number = ctypes.get_errno()
        if number in _UNKNOWN_FLAG:
            return False
        raise OSError(number, os.strerror(number))


def _has(folder_fd: int, name: bytes) -> bool:
    """Whether anything has this name, a folder or a link that leads nowhere too; what cannot be a name has nobody."""
    try:
        os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_NAME:
            return False
        raise
    return True


def numbered_name(file_name: str, number: int) -> str:
    """`name-<number>.ext` for `name.ext`, shortened where it would be over 255 bytes: the stem, between characters, or
    the whole name when its extension leaves no room for a stem."""
    stem, extension = PurePosixPath(file_name).stem, PurePosixPath(file_name).suffix
    mark = f"-{number}"
    room = _NAME_MAX - len(mark) - len(extension.encode())
    if room < _LONGEST_CHARACTER:
        stem, extension, room = file_name, "", _NAME_MAX - len(mark)
    return stem.encode()[:room].decode(errors="ignore") + mark + extension
