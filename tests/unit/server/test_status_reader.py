"""What `status` says of servers: from files that a server writes, made here without one."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from server import scoreboard
from server.scoreboard import EventLog, Scoreboard, ServerState
from server.status import reader


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /dev/shm."""
    monkeypatch.setattr(scoreboard, "RUNTIME_PARENT", tmp_path)
    return tmp_path


class FakeServer:
    """The files of a server whose supervisor is this very process: pid and start time are then those of somebody."""

    def __init__(self) -> None:
        self.folder = scoreboard.create_runtime_folder()
        self.board = Scoreboard.create(self.folder / "scoreboard", 3, ("bad_header", "truncated"))
        self.events = EventLog(self.folder / "events.jsonl")
        ticks = scoreboard.start_ticks(os.getpid())
        assert ticks is not None
        self.state = ServerState(
            pid=os.getpid(),
            start_ticks=ticks,
            addresses=["127.0.0.1:4711"],
            port=4711,
            workers=3,
            store=None,
            options={"accept": "shared", "max_file_size": "1GiB", "drain_timeout": "1.5s"},
            scoreboard=str(self.folder / "scoreboard"),
            events=str(self.folder / "events.jsonl"),
            started_wall_ns=1,
        )
        scoreboard.write_state(self.folder, self.state)

    def fill(self, slot: int, **fields: int) -> None:
        """Write words of a slot; `failed_bad_header` and `failed_truncated` are its failures."""
        record = self.board.record(slot)
        for name, value in fields.items():
            failures = {"failed_bad_header": scoreboard.FAILURES, "failed_truncated": scoreboard.FAILURES + 1}
            record[failures[name] if name in failures else getattr(scoreboard, name.upper())] = value
        record.release()

    def drain(self) -> None:
        self.state = msgspec.structs.replace(self.state, draining=True)
        self.events.append("draining", text="draining: SIGTERM")

    def close(self) -> None:
        self.board.close()
        self.events.close()


@pytest.fixture
def server(parent: Path) -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def now_ns(monkeypatch: pytest.MonkeyPatch) -> int:
    """The time at which the test begins, at which it also ends."""
    now_ns = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now_ns)
    return now_ns


def read(server: FakeServer) -> reader.ServerStatus:
    found = reader.read_server(server.state)
    assert found is not None
    return found


