"""The upload client against servers that follow a script: what it calls each failure, and what its durations hold."""

import itertools
import json
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import DEADLINE_S, eventually, running

from loadtest import client as client_module
from loadtest.client import NOT, UploadClient
from loadtest.option_error import OptionError
from loadtest.wires import Target, parse_target
from server.failure_codes import BY_CODE, SERVER_CODES
from server.protocol import Reply, Timing, digest_of, encode_reply

PARTS = ("connect_ns", "handshake_ns", "send_ns", "wait_ns", "read_lag_ns", "close_ns", "service_ns", "transaction_ns")
NO_TIME = Timing(accepted=1)
LARGE = 32 << 20  # more than the kernel's buffers take


@dataclass
class Bytes:
    """A body. `digest` may be told wrong, or None for no comparison."""

    data: bytes = b""
    told: str | None = "right"
    cuts: list[int] = field(default_factory=list)

    @property
    def size_bytes(self):
        return len(self.data)

    def pieces(self):
        for start, end in itertools.pairwise([0, *self.cuts, len(self.data)]):
            yield memoryview(self.data)[start:end]

    def digest(self):
        return digest_of("xxh3_128", self.data) if self.told == "right" else self.told


def stored(name="file", data=b"", connection="keep-alive"):
    """The reply of a server that stored `data`."""
    return Reply("stored", "ok", "", name, len(data), digest_of("xxh3_128", data), connection, 0, 1, NO_TIME)


def refused(code, connection="close"):
    return Reply("rejected", code, f"because of {code}", None, 0, None, connection, 0, 1, NO_TIME)


def read_exactly(sock, size):
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, f"the client closed after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


def read_header(sock):
    return json.loads(read_exactly(sock, int.from_bytes(read_exactly(sock, 4), "little")))


def read_upload(sock):
    header = read_header(sock)
    return header, read_exactly(sock, header["file_size"])


def serve_one(sock):
    """Answer one upload; returns whether the client wants to go on."""
    header, data = read_upload(sock)
    connection = header.get("connection", "keep-alive")
    sock.sendall(encode_reply(stored(header["file_name"], data, connection)))
    return connection == "keep-alive"


def serve(sock):
    """As the real server does, for as many uploads as come."""
    while sock.recv(1, socket.MSG_PEEK) and serve_one(sock):
        pass


def reset(sock):
    """Close with an RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def tcp_info(sock, offset):
    """A 32-bit field of struct tcp_info, linux/tcp.h."""
    return struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), offset)[0]


def wait_until_acknowledged(sock):
    eventually(lambda: tcp_info(sock, 24) == 0, "the client's kernel has all we sent")  # tcpi_unacked


@contextmanager
def scripted(*scripts):
    """The port of a server that plays one script for each connection, in order; what a script raises fails the test."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        problems = []

        def play():
            try:
                for script in scripts:
                    sock, _ = listener.accept()
                    sock.settimeout(DEADLINE_S)
                    with sock:
                        script(sock)
            except Exception as problem:
                problems.append(problem)

        thread = threading.Thread(target=play)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()
        if problems:
            raise problems[0]


@contextmanager
def client_of(port, timeout_s=DEADLINE_S, **options):
    client = UploadClient(Target("tcp", "127.0.0.1", port), timeout_s=timeout_s, **options)
    try:
        yield client
    finally:
        client.close()


def fails_with(port, body=None, timeout_s=DEADLINE_S, **options):
    """The error of one upload to `port`."""
    with client_of(port, timeout_s) as client:
        done = client.upload("file", body or Bytes(b"data"), **options)
    assert done.error is not None
    measured = [part for part in PARTS if getattr(done, part) != NOT]
    assert measured == ["connect_ns", "handshake_ns"] * done.connected
    assert 0 < done.start_ns <= done.end_ns
    return done.error


def seen_by_client(port):
    """States of this process's connections to `port`, as the kernel has them."""
    connections = psutil.Process().net_connections("tcp")
    return [connection.status for connection in connections if connection.raddr and connection.raddr.port == port]


# ── what goes well ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("data", [b"", b"x", b"a" * 65536, b"b" * 65537, bytes(3 << 20)], ids=len)
@pytest.mark.parametrize("close", [False, True])
def test_an_upload(data, close):
    with scripted(serve) as port, client_of(port) as client:
        done = client.upload("näme", Bytes(data), last=close)
    assert done.error is None
    assert done.connected


