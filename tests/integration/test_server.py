"""The real server, from outside: the wire format, what becomes visible, and how its processes begin, fail and end."""

import hashlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import servers
import xxhash
from servers import Client, Server, bindable, eventually, running, upload

from server.protocol import RemoteProtocolError, Reply, UploadHeader, frame

MIB = 1 << 20
LOST = (ConnectionError, RemoteProtocolError)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that do not harm it. Whatever they did, it must end cleanly."""
    store = tmp_path_factory.mktemp("uploads") / "store"
    with running("--max-file-size", "8MiB", store=store, workers=2, forked=False) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """The shared server, which nothing of one test's files or connections may be left in."""
    yield shared
    eventually(lambda: not any(slot.connections_now for slot in shared.slots()), "every connection is closed")
    assert shared.temporary_files() == []
    for entry in shared.store.iterdir():  # type: ignore[union-attr]
        if entry.name != ".incoming":
            entry.unlink() if entry.is_symlink() or entry.is_file() else shutil.rmtree(entry)


def path(server: Server, name: str) -> Path:
    assert server.store is not None
    return server.store / name


def content(server: Server, name: str) -> bytes:
    return path(server, name).read_bytes()


def pattern(size: int, seed: int = 1) -> bytes:
    """Bytes in which no two places look alike."""
    return hashlib.shake_128(seed.to_bytes(4, "little")).digest(size)


def failed(server: Server, code: str) -> int:
    return server.failures().get(code, 0)


# ── The classic tutorial's client ──


def test_the_tutorials_client_has_its_file_stored(server: Server) -> None:
    data = pattern(3 * MIB + 1)
    header = json.dumps({"file_size": len(data), "file_name": "/home/me/tutorial/photo.jpg"}).encode("utf-8")
    client = socket.create_connection(("127.0.0.1", server.port))
    client.send(struct.pack("i", len(header)))
    client.send(header)
    client.sendall(data)
    client.close()
    eventually(lambda: "photo.jpg" in server.files(), "the file is there")
    assert content(server, "photo.jpg") == data


def test_the_tutorials_end_mark_leaves_nothing_and_the_server_goes_on(server: Server) -> None:
    before = failed(server, "bad_length")
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(b"<END>")
    client.close()
    eventually(lambda: failed(server, "bad_length") == before + 1, "it was refused")
    assert server.files() == {}
    assert server.temporary_files() == []
    assert upload(server.port, b"abc").code == "ok"


# ── Connections ──


def test_many_uploads_over_one_connection(server: Server) -> None:
    with Client(server.port) as client:
        replies = [client.upload(pattern(size, size), f"{size}") for size in (0, 1, 4096, 300_000, 5)]
    assert [(reply.status, reply.code, reply.connection) for reply in replies] == [("stored", "ok", "keep-alive")] * 5
    assert len({(reply.worker, reply.pid) for reply in replies}) == 1
    assert replies[0].pid in server.workers()
    for size in (0, 1, 4096, 300_000, 5):
        assert content(server, str(size)) == pattern(size, size)


@pytest.mark.parametrize("size", [0, 1000, 2 * MIB])
def test_a_reply_says_what_was_stored_and_when(server: Server, size: int) -> None:
    body = pattern(size)
    with Client(server.port) as client:
        reply = client.upload(body, "some/where/a")
    assert (reply.file_name, reply.received, reply.message) == ("a", size, "")
    assert reply.digest == "xxh3_128:" + xxhash.xxh3_128_hexdigest(body)
    timing = reply.timing
    assert timing.header is not None
    assert timing.last_byte is not None
    assert timing.stored is not None
    assert timing.accepted <= timing.header <= timing.last_byte <= timing.stored


@pytest.mark.parametrize("size", [0, 10, 3 * MIB])
def test_on_a_short_connection_the_server_closes_first(server: Server, size: int) -> None:
    with Client(server.port) as client:
        assert client.upload(pattern(size), connection="close").connection == "close"
        client.expect_eof()


def test_a_short_connection_that_is_slow_to_speak_is_served_too(server: Server) -> None:
    with Client(server.port) as client:
        whole = client.connection.send_upload(UploadHeader(3, "slow", connection="close")) + b"abc"
        now = sum(slot.connections_accepted for slot in server.slots())
        for i, byte in enumerate(whole):
            client.sock.sendall(bytes([byte]))
            if i == 0:
                eventually(lambda: sum(s.connections_now for s in server.slots()) == 1, "the server knows it")
        assert client.reply().code == "ok"
        client.expect_eof()
    assert sum(slot.connections_accepted for slot in server.slots()) >= now
    assert content(server, "slow") == b"abc"


