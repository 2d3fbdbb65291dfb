"""What a server shows of itself: counters that readers can trust, and a state that is never somebody else's."""

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from servers import ROOT

from server import scoreboard
from server.scoreboard import EventLog, Scoreboard, ServerState

CODES = ("one", "two")


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /dev/shm."""
    monkeypatch.setattr(scoreboard, "RUNTIME_PARENT", tmp_path)
    return tmp_path


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Scoreboard]:
    board = Scoreboard.create(tmp_path / "scoreboard", 3, CODES)
    yield board
    board.close()


def state_of(pid: int, ticks: int) -> ServerState:
    return ServerState(
        pid=pid,
        start_ticks=ticks,
        addresses=["127.0.0.1:1"],
        port=1,
        workers=1,
        store=None,
        options={"workers": "1", "store": "none"},
        scoreboard="s",
        events="e",
        started_wall_ns=1,
    )


def ticks_of(pid: int) -> int:
    ticks = scoreboard.start_ticks(pid)
    assert ticks is not None
    return ticks


# ── The scoreboard ──


def test_a_reader_sees_what_a_worker_writes(board: Scoreboard, tmp_path: Path) -> None:
    reader = Scoreboard.open(tmp_path / "scoreboard")
    assert list(reader.read()) == []
    record = board.record(1)
    record[scoreboard.PID] = 4711
    record[scoreboard.BIRTHS] = 2
    record[scoreboard.STATE] = scoreboard.READY
    record[scoreboard.UPLOADS_STORED] += 1
    record[scoreboard.BYTES_STORED] += 1 << 40
    record[scoreboard.FAILURES + 1] += 3
    [slot] = reader.read()
    assert (slot.slot, slot.pid, slot.state, slot.births) == (1, 4711, "ready", 2)
    assert (slot.uploads_stored, slot.bytes_stored, slot.failures) == (1, 1 << 40, {"two": 3})
    assert (slot.connections_now, slot.connections_accepted, slot.heartbeat_ns, slot.started_ns) == (0, 0, 0, 0)
    record.release()
    reader.close()


def test_every_field_has_its_own_word(board: Scoreboard) -> None:
    record = board.record(0)
    for word in range(len(record)):
        record[word] = word + 1
    record[scoreboard.STATE] = scoreboard.DRAINING
    [slot] = board.read()
    names = [name for name in slot.__struct_fields__ if name not in ("slot", "failures", "retiring")]
    words = [getattr(scoreboard, name.upper()) for name in names]
    for word, name in zip(words, names, strict=True):
        assert getattr(slot, name) == ("draining" if name == "state" else word + 1)
    quota = scoreboard.STORE_CHANGE, scoreboard.BYTES_ARRIVING
    assert sorted((*words, *quota)) == list(range(scoreboard.FAILURES))
    assert slot.failures == {"one": scoreboard.FAILURES + 1, "two": scoreboard.FAILURES + 2}
    record.release()


def test_slots_do_not_overlap(board: Scoreboard) -> None:
    for slot in range(3):
        for seat in range(scoreboard.SEATS):
            record = board.record(slot, seat)
            record[:] = memoryview(b"".join((slot + 1).to_bytes(8, sys.byteorder) for _ in record)).cast("Q")
            record.release()
    seats = scoreboard.SEATS
    assert [slot.bytes_stored for slot in board.read()] == [seats, 2 * seats, 3 * seats]
    assert [slot.failures for slot in board.read()] == [{"one": n * seats, "two": n * seats} for n in (1, 2, 3)]


def fill_seat(board: Scoreboard, seat: int, state: int, **words: int) -> None:
    record = board.record(0, seat)
    record[scoreboard.STATE] = state
    record[scoreboard.BIRTHS] = 1
    for name, value in words.items():
        record[getattr(scoreboard, name.upper())] = value
    record.release()


def test_the_workers_of_a_slot_count_together_and_the_one_that_serves_speaks_for_it(board: Scoreboard) -> None:
    draining, ready, starting = scoreboard.DRAINING, scoreboard.READY, scoreboard.STARTING
    fill_seat(board, 0, draining, pid=10, started_ns=1, uploads_stored=100, connections_now=2, failures=1)
    fill_seat(board, 1, draining, pid=11, started_ns=2, uploads_stored=20, connections_now=1)
    fill_seat(board, 2, ready, pid=12, started_ns=3, uploads_stored=3, connections_now=5, heartbeat_ns=7, failures=1)
    fill_seat(board, 3, starting, pid=13, started_ns=4)
    [slot] = board.read()
    assert (slot.pid, slot.state, slot.started_ns, slot.heartbeat_ns) == (12, "ready", 3, 7)
    assert slot.retiring == (10, 11)
    assert (slot.births, slot.uploads_stored, slot.connections_now, slot.failures) == (4, 123, 8, {"one": 2})


def test_of_workers_that_drain_the_youngest_speaks(board: Scoreboard) -> None:
    fill_seat(board, 0, scoreboard.DRAINING, pid=10, started_ns=2)
    fill_seat(board, 1, scoreboard.DRAINING, pid=11, started_ns=1)
    fill_seat(board, 2, scoreboard.EMPTY, started_ns=3)
    [slot] = board.read()
    assert (slot.pid, slot.state, slot.retiring) == (10, "draining", (11,))


def test_records_start_on_a_page_of_their_own(board: Scoreboard, tmp_path: Path) -> None:
    board.record(0)[scoreboard.PID] = 0x1122334455667788
    assert (tmp_path / "scoreboard").read_bytes()[4096:4104] == 0x1122334455667788.to_bytes(8, sys.byteorder)


FORKED = """
import os, sys
from pathlib import Path
from server.scoreboard import BIRTHS, UPLOADS_STORED, Scoreboard