def table(text: str) -> dict[str, list[str]]:
    """Cells of the lines that belong to workers and their total, by their first."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.startswith("  ")]
    return {row[0]: row[1:] for row in rows if row[0].isdecimal() or row[0] in ("SLOT", "all")}


def test_without_a_server_there_is_nothing(parent: Path) -> None:
    assert reader.read_servers() == []
    scoreboard.runtime_root(os.geteuid()).mkdir()
    (scoreboard.runtime_root(os.geteuid()) / "not-a-pid").mkdir()
    (scoreboard.runtime_root(os.geteuid()) / "1").mkdir()  # a process, but no server
    assert reader.read_servers() == []


def test_a_server_is_found_by_pid_by_port_and_without(server: FakeServer) -> None:
    for wanted in ({}, {"pid": os.getpid()}, {"port": 4711}):
        assert [found.pid for found in reader.read_servers(**wanted)] == [os.getpid()]
    assert reader.read_servers(pid=os.getppid()) == []
    assert reader.read_servers(port=4712) == []


def test_counters_of_each_slot_and_their_sums(server: FakeServer) -> None:
    now_ns = time.monotonic_ns()
    ready = {"state": scoreboard.READY, "started_ns": now_ns - 5 * 10**9}
    server.fill(
        0, pid=11, births=1, connections_now=2, connections_accepted=5, uploads_stored=7, bytes_stored=9, **ready
    )
    server.fill(1, pid=12, births=3, connections_now=1, connections_accepted=10, uploads_stored=20, **ready)
    server.fill(1, bytes_stored=1 << 20, failed_bad_header=4, failed_truncated=1)
    server.fill(2, births=1, failed_truncated=2, started_ns=now_ns)
    found = read(server)
    assert [(slot.slot, slot.pid, slot.state, slot.restarts) for slot in found.slots] == [
        (0, 11, "ready", 0),
        (1, 12, "ready", 2),
        (2, None, "empty", 0),
    ]
    assert [slot.uptime_s is None or 5 <= slot.uptime_s < 60 for slot in found.slots] == [True] * 3
    assert found.slots[2].uptime_s is None
    assert found.totals == reader.Totals(
        restarts=2,
        connections_now=3,
        connections_accepted=15,
        uploads_stored=27,
        bytes_stored=(1 << 20) + 9,
        failures={"bad_header": 4, "truncated": 3},
    )


def test_as_text_it_is_a_table(server: FakeServer, now_ns: int) -> None:
    ready = {"state": scoreboard.READY, "started_ns": now_ns - 187 * 10**9}
    server.fill(0, pid=11, births=2, connections_now=2, connections_accepted=5, uploads_stored=1234, **ready)
    server.fill(0, bytes_stored=3 << 20, failed_bad_header=1000)
    server.fill(1, births=1)
    first, second, *_ = (text := reader.as_text([read(server)])).splitlines()
    assert first.startswith(f"127.0.0.1:4711: pid {os.getpid()}, up ")
    assert first.endswith(", 1 of 3 workers ready, store: discarded")
    assert second == "  accept shared, files up to 1GiB, drain timeout 1.5s"
    assert table(text) == {
        "SLOT": ["PID", "STATE", "UPTIME", "OPEN", "ACCEPTED", "UPLOADS", "BYTES", "RESTARTS", "FAILURES"],
        "0": ["11", "ready", "3m07s", "2", "5", "1,234", "3 MiB", "1", "1,000 bad_header"],
        "1": ["-", "empty", "-", "0", "0", "0", "0 B", "0", "none"],
        "all": ["2", "5", "1,234", "3 MiB", "1", "1,000 bad_header"],
    }


def test_columns_stand_under_their_heads(server: FakeServer) -> None:
    server.fill(0, pid=123456, births=1, connections_accepted=10**9, state=scoreboard.READY)
    server.fill(1, pid=7, births=1, connections_accepted=1, state=scoreboard.STARTING)
    lines = reader.as_text([read(server)]).splitlines()[2:]
    ends = [line.index(word) + len(word) for line, word in zip(lines, ("ACCEPTED", "1,000,000,000"), strict=False)]
    assert ends[0] == ends[1]
    assert len({line.rindex("  ") for line in lines}) == 1


def test_json_is_versioned_and_has_everything(server: FakeServer) -> None:
    server.fill(0, pid=11, births=1, failed_truncated=1)
    server.events.append(
        "worker-ended", text="worker 0 (pid 10) died of SIGSEGV", slot=0, pid=10, how="died of SIGSEGV"
    )
    document = json.loads(reader.as_json([read(server)]))
    assert document["schema_version"] == 1
    [shown] = document["servers"]
    assert set(shown) == set(reader.ServerStatus.__struct_fields__)
    [slot] = shown["slots"]
    assert set(slot) == set(reader.SlotStatus.__struct_fields__)
    assert slot["failures"] == {"truncated": 1}
    [event] = shown["events"]
    assert event.pop("wall_ns") > 0
    text = "worker 0 (pid 10) died of SIGSEGV"
    assert event == {"kind": "worker-ended", "text": text, "slot": 0, "pid": 10, "how": "died of SIGSEGV"}


def test_the_last_events_are_shown_without_the_routine(server: FakeServer) -> None:
    for number in range(20):
        server.events.append("worker-ended", text=f"end {number}")
        server.events.append("worker-replaced", text="routine")
        server.events.append("worker-ended", text="routine", how="ended with exit code 0")
    found = read(server)
    assert [event.text for event in found.events] == [f"end {number}" for number in range(12, 20)]
    assert [line.split("  ")[-1] for line in reader.as_text([found]).splitlines()[-8:]] == [
        f"end {number}" for number in range(12, 20)
    ]


def test_of_a_long_list_of_events_the_end_is_read(server: FakeServer) -> None:
    for number in range(1000):
        server.events.append("worker-ended", text=f"end {number}", how="x" * 200)
    assert (server.folder / "events.jsonl").stat().st_size > 2 * reader._TAIL_BYTES
    assert [event.text for event in read(server).events][-1] == "end 999"
    with (server.folder / "events.jsonl").open() as events:
        assert len(reader._read_tail(events.fileno())) < 500


def test_a_drain_is_shown(server: FakeServer) -> None:
    """However much happens in it."""
    assert not read(server).draining
    server.drain()
    for number in range(2000):
        server.events.append("worker-ended", text=f"worker {number} ended with exit code 0")
    assert read(server).draining
    assert ", draining, store: " in reader.as_text([read(server)])


def test_nothing_shown_moves_a_terminals_cursor(server: FakeServer) -> None:
    hostile = "a\n\x1b[2J\u2028"
    server.events.append("worker-ended", text=hostile)
    server.events.append("custom\x1b")
    found = msgspec.structs.replace(read(server), store=hostile, options={"accept": hostile}, addresses=[hostile])
    lines = reader.as_text([found]).split("\n")
    assert len(lines) == 6
    assert all(line.isprintable() for line in lines)
    assert lines[-1].endswith(r"custom\x1b")


def test_a_torn_event_is_passed_over(server: FakeServer) -> None:
    server.events.append("worker-ended", text="whole")
    with (server.folder / "events.jsonl").open("a") as file:
        file.write('{"kind": "worker-en')
    assert [event.text for event in read(server).events] == ["whole"]


@pytest.mark.parametrize("gone", ["scoreboard", "events.jsonl", "."])
def test_a_server_that_ends_meanwhile_is_not_there(server: FakeServer, gone: str) -> None:
    path = server.folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert reader.read_server(server.state) is None
    if gone != ".":
        assert reader.read_servers() == []


def test_a_server_that_just_starts_has_no_workers_yet(server: FakeServer) -> None:
    found = read(server)
    assert found.slots == []
    assert ", 0 of 3 workers ready, " in reader.as_text([found])
    (server.folder / "state.json").unlink()  # earlier still
    assert reader.read_servers() == []


def test_blocks_of_several_servers_are_apart(server: FakeServer) -> None:
    found = read(server)
    assert reader.as_text([found, found]) == reader.as_text([found]) + "\n\n" + reader.as_text([found])


def test_it_is_ready_when_all_its_workers_are_and_beat(server: FakeServer, now_ns: int) -> None:
    ready = {"births": 1, "state": scoreboard.READY, "started_ns": 1}
    server.fill(0, pid=11, heartbeat_ns=now_ns, **ready)
    server.fill(1, pid=12, heartbeat_ns=now_ns - 60 * 10**9, **ready)
    assert reader.why_not_ready(read(server)) == [
        "worker 1 hangs: its loop has not turned for 60 s",
        "worker 2 has not started yet",
    ]
    server.fill(1, pid=12, state=scoreboard.STARTING)
    server.fill(2, births=1)
    server.events.append("worker-ended", text="worker 2 …", slot=2, pid=13, how="died of SIGSEGV")
    server.events.append("worker-ended", text="worker 2 …", slot=2, pid=14, how="ended with exit code 0")
    found = read(server)
    assert reader.why_not_ready(found) == ["worker 1 is starting", "worker 2 is down: the last one died of SIGSEGV"]
    assert found.slots[2].last_end is not None
    assert found.slots[2].last_end.pid == 13
    server.fill(1, state=scoreboard.READY, heartbeat_ns=now_ns)
    server.fill(2, pid=14, heartbeat_ns=now_ns, **ready)
    assert reader.why_not_ready(read(server)) == []
    server.drain()
    assert reader.why_not_ready(read(server)) == ["draining"]
