"""The run folder's readers and writers: what a kill leaves behind is still readable."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reports import run_folder
from reports.run_folder import (
    Appender,
    Ending,
    Event,
    HistogramsLine,
    Outcome,
    Phase,
    RunFolderError,
    RunInfo,
    SecondOfUploads,
    UploadsLine,
    UploadsTail,
)

CLOCKS = {"mono_ns": 1, "wall_ns": 2}
UNDECODABLE = [b'{"reason": "\xff", "id": "\xff"}', b'{"details": ' + b"[" * 5000 + b"]" * 5000 + b"}"]


def event(n):
    return Event(**CLOCKS, source="load", kind="phase", text=f"event {n}\nwith a second line", details={"n": n})


def second(n):
    names = {"long ≤4 KiB": SecondOfUploads(count=n, bytes=n, failures={}, connections=0)}
    return UploadsLine(**CLOCKS, phase="long-1", users=1, names=names)


def info(**changes):
    fields = {"id": "id", "label": "label", "command": [], "host": "tcp://h:1", "users": 1, "load_options": {}}
    fields |= {"seed": 1, "git_commit": None, "git_dirty": None, "environment": {}}
    return RunInfo(**fields | {"started_mono_ns": 1, "started_wall_ns": 1} | changes)


def append(path, *lines):
    appender = Appender(path)
    for line in lines:
        appender.append(line)
    appender.close()


# ── the outcome ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_outcome_of_a_report_that_was_built(tmp_path):
    (tmp_path / run_folder.SUMMARY).write_text('{"verdict": "NOISY", "reason": "why", "exit_code": 4, "modes": []}')
    assert run_folder.read_outcome(tmp_path) == Outcome(verdict="NOISY", reason="why", exit_code=4)


def test_without_a_report_there_is_no_outcome(tmp_path):
    assert run_folder.read_outcome(tmp_path) is None


@pytest.mark.parametrize("content", [b"{", b'{"verdict": "VALID", "reason": ""}', *UNDECODABLE])
def test_a_summary_that_cannot_be_read_is_one_clear_line(tmp_path, content):
    (tmp_path / run_folder.SUMMARY).write_bytes(content)
    with pytest.raises(RunFolderError, match=r"summary\.json cannot be read: "):
        run_folder.read_outcome(tmp_path)


# ── lines ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_appended_is_read_back(tmp_path):
    histograms = HistogramsLine(**CLOCKS, phase="long-1", names={"long ≤4 KiB": {"wait": "text"}})
    append(tmp_path / run_folder.EVENTS, event(1), event(2))
    append(tmp_path / run_folder.UPLOADS, second(1), histograms)
    assert list(run_folder.read_events(tmp_path)) == [event(1), event(2)]
    assert list(run_folder.read_uploads(tmp_path)) == [second(1), histograms]


@pytest.mark.parametrize(
    "read", [run_folder.read_events, run_folder.read_host, run_folder.read_processes, run_folder.read_uploads]
)
def test_files_that_are_not_there_have_no_lines(tmp_path, read):
    assert list(read(tmp_path)) == []


@given(st.data())
def test_a_kill_at_any_byte_tears_at_most_the_last_line(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    whole = b"".join(msgspec.json.encode(event(n)) + b"\n" for n in range(3))
    cut = data.draw(st.integers(0, len(whole)))
    (folder / run_folder.EVENTS).write_bytes(whole[:cut])
    read = list(run_folder.read_events(folder))
    ended = whole[:cut].count(b"\n")
    assert read[:ended] == [event(n) for n in range(ended)]
    assert len(read) <= ended + 1  # the last may be whole but for its line end


def test_a_writer_that_was_restarted_goes_on_behind_a_torn_line(tmp_path):
    path = tmp_path / run_folder.EVENTS
    append(path, event(1))
    with path.open("ab") as file:
        file.write(msgspec.json.encode(event(2))[:-5])
    append(path, event(3), event(4))  # 3 is lost: it follows the torn line without a line end
    assert list(run_folder.read_events(tmp_path)) == [event(1), event(4)]


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{}", b"[]", b"\xff\xfe", b'{"mono_ns": "x"}', b"[" * 5000),
        msgspec.json.encode(event(3)).replace(b"event", b"\xff"),
        msgspec.json.encode(event(3)).replace(b'{"n":3}', b'{"n":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    ],
)
def test_lines_of_no_schema_are_skipped(tmp_path, line):
    path = tmp_path / run_folder.EVENTS
    append(path, event(1))
    with path.open("ab") as file:
        file.write(line + b"\n")
    append(path, event(2))
    assert list(run_folder.read_events(tmp_path)) == [event(1), event(2)]


@pytest.mark.parametrize(
    "read",
    [
        *(run_folder.read_events, run_folder.read_host, run_folder.read_processes, run_folder.read_uploads),
        run_folder.read_load,
    ],
)
def test_a_file_that_is_there_and_cannot_be_read_is_one_clear_line(tmp_path, read):
    for name in (run_folder.EVENTS, run_folder.HOST, run_folder.PROCESSES, run_folder.UPLOADS, run_folder.LOAD):
        (tmp_path / name).mkdir()
    with pytest.raises(RunFolderError, match=r"\.jsonl cannot be read: Is a directory$"):
        list(read(tmp_path))


class FillingDisk:
    """os.write of a disk with so much room left; it takes what fits, and nothing more until there is room again."""

    def __init__(self, monkeypatch, room):
        self.room = room
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, fd, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self._write(fd, data[: self.room])
        self.room -= taken
        return taken


def test_a_line_of_which_a_part_was_written_is_written_on(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    append(tmp_path / run_folder.EVENTS, event(1), event(2))
    assert list(run_folder.read_events(tmp_path)) == [event(1), event(2)]


@pytest.mark.parametrize("room", [0, 10])
def test_a_line_that_the_disk_had_no_room_for_costs_no_other(tmp_path, monkeypatch, room):
    appender = Appender(tmp_path / run_folder.EVENTS)
    disk = FillingDisk(monkeypatch, room=1 << 20)
    appender.append(event(1))
    disk.room = room
    for number in (2, 3):
        with pytest.raises(OSError, match="No space left"):
            appender.append(event(number))
    disk.room = 1 << 20
    appender.append(event(4))
    appender.append(event(5))
    appender.close()
    assert list(run_folder.read_events(tmp_path)) == [event(1), event(4), event(5)]


def test_many_writers_do_not_mix_their_lines(tmp_path):
    """The load and the recorder append to one events file: each line is one write() to a file opened for appending."""
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda k: append(tmp_path / run_folder.EVENTS, *(event(100 * k + n) for n in range(100))), range(4)
            )
        )
    numbers = [line.details["n"] for line in run_folder.read_events(tmp_path)]
    assert sorted(numbers) == list(range(400))


# ── the tail ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_tail_gives_each_whole_line_once(tmp_path):
    tail = UploadsTail(tmp_path)
    assert tail.take() == []
    path = tmp_path / run_folder.UPLOADS
    append(path, second(1), HistogramsLine(**CLOCKS, phase="long-1", names={}), second(2))
    assert tail.take() == [second(1), second(2)]
    assert tail.take() == []
    line = msgspec.json.encode(second(3)) + b"\n"
    for part, expected in (
        (line[:10], []),
        (line[10:-1], []),
        (line[-1:] + line[:3], [second(3)]),
        (line[3:], [second(3)]),
    ):
        with path.open("ab") as file:
            file.write(part)
        assert tail.take() == expected


def test_the_tail_skips_what_is_torn(tmp_path):
    tail = UploadsTail(tmp_path)
    (tmp_path / run_folder.UPLOADS).write_bytes(b'{"type": "sec\n\n')
    append(tmp_path / run_folder.UPLOADS, second(1))
    assert tail.take() == [second(1)]


# ── run.json ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_json(tmp_path):
    phase = Phase(name="long-1", kind="measure", uploads_per_connection=0, start_ns=1, end_ns=2)
    run = info(phases=[phase], ended=Ending(how="stopped", reason="by a test"))
    run_folder.write_whole(tmp_path / run_folder.RUN, info())
    run_folder.write_whole(tmp_path / run_folder.RUN, run)
    assert run_folder.read_run(tmp_path) == run
    assert [path.name for path in tmp_path.iterdir()] == [run_folder.RUN]
    assert json.loads((tmp_path / run_folder.RUN).read_text())["schema_version"] == run_folder.SCHEMA_VERSION


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is not a run folder: it has no run.json$"),
        (b"", "run.json cannot be read: "),
        (b"{", "run.json cannot be read: "),
        (b"[]", "run.json cannot be read: "),
        (b"{}", "run.json cannot be read: .*`id`"),
        *((content, "run.json cannot be read: ") for content in UNDECODABLE),
    ],
)
def test_what_is_no_run(tmp_path, content, said):
    if content is not None:
        (tmp_path / run_folder.RUN).write_bytes(content)
    with pytest.raises(RunFolderError, match=said):
        run_folder.read_run(tmp_path)


def test_run_json_that_cannot_be_read(tmp_path):
    (tmp_path / run_folder.RUN).mkdir()
    with pytest.raises(RunFolderError, match=r"run.json cannot be read: .*Is a directory"):
        run_folder.read_run(tmp_path)


def test_a_run_of_another_schema(tmp_path):
    run_folder.write_whole(tmp_path / run_folder.RUN, info(schema_version=99))
    with pytest.raises(RunFolderError, match="has schema 99; this version reads 1"):
        run_folder.read_run(tmp_path)


def test_a_run_of_another_schema_that_has_other_fields(tmp_path):
    (tmp_path / run_folder.RUN).write_text('{"schema_version": 2, "name": "of another shape"}')
    with pytest.raises(RunFolderError, match="has schema 2; this version reads 1"):
        run_folder.read_run(tmp_path)


# ── names ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_taken_names_are_numbered(tmp_path):
    wanted = tmp_path / "runs" / "name"
    assert [run_folder.create(wanted).name for _ in range(3)] == ["name", "name-2", "name-3"]
    (tmp_path / "runs" / "name-4").touch()
    assert run_folder.create(wanted).name == "name-5"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file"):
        run_folder.create(tmp_path / "file" / "name")


def test_run_ids_sort_by_time():
    noon = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
    assert run_folder.new_run_id("my label/ü", noon) == "20260102T120000Z-my-label-ü"
    assert run_folder.new_run_id("", noon) == "20260102T120000Z-run"
    assert run_folder.new_run_id("..", noon) == "20260102T120000Z---"


@given(st.text())
@example("\N{MATHEMATICAL BOLD CAPITAL A}" * 60)
@example("ab\N{MATHEMATICAL BOLD CAPITAL A}" * 60)
def test_any_label_gives_a_safe_folder_name(label):
    name = run_folder.new_run_id(label)
    assert len(name.encode()) < 240  # room for a number
    assert not set("/\\\0 \n") & set(name)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (0, "≤4 KiB"),
        (4096, "≤4 KiB"),
        (4097, "≤64 KiB"),
        (65536, "≤64 KiB"),
        (1 << 20, "≤1 MiB"),
        ((1 << 20) + 1, "≤16 MiB"),
        (16 << 20, "≤16 MiB"),
        (1 << 40, ">16 MiB"),
    ],
)
def test_size_classes(size, name):
    assert run_folder.size_class(size) == name
    for mode in ("long", "short", "10 per connection"):
        assert run_folder.split_name(run_folder.upload_name(mode, size)) == (mode, name)


def test_a_name_of_no_schema():
    with pytest.raises(RunFolderError, match="'long' is not an upload name"):
        run_folder.split_name("long")


@pytest.mark.parametrize(("uploads", "mode"), [(0, "long"), (1, "short"), (10, "10 per connection")])
def test_modes_of_phases(uploads, mode):
    assert Phase(name="p", kind="measure", uploads_per_connection=uploads, start_ns=1).mode == mode
