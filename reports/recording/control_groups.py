"""Control groups: what a container, a systemd unit or a person allows the recorded processes of CPU and memory.

A limit holds for all that is below it, so the groups above a process are looked at as well. Groups that limit nothing
are left out. The kernel's names differ between its two interfaces, of which a machine may have both at once:

    cgroup2     cpu.max, cpu.stat, memory.max, .high, .current, .events    Documentation/admin-guide/cgroup-v2.rst
    cgroup      cpu.cfs_*, cpu.stat, memory.*_in_bytes, .failcnt           .../cgroup-v1, scheduler/sched-bwc.rst

Where groups are mounted, and what of them is seen, is told by mountinfo: a container's own group is the root there, and
what is above it is not for the container to read.
"""

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from reports.recording.census import Member
from reports.run_folder import ControlGroup, Role
from server.ports.sockets import kernel_text  # empty where the process has ended, or the group has no such limit

_GROUP = re.compile(r"^\d+:([^:\n]*):(/.*)$", re.MULTILINE)
_MOUNT = re.compile(r"^\S+ \S+ \S+ (\S+) (\S+) .* - (cgroup2?) \S+ (\S+)$", re.MULTILINE)  # proc_pid_mountinfo(5)
_UNLIMITED_V1 = 1 << 62  # memory.limit_in_bytes without a limit is the largest multiple of a page below 2**63


class _Mount(NamedTuple):
    """Where a hierarchy is seen: `root` of it is at `folder`. `controller` is empty for cgroup2, which has all."""

    controller: str
    root: str
    folder: str


class ControlGroups:
    """The hierarchies that this process sees. None of it is an error: a kernel may have no control groups."""

    def __init__(self, proc: str = "/proc") -> None:
        self._proc = proc
        self._mounts = list(_mounts(kernel_text(f"{proc}/self/mountinfo")))
        self._found: dict[tuple[str, str], set[Role]] = {}

    def limiting(self, members: Iterable[Member]) -> list[ControlGroup]:
        """The groups that limit these processes, or did before, with the roles of those they limit, as they are now:
        the counters of a group are still there when its processes have ended."""
        told: dict[str, set[Role]] = {}  # most processes are in the same groups
        for process, role in members:
            told.setdefault(kernel_text(f"{self._proc}/{process.pid}/cgroup"), set()).add(role)
        for text, of in told.items():
            for mount, path in self._groups(text):
                for folder in _upwards(mount, path):
                    self._found.setdefault((mount.controller, folder), set()).update(of)
        read = ((_READERS[controller](folder), folder, of) for (controller, folder), of in self._found.items())
        return [
            ControlGroup(path=folder, roles=sorted(of), **limits)
            for limits, folder, of in read
            if any(limits.get(name) is not None for name in _LIMITS)
        ]

    def _groups(self, told: str) -> Iterator[tuple[_Mount, str]]:
        """Each line of a process's file, `number:controllers:path`, with where it is mounted."""
        for controllers, path in _GROUP.findall(told):
            for mount in self._mounts:
                if mount.controller in controllers.split(",") and _is_below(path, mount.root):
                    yield mount, path


def _mounts(mountinfo: str) -> Iterator[_Mount]:
    """What is mounted twice is read at its first place."""
    seen: set[str] = set()
    for root, folder, kind, options in _MOUNT.findall(mountinfo):
        found = {""} if kind == "cgroup2" else {"cpu", "memory"} & set(options.split(","))
        for controller in found - seen:
            seen.add(controller)
            yield _Mount(controller, root, folder)


def _is_below(path: str, root: str) -> bool:
    return os.path.commonpath((path, root)) == root and "/../" not in f"{path}/"


def _upwards(mount: _Mount, path: str) -> Iterator[str]:
    """The folder of a group, and those of all groups above it that are seen."""
    below = os.path.relpath(path, mount.root)
    while below not in (".", ""):
        yield f"{mount.folder}/{below}"
        below = os.path.dirname(below)  # noqa: PTH120 - of text, not of a path that is there
    yield mount.folder


_LIMITS = ("quota_cores", "memory_max_bytes", "memory_high_bytes")


def _version_2(folder: str) -> dict[str, Any]:
    quota, _, period = kernel_text(f"{folder}/cpu.max").partition(" ")
    most, high = (_number(f"{folder}/memory.{name}") for name in ("max", "high"))
    found: dict[str, Any] = {"memory_max_bytes": most, "memory_high_bytes": high}
    if quota.isdecimal():
        found |= {"quota_cores": int(quota) / int(period)} | _throttling(folder, "throttled_usec", 1)
    if most is not None or high is not None:
        events = _numbers(f"{folder}/memory.events")
        hits = events.get("high", 0) + events.get("max", 0)
        found |= {"memory_limit_hits": hits, "oom_kills": events.get("oom_kill", 0)}
        found["memory_bytes"] = _number(f"{folder}/memory.current")
    return found


def _cpu_version_1(folder: str) -> dict[str, Any]:
    quota, period = (_number(f"{folder}/cpu.cfs_{name}_us") for name in ("quota", "period"))
    if quota is None or period is None:  # -1: none; or the group has gone between the two
        return {}
    return {"quota_cores": quota / period, **_throttling(folder, "throttled_time", 1000)}


def _memory_version_1(folder: str) -> dict[str, Any]:
    limit = _number(f"{folder}/memory.limit_in_bytes")
    if limit is None or limit >= _UNLIMITED_V1:
        return {}
    return {
        "memory_max_bytes": limit,
        "memory_bytes": _number(f"{folder}/memory.usage_in_bytes"),
        "memory_limit_hits": _number(f"{folder}/memory.failcnt"),
        "oom_kills": _numbers(f"{folder}/memory.oom_control").get("oom_kill", 0),
    }


_READERS = {"": _version_2, "cpu": _cpu_version_1, "memory": _memory_version_1}


def _throttling(folder: str, time: str, per_us: int) -> dict[str, int]:
    told = _numbers(f"{folder}/cpu.stat")
    if not {"nr_periods", "nr_throttled", time} <= told.keys():
        return {}
    return {
        "periods": told["nr_periods"],
        "throttled_periods": told["nr_throttled"],
        "throttled_us": told[time] // per_us,
    }


def _number(path: str) -> int | None:
    """None where there is no such file, or it says that there is no limit."""
    text = kernel_text(path).strip()
    return int(text) if text.isdecimal() else None


def _numbers(path: str) -> dict[str, int]:
    """Lines of `name number`."""
    pairs = (line.split() for line in kernel_text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
