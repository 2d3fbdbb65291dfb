"""What a process gives up that answers strangers and must not touch the store: all that the kernel lets it give up.

    descriptors   closed, but for the few that it needs
    limits        no file can grow by it (RLIMIT_FSIZE 0), memory and descriptors end somewhere
    user          root becomes nobody, who owns nothing
    Landlock      of the file system nothing can be written and only Python's own files be read; no TCP connection can
                  be made (ABI 4), and nobody outside be sent a signal (ABI 6; man 7 landlock)

None of it can be taken back, and whoever takes the process over has no more. Landlock does not know of permissions and
times of files: a user's own ones could still be changed; nor of unix sockets: to those that the user may connect to, it
may too. Of these measures the last two are those that keep files from being removed and renamed, so that one of them at
least is needed; `confine` says when neither could be had.

Landlock and the user hold for the calling thread and those that it starts later. So this comes before any thread.
"""

import ctypes
import os
import resource
import struct
import sysconfig
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

MEMORY_BYTES = 1 << 30  # of address space; Python and the page take a quarter of it
DESCRIPTORS = 256
_NOBODY = 65534  # uid and gid, whether the machine has a name for them or not

_PR_SET_NO_NEW_PRIVS = 38
# include/uapi/linux/landlock.h; system calls have these numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_FIRST_RIGHTS = 13  # of version 1
_ONE_MORE_IN = (2, 3, 5)  # versions that added a right to files: to link elsewhere, to truncate, to control devices
_TCP = 1 << 0 | 1 << 1  # bind, connect; since version 4
_OUTSIDE = 1 << 0 | 1 << 1  # abstract sockets, signals; since version 6

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def close_all_but(kept: Collection[int]) -> None:
    """Close every descriptor of this process that is not among `kept`. Objects that held one must stay untouched."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) not in kept:
            with suppress(OSError):  # the listing's own
                os.close(int(name))


def confine() -> str | None:
    """Give all of it up but descriptors. Returns why neither of the last two could be had, if that is so. OSError when
    a limit cannot be set."""
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_NOFILE, DESCRIPTORS)
    _limit(resource.RLIMIT_FSIZE, 0)
    problems = []
    try:
        _restrict_files()
    except OSError as error:
        problems.append(f"this kernel offers no Landlock ({error.strerror})")
    try:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    except OSError as error:
        problems.append(f"only root can become nobody ({error.strerror})")
    return " and ".join(problems) if len(problems) == 2 else None


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(what, (most, most))


def _restrict_files() -> None:
    """OSError ENOSYS or EOPNOTSUPP where the kernel has no Landlock, or it is switched off."""
    version = _call(_CREATE_RULESET, None, 0, _ASK_VERSION)
    rights = (1 << (_FIRST_RIGHTS + sum(version >= one for one in _ONE_MORE_IN))) - 1
    handled = struct.pack("=QQQ", rights, _TCP if version >= 4 else 0, _OUTSIDE if version >= 6 else 0)
    rules = _call(_CREATE_RULESET, handled, len(handled), 0)
    try:
        for folder in _folders_of_python():
            fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            try:
                _call(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", _READ_FILE | _READ_FOLDER, fd), 0)
            finally:
                os.close(fd)
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS) failed")
        _call(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _folders_of_python() -> Iterator[Path]:
    """Where late imports and tracebacks read. Not the working directory, where the store may be."""
    paths = sysconfig.get_paths()
    installed = {Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return filter(Path.is_dir, {*installed, Path(__file__).parents[1]})


def _call(number: int, *arguments: int | bytes | None) -> int:
    """A system call that ctypes knows by its number only. OSError as it says."""
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
