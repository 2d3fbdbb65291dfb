"""Run delay: how long a process was ready to run, but had no core.

psutil does not have it. The kernel tells it of each thread (Documentation/scheduler/sched-stats.rst), and for that the
files of all threads are read: /proc/PID/schedstat is the main thread's alone.
"""

import os


def run_delay_ns(pid: int, proc: str = "/proc") -> int | None:
    """The second number of /proc/PID/task/*/schedstat, summed over the living threads, each since its birth; one that
    ends takes its share with it. None when no thread could be read, or the kernel does not count: it says `0 0 0`."""
    tasks = f"{proc}/{pid}/task"
    delays = []
    try:
        for thread in os.listdir(tasks):  # noqa: PTH208 - Path takes twice the time, at every tick of every process
            told = _words(f"{tasks}/{thread}/schedstat")
            if len(told) == 3 and told[2] != b"0":
                delays.append(int(told[1]))
    except OSError:
        return None
    return sum(delays) if delays else None


def _words(path: str) -> list[bytes]:
    """None of a thread that has ended meanwhile."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read().split()
    except OSError:
        return []
