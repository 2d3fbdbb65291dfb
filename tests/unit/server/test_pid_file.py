"""Which pid files a server takes over, and which are none of its business."""

import os
from pathlib import Path

import pytest

from server.pid_file import PidFile, PidFileError, find_problem

NOBODY = 4_194_305  # over the kernel's highest pid


@pytest.mark.parametrize("left", [b"", b" \t\n", b"\0" * 4096, b"%d\n" % NOBODY, b"%d\n\0\0\0" % NOBODY, b"9" * 30])
def test_what_a_dead_server_or_a_power_cut_left_is_replaced(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "pid"
    path.write_bytes(left)
    assert find_problem(path) is None
    file = PidFile(path)
    assert path.read_bytes() == left  # nobody is told of a server that is not ready
    file.publish()
    assert path.read_text() == f"{os.getpid()}\n"
    file.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [b"precious", b"-1", b"1 2", b"\xff", b"\0" * 4097, b" " * 5000 + b"precious"])
def test_what_holds_anything_else_is_refused_and_left_alone(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "pid"
    path.write_bytes(left)
    with pytest.raises(PidFileError, match="exists and holds no pid; remove it or name another file"):
        PidFile(path)
    assert path.read_bytes() == left
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    """A rename would put an end to the one, and nobody may ever write to the other."""
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/null"), tmp_path / "pipe", tmp_path):
        assert str(find_problem(path)).endswith("exists and holds no pid; remove it or name another file")
