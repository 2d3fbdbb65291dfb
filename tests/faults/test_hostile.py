"""Clients that are slow, many, greedy or strangers, at the real server: each is told why it is cut off, and the others
do not notice.

What a client may send in one frame is the business of test_fuzz.py.
"""

import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from servers import DEADLINE_S, ROOT, Client, Flood, Server, eventually, running, upload
from slow import first_of
from small_disks import small_disk

from server.protocol import ClientConnection, Reply, UploadHeader, frame
from server.worker import SHUT_DOWN_GRACE_S

MIB = 1 << 20
GIB = 1 << 30
LONG = "1h"
CLIENT_BYTES = 400 << 10  # as server/README.md says


def patience(header: str = LONG, idle: str = LONG, grace: str = LONG) -> list[str]:
    """Options with one short clock, and those that would hide it long."""
    return ["--header-timeout", header, "--idle-timeout", idle, "--min-rate-grace", grace]


def dribble(client: Client, data: bytes, every_s: float) -> None:
    """Send byte after byte until all are sent or the server has answered."""
    for at in range(len(data)):
        if select.select([client.sock], [], [], every_s)[0]:
            return
        client.sock.sendall(data[at : at + 1])


def expect_refusal(client: Client, code: str, *words: str) -> Reply:
    """The connection's last reply, and then its end."""
    reply = client.reply()
    assert (reply.code, reply.connection) == (code, "close"), reply
    assert reply.message
    for word in words:
        assert word in reply.message, reply
    client.expect_eof()
    return reply


# ── The three clocks ──


def test_a_header_that_dribbles_is_cut_off_though_it_is_never_silent(tmp_path: Path) -> None:
    with running(*patience(header="1s"), store=tmp_path / "store") as server, Client(server.port) as client:
        began_s = time.monotonic()
        header = client.connection.send_upload(UploadHeader(5, "x" * 250))
        dribble(client, header, every_s=0.05)
        expect_refusal(client, "header_timeout", "1 s")
        assert time.monotonic() - began_s >= 1.0, "nobody is cut off too early"
        assert upload(server.port, b"abc").code == "ok"
        assert server.failures() == {"header_timeout": 1}


def test_a_header_is_timed_from_its_own_first_byte(tmp_path: Path) -> None:
    """Not from the connection's, and each anew: a slow client with good manners is served upload after upload."""
    with running(*patience(header="5s"), store=tmp_path / "store") as server, Client(server.port) as client:
        began_s = time.monotonic()
        while time.monotonic() - began_s < 6.0:
            header = client.connection.send_upload(UploadHeader(1, "name"))
            dribble(client, header + b"x", every_s=0.01)
            assert client.reply().code == "ok"
        assert server.failures() == {}


@pytest.mark.parametrize("sent", [3, 30, 200], ids=["length", "header", "body"])
def test_silence_within_an_upload_is_cut_off(sent: int, tmp_path: Path) -> None:
    with running(*patience(idle="1s"), store=tmp_path / "store") as server, Client(server.port) as client:
        stream = client.connection.send_upload(UploadHeader(1000, "x" * 100)) + bytes(1000)
        client.sock.sendall(stream[:sent])
        expect_refusal(client, "idle_timeout", "1 s")
        assert server.failures() == {"idle_timeout": 1}
        assert server.temporary_files() == []


def test_an_idle_connection_is_closed_without_a_word(tmp_path: Path) -> None:
    """A reply would be read as the answer to the next upload."""
    with running(*patience(idle="5s"), store=tmp_path / "store") as server:
        with Client(server.port) as silent, Client(server.port) as served:
            assert served.upload(b"abc").code == "ok"
            silent.expect_eof()
            served.expect_eof()
        assert server.failures() == {}


def test_a_body_under_the_least_rate_is_cut_off_after_the_grace(tmp_path: Path) -> None:
    with running(*patience(grace="1s"), "--min-rate", "1KiB", store=tmp_path / "store") as server:
        with Client(server.port) as slow, Client(server.port) as fast:
            body = memoryview(bytes(100_000))
            begin = fast.connection.send_upload(UploadHeader(len(body), "fast")) + body[:20_000]
            fast.sock.sendall(begin)  # 20 s ahead of the least rate, however slow this machine is for a while
            body = body[20_000:]
            began_s = time.monotonic()
            slow.send_header(100_000, "slow")
            while not select.select([slow.sock], [], [], 0.05)[0]:
                slow.sock.sendall(b"x")
                fast.sock.sendall(body[:100])
                body = body[100:]
            expect_refusal(slow, "too_slow", "1024/s")
            assert time.monotonic() - began_s >= 1.0
            fast.sock.sendall(body)
            assert fast.reply().code == "ok"
        assert server.failures() == {"too_slow": 1}
        assert server.files() == {"fast": 100_000}


