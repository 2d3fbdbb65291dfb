"""Who uploads: how long a connection is kept, and that whatever becomes of an upload is recorded once."""

import threading

import gevent
import psutil
import pytest
from fake_load import fake_load, soon
from headless import answer, read_exactly, read_header, reset, serving, stored
from servers import DEADLINE_S

from loadtest import client
from loadtest.client import CLOSE_LIMIT_S, UploadError
from loadtest.load import RunningPhase
from loadtest.telemetry import Arrival
from loadtest.uploader import Uploader
from server.failure_codes import FAILURES

LARGE = "32MiB"  # more than the kernel's buffers take


class Connections:
    """A server that notes for each connection how many uploads came, and whether it was asked to close."""

    def __init__(self):
        self.uploads = []
        self.asked = []
        self.ended = threading.Semaphore(0)

    def serve(self, sock):
        number = len(self.uploads)
        self.uploads.append(0)
        try:
            goes_on = True
            while goes_on:
                goes_on = answer(sock, lambda *_: self.uploads.__setitem__(number, self.uploads[number] + 1))
            self.asked.append(number)
        finally:
            self.ended.release()


def upload(load, uploader, phase, times=1, **arrival):
    for number in range(times):
        payload, name = load.payloads.pick(0, number)
        uploader.upload(phase, payload, name, **arrival)


def silent(sock):
    read_exactly(sock, 1 << 40)


# ── connections ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("each", "uploads"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (0, [7])], ids=["short", "three", "seven", "long"]
)
@pytest.mark.parametrize("closer", ["server", "client"])
def test_uploads_per_connection(each, uploads, closer):
    seen = Connections()
    with serving(seen.serve) as host, fake_load(host, closer=closer) as load:
        uploader = Uploader(load)
        upload(load, uploader, RunningPhase("p", each), times=7)
        uploader.close()
        assert all(seen.ended.acquire(timeout=DEADLINE_S) for _ in uploads)
    assert seen.uploads == uploads
    assert seen.asked == (
        [number for number, count in enumerate(uploads) if count == each] if closer == "server" else []
    )
    assert load.codes() == ["ok"] * 7
    assert [ended.done.connected for ended in load.ended] == [n % each == 0 if each else n == 0 for n in range(7)]
    assert [ended.done.close_ns >= 0 for ended in load.ended] == [bool(each) and n % each == each - 1 for n in range(7)]


def test_a_phase_begins_with_a_connection_of_its_own():
    """So that a phase's connections are its own; phases of one name and mode are two."""
    seen = Connections()
    with serving(seen.serve) as host, fake_load(host) as load:
        uploader = Uploader(load)
        for phase in (RunningPhase("a", 0), RunningPhase("a", 0), RunningPhase("b", 3)):
            upload(load, uploader, phase, times=2)
        assert all(seen.ended.acquire(timeout=DEADLINE_S) for _ in range(2))  # at the change, not at the end
        uploader.close()
    assert seen.uploads == [2, 2, 2]


@pytest.mark.parametrize("end", [reset, lambda sock: sock.close()], ids=["reset", "close"])
def test_after_a_failure_a_connection_is_counted_anew(end):
    served = []

    def fail_once(sock):
        served.append(0)
        while served[0] < 2 or len(served) > 1:
            answer(sock)
            served[-1] += 1
        read_header(sock)
        end(sock)

    with serving(fail_once) as host, fake_load(host) as load:
        uploader = Uploader(load)
        upload(load, uploader, RunningPhase("p", 4), times=6)
        uploader.close()
    assert load.codes() == ["ok", "ok", "connection_lost", "ok", "ok", "ok"]
    assert served == [2, 3]


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("says_so", [True, False], ids=["in its answer", "later"])
def test_a_connection_that_the_server_closed_is_counted_anew(first, says_so):
    """Also when the next upload would have been its last: that one is the first of another then."""
    uploads = []

    def close_early(sock):
        uploads.append(0)
        while True:
            header = read_header(sock)
            data = read_exactly(sock, header["file_size"])
            uploads[-1] += 1
            ends = uploads == [first]
            sock.sendall(stored(header | {"connection": "close"} if ends and says_so else header, data))
            if ends or header.get("connection") == "close":
                return

    with serving(close_early) as host, fake_load(host) as load:
        uploader, phase = Uploader(load), RunningPhase("p", 3)
        upload(load, uploader, phase, times=first)
        soon(lambda: not established_to(load.options.target.port), "the server has closed")
        upload(load, uploader, phase, times=6)
        uploader.close()
    assert load.codes() == ["ok"] * (first + 6)
    assert uploads == [first, 3, 3]


