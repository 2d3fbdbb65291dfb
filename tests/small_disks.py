"""Small file systems, to be filled: what a full disk does is the kernel's to say, not a test's."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A new folder with a file system of this `size`, such as 2m; the test is skipped where none can be mounted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "socketswarm-test", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=60)


def fill(disk: Path, *, but_bytes: int = 0) -> Path:
    """Take all of its space but this much. The file that does."""
    file = disk / "zz-fill"
    with file.open("wb", buffering=0) as written:
        try:
            written.write(bytes(max(0, shutil.disk_usage(disk).free - but_bytes)))
        except OSError:
            pass  # somebody else was faster
    return file
