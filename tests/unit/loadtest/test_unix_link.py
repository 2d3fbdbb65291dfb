"""The upload client over a unix socket: what the kernel does not tell of it is not made up."""

import json
import os
import socket
import subprocess
import sys
import threading

import gevent
import pytest
from headless import answer, read_header, serving
from secure import Bytes, Store, client_of
from servers import DEADLINE_S, eventually

from loadtest import recorder_process
from loadtest.client import NOT
from loadtest.gevent_sockets import HubWaiter
from loadtest.link import Link, PollWaiter, UnixLink
from loadtest.wires import parse_target
from reports import run_folder

both_waiters = pytest.mark.parametrize("waiter", [PollWaiter, HubWaiter])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "socket"


def upload(client, name="a", **options):
    return client.upload(name, Bytes(b"data"), **options)


@both_waiters
@pytest.mark.parametrize("size", [0, 1, 65537, 3 << 20])
def test_uploads(path, waiter, size):
    store = Store()
    with serving(store.serve, path) as host, client_of(host, None, waiter=waiter) as client:
        done = [client.upload(f"file-{number}", Bytes(bytes(size)), last=number == 2) for number in range(4)]
    assert [one.error for one in done] == [None] * 4
    assert [one.connected for one in done] == [True, False, False, True]
    assert store.files == {f"file-{number}": bytes(size) for number in range(4)}


def test_what_the_kernel_does_not_tell_is_not_known(path):
    with serving(Store().serve, path) as host, client_of(host, None) as client:
        first, last = upload(client), upload(client, last=True)
    for done in (first, last):
        assert (done.handshake_ns, done.read_lag_ns) == (NOT, NOT)
        assert min(done.send_ns, done.wait_ns, done.service_ns, done.transaction_ns) >= 0
    assert first.connect_ns > 0
    assert last.close_ns >= 0


def test_of_tcp_it_is_known():
    assert Link.stamps
    assert not UnixLink.stamps


@both_waiters
@pytest.mark.parametrize("unread", [False, True], ids=["end", "reset"])
def test_a_connection_that_was_idle_and_was_closed_is_replaced_and_not_counted(path, waiter, unread):
    store = Store()

    def serve(sock):
        if store.connections:
            store.serve(sock)
            return
        if not unread:
            store.serve_one(sock)
            return
        store.connections += 1
        header = read_header(sock)
        assert header["file_size"] == 4
        sock.sendall(b"")
        sock.close()  # with bytes that it did not read: a reset

    with serving(serve, path) as host, client_of(host, None, waiter=waiter) as client:
        first = upload(client)
        if unread:
            assert first.error.code == "connection_lost"
        else:
            assert first.error is None
            eventually(lambda: not client._link.established(), "its end is seen")
        after = upload(client, "b")
    assert after.error is None
    assert after.connected


@both_waiters
def test_both_ends(path, waiter):
    """Nothing is taken by looking for an end."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        link = UnixLink((socket.AF_UNIX, os.fspath(path)), DEADLINE_S, waiter)
        peer, _ = listener.accept()
        with peer:
            assert link.established()
            peer.sendall(b"data")
            assert link.established()
            assert link.receive()[0] == b"data"
            link.send(b"unread")
        assert not link.established()  # it closed, with bytes that it did not read
        link.close()


def test_nobody_listens(path):
    with client_of(f"unix://{path}", None) as client:
        missing = upload(client).error
        assert (missing.code, missing.message) == ("connect_failed", "No such file or directory")
        with socket.socket(socket.AF_UNIX) as taken:
            taken.bind(os.fspath(path))
            assert upload(client).error.code == "connect_refused"


@both_waiters
def test_a_queue_that_is_full(path, waiter):
    """The kernel does not let one wait for it, who does not block."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(0)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        try:
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(os.fspath(path))
            with client_of(f"unix://{path}", None, waiter=waiter) as client:
                error = upload(client).error
        finally:
            for sock in waiting:
                sock.close()
    assert (error.code, error.message) == ("connect_failed", "the server's queue of connections is full")


def test_silence(path):
    gate = threading.Event()
    with serving(lambda sock: gate.wait(DEADLINE_S), path) as host, client_of(host, None, timeout_s=0.05) as client:
        assert upload(client).error.code == "timeout"
        gate.set()


def test_others_run_while_one_waits(path):
    gate, done = threading.Event(), {}

    def serve(sock):
        header_read.set()
        gate.wait(DEADLINE_S)
        answer(sock)

    header_read = threading.Event()
    with serving(serve, path) as host, client_of(host, None, waiter=HubWaiter) as client:
        greenlet = gevent.spawn(lambda: done.update(first=upload(client)))
        gevent.sleep(0)
        assert header_read.wait(DEADLINE_S)
        assert not done
        gate.set()
        greenlet.join()
    assert done["first"].error is None


# ── who listens ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_recorder_is_told_who_listens(path):
    with serving(Store().serve, path) as host:
        assert recorder_process.subject_of(parse_target(host)) == ["--pid", str(os.getpid())]
    assert recorder_process.subject_of(parse_target(host)) == []
    assert recorder_process.subject_of(parse_target("tls://h:1")) == ["--host", "h", "--port", "1"]


def test_who_has_ended_is_not_recorded(path):
    """One process listens, and others serve."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listen = f"import socket; socket.socket(fileno={listener.fileno()}).listen()"
        subprocess.run([sys.executable, "-c", listen], pass_fds=[listener.fileno()], check=True)
        assert recorder_process.subject_of(parse_target(f"unix://{path}")) == []


def test_a_recording_without_a_server(tmp_path):
    """Of the load alone."""
    command = [sys.executable, "-m", "reports", "record", "--out", str(tmp_path), "--load-pid", str(os.getpid())]
    done = subprocess.run([*command, "--until-stdin-closes"], input=b"", capture_output=True, check=True)
    assert json.loads(done.stdout)["server"] is None
    roles = {sample.role for tick in run_folder.read_processes(tmp_path) for sample in tick.processes}
    assert roles >= {"load-master", "recorder"}
    assert not roles & {"server-master", "server-worker"}


@pytest.mark.parametrize("pid", [0, 1])
def test_who_is_nobody_is_not_recorded(path, monkeypatch, pid):
    """0 is a process of another container, and 1 holds sockets for others."""
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: recorder_process._UCRED.pack(pid, 0, 0))
    with serving(Store().serve, path) as host:
        assert recorder_process.subject_of(parse_target(host)) == []