def test_durations_fit_together():
    with scripted(serve) as port, client_of(port) as client:
        first, second = client.upload("a", Bytes(b"1" * 5000)), client.upload("b", Bytes(b"2" * 5000, cuts=[100, 200]))
        last = client.upload("c", Bytes(b""), last=True)
    for done in (first, second, last):
        assert done.error is None
        times = {part: getattr(done, part) for part in PARTS if getattr(done, part) != NOT}
        assert all(value >= 0 for value in times.values())
        assert done.transaction_ns >= done.service_ns
        assert done.transaction_ns >= done.send_ns
        if done.wait_ns > 0:  # else the reply came before the last send returned, and parts overlap
            parts = ("connect_ns", "send_ns", "wait_ns", "read_lag_ns", "close_ns")
            assert sum(times.get(part, 0) for part in parts) <= done.transaction_ns
    assert [done.connected for done in (first, second, last)] == [True, False, False]
    assert [done.connect_ns != NOT for done in (first, second, last)] == [True, False, False]
    assert [done.close_ns != NOT for done in (first, second, last)] == [False, False, True]
    assert first.start_ns < second.start_ns < last.start_ns


@pytest.mark.parametrize("size", [0, 1, 4096, 16384])
def test_header_and_small_body_are_one_segment(size):
    """Apart they would meet Nagle's algorithm and delayed acknowledgements: 40 ms."""
    segments = []

    def count(sock):
        serve_one(sock)
        segments.append(tcp_info(sock, 152))  # tcpi_data_segs_in

    with scripted(count) as port, client_of(port) as client:
        assert client.upload("file", Bytes(bytes(size))).error is None
    assert segments == [1]


