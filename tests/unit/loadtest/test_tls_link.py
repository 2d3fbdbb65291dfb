"""The upload client over TLS, in a thread's way of waiting and in gevent's: what it calls each failure, and how a
connection ends."""

import socket
import ssl
import threading
import time
from contextlib import contextmanager

import gevent
import psutil
import pytest
from fake_load import soon
from headless import answer, read_exactly, read_header, reset, serving, stored
from secure import NO_TIME, Bytes, Certificates, Store, client_of, over_tls
from servers import DEADLINE_S, eventually

from loadtest.client import NOT
from loadtest.gevent_sockets import HubWaiter
from loadtest.link import PollWaiter
from loadtest.wires import parse_target
from server.protocol import Reply, encode_reply

LARGE = 3 << 20
SILENT_S = 0.1

both_waiters = pytest.mark.parametrize("waiter", [PollWaiter, HubWaiter])


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@contextmanager
def secured(context, script):
    """The host of a server of `headless.serving` behind TLS."""
    with serving(over_tls(context, script)) as host:
        yield host.replace("tcp://", "tls://")


def fails_with(host, tls, **options):
    with client_of(host, tls, **options) as client:
        done = client.upload("file", Bytes(b"data"))
    return done.error


# ── what goes well ────────────────────────────────────────────────────────────────────────────────────────────────


@both_waiters
@pytest.mark.parametrize("size", [0, 1, 16384, 65537, LARGE])
def test_uploads(issued, waiter, size):
    """The certificate is verified, and the digest compared."""
    store, data = Store(), bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with secured(issued.server(), store.serve) as host, client_of(host, issued.trusting(), waiter=waiter) as client:
        done = [client.upload(f"file-{number}", Bytes(data), last=number == 2) for number in range(4)]
    assert [one.error for one in done] == [None] * 4
    assert [one.connected for one in done] == [True, False, False, True]
    assert store.files == {f"file-{number}": data for number in range(4)}
    assert store.connections == 2


def test_durations(issued):
    """Of TLS the handshake is part of connecting; TCP's is what it always was, and bytes have the kernel's time."""
    with secured(issued.server(), Store().serve) as host, client_of(host, issued.trusting()) as client:
        first, last = client.upload("a", Bytes(b"1" * 5000)), client.upload("b", Bytes(b"2"), last=True)
    assert 0 < first.handshake_ns < first.connect_ns
    assert (last.connect_ns, last.handshake_ns) == (NOT, NOT)
    assert first.close_ns == NOT
    assert last.close_ns >= 0
    for done in (first, last):
        assert done.read_lag_ns >= 0
        assert done.transaction_ns >= done.service_ns > 0


@both_waiters
@pytest.mark.parametrize("cut", [1, 7, 100])
def test_an_answer_in_many_records(issued, waiter, cut):
    store = Store(cut=cut)
    with secured(issued.server(), store.serve) as host, client_of(host, issued.trusting(), waiter=waiter) as client:
        assert [client.upload(name, Bytes(b"data")).error for name in "ab"] == [None, None]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions(issued, version):
    context = issued.server()
    context.maximum_version = context.minimum_version = version
    with secured(context, Store().serve) as host, client_of(host, issued.trusting()) as client:
        assert [client.upload(name, Bytes(b"data"), last=name == "b").error for name in "ab"] == [None, None]


