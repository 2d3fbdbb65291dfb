"""The Makefile as people call it, and Locust's defaults in pyproject.toml."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib

import pytest
from servers import AS_NOBODY, ROOT, needs_nobody, running
from servers_of_others import public_folder

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def done(folder, *arguments, prefix=()):
    # Under `make test` the outer make would speak up in the inner one.
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = [*prefix, "make", *arguments]
    return subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, timeout=60, check=False)


def make(folder, *arguments):
    made = done(folder, *arguments)
    assert made.stderr == ""
    assert made.returncode == 0, made.stdout
    return made.stdout


def commands(output):
    """The command lines in the output of `make -n`, split as the shell does."""
    joined = output.replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines()]


@pytest.fixture
def copy(tmp_path):
    """A fresh clone, as far as make is concerned."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.fixture
def installed(copy):
    """One where everything is installed already."""
    (copy / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", "bin/pip", ".installed", ".installed-dev"):
        (copy / ".venv" / name).touch(mode=0o755)
    return copy


def ran(folder, *arguments):
    """The one command that make would run, without `exec`."""
    [command] = commands(make(folder, "-n", *arguments))
    return [word for word in command if word != "exec"]


@pytest.mark.parametrize("arguments", [[], ["help"]], ids=["make", "make help"])
def test_help_needs_nothing(copy, arguments):
    said = make(copy, *arguments)
    for target in ("install", "serve", "killport", "loadtest", "compare", "test", "soak", "lint", "bench", "clean"):
        assert f"  make {target} " in said
    assert not (copy / ".venv").exists()


def test_clean_needs_nothing(copy):
    (copy / "uploads").mkdir()
    (copy / "reports" / "runs").mkdir(parents=True)
    (copy / ".venv").mkdir()
    make(copy, "clean")
    assert not (copy / ".venv").exists()
    assert (copy / "uploads").exists()
    assert (copy / "reports" / "runs").exists()


@pytest.mark.parametrize("target", ["serve", "loadtest", "compare", "test", "soak", "lint", "bench"])
def test_every_other_target_installs_by_itself(copy, target):
    said = make(copy, "-n", target)
    assert "-m venv .venv" in said
    assert "pip install" in said
    assert "--constraint constraints.txt" in said


def test_a_second_make_installs_nothing(installed):
    assert "pip" not in make(installed, "-n", "loadtest") + make(installed, "-n", "test")
    (installed / "constraints.txt").write_text("changed")
    assert "pip install" in make(installed, "-n", "loadtest")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        (["USERS=3", "PLAN=long"], ["--users", "3", "--plan", "long"]),
        (["PHASE_SECONDS=5", "PAYLOADS=4KiB:70,1MiB:5"], ["--phase-seconds", "5", "--payloads", "4KiB:70,1MiB:5"]),
        (["PAYLOAD_DIR=my files", "HOST=tcp://h:1"], ["--payload-dir", "my files", "--host", "tcp://h:1"]),
    ],
    ids=str,
)
def test_loadtest_passes_options_on(installed, given, expected):
    assert ran(installed, "loadtest", *given) == [".venv/bin/python", "-m", "loadtest", "run", *expected]


def test_only_what_is_said_to_make_counts(installed, monkeypatch):
    """Shells export some of these names for purposes of their own."""
    for name in ("HOST", "USERS", "A", "PORT", "STORE", "FORCE", "SOCKET"):
        monkeypatch.setenv(name, "1")
    assert ran(installed, "loadtest") == [".venv/bin/python", "-m", "loadtest", "run"]
    assert ran(installed, "serve")[3:] == ["--port", "12345", "--workers", "4", "--store", "uploads"]
    assert ran(installed, "compare")[3:] == ["compare", "--a", "", "--b", ""]


def test_compare_passes_both_sets_on(installed):
    given = ["A=--workers 1", "B=--workers 2 --wait 0", "PAIRS=8", "TOLERANCE=5%", "USERS=7"]
    expected = [
        "--a",
        "--workers 1",
        "--b",
        "--workers 2 --wait 0",
        "--pairs",
        "8",
        "--tolerance",
        "5%",
        "--users",
        "7",
    ]
    assert ran(installed, "compare", *given) == [".venv/bin/python", "-m", "loadtest", "compare", *expected]


