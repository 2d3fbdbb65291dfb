"""One connection: what the kernel knows of it, and both ways of waiting for it, by the thread or in gevent's hub."""

import _socket
import errno
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import gevent
import pytest
from fake_load import soon
from headless import reset
from servers import DEADLINE_S, eventually

from loadtest import gevent_sockets
from loadtest.gevent_sockets import HubWaiter
from loadtest.link import Link, PollWaiter, lookup

NS = 1_000_000_000
LARGE = 32 << 20  # more than the kernel's buffers take

both_waiters = pytest.mark.parametrize("waiter", [PollWaiter, HubWaiter])


@contextmanager
def joined(waiter=PollWaiter, timeout_s=DEADLINE_S):
    """(link, the other end's socket)"""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = Link((socket.AF_INET, listener.getsockname()), timeout_s, waiter)
        peer, _ = listener.accept()
        peer.settimeout(DEADLINE_S)
    with peer:
        try:
            yield link, peer
        finally:
            link.close()


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


# ── addresses ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("host", "family", "where"),
    [
        ("127.0.0.1", socket.AF_INET, ("127.0.0.1", 80)),
        ("::1", socket.AF_INET6, ("::1", 80, 0, 0)),
    ],
)
def test_numbers_need_no_lookup(monkeypatch, host, family, where):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert lookup(host, 80) == [(family, where)]


def test_names_are_looked_up():
    assert ("127.0.0.1", 80) in [where[:2] for _, where in lookup("localhost", 80)]


def test_names_that_do_not_exist():
    with pytest.raises(OSError):
        lookup("no-such-host.invalid", 80)


# ── connecting ────────────────────────────────────────────────────────────────────────────────────────────────────


@both_waiters
def test_a_connection(waiter):
    with joined(waiter) as (link, peer):
        assert link.established()
        assert 0 < link.handshake_ns < NS
        assert peer.getpeername()


@both_waiters
def test_nobody_listens(waiter):
    gevent.get_hub()
    with socket.socket() as taken:  # bound, so that nobody else listens there
        taken.bind(("127.0.0.1", 0))
        before = descriptors()
        with pytest.raises(ConnectionRefusedError):
            Link((socket.AF_INET, taken.getsockname()), 1, waiter)
        assert descriptors() == before


@both_waiters
def test_nobody_answers(waiter):
    gevent.get_hub()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = []
        try:
            for _ in range(10):  # until its queue is full, and it drops what comes
                waiting.append(socket.socket())
                waiting[-1].settimeout(0.1)
                if waiting[-1].connect_ex(address):
                    break
            before = descriptors()
            with pytest.raises(TimeoutError):
                Link((socket.AF_INET, address), 0.1, waiter)
            assert descriptors() == before
        finally:
            for sock in waiting:
                sock.close()


