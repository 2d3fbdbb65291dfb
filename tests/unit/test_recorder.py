import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import recorder
from reports.recorder import EventTail, census, next_due, sample_process


@pytest.mark.parametrize(
    ("now", "due", "missed"),
    [
        (1000, 1100, 0),  # on time
        (1099, 1100, 0),
        (1150, 1100, 0),  # late, but the tick can still be made
        (1199, 1100, 0),
        (1200, 1200, 1),  # late by a whole interval
        (1455, 1400, 3),
    ],
)
def test_next_due_keeps_to_the_schedule(now, due, missed):
    assert next_due(1000, now, 100) == (due, missed)


# ---------------------------------------------------------------- events of a server


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
    monkeypatch.setattr(recorder, "_LINE_LIMIT_BYTES", 100)
    tail = EventTail(events, after_ns=0)
    events.write_bytes(b"x" * 1_000_000)
    assert list(tail.read()) == []
    assert len(tail._pending) == 100
    with events.open("ab") as file:
        file.write(b"\n" + event_line(4))
    assert [event.mono_ns for event in tail.read()] == [4]
    tail.close()


# ---------------------------------------------------------------- /proc


@pytest.fixture
def proc(tmp_path):
    """A /proc of one process, 5, with threads 5 and 6."""
    for thread, children, schedstat in ((5, "11 12 ", "900 30 4\n"), (6, "", "100 12 2\n")):
        folder = tmp_path / "5" / "task" / str(thread)
        folder.mkdir(parents=True)
        (folder / "children").write_text(children)
        (folder / "schedstat").write_text(schedstat)
    return tmp_path


def test_children_of_all_threads(proc):
    (proc / "5/task/6/children").write_text("13")
    assert sorted(recorder.children_pids(5, proc)) == [11, 12, 13]
    assert recorder.children_pids(11, proc) == []


def test_run_delay_is_summed_over_threads(proc):
    assert recorder.run_delay_ns(5, proc) == 42
    (proc / "5/task/6/schedstat").unlink()  # it ended meanwhile
    assert recorder.run_delay_ns(5, proc) == 30
    assert recorder.run_delay_ns(99, proc) is None


def test_run_delay_is_unknown_when_the_kernel_does_not_count(proc):
    for thread in (5, 6):
        (proc / f"5/task/{thread}/schedstat").write_text("0 0 0\n")
    assert recorder.run_delay_ns(5, proc) is None


def test_tcp_sockets(tmp_path):
    path = tmp_path / "sockstat"
    path.write_text("sockets: used 12\nTCP: inuse 3 orphan 0 tw 44 alloc 9 mem 336\nUDP: inuse 0 mem 0\n")
    tcp = recorder.tcp_sockets(path)
    assert (tcp["inuse"], tcp["tw"]) == (3, 44)
    assert recorder.tcp_sockets(tmp_path / "missing") == {}
    path.write_text("sockets: used 12\n")
    assert recorder.tcp_sockets(path) == {}


# ---------------------------------------------------------------- samples


def test_a_living_process_has_every_field():
    process = psutil.Process()
    sample = sample_process(process, "load-master", 3, recorder.footprint(process))
    assert sample is not None
    assert (sample.pid, sample.role, sample.slot) == (os.getpid(), "load-master", 3)
    assert sample.create_time == process.create_time()
    missing = [name for name in sample.__struct_fields__ if getattr(sample, name) is None]
    assert missing == []
    assert 0 < sample.uss_bytes <= sample.pss_bytes <= sample.rss_bytes
    assert sample.threads >= 1


def test_without_a_footprint_uss_and_pss_are_unknown():
    sample = sample_process(psutil.Process(), "recorder")
    assert (sample.slot, sample.uss_bytes, sample.pss_bytes) == (None, None, None)


def test_descriptors_are_counted():
    before = sample_process(psutil.Process(), "recorder").fds
    with socket.socket(), socket.socket():
        assert sample_process(psutil.Process(), "recorder").fds == before + 2


@pytest.fixture
def zombie():
    child = subprocess.Popen([sys.executable, "-c", "sum(range(3_000_000))"])
    process = psutil.Process(child.pid)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield process, child
    child.wait()


def test_a_zombie_keeps_its_cpu_and_has_no_memory(zombie):
    process, _ = zombie
    sample = sample_process(process, "server-worker", None, recorder.footprint(process))
    assert sample.cpu_user_s > 0
    assert (sample.rss_bytes, sample.uss_bytes, sample.pss_bytes, sample.fds) == (None, None, None, None)


