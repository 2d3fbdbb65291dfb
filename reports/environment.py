"""What a run ran on: the machine, the kernel's settings and the libraries, as one flat dictionary for run.json.

Two runs can be compared only when this is the same for both, so it is written down before each run, as flat values
that need no knowledge to be compared. What cannot be read is None: a container hides some of it, a virtual machine has
no frequency governor. Only reading: nothing here changes the machine, and nothing raises.
"""

import os
import platform
import re
import resource
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

from reports.missing_values import read
from reports.texts import ranges

Value = str | int | float | None

LIBRARIES = ("locust", "gevent", "psutil", "uvloop", "numpy", "msgspec", "hdrhistogram")

SYSCTLS = (
    "fs.file-max",
    "net.core.netdev_max_backlog",
    "net.core.rmem_max",
    "net.core.somaxconn",
    "net.core.wmem_max",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_max_tw_buckets",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_wmem",
)

_GIT_TIMEOUT_S = 10


def fingerprint() -> dict[str, Value]:
    """The environment of this process now. Sizes are in bytes; `cpus_usable` are the cores it may run on."""
    load_1min, load_5min, load_15min = read(os.getloadavg) or (None, None, None)
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu_model": cpu_model(),
        "cpus": os.cpu_count(),
        "cpus_physical": read(lambda: psutil.cpu_count(logical=False)),
        "cpus_usable": ranges(os.sched_getaffinity(0)),
        "governor": governor(),
        "memory_total_bytes": read(lambda: psutil.virtual_memory().total),
        "open_files_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        **{name: library_version(name) for name in LIBRARIES},
        **{name: sysctl(name) for name in SYSCTLS},
        "load_1min": load_1min,
        "load_5min": load_5min,
        "load_15min": load_15min,
    }


def cpu_model(path: Path = Path("/proc/cpuinfo")) -> str | None:
    """The processor's name. x86 calls it `model name`, a Raspberry Pi `Model`, s390 and some ARM have none."""
    found = re.search(r"^(?:model name|Model|cpu model|cpu)\s*:\s*(\S.*)$", _text(path) or "", re.MULTILINE)
    return found[1].strip() if found else None


def governor(cpus: Path = Path("/sys/devices/system/cpu")) -> str | None:
    """The frequency governor of all cores: several names when they differ, None where there is no such thing."""
    names = {_text(path) for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return ", ".join(sorted(filter(None, names))) or None


def library_version(name: str) -> str | None:
    """The installed version of a distribution, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def sysctl(name: str, root: Path = Path("/proc/sys")) -> str | int | None:
    """One kernel setting: a number where it is one, else its words with single spaces."""
    text = _text(root / name.replace(".", "/"))
    if text is None:
        return None
    text = " ".join(text.split())
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(errors="replace").strip()
    except OSError:
        return None


def filesystem_of(path: Path | str, mountinfo: Path = Path("/proc/self/mountinfo")) -> str:
    """Type of the file system that `path` is on or would be made on, such as `ext4` or `tmpfs`; `unknown` if hidden.

    Of the mounts above the path the deepest counts, and of several in one place the last, which hides the others. The
    format is that of proc_pid_mountinfo(5): the type is the first field after the lone hyphen.
    """
    real = Path(path).resolve()
    deepest, name = -1, "unknown"
    for line in filter(None, (_text(mountinfo) or "").split("\n")):  # a path may have any other line's end in it
        fields = line.split(" ")
        # The kernel writes blanks, tabs, newlines and backslashes as octal numbers.
        mount = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4]))
        depth = len(mount.parts)
        if real.is_relative_to(mount) and depth >= deepest:
            deepest, name = depth, fields[fields.index("-") + 1]
    return name


def git_state(folder: Path | str) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the work tree that `folder` is in; dirty means files that differ from it or are not in it.
    (None, None) without git, outside a repository, and before the first commit."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None, None
    changes = _git(folder, "status", "--porcelain")
    return commit, None if changes is None else bool(changes)


def _git(folder: Path | str, *command: str) -> str | None:
    # Called from a git hook, GIT_DIR and its kin would answer for another repository than the folder's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        # Without optional locks, or `status` gets in the way of a git that a person runs at the same time.
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