def test_no_least_rate_means_none(tmp_path: Path) -> None:
    options = [*patience(grace="1s"), "--min-rate", "0"]
    with running(*options, store=tmp_path / "store") as server, Client(server.port) as client:
        client.send_header(50, "slow")
        dribble(client, bytes(50), every_s=0.05)
        assert client.reply().code == "ok"


def test_a_worker_that_stood_still_does_not_blame_its_clients(tmp_path: Path) -> None:
    with running(*patience("5s", "5s", "5s"), store=tmp_path / "store") as server, ExitStack() as stack:
        in_header, in_body, idle = (stack.enter_context(Client(server.port)) for _ in range(3))
        header = in_header.connection.send_upload(UploadHeader(3, "header"))
        in_header.sock.sendall(header[:20])
        in_body.send_header(3, "body")
        assert idle.upload(b"abc", "before").code == "ok"
        eventually(lambda: len(server.temporary_files()) == 1, "the body is waited for")
        [worker] = server.workers()
        os.kill(worker, signal.SIGSTOP)
        everyone = [client.sock for client in (in_header, in_body, idle)]
        assert select.select(everyone, [], [], 7.0)[0] == []
        os.kill(worker, signal.SIGCONT)
        in_header.sock.sendall(header[20:] + b"abc")
        in_body.sock.sendall(b"abc")
        assert idle.upload(b"abc", "after").code == "ok"
        assert in_header.reply().code == "ok"
        assert in_body.reply().code == "ok"
        assert server.failures() == {}


def test_a_client_that_never_reads_its_replies_is_cut_off(tmp_path: Path) -> None:
    with running(*patience(idle="5s")) as server, Client(server.port, receive_buffer_bytes=4096) as client:
        flood = Flood(client, 50_000)

        def has_begun() -> bool:
            flood.send()
            return server.stored() > 0

        def is_cut_off() -> bool:
            try:
                flood.send()
            except OSError:
                return True
            return server.slots()[0].connections_now == 0

        eventually(has_begun, "it is served")
        eventually(is_cut_off, "it is cut off")
        eventually(lambda: server.slots()[0].connections_now == 0, "nothing of it is left")
        assert "bytes of replies unsent" in server.messages()
        assert upload(server.port, b"abc").code == "ok"


@pytest.mark.parametrize("end", [None, *first_of([signal.SIGHUP, signal.SIGTERM])])
def test_replies_that_are_read_late_are_all_there(end: signal.Signals | None, tmp_path: Path) -> None:
    """More of them than a unix socket holds: the end of the connection must wait for the rest to be sent."""
    path = str(tmp_path / "socket")
    with running("--listen", f"unix://{path}", "--max-file-size", "1KiB") as server, Client(path) as client:
        assert client.upload(b"x").code == "ok"
        if end is not None:
            server.process.send_signal(end)
            eventually(lambda: server.slots()[0].retiring or server.slots()[0].state == "draining", "it drains")
        uploads = [client.connection.send_upload(UploadHeader(1, "a")) + b"x" for _ in range(1000)]
        client.sock.sendall(b"".join(uploads) + client.connection.send_upload(UploadHeader(MIB, "too large")))
        # That nothing is thrown away can only be seen by letting the time pass in which it used to be.
        until = time.monotonic() + SHUT_DOWN_GRACE_S + 1.0
        eventually(lambda: time.monotonic() > until, "longer than a connection lingers")
        replies = [client.reply()]
        while replies[-1].connection != "close":
            replies.append(client.reply())
        stored = [reply for reply in replies if reply.code == "ok"]
        assert len(stored) == server.stored() - 1
        assert len(stored) > 500
        client.expect_eof()
        if end == signal.SIGTERM:
            client.sock.close()
            assert server.wait() == 0