def test_a_client_may_half_close_and_still_read_its_reply(server: Server) -> None:
    for connection in ("keep-alive", "close"):
        for size in (0, 10, 2 * MIB):
            with Client(server.port) as client:
                client.send(pattern(size), connection=connection)
                client.half_close()
                assert client.reply().code == "ok"
                client.expect_eof()


def test_connections_that_say_nothing_are_no_failures(server: Server) -> None:
    before = server.failures()
    for half_close in (True, False):
        with Client(server.port) as client:
            if half_close:
                client.half_close()
                client.expect_eof()
    assert upload(server.port).code == "ok"
    assert server.failures() == before


@pytest.mark.parametrize("size", [0, 100, 50_000])
def test_pipelined_uploads_are_answered_in_order(server: Server, size: int) -> None:
    bodies = {f"{number}": pattern(size, number) for number in range(40)}
    with Client(server.port) as client:
        stream = b"".join(
            client.connection.send_upload(UploadHeader(size, name)) + body for name, body in bodies.items()
        )
        client.sock.sendall(stream)
        replies = [client.reply() for _ in bodies]
    assert [reply.file_name for reply in replies] == list(bodies)
    assert [reply.digest for reply in replies] == [
        "xxh3_128:" + xxhash.xxh3_128_hexdigest(body) for body in bodies.values()
    ]
    assert {name: content(server, name) for name in bodies} == bodies


def test_what_is_pipelined_behind_a_close_is_not_served(server: Server) -> None:
    with Client(server.port) as client:
        first = client.connection.send_upload(UploadHeader(1, "first", connection="close")) + b"1"
        client.sock.sendall(first + client.connection.send_upload(UploadHeader(1, "second")) + b"2")
        assert client.reply().file_name == "first"
    assert server.files() == {"first": 1}


def test_of_two_pipelined_uploads_of_one_name_the_second_stays(server: Server) -> None:
    with Client(server.port) as client:
        client.sock.sendall(
            b"".join(client.connection.send_upload(UploadHeader(5, "same")) + b"%05d" % number for number in range(30))
        )
        for _ in range(30):
            assert client.reply().code == "ok"
    assert content(server, "same") == b"00029"


def test_a_refusal_among_pipelined_uploads_is_the_last_reply_and_harms_nobody_else(server: Server) -> None:
    """Uploads that arrive together may be handled together: what is wrong with one is no other's trouble."""
    path(server, "folder").mkdir()
    names = ("good", "folder", "behind", "folder", "behind too")
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server.port)) for _ in range(20)]
        for pid in server.workers():
            os.kill(pid, signal.SIGSTOP)  # so that all of them are found at once
        for number, client in enumerate(clients):
            if number % 2:
                client.send(b"abc", f"{number}", connection=("close", "keep-alive")[number % 4 == 1])
            else:
                frames = (client.connection.send_upload(UploadHeader(1, name)) + b"x" for name in names)
                client.sock.sendall(b"".join(frames))
        for pid in server.workers():
            os.kill(pid, signal.SIGCONT)
        for number, client in enumerate(clients):
            reply = client.reply()
            assert reply.code == "ok"
            if number % 2 == 0:
                assert reply.file_name == "good"
                expect_refusal(client, "name_rejected")
            elif number % 4 == 1:
                assert client.upload(b"next", f"{number} next").code == "ok"
    assert {name: size for name, size in server.files().items() if name.isdecimal()} == {
        f"{number}": 3 for number in range(1, 20, 2)
    }


def test_a_pipelining_client_may_half_close_at_once(server: Server) -> None:
    with Client(server.port) as client:
        frames = [client.connection.send_upload(UploadHeader(3, f"{number}")) + b"abc" for number in range(10)]
        client.sock.sendall(b"".join(frames))
        client.half_close()
        assert [client.reply().file_name for _ in range(10)] == [f"{number}" for number in range(10)]
        client.expect_eof()


def test_fifty_connections_at_once(server: Server) -> None:
    body = pattern(100_000)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server.port)) for _ in range(50)]
        for number, client in enumerate(clients):
            client.send_header(len(body), f"{number}")
            client.sock.sendall(body[:50_000])
        eventually(lambda: sum(slot.connections_now for slot in server.slots()) == 50, "all are open")
        eventually(lambda: len(server.temporary_files()) == 50, "all have begun")
        assert server.files() == {}
        for client in reversed(clients):
            client.sock.sendall(body[50_000:])
        replies = [client.reply() for client in clients]
    assert {reply.code for reply in replies} == {"ok"}
    assert len({reply.pid for reply in replies}) == 2
    assert server.files() == {f"{number}": 100_000 for number in range(50)}


# ── Digests ──


def digests(body: bytes) -> dict[str, str | None]:
    return {
        "xxh3_128": "xxh3_128:" + xxhash.xxh3_128_hexdigest(body),
        "sha256": "sha256:" + hashlib.sha256(body).hexdigest(),
        "none": None,
    }