def test_a_reply_in_single_bytes():
    def dribble(sock):
        read_upload(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in encode_reply(stored(data=b"data")):
            sock.sendall(bytes([byte]))

    with scripted(dribble) as port, client_of(port) as client:
        assert client.upload("file", Bytes(b"data")).error is None


def test_close_waits_for_the_servers_fin(monkeypatch):
    monkeypatch.setattr(client_module, "CLOSE_LIMIT_S", DEADLINE_S)
    gate = threading.Event()
    results = []

    def hold(sock):
        serve_one(sock)
        assert gate.wait(DEADLINE_S)

    with scripted(hold) as port, client_of(port) as client:
        thread = threading.Thread(target=lambda: results.append(client.upload("file", Bytes(b"data"), last=True)))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        gate.set()
        thread.join(DEADLINE_S)
    [done] = results
    assert done.error is None
    assert done.close_ns > 0


def test_close_is_asked_for_only_when_told():
    asked = []

    def note(sock):
        asked.append(read_header(sock).get("connection"))
        read_exactly(sock, 4)
        sock.sendall(encode_reply(stored(data=b"data", connection=asked[-1] or "keep-alive")))

    with scripted(note, note) as port:
        for close in (False, True):
            with client_of(port) as client:
                assert client.upload("file", Bytes(b"data"), last=close).error is None
    assert asked in (["keep-alive", "close"], [None, "close"])


def test_a_reset_after_the_reply_changes_nothing():
    def serve_and_reset(sock):
        serve_one(sock)
        wait_until_acknowledged(sock)
        reset(sock)

    with scripted(serve_and_reset) as port, client_of(port) as client:
        done = client.upload("file", Bytes(b"data"), last=True)
    assert done.error is None
    assert done.close_ns >= 0


def test_the_client_may_close_first():
    seen = []

    def expect_fin(sock):
        assert serve_one(sock)  # it is not asked to close
        seen.append(sock.recv(1))

    with scripted(expect_fin) as port, client_of(port, closer="client") as client:
        done = client.upload("file", Bytes(b"data"), last=True)
    assert done.error is None
    assert done.close_ns >= 0
    assert seen == [b""]


def test_the_client_may_close_by_a_reset():
    seen = []

    def expect_reset(sock):
        serve_one(sock)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        seen.append("reset")

    with scripted(expect_reset) as port, client_of(port, closer="client", close="rst") as client:
        assert client.upload("file", Bytes(b"data"), last=True).error is None
        assert seen_by_client(port) == []  # no TIME_WAIT either
    assert seen == ["reset"]


# ── connections come and go ───────────────────────────────────────────────────────────────────────────────────────


def serve_and_reset(sock):
    serve_one(sock)
    reset(sock)


@pytest.mark.parametrize("first", [serve_one, serve_and_reset], ids=["fin", "rst"])
def test_a_stale_connection_is_replaced_and_not_counted(first):
    with scripted(first, serve) as port, client_of(port) as client:
        before = client.upload("a", Bytes(b"1"))
        if before.error is None:  # a reset may overtake the reply
            eventually(lambda: "ESTABLISHED" not in seen_by_client(port), "the server has closed")
        after = client.upload("b", Bytes(b"2"))
    assert after.error is None
    assert after.connected


def test_a_reply_that_says_close_is_obeyed():
    def serve_and_say_close(sock):
        header, data = read_upload(sock)
        assert header.get("connection", "keep-alive") == "keep-alive"
        sock.sendall(encode_reply(stored(data=data, connection="close")))

    with scripted(serve_and_say_close, serve) as port, client_of(port) as client:
        first, second = client.upload("a", Bytes(b"1")), client.upload("b", Bytes(b"2"))
    assert (first.error, second.error) == (None, None)
    assert first.close_ns != NOT
    assert second.connected


def test_the_connection_is_gone_after_a_failure():
    def refuse(sock):
        read_upload(sock)
        sock.sendall(encode_reply(refused("digest_mismatch", "keep-alive")))
        assert sock.recv(1) == b""  # by itself, before the next upload

    with scripted(refuse, serve) as port, client_of(port) as client:
        assert client.upload("a", Bytes(b"1")).error.code == "digest_mismatch"
        assert seen_by_client(port) == [] or "ESTABLISHED" not in seen_by_client(port)
        assert client.upload("b", Bytes(b"2")).error is None


def test_a_body_that_breaks_leaves_no_half_upload_on_the_connection():
    class Broken(Bytes):
        def pieces(self):
            yield memoryview(self.data)[:2]
            raise FileNotFoundError("it has vanished")

    def expect_half(sock):
        assert read_header(sock)["file_size"] == 4
        assert read_exactly(sock, 2) == b"da"
        assert sock.recv(1) == b""

    with scripted(expect_half, serve) as port, client_of(port) as client:
        with pytest.raises(FileNotFoundError):
            client.upload("a", Broken(b"data"))
        assert client.upload("b", Bytes(b"data")).error is None


# ── what fails ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_connect_refused():
    with socket.socket() as taken:  # bound, so that nobody else listens there
        taken.bind(("127.0.0.1", 0))
        error = fails_with(taken.getsockname()[1])
    assert error.code == "connect_refused"
    assert error.message == BY_CODE["connect_refused"].text


def test_connect_failed():
    client = UploadClient(Target("tcp", "255.255.255.255", 1))  # nothing can be connected to; no packet is sent
    done = client.upload("file", Bytes(b"data"))
    assert done.error.code == "connect_failed"
    assert done.error.message
    assert not done.connected


def test_timeout_of_connect():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        try:
            for _ in range(10):  # until its queue is full, and it drops what comes
                sock = socket.socket()
                waiting.append(sock)
                sock.settimeout(0.1)
                if sock.connect_ex(listener.getsockname()):
                    break
            assert fails_with(listener.getsockname()[1], timeout_s=0.1).code == "timeout"
        finally:
            for sock in waiting:
                sock.close()


@pytest.mark.parametrize("body", [Bytes(b"data"), Bytes(bytes(LARGE))], ids=["no reply", "nobody reads"])
def test_timeout(body):
    done = threading.Event()

    def say_nothing(sock):
        assert done.wait(DEADLINE_S)

    with scripted(say_nothing) as port:
        try:
            assert fails_with(port, body, timeout_s=0.1).code == "timeout"
        finally:
            done.set()


def close_without_reply(sock):
    read_upload(sock)


def close_at_once(sock):
    sock.close()


def reset_in_the_body(sock):
    read_header(sock)
    reset(sock)


def close_in_the_reply(sock):
    read_upload(sock)
    sock.sendall(encode_reply(stored(data=b"data"))[:-1])


@pytest.mark.parametrize("script", [close_without_reply, close_at_once, reset_in_the_body, close_in_the_reply])
def test_connection_lost(script):
    with scripted(script) as port:
        assert fails_with(port).code == "connection_lost"


@pytest.mark.parametrize("script", [close_at_once, reset_in_the_body])
def test_connection_lost_in_a_large_body(script):
    with scripted(script) as port:
        assert fails_with(port, Bytes(bytes(LARGE))).code == "connection_lost"


@pytest.mark.parametrize(
    "answer",
    [
        bytes(4),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x02\x00\x00\x00{}",
        b"\x04\x00\x00\x00true",
        b"\x03\x00\x00\x00\xff\xfe\xfd",
        b"\x0a\x00\x00\x00" + b"[" * 10,
    ],
)
def test_bad_reply(answer):
    def answer_so(sock):
        read_upload(sock)
        sock.sendall(answer)

    with scripted(answer_so) as port:
        assert fails_with(port).code == "bad_reply"


def test_digest_differs():
    with scripted(serve) as port:
        error = fails_with(port, Bytes(b"data", told=digest_of("xxh3_128", b"date")))
    assert error.code == "digest_differs"


def serve_without_digest(sock):
    read_upload(sock)
    sock.sendall(encode_reply(Reply("stored", "ok", "", "file", 4, None, "keep-alive", 0, 1, NO_TIME)))


def test_a_digest_of_none_is_not_compared():
    with scripted(serve_without_digest) as port, client_of(port) as client:
        assert client.upload("file", Bytes(b"data", told=None)).error is None


def test_a_server_that_keeps_the_digest_to_itself_is_not_believed():
    with scripted(serve_without_digest) as port:
        assert fails_with(port).code == "digest_differs"


def test_a_server_that_lies_about_the_size_is_not_believed():
    def lie(sock):
        _, data = read_upload(sock)
        sock.sendall(
            encode_reply(Reply("stored", "ok", "", "file", 3, digest_of("xxh3_128", data), "close", 0, 1, NO_TIME))
        )

    with scripted(lie) as port:
        assert fails_with(port, Bytes(b"data", told=None)).code == "size_differs"


@pytest.mark.parametrize("code", SERVER_CODES)
def test_refusals(code):
    def refuse(sock):
        read_upload(sock)
        sock.sendall(encode_reply(refused(code)))

    with scripted(refuse) as port:
        error = fails_with(port)
    assert (error.code, error.message) == (code, f"because of {code}")


def test_a_servers_words_move_no_cursor():
    def refuse(sock):
        read_upload(sock)
        words = "failed", "x\x1b[2J", "a\r\nb\u202e"
        sock.sendall(encode_reply(Reply(*words, None, 0, None, "close", 0, 1, NO_TIME)))

    with scripted(refuse) as port:
        error = fails_with(port)
    assert (error.code, error.message) == (r"x\x1b[2J", r"a\r\nb\u202e")


def wait_for_eof(sock):
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(1 << 20):
        pass


@pytest.mark.parametrize("end", [wait_for_eof, reset, socket.socket.close], ids=["drain", "reset", "close"])
def test_a_refusal_is_read_while_a_large_body_is_sent(end):
    def refuse_early(sock):
        read_header(sock)
        sock.sendall(encode_reply(refused("too_large")))
        wait_until_acknowledged(sock)  # a reset may overtake what is under way
        end(sock)

    with scripted(refuse_early) as port:
        error = fails_with(port, Bytes(bytes(LARGE)))
    assert (error.code, error.message) == ("too_large", "because of too_large")


def test_the_real_server():
    with running() as server, client_of(server.port) as client:
        results = [client.upload(f"file-{i}", Bytes(bytes(i)), last=i % 3 == 2) for i in range(9)]
        assert server.stored() == 9
    assert [done.error for done in results] == [None] * 9
    assert [done.connected for done in results] == [i % 3 == 0 for i in range(9)]


# ── hosts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://127.0.0.1:12345", ("127.0.0.1", 12345)),
        ("tcp://localhost:1/", ("localhost", 1)),
        ("tcp://[::1]:65535", ("::1", 65535)),
    ],
)
def test_hosts(text, address):
    assert parse_target(text) == Target("tcp", *address)
    assert parse_target(text.replace("tcp", "tls")) == Target("tls", *address)