def test_a_refusal_and_all_replies_before_it_wait_in_the_kernel_for_who_reads_late() -> None:
    """Though more was sent than is discarded: an end with something unread is a reset, and takes them back."""
    with (
        running("--max-file-size", "1KiB") as server,
        Client(server.port, receive_buffer_bytes=4096) as client,
    ):
        flood = Flood(client, 2000)
        eventually(lambda: flood.send() or not flood.left, "all is sent")
        flood.left = memoryview(client.connection.send_upload(UploadHeader(GIB, "too large")) + bytes(16 * MIB))
        until = time.monotonic() + SHUT_DOWN_GRACE_S + 1.0
        eventually(lambda: flood.send() or time.monotonic() > until, "longer than a connection lingers")
        client.sock.setblocking(True)
        replies = [client.reply() for _ in range(2001)]
        assert [reply.code for reply in replies] == ["ok"] * 2000 + ["too_large"]


def test_what_who_does_not_read_can_take_of_a_workers_memory_is_bounded(tmp_path: Path) -> None:
    path, clients = str(tmp_path / "socket"), 40
    with running("--listen", f"unix://{path}") as server, ExitStack() as stack:
        worker = psutil.Process(server.workers()[0])
        floods = [Flood(stack.enter_context(Client(path)), 20_000) for _ in range(clients + 1)]
        floods.pop().send()  # what the first one makes grow is there for all
        eventually(lambda: server.stored() > 300, "it is served")
        before = worker.memory_info().rss

        seen: deque[tuple[int, int]] = deque(maxlen=10)

        def none_moves() -> bool:
            for flood in floods:
                flood.send()
            seen.append((sum(len(flood.left) for flood in floods), server.stored()))
            return server.stored() > clients * 300 and seen.count(seen[0]) == seen.maxlen

        eventually(none_moves, "none takes or gives more")
        grown = worker.memory_info().rss - before
        assert grown < clients * CLIENT_BYTES, grown


def test_a_crowd_that_dribbles_is_cut_off_and_others_are_served_meanwhile(tmp_path: Path) -> None:
    options = [*patience(header="5s", grace="5s"), "--min-rate", "1KiB"]
    with running(*options, store=tmp_path / "store") as server, ExitStack() as stack:
        crowd = [stack.enter_context(Client(server.port)) for _ in range(200)]
        for client in crowd[::2]:
            client.send_header(10_000, "body")
        streams = [b"" if number % 2 == 0 else frame(b" " * 5000) for number in range(len(crowd))]
        served = 0
        waiting = set(range(len(crowd)))
        at = 0
        while waiting:
            for number in list(waiting):
                if select.select([crowd[number].sock], [], [], 0)[0]:
                    waiting.discard(number)
                    continue
                crowd[number].sock.sendall(streams[number][at : at + 1] or b"x")
            at += 1
            assert upload(server.port, bytes(5000), "honest").code == "ok"
            served += 1
        for number, client in enumerate(crowd):
            client.connection.send_upload(UploadHeader(0, "x"))
            assert client.reply().code == ("too_slow" if number % 2 == 0 else "header_timeout")
        assert served > 3
        assert server.failures() == {"too_slow": 100, "header_timeout": 100}
        assert server.files() == {"honest": 5000}


# ── Limits ──


def test_no_more_connections_than_were_allowed_and_when_some_go_others_come(tmp_path: Path) -> None:
    with running("--max-connections", "3", store=tmp_path / "store") as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(server.port)) for _ in range(3)]
        for client in clients:
            assert client.upload(b"abc").code == "ok"
        for _ in range(5):
            with Client(server.port) as excess:
                excess.send(b"abc")
                expect_refusal(excess, "busy", "3")
        for client in clients:
            assert client.upload(b"abc").code == "ok"
        clients[0].sock.close()
        eventually(lambda: server.slots()[0].connections_now == 2, "there is room")
        assert upload(server.port, b"abc").code == "ok"
        assert server.failures() == {"busy": 5}