@pytest.mark.parametrize("size", [0, 100, MIB])
@pytest.mark.parametrize("want", ["xxh3_128", "sha256", "none"])
def test_the_wanted_digest_is_in_the_reply_and_a_given_one_is_checked(server: Server, want: str, size: int) -> None:
    body = pattern(size)
    right = digests(body)
    with Client(server.port) as client:
        assert client.upload(body, want_digest=want).digest == right[want]
        for given in (right["xxh3_128"], right["sha256"], str(right["sha256"]).replace("sha256:", "")):
            if given is not None and ":" in given:
                algorithm, _, value = given.partition(":")
                reply = client.upload(body, digest=f"{algorithm}:{value.upper()}", want_digest=want)
                assert (reply.code, reply.digest) == ("ok", right[want])
    assert content(server, "file") == body


@pytest.mark.parametrize("algorithm", ["xxh3_128", "sha256"])
@pytest.mark.parametrize("size", [0, 100, MIB])
def test_a_wrong_digest_leaves_nothing_and_keeps_the_connection(server: Server, algorithm: str, size: int) -> None:
    wrong = digests(b"something else")[algorithm]
    before = failed(server, "digest_mismatch")
    with Client(server.port) as client:
        client.upload(b"old", "a")
        for name in ("a", "new"):
            reply = client.upload(pattern(size), name, digest=wrong)
            assert (reply.status, reply.code, reply.connection) == ("failed", "digest_mismatch", "keep-alive")
            assert (reply.received, reply.digest) == (size, None)
            assert str(wrong) in reply.message
            assert str(digests(pattern(size))[algorithm]) in reply.message
        assert server.files() == {"a": 3}
        assert server.temporary_files() == []
        assert client.upload(b"next", "next").code == "ok"
        reply = client.upload(b"", "last", digest=wrong, connection="close")
        assert (reply.code, reply.connection) == ("digest_mismatch", "close")
        client.expect_eof()
    assert failed(server, "digest_mismatch") == before + 3


# ── What becomes visible ──


def test_a_file_is_replaced_whole(server: Server) -> None:
    """Whoever opens the name finds one of the two files, never a mix and never nothing."""
    versions = [pattern(500_000, 1), pattern(200_000, 2)]
    seen: set[int] = set()
    problems: list[str] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                found = content(server, "file")
            except OSError as error:
                problems.append(str(error))
                return
            seen.add(versions.index(found)) if found in versions else problems.append(f"{len(found)} bytes")

    with Client(server.port) as client:
        client.upload(versions[0])
        reader = threading.Thread(target=look)
        reader.start()
        try:
            for number in range(1, 500):
                assert client.upload(versions[number % 2]).code == "ok"
                if number > 50 and len(seen) == 2:
                    break
        finally:
            done.set()
            reader.join()
    assert problems == []
    assert seen == {0, 1}


@pytest.mark.parametrize("size", [10, MIB])
def test_a_link_of_that_name_is_replaced_not_followed(server: Server, tmp_path: Path, size: int) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    path(server, "link").symlink_to(outside)
    assert upload(server.port, pattern(size), "link").code == "ok"
    assert not path(server, "link").is_symlink()
    assert content(server, "link") == pattern(size)
    assert outside.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "file_name",
    ["../../../../tmp/socketswarm-escape", "/tmp/socketswarm-escape", r"C:\..\..\socketswarm-escape"],
)
def test_no_name_leads_out_of_the_store(server: Server, file_name: str) -> None:
    assert upload(server.port, b"x", file_name).file_name == "socketswarm-escape"
    assert server.files() == {"socketswarm-escape": 1}
    assert not Path("/tmp/socketswarm-escape").exists()


# ── Refusals, which must be readable ──


def expect_refusal(client: Client, code: str) -> Reply:
    reply = client.reply()
    assert (reply.code, reply.connection, reply.digest) == (code, "close", None)
    assert reply.message
    client.expect_eof()
    return reply


@pytest.mark.parametrize(
    ("file_name", "size"),
    [
        *((name, size) for name in ("folder", ".incoming", "x/.incoming", "..", "", "a/", "a\0b") for size in (0, 10)),
        ("folder", 3 * MIB),  # arrives in pieces, so that only the last byte brings the refusal
        ("é" * 128, 3 * MIB),
    ],
)
def test_a_name_that_cannot_be_taken_is_refused(server: Server, file_name: str, size: int) -> None:
    path(server, "folder").mkdir()
    (path(server, "folder") / "precious").write_bytes(b"precious")
    before = failed(server, "name_rejected")
    with Client(server.port) as client:
        client.send_header(size, file_name)
        try:
            client.sock.sendall(pattern(size))
        except ConnectionError:
            pass  # the server had heard enough, and says so below
        assert expect_refusal(client, "name_rejected").status == "rejected"
    assert failed(server, "name_rejected") == before + 1
    assert (path(server, "folder") / "precious").read_bytes() == b"precious"
    assert server.files().keys() == {"folder"}