def test_a_process_that_is_gone_has_no_sample(zombie):
    process, child = zombie
    child.wait()
    assert sample_process(process, "server-worker") is None
    assert recorder.footprint(process) == (None, None)


def test_what_may_not_be_read_is_none(monkeypatch):
    def refuse(self, *_):
        raise psutil.AccessDenied(self.pid)

    for name in ("memory_full_info", "io_counters", "num_ctx_switches"):
        monkeypatch.setattr(psutil.Process, name, refuse)
    process = psutil.Process()
    sample = sample_process(process, "server-worker", None, recorder.footprint(process))
    assert sample.rss_bytes > 0
    for name in ("uss_bytes", "pss_bytes", "read_bytes", "write_bytes", "voluntary_switches"):
        assert getattr(sample, name) is None


def test_host_tick():
    tick = recorder.sample_host({"mono_ns": 1, "wall_ns": 2}, None)
    assert len(tick.cores) == psutil.cpu_count()
    assert tick.cores[0].idle > 0
    assert tick.memory_total_bytes > tick.memory_available_bytes > 0
    assert tick.tcp_in_use is not None and tick.tcp_time_wait is not None
    assert tick.scoreboard is None
    assert msgspec.json.decode(msgspec.json.encode(tick), type=recorder.HostTick) == tick


# ---------------------------------------------------------------- the census

SLEEP = [sys.executable, "-c", "import sys; sys.stdin.read()"]
NEST = "import subprocess, sys; child = subprocess.Popen(sys.argv[1:]); print(flush=True); child.wait()"


@pytest.fixture
def tree():
    """(the outer process, its child), both idle until standard input closes."""
    with subprocess.Popen([sys.executable, "-c", NEST, *SLEEP], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as outer:
        outer.stdout.readline()
        process = psutil.Process(outer.pid)
        [child] = process.children()
        yield process, child
        outer.stdin.close()


def found(*roots):
    return [(process.pid, role) for process, role in census(roots)]


def test_descendants_follow_their_parent_and_get_its_role(tree):
    outer, child = tree
    assert found((outer, "server-master")) == [(outer.pid, "server-master"), (child.pid, "server-worker")]
    assert found((outer, "load-master")) == [(outer.pid, "load-master"), (child.pid, "load-worker")]
    assert found((outer, "server-status")) == [(outer.pid, "server-status"), (child.pid, "server-status")]


def test_a_root_inside_another_tree_is_no_part_of_it(tree):
    outer, child = tree
    this = psutil.Process()
    assert found((outer, "server-master"), (this, "load-master")) == [
        (outer.pid, "server-master"),
        (child.pid, "server-worker"),
        (this.pid, "load-master"),
    ]
    assert found((this, "load-master"), (child, "server-master")) == [
        (this.pid, "load-master"),
        (outer.pid, "load-worker"),
        (child.pid, "server-master"),
    ]


def test_the_recorders_children_are_nobodys(tree):
    outer, _ = tree
    this = psutil.Process()
    assert found((outer, "recorder"), (this, "load-master")) == [(outer.pid, "recorder"), (this.pid, "load-master")]


def test_the_first_role_of_a_process_counts(tree):
    outer, child = tree
    assert found((outer, "server-master"), (outer, "load-master")) == [
        (outer.pid, "server-master"),
        (child.pid, "server-worker"),
    ]


def test_a_root_that_ended_has_no_descendants(zombie):
    process, child = zombie
    child.wait()
    assert found((process, "server-master")) == [(process.pid, "server-master")]


def test_children_files_give_the_same_tree(tree, monkeypatch):
    """Where the kernel has no /proc/PID/task/*/children, they are stood in for by psutil."""
    monkeypatch.setattr(recorder, "_KERNEL_LISTS_CHILDREN", True)
    if not Path("/proc/thread-self/children").exists():
        monkeypatch.setattr(recorder, "children_pids", lambda pid: [p.pid for p in psutil.Process(pid).children()])
    test_descendants_follow_their_parent_and_get_its_role(tree)
    test_a_root_inside_another_tree_is_no_part_of_it(tree)
    test_the_recorders_children_are_nobodys(tree)


# ---------------------------------------------------------------- where the server is


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "127.0.0.77"])
def test_addresses_of_this_machine(host):
    assert recorder.is_local(host)


@pytest.mark.parametrize("host", ["192.0.2.1", "a" * 300])
def test_addresses_of_others(host):
    assert not recorder.is_local(host)


def test_a_name_that_is_not_known(monkeypatch):
    def refuse(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert not recorder.is_local("server.example")