def test_serve_and_killport(installed):
    serve = [".venv/bin/python", "-m", "server", "--port", "12345", "--workers", "4", "--store", "uploads"]
    assert ran(installed, "serve") == serve
    changed = ran(installed, "serve", "PORT=1", "WORKERS=2", "STORE=my store")
    assert changed == [*serve[:4], "1", "--workers", "2", "--store", "my store"]
    release = [".venv/bin/python", "-m", "server.ports", "release"]
    assert ran(installed, "killport", "PORT=1") == [*release, "1"]
    assert ran(installed, "killport", "SOCKET=/run/a b", "FORCE=1", "ANY_USER=0", "INCLUDE_ACCEPTED=yes") == [
        *release,
        "unix:///run/a b",
        "--force",
        "--include-accepted",
    ]


def test_killport_needs_no_virtual_environment(copy, monkeypatch):
    """Nor anything but Python: also by what a server publishes it knows what is ours, as these tests' servers are."""
    shutil.copytree(ROOT / "server", copy / "server")
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    plain = f"PYTHON={sys.executable} -S"
    with running() as server, socket.create_server(("127.0.0.1", 0)) as other:
        refused = done(copy, "killport", f"PORT={other.getsockname()[1]}", plain)
        assert refused.returncode == 2
        assert "this command itself or started it" in refused.stdout
        assert "let go after TERM" in make(copy, "killport", f"PORT={server.port}", plain)
    assert not (copy / ".venv").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("PORT=abc", "'abc' is neither a port (1 to 65535)"),
        ("PORT=", "'' is neither a port"),
        ("PORT=1;exit 7", "'1;exit' is neither a port"),
        ("SOCKET=run/a.sock", "'unix://run/a.sock' is not the path of a socket"),
        ("SOCKET=", "'unix://' is not the path of a socket"),  # a variable that was not set: no reason to free 12345
    ],
)
def test_a_wrong_place_is_one_line_before_makes_own(given, said):
    refused = done(ROOT, "killport", given)
    [line, makes] = refused.stderr.splitlines()
    assert (refused.returncode, refused.stdout) == (2, "")
    assert line.startswith(f"Error: argument PORT: {said}")
    assert makes.endswith("Error 2")


BROKEN = """#!/bin/sh
case "$*" in *venv*) mkdir -p .venv/bin; echo "no ensurepip" >&2; exit 1; esac
"""


def test_make_removes_nothing_when_it_cannot_install(copy):
    (copy / ".venv").mkdir()
    (copy / ".venv" / "mine").touch()
    (copy / "broken").write_text(BROKEN)
    (copy / "broken").chmod(0o755)
    refused = done(copy, "install", "PYTHON=./broken")
    assert refused.returncode == 2
    assert ".venv cannot be set up. If it is of a Python that is gone, remove it: make clean\n" in refused.stderr
    assert (copy / ".venv" / "mine").exists()
    assert "-m venv .venv" in make(copy, "-n", "install")  # a half that is there is no whole


@needs_nobody
@pytest.mark.parametrize(("closed", "mode"), [(".venv", 0o700), (".venv/bin", 0o700), (".venv", 0o755)])
def test_what_belongs_to_another_user_is_left_alone_in_one_line(closed, mode):
    with public_folder() as folder:
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / closed).chmod(mode)
        (folder / ".venv" / "bin" / "mine").touch()
        refused = done(folder, "install", prefix=AS_NOBODY)
        assert refused.returncode == 2
        [said] = refused.stderr.splitlines()
        assert "*** nobody cannot install here: .venv belongs to root. Have its owner run make, or " in said
        assert (folder / ".venv" / "bin" / "mine").exists()


def test_locust_has_our_defaults():
    assert PYPROJECT["tool"]["locust"] == {
        "locustfile": "loadtest/users.py",
        "host": "tcp://127.0.0.1:12345",
        "web-host": "127.0.0.1",
        "stop-timeout": 10,
    }
    assert (ROOT / PYPROJECT["tool"]["locust"]["locustfile"]).exists()


def test_what_git_must_not_see():
    ignored = (ROOT / ".gitignore").read_text()
    for path in ("uploads/", ".venv/", "reports/runs/", "reports/comparisons/"):
        assert path in ignored