def established_to(port):
    """Our side of the connections to this port."""
    found = psutil.Process().net_connections("tcp")
    return [one for one in found if one.raddr and one.raddr.port == port and one.status == "ESTABLISHED"]


def test_a_host_is_looked_up_once(monkeypatch):
    """Not by each uploader: under gevent that takes 200 µs."""
    asked = []
    monkeypatch.setattr(client, "lookup", lambda *address: asked.append(address) or lookup(*address))
    seen = Connections()
    with serving(seen.serve) as host, fake_load(host) as load:
        for _ in range(3):
            uploader = Uploader(load)
            upload(load, uploader, RunningPhase("p", 1), times=2)
    assert seen.uploads == [1] * 6
    assert asked == [load.options.target.address]


lookup = client.lookup


def test_a_server_that_does_not_close_is_closed():
    """After its last answer nothing depends on it any more. The upload is as good as others."""

    def answer_and_stay(sock):
        answer(sock)
        silent(sock)

    with serving(answer_and_stay) as host, fake_load(host) as load:
        upload(load, Uploader(load), RunningPhase("p", 1))
    assert load.codes() == ["ok"]
    assert load.ended[0].done.close_ns >= 0.9 * CLOSE_LIMIT_S * 1e9


# ── what is recorded ──────────────────────────────────────────────────────────────────────────────────────────────


def test_an_upload_is_recorded_as_what_it_was():
    seen = Connections()
    phase, arrival = RunningPhase("p", 5), Arrival(1, 2)
    with serving(seen.serve) as host, fake_load(host, payloads="5KiB") as load:
        uploader = Uploader(load)
        upload(load, uploader, phase, arrival=arrival)
        uploader.close()
    [ended] = load.ended
    assert (ended.phase, ended.row, ended.arrival) == (phase, "5 per connection ≤64 KiB", arrival)
    assert ended.payload.size_bytes == 5 << 10
    assert load.in_flight == 0


@pytest.mark.parametrize("payloads", ["1KiB", LARGE], ids=["no answer", "nobody reads"])
@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_an_upload_that_is_not_answered(payloads, how):
    """Killed with its greenlet, it was unfinished; silent for too long, it timed out. Either is recorded once, and the
    connection is gone."""
    gate, ended = threading.Event(), threading.Event()

    def say_nothing(sock):
        if payloads == LARGE:
            gate.wait(DEADLINE_S)
        try:
            silent(sock)
        finally:
            ended.set()

    timeout = {"timeout": "100ms"} if how == "timeout" else {}
    with serving(say_nothing) as host, fake_load(host, payloads=payloads, **timeout) as load:
        uploader = Uploader(load)
        greenlet = gevent.spawn(upload, load, uploader, RunningPhase("p", 0))
        soon(lambda: load.in_flight, "it is under way")
        if how == "kill":
            gevent.sleep(0.01)
            greenlet.kill()
        greenlet.join()
        gate.set()
        assert ended.wait(DEADLINE_S)
    assert load.codes() == ["unfinished" if how == "kill" else "timeout"]
    assert load.in_flight == 0
    assert 0 < load.ended[0].done.start_ns <= load.ended[0].done.end_ns


def test_uploads_wait_side_by_side():
    """In one thread: that is what gevent is for."""
    gate = threading.Event()

    def serve_later(sock):
        gate.wait(DEADLINE_S)
        answer(sock)

    with serving(serve_later) as host, fake_load(host) as load:
        phase = RunningPhase("p", 1)
        greenlets = [gevent.spawn(upload, load, Uploader(load), phase) for _ in range(20)]
        soon(lambda: load.in_flight == 20, "all are under way")
        gate.set()
        gevent.joinall(greenlets)
    assert load.codes() == ["ok"] * 20


def test_a_mistake_in_a_wire(caplog):
    connections = []

    def babble(sock):
        connections.append(1)
        while sock.recv(1 << 16):
            sock.sendall(b"?\n")

    with serving(babble) as host, fake_load(host, wire="line_wire:BrokenWire") as load:
        upload(load, Uploader(load), RunningPhase("p", 0), times=2)
    assert load.codes() == ["client_failed"] * 2
    assert (load.in_flight, load.mistakes) == (0, 2)
    assert len(connections) == 2
    assert caplog.text.count("ZeroDivisionError: on purpose") == 1  # not thousands of times


def test_texts_of_failures_are_constant():
    """Who groups failures by their text, as Locust does, gets one group for each code."""
    for failure in FAILURES:
        assert str(UploadError(failure.code)) == f"{failure.code}: {failure.text}"
        assert UploadError(failure.code).message == failure.text
