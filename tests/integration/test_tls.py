"""Uploads over TLS, at the real server: all that holds without it, what is told to those who get no further than the
handshake, and certificates that change while it runs."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from certificates import Authority
from servers import DEADLINE_S, Client, Server, eventually, running, upload

from server.protocol import ClientConnection, RemoteProtocolError, Reply, UploadHeader

MIB = 1 << 20
GIB = 1 << 30
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def shared(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("uploads") / "store"
    with running("--tls-cert", authority.server(), "--max-file-size", "2GiB", store=store, workers=2) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    yield shared
    eventually(lambda: not any(slot.connections_now for slot in shared.slots()), "every connection is closed")
    assert shared.temporary_files() == []


@pytest.fixture
def tls(authority: Authority) -> ssl.SSLContext:
    return authority.context()


def pattern(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(range(size % 251))


def content(server: Server, name: str) -> bytes:
    assert server.store is not None
    return (server.store / name).read_bytes()


class Bare:
    """A client whose TLS and TCP can be ended one by one."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), DEADLINE_S)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")
        self.connection = ClientConnection()
        self._until_done(self.tls.do_handshake)

    def __enter__(self) -> "Bare":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.tls.write(data)
        self._flush()

    def say_goodbye(self) -> None:
        """That nothing more will be sent."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self._flush()

    def replies(self) -> list[Reply]:
        """All that come until the server says goodbye."""
        found: list[Reply] = []
        while data := self._until_done(lambda: self.tls.read(1 << 16)):
            found += self.connection.receive_data(data)
        return found

    def _until_done(self, step: Callable[[], object]) -> bytes:
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._flush()
                data = self.sock.recv(1 << 16)
                assert data, "the server closed without a goodbye"
                self._incoming.write(data)
            except ssl.SSLZeroReturnError:
                return b""
            else:
                self._flush()
                return done if isinstance(done, bytes) else b""

    def take(self) -> bytes:
        """What is to be sent, for those who send it themselves."""
        return self._outgoing.read()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.sock.sendall(self.take())


# ── As without it ──


@pytest.mark.parametrize("version", VERSIONS)
def test_many_uploads_over_one_connection(server: Server, authority: Authority, version: ssl.TLSVersion) -> None:
    context = authority.context()
    context.minimum_version = context.maximum_version = version
    assert server.line.startswith("listening on tls://127.0.0.1:")
    with Client(server.port, tls=context) as client:
        for size in (0, 1, 4096, 20_000, 300_000, 3 * MIB + 1, 5):
            reply = client.upload(pattern(size), f"{size}")
            assert (reply.status, reply.code, reply.received, reply.connection) == ("stored", "ok", size, "keep-alive")
            assert content(server, f"{size}") == pattern(size)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # they are old in a client too
def test_older_versions_are_not_spoken(server: Server, authority: Authority) -> None:
    context = authority.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)version|handshake|protocol"), Client(server.port, tls=context):
        pass


@pytest.mark.parametrize("size", [0, 10, 3 * MIB])
def test_on_a_short_connection_the_server_closes_first(server: Server, tls: ssl.SSLContext, size: int) -> None:
    with Client(server.port, tls=tls) as client:
        assert client.upload(pattern(size), connection="close").connection == "close"
        client.expect_eof()


def test_an_upload_byte_by_byte(server: Server, tls: ssl.SSLContext) -> None:
    with Client(server.port, tls=tls) as client:
        for byte in client.connection.send_upload(UploadHeader(3, "slow")) + b"abc":
            client.sock.sendall(bytes([byte]))
        assert client.reply().code == "ok"
    assert content(server, "slow") == b"abc"


@pytest.mark.parametrize("size", [0, 100, 50_000])
def test_pipelined_uploads_are_answered_in_order(server: Server, tls: ssl.SSLContext, size: int) -> None:
    names = [f"{number}" for number in range(40)]
    with Client(server.port, tls=tls) as client:
        frames = (client.connection.send_upload(UploadHeader(size, name)) + pattern(size) for name in names)
        client.sock.sendall(b"".join(frames))
        assert [client.reply().file_name for _ in names] == names


def test_a_durable_server_answers_pipelined_uploads_and_a_goodbye(authority: Authority, tmp_path: Path) -> None:
    options = ("--tls-cert", authority.server(), "--durability", "power")
    with running(*options, store=tmp_path / "store") as server, Bare(server.port, authority.context()) as client:
        for number in range(10):
            client.send(client.connection.send_upload(UploadHeader(50_000, f"{number}")) + bytes(50_000))
        client.say_goodbye()
        assert [(reply.file_name, reply.code) for reply in client.replies()] == [(f"{n}", "ok") for n in range(10)]


@pytest.mark.parametrize("size", [0, 1000, 3 * MIB])
def test_who_says_goodbye_after_an_upload_has_its_answer(server: Server, tls: ssl.SSLContext, size: int) -> None:
    with Bare(server.port, tls) as client:
        client.send(client.connection.send_upload(UploadHeader(size, "file")) + pattern(size))
        client.say_goodbye()
        assert [reply.code for reply in client.replies()] == ["ok"]


@pytest.mark.parametrize("size", [0, 1000, 3 * MIB])
def test_who_half_closes_without_a_goodbye_too(server: Server, tls: ssl.SSLContext, size: int) -> None:
    with Bare(server.port, tls) as client:
        client.send(client.connection.send_upload(UploadHeader(size, "file")) + pattern(size))
        client.sock.shutdown(socket.SHUT_WR)
        assert [reply.code for reply in client.replies()] == ["ok"]


def test_who_breaks_off_reads_how_much_came(server: Server, tls: ssl.SSLContext) -> None:
    with Bare(server.port, tls) as client:
        client.send(client.connection.send_upload(UploadHeader(MIB, "half")) + bytes(1000))
        client.say_goodbye()
        [reply] = client.replies()
        assert (reply.code, reply.message) == ("truncated", f"received 1000 of {MIB} bytes")


def test_a_client_that_reads_nothing_and_just_closes_has_its_file_stored(server: Server, tls: ssl.SSLContext) -> None:
    for number in range(10):
        with Client(server.port, tls=tls) as client:
            client.send(pattern(3 * MIB), f"unread {number}")
    eventually(lambda: sum(name.startswith("unread") for name in server.files()) == 10, "all are there")


def test_it_closes_idle_connections_with_a_goodbye(authority: Authority) -> None:
    with running("--tls-cert", authority.server(), "--idle-timeout", "3s") as server:
        with Bare(server.port, authority.context()) as client:
            client.send(client.connection.send_upload(UploadHeader(0, "x")))
            assert [reply.code for reply in client.replies()] == ["ok"]
        assert server.failures() == {}


@pytest.mark.parametrize(
    ("option", "sent", "code"),
    [
        ("--header-timeout", 3, "header_timeout"),
        ("--idle-timeout", 3, "idle_timeout"),
        ("--idle-timeout", 99, "idle_timeout"),
    ],
)
def test_slow_clients_are_told(authority: Authority, option: str, sent: int, code: str, tmp_path: Path) -> None:
    options = ("--tls-cert", authority.server(), option, "3s")
    with running(*options, store=tmp_path / "store") as server, Client(server.port, tls=authority.context()) as client:
        client.sock.sendall((client.connection.send_upload(UploadHeader(1000, "x")) + bytes(1000))[:sent])
        assert client.reply().code == code
        client.expect_eof()


def test_who_is_too_many_is_told(authority: Authority) -> None:
    context = authority.context()
    options = ("--tls-cert", authority.server(), "--max-connections", "1")
    with running(*options) as server, Client(server.port, tls=context) as first:
        assert first.upload(b"abc").code == "ok"
        with Client(server.port, tls=context) as second:
            assert second.upload(b"abc").code == "busy"
            second.expect_eof()


def test_a_session_goes_on_at_another_worker(server: Server, authority: Authority) -> None:
    context = authority.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    session, workers = None, set()
    for _ in range(40):
        raw = socket.create_connection(("127.0.0.1", server.port))
        with context.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as sock:
            assert session is None or sock.session_reused
            session = sock.session
            client = ClientConnection()
            sock.sendall(client.send_upload(UploadHeader(0, "x", connection="close")))
            reply = next(iter(client.receive_data(sock.recv(1 << 16))))
            workers.add(reply.worker)
    assert workers == {0, 1}


# ── Refusals are read, also by who goes on sending ──

REFUSED = {
    "bad_length": b"\xff\xff\xff\x7f",
    "bad_header": b"\x02\0\0\0{}",
    "name_rejected": ClientConnection().send_upload(UploadHeader(GIB, "..")),
    "too_large": ClientConnection().send_upload(UploadHeader(3 * GIB, "large")),
}


@pytest.mark.parametrize("code", REFUSED)
@pytest.mark.parametrize("size", [0, MIB // 2, 64 * MIB])
def test_a_refusal_is_read_by_who_goes_on_sending(server: Server, tls: ssl.SSLContext, code: str, size: int) -> None:
    with Client(server.port, tls=tls) as client:
        client.connection.send_upload(UploadHeader(0, "x"))  # a reply is due
        client.sock.sendall(REFUSED[code])
        send_until_answered(client, size)
        assert client.reply().code == code
        client.expect_eof()


def send_until_answered(client: Client, size: int) -> None:
    """Or until all is sent. That something can be read is no answer yet: TLS has messages of its own."""
    part = bytes(64 << 10)
    client.sock.settimeout(0.001)
    while size > 0:
        try:
            data = client.sock.recv(1 << 16)
        except TimeoutError:
            pass
        else:
            client._replies.extend(client.connection.receive_data(data))
            break
        client.sock.settimeout(DEADLINE_S)
        client.sock.sendall(part)
        size -= len(part)
        client.sock.settimeout(0.001)
    client.sock.settimeout(DEADLINE_S)


def test_who_is_cut_off_by_the_drain_is_told(authority: Authority) -> None:
    options = ("--tls-cert", authority.server(), "--drain-timeout", "200ms")
    with running(*options) as server, Client(server.port, tls=authority.context()) as client:
        client.send_header(GIB)
        client.sock.sendall(b"x")
        server.process.send_signal(signal.SIGTERM)
        assert client.reply().code == "shutting_down"
        client.sock.close()
        assert server.wait() == 0


# ── Strangers, and handshakes that fail ──


@pytest.fixture(scope="module")
def mutual(authority: Authority) -> Iterator[Server]:
    """A server that wants to know its clients."""
    with running("--tls-cert", authority.server(), "--tls-client-ca", authority.file) as server:
        assert server.state().options["tls"] == "client certificates"
        yield server


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_with_a_certificate_is_served(mutual: Server, authority: Authority, version: ssl.TLSVersion) -> None:
    context = authority.context(authority.client())
    context.maximum_version = version
    assert upload(mutual.port, b"abc", tls=context).code == "ok"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sends", [0, 4 * MIB])
@pytest.mark.parametrize(
    ("shows", "alert"),
    [("nothing", "CERTIFICATE_REQUIRED|HANDSHAKE_FAILURE"), ("expired", "EXPIRED"), ("another's", "UNKNOWN_CA")],
)
def test_a_client_without_a_good_certificate_is_told_why(
    mutual: Server, authority: Authority, version: ssl.TLSVersion, shows: str, alert: str, sends: int, tmp_path: Path
) -> None:
    certificate = {"nothing": None, "expired": authority.client("expired", days=-1)}.get(
        shows, Authority(tmp_path).client()
    )
    context = authority.context(certificate)
    context.maximum_version = version
    before = mutual.failures().get("tls_handshake", 0)
    # In 1.3 its side of the handshake is over before ours.
    with pytest.raises(ssl.SSLError, match=f"(?i){alert}"), Client(mutual.port, tls=context) as client:
        try:
            client.sock.sendall(bytes(sends))
        except ConnectionError:
            pass
        client.sock.recv(1)
    assert mutual.failures()["tls_handshake"] == before + 1
    assert upload(mutual.port, b"abc", tls=authority.context(authority.client())).code == "ok"


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.0\r\n\r\n", b"\x20\0\0\0{}", bytes(100_000), b"\x16\x03\x01\0\x05nonsense"]
)
def test_who_speaks_no_tls_fails_once_and_harms_nobody(server: Server, tls: ssl.SSLContext, first: bytes) -> None:
    before = server.failures().get("tls_handshake", 0)
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as sock:
        sock.sendall(first)
        while sock.recv(1 << 16):
            pass
    assert server.failures()["tls_handshake"] == before + 1
    assert "worker" in server.messages() and "Traceback" not in server.messages()
    assert upload(server.port, b"abc", tls=tls).code == "ok"


def test_who_only_looks_whether_the_port_is_open_has_not_failed(server: Server, tls: ssl.SSLContext) -> None:
    before = server.failures()
    for _ in range(10):
        socket.create_connection(("127.0.0.1", server.port), DEADLINE_S).close()
    assert upload(server.port, b"abc", tls=tls).code == "ok"
    assert server.failures() == before


def test_a_handshake_has_a_deadline(authority: Authority) -> None:
    with running("--tls-cert", authority.server(), "--header-timeout", "4s") as server, ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(100)]
        for sock in silent[:50]:
            sock.sendall(b"\x16\x03\x01")
        assert upload(server.port, b"abc", tls=authority.context()).code == "ok", "they are in nobody's way"
        for sock in silent:
            sock.settimeout(DEADLINE_S)
            while sock.recv(1 << 16):
                pass
        assert server.failures() == {"tls_handshake": 100}
        assert "tls_handshake: not done within 4 s" in server.messages()
        eventually(lambda: server.slots()[0].connections_now == 0, "they are gone")


def test_a_drain_does_not_wait_for_a_handshake_longer_than_its_deadline(authority: Authority) -> None:
    options = ("--tls-cert", authority.server(), "--drain-timeout", "300ms", "--header-timeout", "1h")
    with running(*options) as server, socket.create_connection(("127.0.0.1", server.port)) as silent:
        eventually(lambda: server.slots()[0].connections_now == 1, "it is known")
        assert server.stop() == 0
        assert silent.recv(1) == b""


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_reads_what_it_is_told(server: Server, mutual: Server, authority: Authority) -> None:
    told = talk(["openssl", "s_client", "-quiet", "-CAfile", authority.file, "-connect", f"127.0.0.1:{server.port}"])
    assert '"code":"bad_length"' in told
    assert "HTTP" in told
    told = talk(["openssl", "s_client", "-quiet", "-CAfile", authority.file, "-connect", f"127.0.0.1:{mutual.port}"])
    assert "certificate required" in told


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl_reads_what_it_is_told(server: Server, authority: Authority) -> None:
    told = talk(["curl", "-sS", "--http0.9", "--cacert", authority.file, f"https://127.0.0.1:{server.port}/"])
    assert '"code":"bad_length"' in told
    assert "HTTP" in told


def talk(command: list[object]) -> str:
    """What a program prints when it is given a line of HTTP."""
    done = subprocess.run(
        [*map(str, command)], input=b"GET / HTTP/1.0\r\n\r\n", capture_output=True, timeout=60, check=False
    )
    return (done.stdout + done.stderr).decode(errors="replace")


# ── Certificates that change ──


def serial(port: int, context: ssl.SSLContext) -> str:
    """Of the certificate that a new connection is shown."""
    with Client(port, tls=context) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        return str((client.sock.getpeercert() or {})["serialNumber"])


def events(server: Server, kind: str) -> list[str]:
    return [event["text"] for event in server.events() if event["kind"] == kind]


def test_a_reload_shows_a_new_certificate_and_old_connections_go_on(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with running("--tls-cert", authority.server(), workers=2) as server:
        with Client(server.port, tls=authority.context()) as client:
            client.send_header(6, "slow")
            client.sock.sendall(b"abc")
            before = serial(server.port, authority.context())
            authority.server()
            assert serial(server.port, authority.context()) == before, "it is read when that is asked for"
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda: events(server, "reload-finished"), "it reloaded")
            new = serial(server.port, authority.context())
            assert new != before
            victim = server.workers()[0]
            os.kill(victim, signal.SIGKILL)
            client.sock.sendall(b"def")
            assert client.reply().code == "ok"
        eventually(lambda: victim not in server.workers() and len(server.workers()) == 2, "it was replaced")
        assert {serial(server.port, authority.context()) for _ in range(20)} == {new}


def test_a_broken_certificate_refuses_the_reload(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, another = authority.server(), authority.server("another")
    with running("--tls-cert", certificate, "--tls-key", certificate, workers=2) as server:
        workers, before = server.workers(), serial(server.port, authority.context())
        for number, broken in enumerate((b"", another.read_bytes()[:300], b"-----BEGIN CERTIFICATE-----\nabc\n"), 1):
            certificate.write_bytes(broken)
            server.process.send_signal(signal.SIGHUP)
            eventually(lambda number=number: len(events(server, "reload-failed")) == number, "it said no")
            assert events(server, "reload-failed")[-1].startswith("not reloaded: tls_")
        assert server.workers() == workers
        assert serial(server.port, authority.context()) == before
        os.kill(workers[0], signal.SIGKILL)
        eventually(lambda: len(server.workers()) == 2 and server.workers() != workers, "it was replaced")
        assert {serial(server.port, authority.context()) for _ in range(20)} == {before}, "the files are not looked at"


def test_tls_itself_needs_a_restart(authority: Authority, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("")
    with running("--config", file) as server:
        file.write_text(f'tls_cert = "{authority.server("later")}"\n')
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: events(server, "reload-finished"), "it reloaded")
        assert "tls can only change with a restart" in server.messages()
        assert upload(server.port, b"abc").code == "ok"


def test_an_expired_certificate_is_warned_of_at_the_start_and_at_a_reload(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with running("--tls-cert", authority.server(days=-1)) as server:
        assert server.messages().count("expired on 20") == 1
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            serial(server.port, authority.context())
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: events(server, "reload-finished"), "it reloaded")
        assert server.messages().count("expired on 20") == 2
        authority.server()
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(events(server, "reload-finished")) == 2, "it reloaded")
        serial(server.port, authority.context())


def test_a_key_that_others_may_read_is_warned_of(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = authority.server()
    certificate.chmod(0o644)
    with running("--tls-cert", certificate) as server:
        assert "server.pem (from --tls-cert) is open to other users: chmod 600 it" in server.messages()


def test_a_lost_connection_is_no_traceback(server: Server, tls: ssl.SSLContext) -> None:
    """What is not TLS, in the middle of an upload."""
    with Bare(server.port, tls) as client:
        client.send(client.connection.send_upload(UploadHeader(MIB, "half")) + bytes(1000))
        client.sock.sendall(b"\x17\x03\x03\0\x20" + bytes(32))
        with pytest.raises((ssl.SSLError, ConnectionError, RemoteProtocolError, AssertionError)):
            client.replies()
    eventually(lambda: server.temporary_files() == [], "its file is gone")
    assert "Traceback" not in server.messages()


@pytest.mark.parametrize("late", [0, 5], ids=["whole", "in pieces"])
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_reply_that_a_corrupt_record_makes_impossible_is_counted_once(
    server: Server, authority: Authority, version: ssl.TLSVersion, late: int
) -> None:
    """In one segment with the end of the upload, so that both are read at once."""
    context, failures = authority.context(), server.failures()
    context.maximum_version = version
    with Bare(server.port, context) as client:
        header = UploadHeader(10, "corrupt", digest="xxh3_128:" + "0" * 32)
        framed = client.connection.send_upload(header) + bytes(10)
        if late:
            client.send(framed[:-late])
            eventually(server.temporary_files, "its file has begun")
        client.tls.write(framed[-late:])
        client.sock.sendall(client.take() + b"\x17\x03\x03\0\x20" + bytes(32))
        with pytest.raises((ssl.SSLError, ConnectionError, RemoteProtocolError, AssertionError)):
            client.replies()
    failures["digest_mismatch"] = failures.get("digest_mismatch", 0) + 1
    eventually(lambda: server.failures() == failures, "it is counted once")
    assert "Traceback" not in server.messages()