board = Scoreboard.create(Path(sys.argv[1]), 1, ("one",))
board.record(0)[BIRTHS] = 1
if os.fork() == 0:
    board.record(0)[UPLOADS_STORED] += 5
    os._exit(0)
os.wait()
print([slot.uploads_stored for slot in board.read()])
"""


def test_a_child_writes_into_the_same_memory(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(tmp_path / "shared")]  # the test's own process has threads
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[5]\n"


def test_a_reader_cannot_write(board: Scoreboard, tmp_path: Path) -> None:
    reader = Scoreboard.open(str(tmp_path / "scoreboard"))
    record = reader.record(0)
    with pytest.raises(TypeError):
        record[scoreboard.PID] = 1
    record.release()
    reader.close()


def test_it_is_for_its_user_only_and_never_over_an_existing_file(board: Scoreboard, tmp_path: Path) -> None:
    assert (tmp_path / "scoreboard").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        Scoreboard.create(tmp_path / "scoreboard", 1, CODES)


def test_a_header_that_does_not_fit_is_refused_before_a_file_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Scoreboard.create(tmp_path / "large", 1, ["x" * 4096])
    assert not (tmp_path / "large").exists()


def test_opening_something_else_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"x" * mmap.PAGESIZE)
    with pytest.raises(ValueError, match="is not a scoreboard"):
        Scoreboard.open(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        Scoreboard.open(tmp_path / "missing")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ValueError):
        Scoreboard.open(tmp_path / "empty")


def test_the_largest_number_of_workers_fits(tmp_path: Path) -> None:
    from server.failure_codes import SERVER_CODES
    from server.options import MAX_WORKERS

    board = Scoreboard.create(tmp_path / "large", MAX_WORKERS, SERVER_CODES)
    record = board.record(MAX_WORKERS - 1)
    record[scoreboard.BIRTHS] = 1
    assert [slot.slot for slot in board.read()] == [MAX_WORKERS - 1]
    record.release()
    board.close()


# ── Whose process a pid is ──


def test_start_ticks_tell_two_processes_apart() -> None:
    assert scoreboard.start_ticks(os.getpid()) == ticks_of(os.getpid())
    assert ticks_of(1) < ticks_of(os.getpid())
    assert scoreboard.start_ticks(0) is None
    assert scoreboard.start_ticks(1 << 30) is None


def test_a_zombie_has_no_start() -> None:
    child = subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended and nobody has asked for it
        assert scoreboard.start_ticks(child.pid) is None
    finally:
        child.wait()


@pytest.mark.parametrize("comm", [b"a) S 1 (b", b"caf\xe9"], ids=["brackets", "not UTF-8"])
def test_a_process_name_of_any_bytes_is_read_past(comm: bytes) -> None:
    name = f"with open('/proc/self/comm', 'wb') as comm: comm.write({comm!r})\nprint(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert Path(f"/proc/{child.pid}/comm").read_bytes() == comm + b"\n"
        assert ticks_of(child.pid) >= ticks_of(os.getpid())
        child.communicate(b"\n")


# ── The state file ──


def publish(parent: Path, pid: int, state: ServerState) -> Path:
    folder = parent / f"socketswarm-{os.geteuid()}" / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    scoreboard.write_state(folder, state)
    return folder


def test_a_state_is_read_back(parent: Path) -> None:
    state = state_of(os.getpid(), ticks_of(os.getpid()))
    folder = publish(parent, os.getpid(), state)
    assert scoreboard.read_state(os.getpid()) == state
    assert [entry.name for entry in folder.iterdir()] == ["state.json"]
    assert json.loads((folder / "state.json").read_bytes())["pid"] == os.getpid()


def test_the_state_of_an_earlier_process_with_the_same_pid_is_not_believed(parent: Path) -> None:
    publish(parent, os.getpid(), state_of(os.getpid(), ticks_of(os.getpid()) - 1))
    assert scoreboard.read_state(os.getpid()) is None


def test_a_state_in_the_folder_of_another_pid_is_not_believed(parent: Path) -> None:
    publish(parent, os.getpid(), state_of(os.getppid(), ticks_of(os.getpid())))
    assert scoreboard.read_state(os.getpid()) is None


def test_the_state_of_a_dead_process_is_not_believed(parent: Path) -> None:
    child = subprocess.Popen(["true"])
    ticks = ticks_of(os.getpid())
    child.wait()
    publish(parent, child.pid, state_of(child.pid, ticks))
    assert scoreboard.read_state(child.pid) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"nonsense", b"[1]", b"\xff"])
def test_a_broken_state_is_no_state(parent: Path, content: bytes) -> None:
    folder = publish(parent, os.getpid(), state_of(os.getpid(), ticks_of(os.getpid())))
    (folder / "state.json").write_bytes(content)
    assert scoreboard.read_state(os.getpid()) is None


def test_a_process_without_a_state_is_no_server(parent: Path) -> None:
    assert scoreboard.read_state(os.getpid()) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to somebody else needs root")
def test_a_state_that_somebody_else_wrote_is_not_believed(parent: Path) -> None:
    folder = publish(parent, os.getpid(), state_of(os.getpid(), ticks_of(os.getpid())))
    os.chown(folder / "state.json", 12345, 12345)
    assert scoreboard.read_state(os.getpid()) is None


# ── The runtime folder ──


def test_the_runtime_folder_is_for_its_user_only(parent: Path) -> None:
    folder = scoreboard.create_runtime_folder()
    assert folder == parent / f"socketswarm-{os.geteuid()}" / str(os.getpid())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    scoreboard.remove_runtime_folder(folder)
    assert list(parent.iterdir()) == []


def test_what_dead_servers_left_is_removed_and_the_living_are_kept(parent: Path) -> None:
    root = scoreboard.create_runtime_folder().parent
    child = subprocess.Popen(["true"])
    child.wait()
    for name in (str(child.pid), "not a pid", str(os.getppid())):
        (root / name).mkdir()
    (root / str(child.pid) / "state.json").write_bytes(b"{}")
    (root / str(os.getpid()) / "stale").write_bytes(b"")
    folder = scoreboard.create_runtime_folder()
    assert {entry.name for entry in root.iterdir()} == {str(os.getpid()), str(os.getppid())}
    assert list(folder.iterdir()) == []


def test_removing_one_servers_folder_keeps_anothers(parent: Path) -> None:
    folder = scoreboard.create_runtime_folder()
    (folder.parent / str(os.getppid())).mkdir()
    scoreboard.remove_runtime_folder(folder)
    assert [entry.name for entry in folder.parent.iterdir()] == [str(os.getppid())]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to somebody else needs root")
def test_a_runtime_folder_of_somebody_else_is_refused(parent: Path) -> None:
    root = parent / f"socketswarm-{os.geteuid()}"
    root.mkdir()
    os.chown(root, 12345, 12345)
    with pytest.raises(PermissionError, match="is not this user's folder: remove it"):
        scoreboard.create_runtime_folder()
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_runtime_folder_that_is_none_is_refused(parent: Path, tmp_path: Path, kind: str) -> None:
    root = parent / f"socketswarm-{os.geteuid()}"
    target = tmp_path / "target"
    target.mkdir()
    (target / "123").mkdir()
    root.symlink_to(target) if kind == "link" else root.write_bytes(b"")
    with pytest.raises(PermissionError):
        scoreboard.create_runtime_folder()
    assert (target / "123").exists()


# ── Events ──


def test_events_are_lines_in_order_with_both_clocks(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("first", slot=1, text="line\nbreak")
    log.append("second", text="é")
    log.close()
    first, second = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (first["kind"], first["slot"], first["text"]) == ("first", 1, "line\nbreak")
    assert (second["kind"], second["text"]) == ("second", "é")
    assert 0 < first["mono_ns"] <= second["mono_ns"]
    assert first["wall_ns"] > 0
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_log_opened_again_is_continued(tmp_path: Path) -> None:
    for kind in ("first", "second"):
        log = EventLog(tmp_path / "events.jsonl")
        log.append(kind)
        log.close()
    lines = (tmp_path / "events.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line)["kind"] for line in lines] == ["first", "second"]
