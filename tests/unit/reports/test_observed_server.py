"""A server seen from outside: the events that it writes, and whether it is on this machine."""

import json
import os
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import eventually

from reports.recording import observed_server
from reports.recording.observed_server import EventTail, Server, is_local


def event_line(mono_ns, **fields):
    return json.dumps({"mono_ns": mono_ns, "wall_ns": 7, "kind": "worker-ended", **fields}).encode() + b"\n"


@pytest.fixture
def events(tmp_path):
    path = tmp_path / "events.jsonl"
    path.touch()
    return path


def test_events_are_copied_with_their_own_fields_as_details(events):
    tail = EventTail(events, after_ns=0)
    events.write_bytes(event_line(5, text="worker 3 ended", slot=3, pid=99, cpu_user_s=1.5))
    [event] = tail.read()
    assert (event.source, event.kind, event.mono_ns, event.wall_ns) == ("server", "worker-ended", 5, 7)
    assert event.text == "worker 3 ended"
    assert event.details == {"slot": 3, "pid": 99, "cpu_user_s": 1.5}
    assert list(tail.read()) == []
    tail.close()


def test_events_from_before_the_recording_are_left_out(events):
    events.write_bytes(event_line(9) + event_line(10) + event_line(11))
    tail = EventTail(events, after_ns=10)
    assert [event.mono_ns for event in tail.read()] == [10, 11]
    tail.close()


def test_events_written_just_before_the_file_is_removed_are_read(events):
    tail = EventTail(events, after_ns=0)
    with events.open("ab") as file:
        file.write(event_line(1))
        events.unlink()
        file.write(event_line(2))
    assert [event.mono_ns for event in tail.read()] == [1, 2]
    tail.close()


def test_lines_that_are_no_events_are_skipped(events):
    tail = EventTail(events, after_ns=0)
    events.write_bytes(b"\n[1]\n{not json\n\xff\n" + b'{"mono_ns": 1}\n' + event_line("now") + event_line(3))
    assert [event.mono_ns for event in tail.read()] == [3]
    tail.close()


@given(cuts=st.lists(st.integers(0, 400), max_size=6))
def test_events_arrive_in_any_pieces(tmp_path_factory, cuts):
    data = b"".join(event_line(number, text="x" * number) for number in range(1, 5))
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    path.touch()
    tail = EventTail(path, after_ns=0)
    found = []
    start = 0
    for cut in [*sorted(cuts), len(data)]:
        with path.open("ab") as file:
            file.write(data[start:cut])
        start = max(start, min(cut, len(data)))
        found += [event.mono_ns for event in tail.read()]
    tail.close()
    assert found == [1, 2, 3, 4]


def test_a_line_without_end_does_not_fill_the_memory(events, monkeypatch):
    monkeypatch.setattr(observed_server, "_LINE_LIMIT_BYTES", 100)
    tail = EventTail(events, after_ns=0)
    events.write_bytes(b"x" * 1_000_000)
    assert list(tail.read()) == []
    assert len(tail._pending) == 100
    with events.open("ab") as file:
        file.write(b"\n" + event_line(4))
    assert [event.mono_ns for event in tail.read()] == [4]
    tail.close()


# ── where it is ──


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.0.0.77"])
def test_addresses_of_this_machine(host):
    assert is_local(host)


@pytest.mark.parametrize("host", ["192.0.2.1", "a" * 300])
def test_addresses_of_others(host):
    assert not is_local(host)


def test_a_name_that_is_not_known(monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert not is_local("server.example")


def test_a_command_is_told_as_it_was_given():
    """Whatever its words have in them; but for what is no UTF-8."""
    words = ["a\rb\r\nc\n", " ", "\u202e", "", os.fsdecode(b"caf\xe9"), "end"]
    with subprocess.Popen(["sh", "-c", "read line", *words], stdin=subprocess.PIPE) as process:
        eventually(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes(), "the kernel has its words")
        with closing(Server.of(process.pid)) as server:
            assert server.info.command == ["sh", "-c", "read line", *words[:4], "caf\ufffd", "end"]
        process.communicate()
