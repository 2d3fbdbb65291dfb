"""What /proc tells, read as cheaply as it can be: these files are read of every process at every tick.

They are kept open. Reading one again then takes 3 µs instead of 12, most of which is finding it; and an open file stays
that process's, also when its pid was given to another. psutil, which opens them anew, takes 120 µs for a sample of one
process, this 25. Command lines and the like are psutil's. man 5 proc has the files.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import psutil

Identity = tuple[int, int]
"""A process for good: pid, and start time in clock ticks since boot, which no step of the clock changes."""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_BOOT_TIME_S = psutil.boot_time()  # once: a process must not change its create_time when the clock is set
_PIECE_BYTES = 2 << 10
_ENOUGH_BYTES = 16 << 10  # for any of these files but a list of children


class Stat(NamedTuple):
    """/proc/PID/stat: who it is, and its counters since its birth. `children_*` are of its reaped children."""

    pid: int
    state: str
    parent: int
    user_s: float
    system_s: float
    children_user_s: float
    children_system_s: float
    threads: int
    start_ticks: int
    rss_bytes: int

    @property
    def identity(self) -> Identity:
        return self.pid, self.start_ticks

    @property
    def create_time(self) -> float:
        """Seconds since the epoch, to a clock tick."""
        return self.start_ticks / TICKS_PER_S + _BOOT_TIME_S


class Switches(NamedTuple):
    """Context switches of the main thread: it waited for something, or had its core taken away."""

    voluntary: int
    involuntary: int


class DiskBytes(NamedTuple):
    read: int
    written: int


class Footprint(NamedTuple):
    """Bytes of memory: what the end of the process would give back, and its share of what it has together with others,
    as well."""

    uss: int
    pss: int


_PRIVATE = (b"Private_Clean:", b"Private_Dirty:", b"Private_Hugetlb:")


class Process:
    """A process that was there when it was opened."""

    __slots__ = ("_children", "_fds", "_io", "_schedstat", "_stat", "_status", "_tasks", "pid")

    def __init__(self, pid: int, proc: str = "/proc") -> None:
        """ProcessLookupError when there is none."""
        self.pid = pid
        self._tasks = f"{proc}/{pid}/task"
        stat = _open(f"{proc}/{pid}/stat")
        if stat is None:
            raise ProcessLookupError(errno.ESRCH, f"no process {pid}")
        self._stat = stat
        self._status = _open(f"{proc}/{pid}/status")
        self._io = _open(f"{proc}/{pid}/io")
        # Of the main thread, whose number is the pid.
        self._schedstat = _open(f"{self._tasks}/{pid}/schedstat")
        self._children = _open(f"{self._tasks}/{pid}/children")
        self._fds = _open(f"{proc}/{pid}/fd")

    def close(self) -> None:
        for fd in (self._stat, self._status, self._io, self._schedstat, self._children, self._fds):
            if fd is not None:
                os.close(fd)

    def stat(self) -> Stat | None:
        """None when it is gone. A zombie has its counters still, and they are final."""
        text = _read(self._stat)
        if not text:
            return None
        fields = text[text.rindex(b")") + 2 :].split(None, 22)  # the name may hold spaces and brackets
        return Stat(
            self.pid,
            fields[0].decode(),
            int(fields[1]),
            int(fields[11]) / TICKS_PER_S,
            int(fields[12]) / TICKS_PER_S,
            int(fields[13]) / TICKS_PER_S,
            int(fields[14]) / TICKS_PER_S,
            int(fields[17]),
            int(fields[19]),
            int(fields[21]) * _PAGE_BYTES,
        )

    def switches(self) -> Switches | None:
        text = _read(self._status)
        words = text[text.rfind(b"\nvoluntary_ctxt_switches:") :].split()
        return Switches(int(words[1]), int(words[3])) if len(words) == 4 else None

    def cores(self) -> str | None:
        """That the main thread may run on, as the kernel lists them: `0-3,8`."""
        _, _, after = _read(self._status).partition(b"\nCpus_allowed_list:")
        return after.partition(b"\n")[0].strip().decode() or None

    def disk_bytes(self) -> DiskBytes | None:
        """None when the process is another user's, or the kernel does not count."""
        words = _read(self._io).split()
        return DiskBytes(int(words[9]), int(words[11])) if words[8:11:2] == [b"read_bytes:", b"write_bytes:"] else None

    def footprint(self) -> Footprint | None:
        """The kernel walks all of its pages for this: 0.2 ms and more. None when it is another user's, or has given its
        memory back. Not kept open, since that would keep the process's map of its memory."""
        fd = _open(f"/proc/{self.pid}/smaps_rollup")
        if fd is None:
            return None
        text = _read(fd)
        os.close(fd)
        sizes = {words[0]: int(words[1]) << 10 for line in text.splitlines()[1:] if len(words := line.split()) == 3}
        try:
            pss = sizes[b"Pss:"]
        except KeyError:
            return None
        return Footprint(sum(sizes.get(name, 0) for name in _PRIVATE), pss) if pss else None

    def open_files(self) -> int | None:
        """Number of descriptors. Since Linux 6.2 the size of /proc/PID/fd is that number; before, it is 0 and they must
        be counted one by one. None when the process is another user's."""
        if self._fds is None:
            return None
        try:
            return os.fstat(self._fds).st_size or len(os.listdir(self._fds))  # noqa: PTH208 - a Path is no descriptor
        except OSError:
            return None

    def run_delay_ns(self, threads: int) -> int | None:
        """How long its living threads were runnable but waited for a CPU, since each was born.

        The second number of /proc/PID/task/*/schedstat (Documentation/scheduler/sched-stats.rst). A thread that ends
        takes its share with it. None when no thread could be read, or the kernel does not count (it then says
        `0 0 0`).
        """
        told = [text.split() for text in self._of_threads(self._schedstat, "schedstat", threads)]
        delays = [int(words[1]) for words in told if len(words) == 3 and words[2] != b"0"]
        return sum(delays) if delays else None

    def children(self, threads: int) -> list[int]:
        """Pids, from /proc/PID/task/*/children, which kernels with CONFIG_PROC_CHILDREN have."""
        return [int(word) for text in self._of_threads(self._children, "children", threads) for word in text.split()]

    def _of_threads(self, of_main: int | None, name: str, threads: int) -> Iterator[bytes]:
        """What one file says of every thread, without threads that end meanwhile."""
        yield _read(of_main)
        if threads == 1:
            return
        try:
            numbers = os.listdir(self._tasks)  # noqa: PTH208 - several times as fast as Path.iterdir
        except OSError:
            return
        for number in numbers:
            if int(number) != self.pid and (fd := _open(f"{self._tasks}/{number}/{name}")) is not None:
                yield _read(fd)
                os.close(fd)


class KernelFile:
    """A file of /proc that is about the whole machine, kept open as well, from its first reading on."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None

    def read(self) -> bytes:
        """Nothing where this kernel has no such file."""
        if self._fd is None:
            self._fd = _open(self._path)
        return _read(self._fd)


def _open(path: str) -> int | None:
    """None when it is not there, or not ours to read."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def _read(fd: int | None) -> bytes:
    """A whole file, from its start; nothing when its process is gone."""
    if fd is None:
        return b""
    try:
        data = os.pread(fd, _ENOUGH_BYTES, 0)
        # A list that is longer than a page comes in pieces.
        while len(data) >= _PIECE_BYTES and (more := os.pread(fd, _ENOUGH_BYTES, len(data))):
            data += more
        return data
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


LISTS_CHILDREN = os.path.exists("/proc/thread-self/children")  # noqa: PTH110


def pids() -> list[int]:
    """Of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208


def stat(pid: int) -> Stat | None:
    """Of a process that is looked at once; None when there is none."""
    try:
        with closing(Process(pid)) as process:
            return process.stat()
    except ProcessLookupError:
        return None
