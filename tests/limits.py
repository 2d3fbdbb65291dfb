"""Control groups of this machine, for tests that need a real quota or limit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers import eventually


@contextmanager
def real_group(controller: str, **limits: str) -> Iterator[Path]:
    """A control group of this machine with these limits, where it lets us make one."""
    newer, older = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup") / controller
    folder = (older if older.is_dir() else newer) / f"socketswarm-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        for name, value in limits.items():
            file = folder / name.replace("__", ".")
            if file.exists():
                file.write_text(value)
        if not any((folder / name.replace("__", ".")).exists() for name in limits):
            pytest.skip(f"{newer} has no controller {controller}")
        yield folder
    finally:
        eventually(lambda: _removed(folder), "the group is empty")


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:  # a process that was just killed is still leaving
        return False
    return True