def test_the_server_is_told_which_host_is_meant(issued):
    """Server name indication; of an address there is none."""
    named, context = [], issued.server()
    context.sni_callback = lambda sock, name, context: named.append(name)
    with secured(context, Store().serve) as host:
        for one in (host, host.replace("127.0.0.1", "localhost")):
            assert fails_with(one, issued.trusting()) is None
    assert named == [None, "localhost"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_certificate_of_ones_own(issued, version):
    trusting, context = issued.trusting(), issued.server(asks=True)
    context.maximum_version = version
    trusting.load_cert_chain(issued.client()[2])
    with secured(context, Store().serve) as host:
        assert fails_with(host, trusting) is None


def test_header_and_body_are_one_record(issued):
    """As they are one segment of TCP."""
    read = []

    def note(sock):
        read.append(len(sock.recv(1 << 16)))

    with secured(issued.server(), note) as host:
        fails_with(host, issued.trusting())
    assert read[0] > 4 + len(b"data")


# ── ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def fin(sock):
    """TCP's end, without TLS's."""
    sock.shutdown(socket.SHUT_RDWR)
    raise EOFError


def rst(sock):
    reset(sock)
    raise EOFError


@both_waiters
@pytest.mark.parametrize("end", [lambda sock: None, fin, rst], ids=["close-notify", "fin", "rst"])
def test_a_connection_that_was_idle_and_was_closed_is_replaced_and_not_counted(issued, waiter, end):
    """By a close-notify alone too: a server may then wait for ours."""
    store = Store()

    def serve(sock):
        if store.connections:
            store.serve(sock)
            return
        store.serve_one(sock)
        end(sock)

    with secured(issued.server(), serve) as host, client_of(host, issued.trusting(), waiter=waiter) as client:
        assert client.upload("a", Bytes(b"1")).error is None
        eventually(lambda: not client._link.established(), "its end is seen")
        after = client.upload("b", Bytes(b"2"))
    assert after.error is None
    assert after.connected
    assert store.files == {"a": b"1", "b": b"2"}


def test_a_connection_that_was_idle_and_is_there_is_kept(issued):
    """Whatever the server sent meanwhile that is no end of it: the sessions of TLS 1.3 are such."""
    with secured(issued.server(), Store().serve) as host, client_of(host, issued.trusting()) as client:
        for name in "abc":
            assert client.upload(name, Bytes(b"1")).connected == (name == "a")
            assert client._link.established()


@both_waiters
def test_the_server_closes_first(issued, waiter):
    """As without TLS: the TIME_WAIT is its own."""
    with secured(issued.server(), Store().serve) as host:
        port = parse_target(host).port

        def to_the_port():
            return {one.laddr for one in psutil.net_connections("tcp") if one.raddr and one.raddr.port == port}

        others = to_the_port()  # of who had this port within the last minute
        with client_of(host, issued.trusting(), waiter=waiter) as client:
            assert client.upload("a", Bytes(b"1"), last=True).error is None

        # It is gone when its last packet was answered; a TIME_WAIT would stay for longer than this waits.
        eventually(lambda: not to_the_port() - others, "ours is gone")


def test_a_server_that_does_not_close_is_closed(issued):
    """It has said that it is done, which is all that counts."""
    context, ended = issued.server(), threading.Event()

    def stay(sock):
        with context.wrap_socket(sock.dup(), server_side=True) as secure:
            answer(secure)
            secure.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                secure.unwrap()
            ended.wait(DEADLINE_S)

    with serving(stay) as host, client_of(host.replace("tcp", "tls", 1), issued.trusting()) as client:
        done = client.upload("a", Bytes(b"1"), last=True)
        ended.set()
    assert done.error is None
    assert 0.9e9 < done.close_ns < 10e9


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_our_end(issued, how):
    """It is announced, so that nobody takes it for an attack; but by a reset."""
    seen = []

    def note(sock):
        answer(sock)
        try:
            seen.append(sock.recv(1))
        except OSError as error:
            seen.append(type(error))

    with secured(issued.server(), note) as host:
        with client_of(host, issued.trusting(), closer="client", close=how) as client:
            assert client.upload("a", Bytes(b"1"), last=True).error is None
        eventually(lambda: seen, "the server sees it")
    assert (seen == [b""]) is (how == "fin")


def test_no_descriptor_is_left(issued):
    context = issued.trusting()
    with secured(issued.server(), Store().serve) as host:
        for port in (host, host.replace("127.0.0.1", "127.0.0.2")):
            fails_with(port, context)
        used = psutil.Process().num_fds()
        fails_with(host, ssl.create_default_context())
        eventually(lambda: psutil.Process().num_fds() <= used, "as many as before")


# ── what fails ────────────────────────────────────────────────────────────────────────────────────────────────────

NOT_TRUSTED = "the server's certificate is not to be trusted: "


@both_waiters
@pytest.mark.parametrize(
    ("names", "expired", "said"),
    [
        ([], True, "certificate has expired"),
        (["127.0.0.2"], False, "IP address mismatch, certificate is not valid for '127.0.0.1'"),
        (["other.example.org"], False, "IP address mismatch"),
    ],
    ids=["expired", "another address", "another name"],
)
def test_a_wrong_certificate(issued, waiter, names, expired, said):
    store = Store()
    with secured(issued.server(*names, expired=expired), store.serve) as host:
        error = fails_with(host, issued.trusting(), waiter=waiter)
    assert error.code == "tls_failed"
    assert error.message.startswith(f"{NOT_TRUSTED}{said}")
    assert store.connections == 0


def test_the_certificate_of_another_name(issued):
    with secured(issued.server("other.example.org"), Store().serve) as host:
        error = fails_with(host.replace("127.0.0.1", "localhost"), issued.trusting())
    said = f"{NOT_TRUSTED}Hostname mismatch, certificate is not valid for 'localhost'"
    assert (error.code, error.message) == ("tls_failed", said)


def test_an_authority_that_is_not_trusted(issued, tmp_path):
    others = Certificates(tmp_path)
    with secured(issued.server(), Store().serve) as host:
        for context in (others.trusting(), None):  # None: the system's
            error = fails_with(host, context)
            assert error.code == "tls_failed"
            assert error.message.startswith(NOT_TRUSTED)


@both_waiters
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("size", [4, LARGE])
def test_a_certificate_of_ones_own_that_is_missing(issued, waiter, version, size):
    """In TLS 1.3 the server says so when the client has begun to upload."""
    context = issued.server(asks=True)
    context.maximum_version = version
    with secured(context, Store().serve) as host, client_of(host, issued.trusting(), waiter=waiter) as client:
        error = client.upload("file", Bytes(bytes(size))).error
    said = {"the server refused: handshake failure", "the server refused: certificate required"}
    assert error.code == "tls_failed"
    assert error.message in said


def test_a_certificate_of_ones_own_that_nobody_knows(issued, tmp_path):
    trusting = issued.trusting()
    trusting.load_cert_chain(Certificates(tmp_path).client()[2])
    with secured(issued.server(asks=True), Store().serve) as host:
        error = fails_with(host, trusting)
    assert (error.code, error.message) == ("tls_failed", "the server refused: unknown ca")


@pytest.mark.parametrize("end", [socket.socket.close, reset], ids=["fin", "rst"])
def test_a_server_that_does_not_say_why(issued, end):
    """Right after the handshake, in which it may have asked for a certificate; or in the middle of it."""
    context = issued.server()
    context.num_tickets = 0

    def after(sock):
        with context.wrap_socket(sock, server_side=True) as secure:
            end(secure)

    def within(sock):
        sock.recv(1 << 16)
        end(sock)

    for script in (after, within):
        with serving(script) as host:
            error = fails_with(host.replace("tcp", "tls", 1), issued.trusting())
        assert error.code == "tls_failed"
        assert error.message.startswith("the server ended the handshake without a word")


def test_a_server_without_tls(issued):
    store = Store()
    with serving(store.serve) as host:
        error = fails_with(host.replace("tcp", "tls", 1), issued.trusting())
    assert (error.code, error.message) == ("tls_failed", "the server does not speak TLS")
    with secured(issued.server(), store.serve) as host:
        error = fails_with(host.replace("tls", "tcp", 1), None)
    assert error.code in ("bad_reply", "connection_lost")


def test_nobody_listens(issued):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = fails_with(f"tls://127.0.0.1:{taken.getsockname()[1]}", issued.trusting())
    assert error.code == "connect_refused"


@both_waiters
@pytest.mark.parametrize("says", ["nothing", "hello"])
def test_silence(issued, waiter, says):
    """In the handshake and after it."""
    gate = threading.Event()

    def say_nothing(sock):
        gate.wait(DEADLINE_S)

    script = say_nothing if says == "nothing" else over_tls(issued.server(), say_nothing)
    with serving(script) as host:
        try:
            tls = host.replace("tcp", "tls", 1)
            assert fails_with(tls, issued.trusting(), waiter=waiter, timeout_s=SILENT_S).code == "timeout"
        finally:
            gate.set()


@pytest.mark.parametrize("end", [fin, rst], ids=["fin", "rst"])
def test_connection_lost(issued, end):
    """Once the server is known to have accepted the connection, whatever ends it."""

    def lose(sock):
        answer(sock)
        read_header(sock)
        end(sock)

    with secured(issued.server(), lose) as host, client_of(host, issued.trusting()) as client:
        assert client.upload("a", Bytes(b"1")).error is None
        assert client.upload("b", Bytes(b"2")).error.code == "connection_lost"


def test_a_refusal_is_read_while_a_large_body_is_sent(issued):
    def refuse(sock):
        read_header(sock)
        sock.sendall(encode_reply(Reply("rejected", "too_large", "because", None, 0, None, "close", 0, 1, NO_TIME)))
        read_exactly(sock, 32 << 20)

    with secured(issued.server(), refuse) as host, client_of(host, issued.trusting()) as client:
        error = client.upload("a", Bytes(bytes(32 << 20))).error
    assert (error.code, error.message) == ("too_large", "because")


def test_records_that_somebody_changed(issued):
    """Nothing in them can be believed."""
    context = issued.server()

    def falsify(sock):
        with context.wrap_socket(sock.dup(), server_side=True) as secure:
            header = read_header(secure)
            read_exactly(secure, header["file_size"])
            record = bytearray(stored(header, b"data"))
            sock.sendall(b"\x17\x03\x03" + len(record).to_bytes(2, "big") + record)
            secure.recv(1)

    with serving(falsify) as host:
        error = fails_with(host.replace("tcp", "tls", 1), issued.trusting())
    assert error.code == "tls_failed"


# ── gevent's hub ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_others_run_while_one_shakes_hands(issued):
    gate, store = threading.Event(), Store()

    def begin(sock):
        gate.wait(DEADLINE_S)
        over_tls(issued.server(), store.serve)(sock)

    with serving(begin) as slow, secured(issued.server(), store.serve) as fast:
        done = {}

        def upload(name, host):
            done[name] = fails_with(host.replace("tcp", "tls", 1), issued.trusting(), waiter=HubWaiter)

        greenlets = [gevent.spawn(upload, "slow", slow), gevent.spawn(upload, "fast", fast)]
        soon(lambda: "fast" in done, "one has uploaded")
        assert done == {"fast": None}
        gate.set()
        gevent.joinall(greenlets)
    assert done == {"fast": None, "slow": None}


def test_others_run_while_one_sends_much(issued):
    turns = []

    def take_turns():
        while True:
            turns.append(1)
            time.sleep(0)  # the server is a thread of this process: it gets the interpreter's lock, too
            gevent.sleep(0)

    with secured(issued.server(), Store().serve) as host:
        other = gevent.spawn(take_turns)
        with client_of(host, issued.trusting(), waiter=HubWaiter) as client:
            body = Bytes(bytes(16 << 20))
            assert client.upload("file", body).error is None
        other.kill()
    assert len(turns) > 16