def test_a_connection_that_takes_its_time():
    """On loopback connect() is over at once, so the waiting is played."""

    class Slow(_socket.socket):
        errors = iter([errno.EINPROGRESS, errno.EALREADY, 0])

        def connect_ex(self, where):
            return next(self.errors)

    class Waits(PollWaiter):
        waited = 0

        def writable(self):
            Waits.waited += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_socket, "socket", Slow)
        link = Link((socket.AF_INET, ("192.0.2.1", 1)), 1, Waits)
    link.close()
    assert Waits.waited == 1


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@both_waiters
def test_bytes_have_the_time_at_which_the_kernel_had_them(waiter):
    """However much later they are read."""
    with joined(waiter) as (link, peer):
        eventually(lambda: stamped(link, peer), "the kernel stamps what it receives")
        before_ns = time.monotonic_ns()
        peer.sendall(b"now")
        eventually(lambda: readable(link), "the kernel has it")
        after_ns = time.monotonic_ns()
        eventually(lambda: time.monotonic_ns() > after_ns + NS // 20, "some time has passed")
        data, in_kernel_ns = link.receive()
        assert data == b"now"
        assert (
            before_ns - NS // 1000 <= in_kernel_ns <= after_ns + NS // 1000
        )  # the clocks are read one after the other


def stamped(link, peer):
    """Whether one more byte has its time in the kernel: not before a moment after the host's first socket asked."""
    peer.sendall(b".")
    eventually(lambda: readable(link), "the kernel has it")
    after_ns = time.monotonic_ns()
    eventually(lambda: time.monotonic_ns() > after_ns + NS // 200, "some time has passed")
    return link.receive()[1] <= after_ns + NS // 1000


def readable(link):
    try:
        return link._sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return b""


@both_waiters
def test_a_large_send(waiter):
    """While the other end reads, in a thread."""
    data = bytes(range(256)) * (LARGE // 256)
    got = bytearray()

    def read(peer):
        while piece := peer.recv(1 << 20):
            got.extend(piece)

    with joined(waiter) as (link, peer):
        thread = threading.Thread(target=read, args=(peer,))
        thread.start()
        link.send(data[:10])
        link.send(memoryview(data)[10:])
        link.close()
        thread.join(DEADLINE_S)
    assert got == data


@both_waiters
def test_silence(waiter):
    with joined(waiter, timeout_s=0.05) as (link, _):
        with pytest.raises(TimeoutError):
            link.receive()
        with pytest.raises(TimeoutError):
            link.send(bytes(LARGE))


@both_waiters
def test_the_other_ends_end(waiter):
    """It is seen without a byte being taken, and what came before is still there."""
    with joined(waiter) as (link, peer):
        peer.sendall(b"last words")
        peer.close()
        eventually(lambda: not link.established(), "it has closed")
        assert link.receive()[0] == b"last words"
        assert link.receive()[0] == b""


@both_waiters
def test_the_other_ends_reset(waiter):
    with joined(waiter) as (link, peer):
        reset(peer)
        eventually(lambda: not link.established(), "it has reset")
        with pytest.raises(ConnectionResetError):
            link.receive()


def test_our_end():
    with joined() as (link, peer):
        link.close()
        assert peer.recv(1) == b""


def test_our_reset():
    with joined() as (link, peer):
        link.close(reset=True)
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


def test_readable_for_nothing():
    """The kernel may say so, and then have nothing."""
    turns = []

    class Hasty(PollWaiter):
        def readable(self):
            turns.append(1)
            if len(turns) == 3:
                peer.sendall(b"at last")
                super().readable()

    with joined(Hasty) as (link, peer):
        assert link.receive()[0] == b"at last"
    assert len(turns) == 3


# ── gevent's hub ──────────────────────────────────────────────────────────────────────────────────────────────────


def waiting():
    return gevent_sockets._sweep_of(gevent.get_hub()).waiting


def test_others_run_while_one_waits():
    with joined(HubWaiter) as (one, one_peer), joined(HubWaiter) as (other, other_peer):
        ended = []
        for name, link in (("one", one), ("other", other)):
            gevent.spawn(lambda name=name, link=link: ended.append((name, link.receive()[0])))
        soon(lambda: len(waiting()) == 2, "both wait")
        other_peer.sendall(b"2")
        soon(lambda: ended == [("other", b"2")], "the other has it")
        one_peer.sendall(b"1")
        soon(lambda: ended == [("other", b"2"), ("one", b"1")], "both have")
        assert waiting() == {}


def test_a_wait_that_is_killed_is_forgotten():
    with joined(HubWaiter) as (link, _):
        greenlet = gevent.spawn(link.receive)
        soon(waiting, "it waits")
        greenlet.kill()
        assert waiting() == {}


def test_each_wait_has_its_own_limit():
    """One sweep looks after all; whoever waits without an end in sight is left alone."""
    with joined(HubWaiter, timeout_s=0.05) as (hasty, _), joined(HubWaiter) as (patient, peer):
        greenlet = gevent.spawn(patient.receive)
        with pytest.raises(TimeoutError):
            hasty.receive()
        assert list(waiting()) == [greenlet]
        peer.sendall(b"here")
        assert greenlet.get()[0] == b"here"


def test_a_limit_counts_from_the_last_byte():
    """A server that is slow is not silent."""

    def receive_two(link):
        link.receive()
        link.receive()

    with joined(HubWaiter) as (link, peer):
        greenlet = gevent.spawn(receive_two, link)
        soon(waiting, "it waits")
        [first] = waiting().values()
        peer.sendall(b"x")
        soon(lambda: list(waiting().values()) not in ([], [first]), "it waits again")
        [second] = waiting().values()
        peer.sendall(b"x")
        greenlet.join()
    assert first < second
