import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

from reports import environment


def test_fingerprint_is_flat_and_names_the_machine():
    found = environment.fingerprint()
    assert all(value is None or isinstance(value, str | int | float) for value in found.values())
    assert found["kernel"] == os.uname().release
    assert found["cpus"] == os.cpu_count()
    assert found["memory_total_bytes"] > 1 << 20
    assert found["psutil"].count(".") >= 1
    assert found["net.core.somaxconn"] > 0
    assert found["net.ipv4.ip_local_port_range"].count(" ") == 1


def test_nothing_that_proc_leaves_out_ends_it(tmp_path, monkeypatch):
    def unreadable():
        raise OSError

    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    monkeypatch.setattr(os, "getloadavg", unreadable)
    found = environment.fingerprint()
    assert (found["memory_total_bytes"], found["load_1min"], found["load_15min"]) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("processor\t: 0\nmodel\t\t: 85\nmodel name\t: Xeon (R)  @ 2\ncpu MHz\t: 2500\n", "Xeon (R)  @ 2"),
        ("processor : 0\nBogoMIPS : 5\n\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
        ("processor\t: 0\ncpu\t\t: POWER9\n", "POWER9"),
        ("processor : 0\nBogoMIPS : 5\n", None),
    ],
)
def test_cpu_model(tmp_path, text, model):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert environment.cpu_model(path) == model


def test_governor(tmp_path):
    assert environment.governor(tmp_path) is None
    for cpu, name in enumerate(["powersave", "performance", "powersave"]):
        folder = tmp_path / f"cpu{cpu}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{name}\n")
    assert environment.governor(tmp_path) == "performance, powersave"


def test_sysctl(tmp_path):
    for name, text in {"a/one": "17\n", "a/range": "1024\t 65535\n", "a/word": "cubic\n", "a/minus": "-1\n"}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert environment.sysctl("a.one", tmp_path) == 17
    assert environment.sysctl("a.range", tmp_path) == "1024 65535"
    assert environment.sysctl("a.word", tmp_path) == "cubic"
    assert environment.sysctl("a.minus", tmp_path) == -1
    assert environment.sysctl("a.missing", tmp_path) is None


def test_library_version_of_something_that_is_not_installed():
    assert environment.library_version("no-such-distribution-here") is None


MOUNTS = r"""22 27 0:21 / / rw,relatime - ext4 /dev/vda1 rw
23 22 0:22 / /data rw,relatime shared:7 master:1 - xfs /dev/vdb rw
24 22 0:23 / /data2 rw,relatime - btrfs /dev/vdc rw
25 23 0:24 / /data/with\040blank rw - nfs4 host:/x rw
26 23 0:25 / /data/hidden rw - ext3 /dev/vdd rw
27 26 0:26 / /data/hidden rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/", "ext4"),
        ("/home/not/there/yet", "ext4"),
        ("/data", "xfs"),
        ("/data/store", "xfs"),
        ("/data2/store", "btrfs"),
        ("/database", "ext4"),
        ("/data/with blank/store", "nfs4"),
        ("/data/hidden/store", "tmpfs"),
        ("/data/x/../../data2", "btrfs"),
        ("/an\rodd\u2028name/store", "jfs"),
    ],
)
def test_filesystem_of(tmp_path, path, name):
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(f"{MOUNTS}28 22 0:28 / /an\rodd\u2028name rw - jfs x rw\n")
    assert environment.filesystem_of(path, mountinfo) == name


def test_filesystem_of_the_real_machine(tmp_path):
    assert environment.filesystem_of("/proc/self") == "proc"
    assert environment.filesystem_of(tmp_path, tmp_path / "missing") == "unknown"


@pytest.fixture
def repository(tmp_path):
    def git(*command):
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        subprocess.run(["git", "-C", str(tmp_path), *identity, *command], env=clean, check=True, capture_output=True)

    git("init", "--quiet")
    return tmp_path, git


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_git_state(repository, monkeypatch):
    folder, git = repository
    assert environment.git_state(folder) == (None, None)

    file = folder / "file"
    file.write_text("1")
    git("add", "file")
    git("commit", "--quiet", "-m", "first")
    commit, dirty = environment.git_state(folder)
    assert commit is not None and len(commit) >= 40
    assert dirty is False

    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook of another repository
    assert environment.git_state(folder) == (commit, False)

    file.write_text("2")
    assert environment.git_state(folder) == (commit, True)
    file.write_text("1")
    (folder / "new").write_text("not in the commit")
    assert environment.git_state(folder) == (commit, True)


def test_git_state_without_git_or_folder(tmp_path, monkeypatch):
    assert environment.git_state(tmp_path / "missing") == (None, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_state(Path.cwd()) == (None, None)