def test_more_connections_than_descriptors_is_one_clear_line() -> None:
    command = ["prlimit", "--nofile=1000:1000", sys.executable, "-m", "server", "--port", "0", "--discard"]
    ended = subprocess.run(
        [*command, "--max-connections", "5000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 1
    assert "max_connections is 5000, but 1000 descriptors (ulimit -n) are enough for " in ended.stderr
    assert "Traceback" not in ended.stderr


# ── The token ──


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("sesame ö\n")
    path.chmod(0o600)
    return path


def test_only_who_has_the_token_may_upload(token_file: Path, tmp_path: Path) -> None:
    with running("--token-file", token_file, store=tmp_path / "store") as server:
        for size in (3, MIB):
            assert upload(server.port, bytes(size), f"{size}", token="sesame ö").code == "ok"
            for wrong in ({}, {"token": ""}, {"token": "sesame"}, {"token": "sesame ö "}):
                with Client(server.port) as client:
                    client.send_header(size, "wrong", **wrong)
                    expect_refusal(client, "unauthorized")
        assert server.files() == {"3": 3, f"{MIB}": MIB}
        assert server.failures() == {"unauthorized": 8}
        assert server.state().options["token"] == "required"
        assert "sesame" not in server.messages() + str(server.state()) + str(server.events())
        assert "open to other users" not in server.messages()


def test_a_reload_takes_the_new_token(token_file: Path, tmp_path: Path) -> None:
    with running("--token-file", token_file, store=tmp_path / "store") as server:
        token_file.write_text("new")
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: "reload-finished" in [event["kind"] for event in server.events()], "no old worker accepts")
        assert upload(server.port, b"abc", token="new").code == "ok"
        assert upload(server.port, b"abc", token="sesame ö").code == "unauthorized"
        token_file.write_text("")
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: "whose content is no token" in server.messages(), "the reload is refused")
        assert upload(server.port, b"abc", token="new").code == "ok"


def test_a_token_that_others_may_read_is_warned_of(token_file: Path) -> None:
    token_file.chmod(0o644)
    with running("--token-file", token_file) as server:
        assert "is open to other users: chmod 600 it" in server.messages()


# ── The quota ──


def no_space(reply: Reply) -> bool:
    return (reply.status, reply.code, reply.connection) == ("failed", "no_space", "close")


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("size", [20_000, 600_000], ids=["whole", "in pieces"])
def test_the_store_holds_no_more_than_its_quota(size: int, durability: str, tmp_path: Path) -> None:
    options = ["--max-store", f"{4 * size}B", "--durability", durability]
    with running(*options, store=tmp_path / "store", workers=2) as server:
        replies = [upload(server.port, bytes(size), f"{number}") for number in range(6)]
        assert [reply.code for reply in replies] == ["ok"] * 4 + ["no_space"] * 2
        assert all(no_space(reply) and "may hold" in reply.message for reply in replies[4:])
        assert sum(server.files().values()) == 4 * size
        assert upload(server.port, bytes(size), "0").code == "no_space", "a file and its successor are there at once"
        assert upload(server.port, b"", "empty").code == "ok"
        (tmp_path / "store" / "1").unlink()
        eventually(lambda: upload(server.port, bytes(size), "6").code == "ok", "there is room again")
        assert upload(server.port, bytes(size), "7").code == "no_space"
        assert server.temporary_files() == []


def test_what_a_file_replaces_is_room_again(tmp_path: Path) -> None:
    with running("--max-store", "1MiB", store=tmp_path / "store", workers=2) as server:
        for number in range(50):
            assert upload(server.port, bytes(100_000 + number), "same").code == "ok"
        assert upload(server.port, bytes(MIB - 100_049), "other").code == "ok"
        assert upload(server.port, b"x", "more").code == "no_space"


