"""Run folders as a kill, a full disk, a colleague or another version left them: `build` makes the report that can be
made, or says in one line why there is none.

The folders are real ones. Most are damaged and built in this process, to which an exception that nobody expected is a
failure; what a shell sees is asked of a few.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_process import called
from loads import LOADTEST, assert_report, run
from servers import AS_NOBODY, DEADLINE_S, ROOT, needs_nobody
from slow import examples, first_of

from reports import run_folder
from reports.__main__ import main
from reports.pages import report_files

LINES = [run_folder.PROCESSES, run_folder.HOST, run_folder.UPLOADS, run_folder.LOAD, run_folder.EVENTS]
BUILT = [run_folder.SUMMARY, run_folder.REPORT_HTML, run_folder.REPORT_MD]

# What is recorded: it ends when there are some ticks of it.
UNTIL_RECORDED = """
import time
from pathlib import Path
ticks = Path("run", "host.jsonl")
while not ticks.exists() or ticks.read_bytes().count(b"\\n") < 5:
    time.sleep(0.02)
"""

pytestmark = pytest.mark.filterwarnings("error")  # they would be lines on standard error


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """A short run of both modes, with its report."""
    cwd = tmp_path_factory.mktemp("run")
    options = ["--users", "2", "--workers", "2", "--phase-seconds", "1", "--warm-up", "0", "--payloads", "4KiB,64KiB"]
    code, said = run(cwd, *LOADTEST, "run", *options)
    assert code in (0, 4), said  # 4: the machine was too busy
    [folder] = cwd.glob("reports/runs/*")
    return folder


@pytest.fixture(scope="module")
def real_recording(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("recording")
    record = [sys.executable, "-m", "reports", "record", "--interval", "0.1", "--out", "run", "--"]
    code, said = run(cwd, *record, sys.executable, "-c", UNTIL_RECORDED)
    assert code == 0, said
    return cwd / "run"


@pytest.fixture
def folder(real_run, tmp_path):
    """A copy to damage."""
    return shutil.copytree(real_run, tmp_path / "run")


def build(folder):
    """`python -m reports build`, within this process: (exit code, what it says on standard error)."""
    done = called(main, ROOT, "build", folder)
    return done.returncode, done.stderr


def as_a_command(folder, *prefix):
    """The same as a process of its own."""
    command = [*prefix, sys.executable, "-m", "reports", "build", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    return done.returncode, done.stderr


def assert_built(built, folder):
    assert built == (0, "")
    assert_report(folder)


def assert_refused(built, words):
    code, said = built
    assert code == 1
    assert said.startswith("Error: ") and said.endswith("\n") and said.count("\n") == 1, said
    assert words in said


# ── files that are damaged ────────────────────────────────────────────────────────────────────────────────────────


def missing(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(random.Random(path.name).randbytes(4096))


def garbage_behind_it(path):
    with path.open("ab") as file:
        file.write(random.Random(path.name).randbytes(512))


def zeros_at_the_end(path):
    """What a file system may leave of the last lines when the machine loses its power."""
    data = path.read_bytes()
    path.write_bytes(data[:-100] + bytes(100))


def first_half(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def directory(path):
    path.unlink()
    path.mkdir()


def torn(keep):
    """Without the rest of its last line, of which this share was written."""

    def tear(path):
        data = path.read_bytes()
        begin = data.rindex(b"\n", 0, -1) + 1
        path.write_bytes(data[: begin + max(1, int((len(data) - 1 - begin) * keep))])

    tear.__name__ = f"torn-{keep}"
    return tear


TORN = [torn(keep) for keep in (0.5, 0, 1)]


def name_of(value):
    return getattr(value, "__name__", value)


@pytest.mark.parametrize("name", [name for name in LINES if name != run_folder.UPLOADS])
def test_lines_that_are_missing(folder, name):
    """What is left of them makes a report."""
    remove_what_was_built(folder)
    missing(folder / name)
    assert_built(build(folder), folder)


def test_without_uploads_there_is_no_report(folder):
    remove_what_was_built(folder)
    missing(folder / run_folder.UPLOADS)
    assert_refused(build(folder), f"{folder} has no uploads.jsonl: the load never started, so there is no report")
    assert not any((folder / built).exists() for built in BUILT)


@pytest.mark.parametrize("names", first_of([LINES, *([name] for name in LINES)]), ids="-".join)
@pytest.mark.parametrize("damage", first_of([*TORN, empty, garbage, zeros_at_the_end]), ids=name_of)
def test_lines_that_are_damaged(folder, names, damage):
    """All files at once, as by one kill, and each by itself."""
    remove_what_was_built(folder)
    for name in names:
        damage(folder / name)
    assert_built(build(folder), folder)


def remove_what_was_built(folder):
    for built in BUILT:
        (folder / built).unlink()


@pytest.mark.parametrize("name", LINES)
def test_a_directory_in_place_of_lines(folder, name):
    directory(folder / name)
    assert_refused(build(folder), f"{folder / name} cannot be read: Is a directory")


def test_a_pipe_in_place_of_lines_is_not_waited_for(folder):
    (folder / run_folder.HOST).unlink()
    os.mkfifo(folder / run_folder.HOST)
    assert_built(build(folder), folder)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (first_half, "run.json cannot be read: Input data was truncated"),
        (missing, "is not a run folder: it has no run.json"),
        (empty, "run.json cannot be read: Input data was truncated"),
        (garbage, "run.json cannot be read: "),
        (garbage_behind_it, "run.json cannot be read: "),
        (directory, "run.json cannot be read: Is a directory"),
    ],
    ids=name_of,
)
def test_run_json_that_is_damaged(folder, damage, words):
    """Nothing is known without it, and the report that is there stays."""
    before = {name: (folder / name).read_bytes() for name in BUILT}
    damage(folder / run_folder.RUN)
    assert_refused(build(folder), words)
    assert {name: (folder / name).read_bytes() for name in BUILT} == before


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (2, "has schema 2; this version reads 1"),
        (999, "has schema 999; this version reads 1: build the report with the version of socketswarm that wrote it"),
        (10**30, "; this version reads 1"),
        ("1", "run.json cannot be read: Expected `int`, got `str` - at `$.schema_version`"),
        (None, "run.json cannot be read: Expected `int`, got `null` - at `$.schema_version`"),
        ([1], "run.json cannot be read: Expected `int`, got `array` - at `$.schema_version`"),
    ],
)
def test_another_schema(folder, version, words):
    path = folder / run_folder.RUN
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
    assert_refused(build(folder), words)


def test_without_a_schema_it_is_the_first(folder):
    path = folder / run_folder.RUN
    fields = json.loads(path.read_text())
    del fields["schema_version"]
    path.write_text(json.dumps(fields))
    assert_built(build(folder), folder)


@pytest.mark.parametrize("damage", first_of([garbage, missing, empty]), ids=name_of)
def test_a_report_that_is_damaged_is_built_again(folder, damage):
    for name in BUILT:
        damage(folder / name)
    assert_built(build(folder), folder)


@pytest.mark.parametrize("name", first_of(BUILT))
def test_a_directory_in_place_of_a_report(folder, name):
    directory(folder / name)
    assert_refused(build(folder), f"the report cannot be written into {folder}: Is a directory")


@pytest.mark.parametrize("cores", first_of([[2, 1], [1, 2]]))
def test_cores_that_come_and_go(folder, cores):
    """As a virtual machine's may."""
    path = folder / run_folder.HOST
    ticks = [json.loads(line) for line in path.read_text().splitlines()]
    ticks = [tick | {"cores": tick["cores"][:1] * cores[n * 2 // len(ticks)]} for n, tick in enumerate(ticks)]
    path.write_text("".join(f"{json.dumps(tick)}\n" for tick in ticks))
    assert_built(build(folder), folder)


# ── any cut ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.timeout(600)  # fifteen reports, on a busy machine
@pytest.mark.parametrize("kind", ["real_run", "real_recording"])
def test_a_kill_at_any_byte(request, tmp_path, kind):
    """Files are written by several processes, so each may end anywhere."""
    original = request.getfixturevalue(kind)
    folder = shutil.copytree(original, tmp_path / "run")
    whole = {name: (original / name).read_bytes() for name in LINES if (original / name).exists()}
    cuts = {
        name: st.one_of(st.just(len(data)), st.just(len(data) - 1), st.integers(0, len(data)))
        for name, data in whole.items()
    }

    @examples(16)
    @given(st.fixed_dictionaries(cuts))
    def any_cut(cut):
        for name, data in whole.items():
            (folder / name).write_bytes(data[: cut[name]])
        report_files.build(folder)  # no file is missing, so not even RunFolderError is due
        assert_report(folder)

    any_cut()


# ── folders that are none ─────────────────────────────────────────────────────────────────────────────────────────


def test_no_such_folder(tmp_path):
    assert_refused(build(tmp_path / "no" / "run"), f"there is no run folder {tmp_path}/no/run")


def test_a_file_in_place_of_the_folder(folder):
    path = folder / run_folder.RUN
    assert_refused(build(path), f"{path} is a file; give the run folder, which has run.json in it")
    assert_refused(build(path / "below"), f"there is no run folder {path}/below")


def test_a_name_that_is_too_long():
    assert_refused(build("x" * 300), "cannot be read: File name too long")


def test_what_a_shell_sees(folder, tmp_path):
    torn(0.5)(folder / run_folder.PROCESSES)
    assert_built(as_a_command(folder), folder)
    assert_refused(as_a_command(tmp_path / "nowhere"), "there is no run folder")


@pytest.mark.slow  # of another refusal
def test_what_a_shell_sees_of_a_damaged_run(folder):
    empty(folder / run_folder.RUN)
    assert_refused(as_a_command(folder), "run.json cannot be read")


# ── folders of others ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def public_folder(real_run):
    """A copy that everybody may look into, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="socketswarm-test-") as name:
        Path(name).chmod(0o755)
        yield shutil.copytree(real_run, Path(name) / "above" / "run")


@pytest.mark.parametrize(
    ("hidden", "words"),
    first_of(
        [
            (run_folder.RUN, "run.json cannot be read: Permission denied"),
            (run_folder.PROCESSES, "processes.jsonl cannot be read: Permission denied"),
            (run_folder.UPLOADS, "uploads.jsonl cannot be read: Permission denied"),
            ("..", "the run folder {folder} cannot be read: Permission denied"),
        ]
    ),
)
@needs_nobody
def test_what_may_not_be_read(public_folder, hidden, words):
    (public_folder / hidden).chmod(0)
    assert_refused(as_a_command(public_folder, *AS_NOBODY), words.format(folder=public_folder))


@needs_nobody
def test_a_folder_that_may_not_be_looked_into(public_folder):
    """That is said of the argument, before anything is read."""
    public_folder.chmod(0)
    code, said = as_a_command(public_folder, *AS_NOBODY)
    assert code == 2
    assert said.splitlines()[-1] == f"Error: Invalid value for 'RUN': Path '{public_folder}' is not readable."
    assert "Traceback" not in said


@needs_nobody
def test_a_folder_that_may_not_be_written(public_folder):
    built = as_a_command(public_folder, *AS_NOBODY)
    assert_refused(built, f"the report cannot be written into {public_folder}: Permission denied")
