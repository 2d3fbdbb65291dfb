"""What a confined process has left. The status helper that is attacked in earnest is in
tests/faults/test_status_helper.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import AS_NOBODY, ROOT, needs_nobody

CONFINED = """
import json, os, pathlib, resource, sys
from server.status import confinement
kept = os.open(os.devnull, os.O_RDONLY)
os.open("/", os.O_RDONLY)
confinement.close_all_but({0, 1, 2, kept})
left = sorted(int(name) for name in os.listdir("/proc/self/fd") if pathlib.Path(f"/proc/self/fd/{name}").exists())
problem = confinement.confine()
def attempt(do):
    try:
        return str(do())
    except (OSError, ImportError) as error:
        return type(error).__name__
print(json.dumps({
    "left": left, "kept": kept, "problem": problem, "uid": os.getuid(), "groups": os.getgroups(),
    "limits": [resource.getrlimit(what) for what in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)],
    "imported": attempt(lambda: __import__("tomllib").__name__),
    "made": attempt(lambda: open(sys.argv[1] + "/made", "x").close()),
    "removed": attempt(lambda: os.unlink(sys.argv[1] + "/there")),
}))
"""


def confined(folder: Path, *prefix: str) -> dict[str, object]:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", CONFINED, folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "there").touch()
    return tmp_path


def test_little_is_left(folder: Path) -> None:
    found = confined(folder)
    assert found["left"] == [0, 1, 2, found["kept"]]
    assert found["limits"] == [[0, 0], [256, 256]]
    if os.geteuid() == 0:
        assert (found["problem"], found["groups"]) == (None, [])
        assert found["uid"] != 0
        assert found["made"] == found["removed"] == "PermissionError"
        assert [path.name for path in folder.iterdir()] == ["there"]


@needs_nobody
def test_what_could_not_be_had_is_said(folder: Path) -> None:
    """Of the two that keep files from being removed, a user who is not root has Landlock or nothing."""
    folder.chmod(0o777)
    found = confined(folder, *AS_NOBODY)
    if found["problem"] is None:
        assert found["made"] == found["removed"] == "PermissionError"
        assert found["imported"] == "tomllib"
    else:
        assert str(found["problem"]).startswith("this kernel offers no Landlock (")