def test_uploads_under_way_share_the_quota(tmp_path: Path) -> None:
    """None has more than its part when the others come, and together they would have twice what is allowed."""
    with running("--max-store", "4MiB", store=tmp_path / "store", workers=2) as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(server.port)) for _ in range(4)]
        for number, client in enumerate(clients):
            client.send_header(2 * MIB, f"{number}")
            client.sock.sendall(bytes(MIB // 2))
        eventually(lambda: sum(size_of(file) for file in server.temporary_files()) == 2 * MIB, "all have begun")
        replies = [finish(client, 2 * MIB - MIB // 2) for client in clients]
        assert {reply.code for reply in replies} == {"ok", "no_space"}
        stored = server.files()
        assert sorted(stored) == [f"{number}" for number, reply in enumerate(replies) if reply.code == "ok"]
        assert sum(stored.values()) <= 4 * MIB
        assert server.temporary_files() == []


def size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def finish(client: Client, size: int) -> Reply:
    """Send the rest of a body, or as much of it as the server takes before it answers."""
    try:
        send_until_answered(client, size)
    except OSError:
        pass
    return client.reply()


def send_until_answered(client: Client, size: int) -> None:
    client.sock.setblocking(False)
    part = bytes(256 << 10)
    while size:
        readable, _, _ = select.select([client.sock], [client.sock], [], DEADLINE_S)
        if readable:
            break
        size -= client.sock.send(part[: min(size, len(part))])
    client.sock.settimeout(DEADLINE_S)


def test_a_killed_worker_leaves_no_dent_in_the_quota(tmp_path: Path) -> None:
    with running("--max-store", "1MiB", store=tmp_path / "store") as server:
        with Client(server.port) as client:
            client.send_header(MIB, "lost")
            client.sock.sendall(bytes(MIB - 10))
            eventually(lambda: [size_of(one) for one in server.temporary_files()] == [MIB - 10], "it has come so far")
            os.kill(server.workers()[0], signal.SIGKILL)
            eventually(lambda: server.workers() and server.temporary_files() == [], "it was replaced")
        assert upload(server.port, bytes(MIB), "whole").code == "ok"


def test_what_is_in_the_store_at_the_start_counts(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "old").write_bytes(bytes(900_000))
    with running("--max-store", "1MB", store=store) as server:
        assert upload(server.port, bytes(100_001), "new").code == "no_space"
        assert upload(server.port, bytes(100_000), "new").code == "ok"


# ── The disk ──


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "64m") as mounted:
        yield mounted


def test_a_file_that_the_disk_cannot_hold_is_refused_before_its_body(disk: Path) -> None:
    with running(store=disk / "store") as server, Client(server.port) as client:
        client.send_header(GIB)
        reply = expect_refusal(client, "no_space", "1 GiB")
        assert reply.received == 0
        assert server.temporary_files() == []


def test_headers_that_claim_the_whole_disk_take_it_from_nobody(disk: Path) -> None:
    with running(store=disk / "store") as server, ExitStack() as stack:
        for number in range(20):
            claimant = stack.enter_context(Client(server.port))
            claimant.send_header(60 * MIB, f"{number}")
            claimant.sock.sendall(b"x")
        eventually(lambda: len(server.temporary_files()) == 20, "all have begun")
        for number in range(5):
            assert upload(server.port, bytes(10 * MIB), f"honest {number}").code == "ok"


@pytest.mark.parametrize("size", [5000, MIB])
def test_a_store_that_becomes_read_only_says_so_and_is_back_when_that_ends(disk: Path, size: int) -> None:
    with running(store=disk / "store") as server:
        remount(disk, "ro")
        try:
            with Client(server.port) as client:
                client.send_header(size)
                reply = finish(client, size)
                assert (reply.status, reply.code, reply.connection) == ("failed", "internal", "close")
                assert "Read-only" in reply.message
        finally:
            remount(disk, "rw")
        assert upload(server.port, bytes(size)).code == "ok"


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True, timeout=60)


# ── What the store's files may be ──


@pytest.mark.parametrize(("umask", "folder", "file"), [(None, 0o700, 0o600), ("027", 0o750, 0o640)])
def test_the_umask_decides_who_may_read_what_was_stored(
    umask: str | None, folder: int, file: int, tmp_path: Path
) -> None:
    options = [] if umask is None else ["--umask", umask]
    with running(*options, store=tmp_path / "made" / "store") as server:
        assert upload(server.port, b"abc", "whole").code == "ok"
        assert upload(server.port, bytes(MIB), "pieces").code == "ok"
        for name in ("whole", "pieces"):
            assert stat.S_IMODE((tmp_path / "made" / "store" / name).stat().st_mode) == file
        assert stat.S_IMODE((tmp_path / "made" / "store").stat().st_mode) == folder
        assert stat.S_IMODE((tmp_path / "made" / "store" / ".incoming").stat().st_mode) == 0o700


# ── A refusal can be read, also by who is still sending a GiB ──


def _header(**fields: object) -> Callable[[Server], bytes]:
    def bytes_of(server: Server) -> bytes:
        given = {"file_size": GIB, "file_name": "large"} | fields
        return ClientConnection().send_upload(UploadHeader(**given))  # type: ignore[arg-type]

    return bytes_of


REFUSED = {
    "bad_length": lambda server: b"\xff\xff\xff\x7f",
    "bad_header": lambda server: frame(b"no JSON"),
    "unauthorized": _header(token="wrong"),
    "name_rejected": _header(file_name="..", token="t"),
    "too_large": _header(file_size=3 * GIB, token="t"),
    "exists": _header(file_name="taken", token="t"),
    "no_space": _header(token="t", file_size=GIB + GIB // 2),
}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("strict")
    token = folder / "token"
    token.write_text("t")
    token.chmod(0o600)
    options = ["--token-file", token, "--max-file-size", "2GiB", "--collision", "reject", "--max-store", "1GiB"]
    with running(*options, store=folder / "store") as server:
        assert upload(server.port, b"abc", "taken", token="t").code == "ok"
        yield server


@pytest.mark.parametrize(
    ("reads", "code"),
    [*(("meanwhile", code) for code in REFUSED), *first_of(("afterwards", code) for code in REFUSED)],
)
def test_a_refusal_is_read_by_who_sends_a_gibibyte(code: str, reads: str, strict: Server) -> None:
    before = strict.failures().get(code, 0)
    with Client(strict.port) as client:
        client.connection.send_upload(UploadHeader(0, "x"))  # a reply is due
        client.sock.sendall(REFUSED[code](strict))
        reply = finish(client, GIB) if reads == "meanwhile" else sent_blindly(client, GIB)
        assert (reply.code, reply.connection) == (code, "close")
        assert reply.message
    assert strict.failures()[code] == before + 1


def sent_blindly(client: Client, size: int) -> Reply:
    """By a client that reads only when all is sent, or when it cannot send any more."""
    part = bytes(MIB)
    try:
        for _ in range(size // MIB):
            client.sock.sendall(part)
    except OSError:
        pass
    return client.reply()


def test_who_is_too_many_reads_that_while_it_sends(tmp_path: Path) -> None:
    with running("--max-connections", "1") as server, Client(server.port) as first:
        assert first.upload(b"abc").code == "ok"
        for send in (finish, sent_blindly):
            with Client(server.port) as client:
                client.send_header(GIB)
                assert send(client, GIB).code == "busy"


def test_who_is_cut_off_by_the_drain_reads_that_while_it_sends() -> None:
    with running("--drain-timeout", "200ms") as server, Client(server.port) as client:
        client.send_header(8 * GIB)
        client.sock.sendall(b"x")
        eventually(lambda: server.slots()[0].connections_now == 1, "it is let in")
        server.process.send_signal(signal.SIGTERM)
        assert finish(client, 8 * GIB).code == "shutting_down"
        client.sock.close()
        assert server.wait() == 0


def test_a_wrong_digest_after_a_gibibyte_is_told_and_the_connection_goes_on() -> None:
    with running() as server, Client(server.port) as client:
        client.send_header(GIB, digest="xxh3_128:" + "0" * 32)
        assert sent_blindly(client, GIB).code == "digest_mismatch"
        assert client.upload(b"abc").code == "ok"


def test_who_breaks_off_reads_how_much_came() -> None:
    with running() as server, Client(server.port) as client:
        client.send_header(GIB)
        client.sock.sendall(bytes(MIB))
        client.half_close()
        expect_refusal(client, "truncated", f"received {MIB} of {GIB} bytes")


# ── Strangers ──


@pytest.mark.parametrize(
    ("first", "hint"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
        (b"PUT /file HTTP/1.1\r\nContent-Length: 1073741824\r\n\r\n", "HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "TLS"),
    ],
)
def test_another_protocol_is_recognised(first: bytes, hint: str) -> None:
    with running() as server, Client(server.port) as client:
        client.connection.send_upload(UploadHeader(0, "x"))
        client.sock.sendall(first)
        expect_refusal(client, "bad_length", hint)


def test_a_thousand_resets_leave_nothing_behind(tmp_path: Path) -> None:
    with running(store=tmp_path / "store") as server:
        [worker] = server.workers()
        for number in range(1000):
            with Client(server.port) as client:
                client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
                client.send_header(10_000, f"{number}")
                client.sock.sendall(bytes(number * 9))
        assert upload(server.port, b"abc").code == "ok"  # it waited behind all of them to be accepted
        eventually(lambda: server.slots()[0].connections_now == 0, "all are gone")
        eventually(lambda: server.temporary_files() == [], "so are their files")
        eventually(lambda: sum(1 for _ in Path(f"/proc/{worker}/fd").iterdir()) < 40, "so are their descriptors")