@pytest.mark.parametrize(
    ("stream", "code", "word"),
    [
        (frame(b"{}"), "bad_header", "file_size"),
        (frame(b'{"file_size":1,"file_size":1,"file_name":"a"}'), "bad_header", "twice"),
        (frame(b"\xff\xfe"), "bad_header", "UTF-8"),
        (frame(b'{"x":' + b"[" * 60_000), "bad_header", "deep"),
        (b"\0\0\0\0", "bad_length", "0"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "bad_length", "HTTP"),
        (bytes.fromhex("160301020001000200"), "bad_length", "TLS"),
        (frame(b'{"file_size":%d,"file_name":"a"}' % (8 * MIB + 1)), "too_large", str(8 * MIB)),
    ],
    ids=repr,
)
def test_what_breaks_the_protocol_is_told_so(server: Server, stream: bytes, code: str, word: str) -> None:
    before = failed(server, code)
    for more in (b"", b"\x01" * 100_000):  # behind it may come what will never be read
        with Client(server.port) as client:
            client.connection.send_upload(UploadHeader(0, "never sent"))  # so that a reply is expected
            client.sock.sendall(stream + more)
            reply = expect_refusal(client, code)
            assert word in reply.message
            assert (reply.status, reply.file_name, reply.received) == ("rejected", None, 0)
    assert failed(server, code) == before + 2
    assert server.files() == {}
    assert server.temporary_files() == []


def test_after_good_uploads_a_bad_one_is_told_so_in_its_turn(server: Server) -> None:
    with Client(server.port) as client:
        good = b"".join(client.connection.send_upload(UploadHeader(3, name)) + b"abc" for name in ("a", "b"))
        client.connection.send_upload(UploadHeader(0, "never sent"))
        client.sock.sendall(good + frame(b"{}") + b"abc")
        assert [client.reply().file_name for _ in range(2)] == ["a", "b"]
        expect_refusal(client, "bad_header")
    assert server.files() == {"a": 3, "b": 3}


def test_a_body_behind_a_refused_header_is_never_read_as_a_header(server: Server) -> None:
    inner = frame(b'{"file_size":1,"file_name":"smuggled"}') + b"x"
    with Client(server.port) as client:
        client.send(inner * 1000, "..")
        expect_refusal(client, "name_rejected")
    assert server.files() == {}


def test_a_refusal_is_readable_while_the_client_is_still_sending(server: Server) -> None:
    """64 MiB, of which the server takes none: the client learns that without having sent it all."""
    with Client(server.port) as client:
        client.send_header(64 * MIB)
        chunk, sent = bytes(MIB), 0
        client.sock.setblocking(False)
        while True:
            readable, writable, _ = select.select([client.sock], [client.sock], [], servers.DEADLINE_S)
            if readable:
                break
            assert writable, "the server neither takes more nor answers"
            try:
                sent += client.sock.send(chunk)
            except ConnectionError:
                break  # it has waited for us in vain, and what it said is still to be read
        client.sock.setblocking(True)
        assert sent < 64 * MIB
        expect_refusal(client, "too_large")
    assert server.files() == {}


def test_a_client_that_sends_all_before_it_reads_finds_the_refusal_too(server: Server) -> None:
    with Client(server.port) as client:
        client.send_header(64 * MIB)
        with pytest.raises(ConnectionError):
            for _ in range(64):
                client.sock.sendall(bytes(MIB))
        assert client.reply().code == "too_large"


# ── Uploads that break off ──

BODY = pattern(3 * MIB)
HEADER = frame(b'{"file_size":%d,"file_name":"a"}' % len(BODY))
CUTS = {
    "in the length": HEADER[:2],
    "behind the length": HEADER[:4],
    "in the header": HEADER[:-1],
    "behind the header": HEADER,
    "behind the first byte": HEADER + BODY[:1],
    "in the body": HEADER + BODY[: 2 * MIB],
    "before the last byte": HEADER + BODY[:-1],
}


@pytest.mark.parametrize("ending", ["half-close", "close", "reset"])
@pytest.mark.parametrize("stream", CUTS.values(), ids=CUTS)
def test_an_upload_that_breaks_off_leaves_nothing(server: Server, stream: bytes, ending: str) -> None:
    before = failed(server, "truncated")
    path(server, "a").write_bytes(b"old")
    with Client(server.port) as client:
        client.connection.send_upload(UploadHeader(0, "never sent"))
        client.sock.sendall(stream)
        if ending == "half-close":
            client.half_close()
            reply = expect_refusal(client, "truncated")
            assert reply.status == "failed"
            received = max(0, len(stream) - len(HEADER))
            assert reply.received == received
            if len(stream) >= len(HEADER):
                assert f"received {received} of {len(BODY)} bytes" in reply.message
        elif ending == "reset":
            eventually(lambda: sum(slot.connections_now for slot in server.slots()), "the server knows it")
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if ending != "reset" or len(stream) < MIB:  # a reset may overtake what was not read yet
        eventually(lambda: failed(server, "truncated") == before + 1, "it was counted")
    eventually(lambda: server.temporary_files() == [], "the temporary file is gone")
    assert content(server, "a") == b"old"