@pytest.mark.parametrize("path", ["/run/uploads.sock", "/a b/ä?#%20:1", "/" + "x" * 106])
def test_hosts_of_unix_sockets(path):
    assert parse_target(f"unix://{path}") == Target("unix", "", 0, path)


@pytest.mark.parametrize(
    "text",
    [
        "unix:",
        "unix://",
        "unix:///",
        "unix:/run/s",
        "unix://s",
        "unix://host/s",
        "unix:///a/",
        "unix:///a\0b",
        "unix:///" + "x" * 107,
        "unix:///" + "ä" * 54,
        "unix:///\ud800",
    ],
    ids=ascii,
)
def test_what_is_no_unix_socket(text):
    with pytest.raises(OptionError, match="is not a host: write unix:///PATH of a socket"):
        parse_target(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:12345",
        "http://",
        "http://127.0.0.1/ä",
        "http://127.0.0.1/a b",
        "tcp://127.0.0.1",
        "tcp://:12345",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:port",
        "tcp://127.0.0.1:1/path",
        "tls://127.0.0.1:1/path",
        "tls://127.0.0.1",
        "ssl://127.0.0.1:1",
        "tcp://[::1:1",
        "tcp://a..b:1",
        "tcp://" + "a" * 64 + ":1",
    ],
)
def test_what_is_no_host(text):
    with pytest.raises(OptionError, match="is not a host: write tcp://HOST:PORT"):
        parse_target(text)


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://user:hunter2@127.0.0.1:1/a", "it has a user or a password before its @, which is never sent"),
        ("tcp://user:hunter2@127.0.0.1:1", "it has a user or a password"),
        ("tls://hunter2@127.0.0.1:1", "it has a user or a password"),
        ("https://user:hunter2@127.0.0.1", "it has a user or a password"),
        ("http://user:hun/hunter2@127.0.0.1:1", "is not a host: write tcp://HOST:PORT"),
        ("http://user:hun#hunter2@127.0.0.1:1", "is not a host: write tcp://HOST:PORT"),
        ("http://user:hunter2@[::1", "is not a host: write tcp://HOST:PORT"),
        ("http://user:hunter2@127.0.0.1:99999", "it has a user or a password|is not a host: write tcp://HOST:PORT"),
        ("user:hunter2@127.0.0.1:1", "is not a host: write tcp://HOST:PORT"),
        ("http://user:hunter2%40127.0.0.1", "is not a host: write tcp://HOST:PORT"),
        ("http://user:hunter2\uff20127.0.0.1", "is not a host: write tcp://HOST:PORT"),
        ("unix://user:hunter2@/run/s", "is not a host: write unix:///PATH"),
        ("tcp://127.0.0.1:1?token=hunter2", "it has a query or a fragment"),
        ("tls://127.0.0.1:1/?hunter2", "it has a query or a fragment"),
        ("http://127.0.0.1/a?b=hunter2@c", "it has a query or a fragment"),
        ("http://127.0.0.1/a#hunter2", "it has a query or a fragment"),
    ],
    ids=ascii,
)
def test_a_host_with_a_secret_is_refused_without_repeating_it(text, said):
    with pytest.raises(OptionError, match=f"^what was given .*({said})") as caught:
        parse_target(text)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", ["https://127.0.0.1:12345", "HTTPS://example.org/a"])
def test_https_is_said_not_to_be_supported(text):
    with pytest.raises(OptionError, match="https:// is not supported: write http://HOST:PORT/PATH"):
        parse_target(text)


@pytest.mark.parametrize("text", ["unix:///run/a@b?c#d", "http://127.0.0.1/@me/"])
def test_where_these_characters_are_a_path_s_own(text):
    assert "@" in parse_target(text).path


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("http://127.0.0.1:8080", Target("http", "127.0.0.1", 8080, "/")),
        ("http://example.org", Target("http", "example.org", 80, "/")),
        ("http://[::1]:1/a/b", Target("http", "::1", 1, "/a/b/")),
        ("http://h:1/a/b/", Target("http", "h", 1, "/a/b/")),
    ],
)
def test_hosts_of_http(text, target):
    assert parse_target(text) == target


@given(st.text())
def test_any_text_is_a_host_or_a_host_error(text):
    for host in (text, f"tcp://{text}", f"tls://{text}:1", f"http://{text}", f"http://h:1/{text}"):
        try:
            target = parse_target(host)
        except OptionError:
            continue
        assert target.host
        assert 0 < target.port < 65536
        assert target.path.startswith("/")
        assert target.path.endswith("/")