# ── Large files ──


def test_a_large_file_needs_no_memory() -> None:
    """1 GiB, in a store that is memory itself where there is room, so that no disk slows the test."""
    size = 1 << 30
    room = shutil.disk_usage("/dev/shm").free > 3 * size
    store = Path(f"/dev/shm/socketswarm-test-{os.getpid()}") if room else None
    chunk = pattern(16 * MIB)
    digest = xxhash.xxh3_128()
    peak = 0
    try:
        with running(store=store) as server, Client(server.port) as client:
            worker = psutil.Process(server.workers()[0])
            client.send_header(size, "large")
            for _ in range(size // len(chunk)):
                client.sock.sendall(chunk)
                digest.update(chunk)
                peak = max(peak, worker.memory_info().rss)
            reply = client.reply()
            assert (reply.code, reply.received) == ("ok", size)
            assert reply.digest == f"xxh3_128:{digest.hexdigest()}"
            if store is not None:
                assert server.files() == {"large": size}
                with (store / "large").open("rb") as file:
                    assert all(file.read(len(chunk)) == chunk for _ in range(size // len(chunk)))
            peak = max(peak, worker.memory_info().rss)
    finally:
        if store is not None:
            shutil.rmtree(store, ignore_errors=True)
    assert peak < 100 * MIB


# ── Beginning ──


def other_server(*arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """A server that is not expected to run, and what it said."""
    if not prefix:
        return servers.command("-m", "server", *arguments)
    return subprocess.run(
        [*prefix, sys.executable, "-m", "server", *map(str, arguments)],
        cwd=servers.ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_first_line_names_address_workers_pid_and_store(server: Server) -> None:
    line = f"listening on 127.0.0.1:{server.port} with 2 workers, pid {server.pid}, store: {server.store}\n"
    assert server.line == line
    assert server.port > 0
    with running() as other:
        assert other.port != server.port
        assert other.line.endswith(f"with 1 worker, pid {other.pid}, store: discarded\n")
        assert upload(other.port, b"abc").code == "ok"
        assert other.state().store is None


@pytest.mark.parametrize(
    ("name", "encoding", "in_line", "in_state"),
    [
        (b"caf\xe9", "utf-8", "caf\ufffd", "caf\ufffd"),
        ("café".encode(), "utf-8", "café", "café"),
        ("café".encode(), "ascii", "caf?", "café"),
    ],
    ids=["not UTF-8", "UTF-8", "not printable here"],
)
def test_a_store_is_shown_whatever_its_name_is(
    tmp_path: Path, name: bytes, encoding: str, in_line: str, in_state: str
) -> None:
    store = tmp_path / os.fsdecode(name)
    with running(store=store, prefix=("env", f"PYTHONIOENCODING={encoding}")) as server:
        assert server.line.endswith(f", store: {tmp_path}/{in_line}\n")
        state = server.state()
        assert state.store == state.options["store"] == f"{tmp_path}/{in_state}"
        assert upload(server.port, b"abc", "a").code == "ok"
        assert server.files() == {"a": 3}


def test_a_port_in_use_is_one_line_that_names_the_holder_and_the_way_out(server: Server) -> None:
    done = other_server("--port", server.port, "--discard")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"Error: port {server.port} is held by pid {server.pid} (python -m server --port 0 ")
    assert line.endswith(f"; free it with: make killport PORT={server.port}")
    assert upload(server.port, b"abc").code == "ok"


def test_the_state_is_published_for_this_user_only(server: Server) -> None:
    state = server.state()
    assert (state.pid, state.port, state.workers) == (server.pid, server.port, 2)
    assert state.addresses == [f"127.0.0.1:{server.port}"]
    assert state.store == str(server.store)
    assert state.options["max_file_size"] == "8MiB"
    assert (state.scoreboard, state.events) == (str(server.folder / "scoreboard"), str(server.folder / "events.jsonl"))
    assert server.folder.parent.stat().st_mode & 0o777 == 0o700
    assert server.folder.stat().st_mode & 0o777 == 0o700
    for slot in server.slots():
        assert (slot.state, slot.births) == ("ready", 1)
        assert 0 < slot.started_ns <= slot.heartbeat_ns


def test_the_events_are_in_order(server: Server) -> None:
    events = server.events()
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "server-started"
    for pid in server.workers():
        assert [event["kind"] for event in events if event.get("pid") == pid] == ["worker-started", "worker-ready"]
    assert [event["mono_ns"] for event in events] == sorted(event["mono_ns"] for event in events)
    assert all(event["text"] and event["wall_ns"] > 0 for event in events)


def test_the_supervisor_has_one_thread_and_no_process_leaks_descriptors(tmp_path: Path) -> None:
    """Of a server that nobody asks for anything: what is open does not change."""
    listeners: list[str] = []
    with running(store=tmp_path / "store", workers=2) as server:
        assert psutil.Process(server.pid).num_threads() == 1
        for pid in (server.pid, *server.workers()):
            for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
                [flags] = [line.split()[1] for line in entry.read_text().splitlines() if line.startswith("flags:")]
                assert int(entry.name) < 3 or int(flags, 8) & os.O_CLOEXEC, f"{pid}: {entry.name}"
        for pid in server.workers():
            links = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
            listeners += links & listening_sockets(server.port)
    assert len(listeners) == len(set(listeners)) == 2  # each worker has a listening socket, and no other's


def listening_sockets(port: int) -> set[str]:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}


@servers.needs_nobody
def test_a_runtime_folder_of_somebody_else_is_one_clear_line() -> None:
    uid = servers.NOBODY - 1  # nobody itself is who other tests are, at the same time
    root = servers.scoreboard.runtime_root(uid)
    if root.exists():
        pytest.skip(f"{root} exists already")
    root.mkdir()  # ours, where that user expects its own
    try:
        done = other_server("--port", "0", "--discard", prefix=servers.as_user(uid))
    finally:
        root.rmdir()
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert str(root) in line
    assert "not this user's" in line


def test_a_worker_that_cannot_start_ends_the_server_with_the_reason() -> None:
    """Descriptors that suffice for the supervisor and not for a worker's event loop. How many these are depends on
    versions, so find it."""
    for descriptors in range(11, 18):
        limited = ("prlimit", f"--nofile={descriptors}:{descriptors}", "timeout", "--foreground", "50")
        done = other_server("--port", "0", "--workers", "1", "--discard", prefix=limited)
        if "could not start" in done.stderr:
            break
    else:
        pytest.fail("no limit stopped a worker from starting")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Too many open files" in done.stderr
    assert "ended with exit code 1; stopping the server" in done.stderr.splitlines()[-1]


# ── Deaths ──


def test_a_killed_worker_is_replaced_and_only_its_uploads_fail(tmp_path: Path) -> None:
    with running(store=tmp_path / "store", workers=2) as server, ExitStack() as stack:
        by_pid: dict[int, Client] = {}
        while len(by_pid) < 2:
            client = stack.enter_context(Client(server.port))
            by_pid.setdefault(client.upload(b"first", "first").pid, client)
        for pid, client in by_pid.items():
            client.send_header(2 * MIB, f"by-{pid}")
            client.sock.sendall(bytes(MIB))
        eventually(lambda: len(server.temporary_files()) == 2, "both have begun")
        before = {slot.slot: slot for slot in server.slots()}
        victim, survivor = by_pid
        [slot] = [slot.slot for slot in before.values() if slot.pid == victim]
        os.kill(victim, signal.SIGKILL)

        eventually(lambda: victim not in server.workers() and len(server.workers()) == 2, "it was replaced")
        with pytest.raises(LOST):
            by_pid[victim].sock.sendall(bytes(MIB))
            by_pid[victim].reply()
        by_pid[survivor].sock.sendall(bytes(MIB))
        assert by_pid[survivor].reply().code == "ok"
        assert server.files() == {"first": 5, f"by-{survivor}": 2 * MIB}
        assert server.temporary_files() == []

        after = {slot.slot: slot for slot in server.slots()}
        assert (after[slot].births, after[1 - slot].births) == (2, 1)
        assert after[1 - slot].pid == survivor
        for number in (0, 1):
            assert after[number].uploads_stored >= before[number].uploads_stored
            assert after[number].bytes_stored >= before[number].bytes_stored
            assert after[number].connections_accepted >= before[number].connections_accepted
        assert after[slot].connections_now == 0

        [ended] = [event for event in server.events() if event["kind"] == "worker-ended"]
        assert (ended["slot"], ended["pid"], ended["how"]) == (slot, victim, "was ended by SIGKILL from somebody else")
        [replaced] = [event for event in server.events() if event["kind"] == "worker-replaced"]
        assert (replaced["slot"], replaced["pid"], replaced["replaces"]) == (slot, after[slot].pid, victim)

        served: set[int] = set()
        while len(served) < 2:
            served.add(upload(server.port, b"again", "again").pid)
        assert after[slot].pid in served


def test_connections_that_wait_for_a_dead_worker_are_served_by_its_replacement() -> None:
    """The supervisor keeps the listening socket, so its queue outlives the worker."""
    with running() as server, ExitStack() as stack:
        [first] = server.workers()
        os.kill(first, signal.SIGSTOP)
        clients = [stack.enter_context(Client(server.port)) for _ in range(10)]
        for client in clients:
            client.send(b"abc", connection="close")
        os.kill(first, signal.SIGKILL)
        assert [client.reply().code for client in clients] == ["ok"] * 10
        assert eventually(server.workers, "its replacement is known") != [first]


def test_a_killed_supervisor_takes_its_workers_along_and_frees_the_port(tmp_path: Path) -> None:
    with running(store=tmp_path / "store", workers=3, exit_code=-signal.SIGKILL) as server:
        workers = server.workers()
        os.kill(workers[0], signal.SIGSTOP)  # one that could not run any handler
        with Client(server.port) as client:
            server.process.kill()
            eventually(lambda: not servers.session(server.pid), "all workers are gone")
            with pytest.raises(LOST):
                client.upload(b"abc")
        assert bindable(server.port)


# ── Ending ──


def draining(server: Server) -> bool:
    """Whether no worker takes new connections any more; those without any may have ended."""
    return {slot.state for slot in server.slots()} <= {"draining", "empty"}


def test_term_finishes_every_upload_that_has_begun_or_begins_on_an_open_connection(tmp_path: Path) -> None:
    with running(store=tmp_path / "store", workers=2) as server, ExitStack() as stack:
        busy, idle, short = (stack.enter_context(Client(server.port)) for _ in range(3))
        busy.send_header(2000, "busy")
        busy.sock.sendall(bytes(1))
        idle.upload(b"before", "before")
        short.send_header(1000, "short", connection="close")
        eventually(lambda: sum(slot.connections_now for slot in server.slots()) == 3, "all are open")
        server.process.terminate()
        eventually(lambda: draining(server), "it drains")
        with pytest.raises(ConnectionRefusedError):
            Client(server.port)
        assert "draining" in [event["kind"] for event in server.events()]
        busy.sock.sendall(bytes(1999))
        short.sock.sendall(bytes(1000))
        replies = [busy.reply(), idle.upload(bytes(300_000), "idle"), short.reply()]
        assert [(reply.code, reply.connection) for reply in replies] == [("ok", "close")] * 3
        for client in (busy, idle, short):
            client.expect_eof()
            client.sock.close()
        assert server.wait() == 0
        assert server.files() == {"busy": 2000, "before": 6, "idle": 300_000, "short": 1000}


def test_a_reply_in_a_drain_is_readable_though_the_client_is_sending_its_next_upload() -> None:
    """Closing with that unread would be a reset, which may overtake the reply."""
    with running() as server, Client(server.port) as client:
        client.upload(b"before")
        server.process.terminate()
        eventually(lambda: draining(server), "it drains")
        first = client.connection.send_upload(UploadHeader(3, "first")) + b"abc"
        second = client.connection.send_upload(UploadHeader(MIB, "second")) + bytes(MIB)
        client.sock.setblocking(False)
        client.sock.send(first + second)  # as much of it as there is room for
        client.sock.setblocking(True)
        reply = client.reply()
        assert (reply.code, reply.file_name, reply.connection) == ("ok", "first", "close")
        client.expect_eof()
        client.sock.close()
        assert server.wait() == 0


@pytest.mark.parametrize("kinds", [("close", "keep-alive"), ("close",)], ids=["mixed", "short only"])
def test_who_was_connected_but_not_accepted_yet_is_served_before_the_end(kinds: tuple[str, ...]) -> None:
    """200 wait, more than a worker accepts in one burst, so that TERM finds some of them still waiting."""
    with running() as server, ExitStack() as stack:
        [worker] = server.workers()
        os.kill(worker, signal.SIGSTOP)
        clients = [stack.enter_context(Client(server.port)) for _ in range(200)]
        for number, client in enumerate(clients):
            client.send(b"abc", connection=kinds[number % len(kinds)])
        server.process.terminate()
        eventually(lambda: any(event["kind"] == "draining" for event in server.events()), "it was told")
        os.kill(worker, signal.SIGCONT)
        for client in clients:
            assert client.reply().code == "ok"
            client.sock.close()  # one that was served before TERM was seen might go on
        assert server.wait() == 0


def test_the_drain_timeout_refuses_what_hangs_and_closes_what_is_idle(tmp_path: Path) -> None:
    with (
        running("--drain-timeout", "200ms", store=tmp_path / "store") as server,
        Client(server.port) as hanging,
        Client(server.port) as idle,
        Client(server.port) as silent,
    ):
        hanging.send_header(100, "hanging")
        hanging.sock.sendall(bytes(10))
        idle.upload(b"before", "before")
        eventually(lambda: server.slots()[0].connections_now == 3, "all are open")
        server.process.terminate()
        expect_refusal(hanging, "shutting_down")
        idle.expect_eof()
        silent.expect_eof()
        hanging.sock.close()
        assert server.wait() == 0
        assert server.files() == {"before": 6}


@pytest.mark.parametrize("size", [3, 50_000])  # as much as a receive window has room for
def test_what_is_sent_as_the_drain_ends_is_answered(size: int, tmp_path: Path) -> None:
    """Over a connection that was idle until then, while the worker had no time to look."""
    with running("--drain-timeout", "500ms", store=tmp_path / "store") as server, Client(server.port) as client:
        client.upload(b"before", "before")
        [worker] = server.workers()
        server.process.terminate()
        eventually(lambda: server.slots()[0].state == "draining", "it drains")
        os.kill(worker, signal.SIGSTOP)
        client.send(bytes(size), "late")
        until = time.monotonic() + 0.6
        eventually(lambda: time.monotonic() > until, "the drain timeout has passed")
        os.kill(worker, signal.SIGCONT)
        reply = client.reply()
        assert (reply.code, reply.connection) == ("ok", "close")
        client.expect_eof()
        client.sock.close()
        assert server.wait() == 0
        assert server.files() == {"before": 6, "late": size}


def test_a_second_term_ends_at_once(tmp_path: Path) -> None:
    with running(store=tmp_path / "store", workers=2, exit_code=1) as server, Client(server.port) as client:
        client.send_header(100, "hanging")
        client.sock.sendall(bytes(10))
        eventually(server.temporary_files, "it has begun")
        server.process.terminate()
        eventually(lambda: any(event["kind"] == "draining" for event in server.events()), "it drains")
        assert server.stop() == 1
        with pytest.raises(LOST):
            client.reply()
        assert server.files() == {}
        assert "told a second time to stop" in server.messages()


def test_ctrl_c_to_the_whole_process_group_drains(tmp_path: Path) -> None:
    with running(store=tmp_path / "store", workers=2) as server, Client(server.port) as client:
        client.send_header(100, "a")
        client.sock.sendall(bytes(10))
        eventually(server.temporary_files, "it has begun")
        os.killpg(server.pid, signal.SIGINT)
        eventually(lambda: draining(server), "it drains")
        client.sock.sendall(bytes(90))
        assert client.reply().code == "ok"
        client.sock.close()
        assert server.wait() == 0
        assert server.files() == {"a": 100}
        assert "Traceback" not in server.messages()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once_and_frees_its_port(number: signal.Signals) -> None:
    with running(workers=3) as server:
        assert server.stop(number) == 0
        assert bindable(server.port)


def test_term_to_the_whole_process_group_is_no_accident_of_the_workers(tmp_path: Path) -> None:
    with running(store=tmp_path / "store", workers=2) as server, Client(server.port) as client:
        client.send_header(100, "a")
        client.sock.sendall(bytes(10))
        eventually(server.temporary_files, "it has begun")
        os.killpg(server.pid, signal.SIGTERM)
        eventually(lambda: draining(server), "it drains")
        client.sock.sendall(bytes(90))
        assert client.reply().code == "ok"
        client.sock.close()
        assert server.wait() == 0
        assert "replacing" not in server.messages()


def test_a_store_serves_one_server_at_a_time(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with running(store=store) as first:
        second = other_server("--port", "0", "--store", store)
        assert second.returncode == 1
        [said] = second.stderr.splitlines()
        assert said.startswith(f"Error: store {store} is used by pid {first.pid} (")
        assert said.endswith("); name another folder: --store DIR, or make serve STORE=DIR")
        assert upload(first.port, b"still here", "a").code == "ok"
    with running(store=store):
        pass  # free again


def test_a_store_may_be_a_link_to_a_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    with running(store=tmp_path / "store") as server:
        assert upload(server.port, b"abc", "a").code == "ok"
    assert (tmp_path / "disk" / "a").read_bytes() == b"abc"


def test_closing_with_more_on_the_way_beside_a_batch_crashes_nothing(tmp_path: Path) -> None:
    """A flush while libuv asks where to read to would close the transport under it: it did, with SIGSEGV."""
    with running(store=tmp_path / "store") as server:
        [worker] = server.workers()
        for _ in range(5):
            with Client(server.port) as large, Client(server.port) as small:
                for _ in range(3):
                    large.upload(bytes(16 * MIB), "large")  # its receive window grows
                os.kill(worker, signal.SIGSTOP)
                small.send(b"abc", "small")
                large.send(b"x" * 1000, "last", connection="close")
                large.sock.setblocking(False)
                try:
                    large.sock.send(bytes(2 * MIB))
                except BlockingIOError:
                    pass
                os.kill(worker, signal.SIGCONT)
                assert small.reply().code == "ok"
        assert server.workers() == [worker]
