"""The real server: what becomes of a name that is taken, and of uploads that survive the loss of power."""

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from servers import DEADLINE_S, ROOT, Client, Server, eventually, running, upload

from server.protocol import RemoteProtocolError, Reply, UploadHeader, digest_of

MIB = 1 << 20
SIZES = [3, 2 * MIB]  # whole in one read, and in pieces
STRACE = shutil.which("strace")

both_ways = pytest.mark.parametrize("size", SIZES, ids=["whole", "in pieces"])


# ── Taken names ──


@both_ways
def test_each_upload_of_one_name_is_kept_under_its_own(tmp_path: Path, size: int) -> None:
    """By two workers at once, which never overwrite each other's."""
    bodies = [number.to_bytes(size, "little") for number in range(24)]
    with running("--collision", "unique", store=tmp_path / "store", workers=2) as server:
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda body: upload(server.port, body, "photo.jpg"), bodies))
        assert {reply.code for reply in replies} == {"ok"}
        names = [str(reply.file_name) for reply in replies]
        assert len(set(names)) == len(names)
        assert {name for name in names if not re.fullmatch(r"photo(-\d+)?\.jpg", name)} == set()
        assert set(server.files()) == set(names)
        for name, body in zip(names, bodies, strict=True):
            assert (tmp_path / "store" / name).read_bytes() == body
        assert server.state().options["collision"] == "unique"


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_taken_name_is_refused_and_what_follows_is_served(tmp_path: Path, durability: str) -> None:
    store = tmp_path / "store"
    with (
        running("--collision", "reject", "--durability", durability, store=store) as server,
        Client(server.port) as client,
    ):
        assert client.upload(b"first", "a").code == "ok"
        for size in (0, 3, MIB):
            reply = client.upload(bytes(size), "a")
            assert (reply.status, reply.code, reply.file_name) == ("rejected", "exists", "a")
            assert (reply.connection, reply.received) == ("keep-alive", size)
        assert client.upload(b"next", "b").code == "ok"
        assert server.files() == {"a": 5, "b": 4}
        assert (server.failures()["exists"], server.stored()) == (3, 2)


def test_a_file_that_is_too_large_to_be_received_for_nothing_is_refused_at_its_header(tmp_path: Path) -> None:
    with running("--collision", "reject", store=tmp_path / "store") as server, Client(server.port) as client:
        assert client.upload(b"first", "a").code == "ok"
        client.send_header(MIB + 1, "a")
        reply = client.reply()
        assert (reply.code, reply.connection) == ("exists", "close")
        client.expect_eof()
        assert server.temporary_files() == []


@both_ways
def test_of_two_that_come_at_once_one_is_refused_at_the_end(tmp_path: Path, size: int) -> None:
    with running("--collision", "reject", store=tmp_path / "store", workers=2) as server, ExitStack() as stack:
        clients = [stack.enter_context(Client(server.port)) for _ in range(8)]
        for client in clients:
            client.send_header(size, "a")
        eventually(lambda: len(server.temporary_files()) == len(clients), "all have begun")
        together = threading.Barrier(len(clients))

        def finish(number: int) -> Reply:
            together.wait()
            clients[number].sock.sendall(bytes([number]) * size)
            return clients[number].reply()

        with ThreadPoolExecutor(len(clients)) as pool:
            replies = list(pool.map(finish, range(len(clients))))
        assert sorted(reply.code for reply in replies) == ["exists"] * 7 + ["ok"]
        [winner] = [number for number, reply in enumerate(replies) if reply.code == "ok"]
        assert (tmp_path / "store" / "a").read_bytes() == bytes([winner]) * size
        assert {reply.connection for reply in replies} == {"keep-alive"}
        for number, client in enumerate(clients):
            assert client.upload(b"next", f"{number}").code == "ok"


@pytest.mark.parametrize("collision", ["unique", "reject"])
def test_a_link_out_of_the_store_counts_as_taken(tmp_path: Path, collision: str) -> None:
    outside, store = tmp_path / "outside", tmp_path / "store"
    with running("--collision", collision, store=store) as server:
        (store / "link").symlink_to(outside)
        reply = upload(server.port, b"new", "link")
        assert (reply.code, reply.file_name) == (("ok", "link-1") if collision == "unique" else ("exists", "link"))
        assert (store / "link").is_symlink()
        assert not outside.exists()


def test_a_temporary_folder_swapped_for_a_link_leads_nothing_out(tmp_path: Path) -> None:
    """What is served goes on in the folder that was moved; the next worker does not start in another."""
    store, outside = tmp_path / "store", tmp_path / "outside"
    (outside / "0").mkdir(parents=True)
    (outside / "0" / "precious").write_bytes(b"precious")
    with running(store=store, exit_code=1) as server:
        (store / ".incoming").rename(store / "moved")
        (store / ".incoming").symlink_to(outside)
        for size in SIZES:
            assert upload(server.port, bytes(size), f"{size}").code == "ok"
            assert (store / f"{size}").stat().st_size == size
        os.kill(server.workers()[0], signal.SIGKILL)
        server.wait()
        assert "is no folder, or a symbolic link" in server.messages()
        (store / ".incoming").unlink()
    assert (outside / "0" / "precious").read_bytes() == b"precious"
    assert [path.name for path in outside.rglob("*")] == ["0", "precious"]


# ── What survives the loss of power ──


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that do not harm it."""
    store = tmp_path_factory.mktemp("uploads") / "new" / "store"
    with running("--durability", "power", store=store, workers=2) as server:
        yield server


def test_the_state_says_how_durable_uploads_are(shared: Server) -> None:
    assert shared.state().options["durability"] == "power"


def test_pipelined_uploads_whole_and_in_pieces_are_answered_in_order(shared: Server) -> None:
    bodies = [bytes([number]) * (300_000 if number % 5 == 4 else number * 10) for number in range(60)]
    with Client(shared.port) as client:
        checked = [{"digest": digest_of("sha256", body)} if number % 3 else {} for number, body in enumerate(bodies)]
        frames = [
            client.connection.send_upload(UploadHeader(len(body), f"{number}", **keys)) + body
            for number, (body, keys) in enumerate(zip(bodies, checked, strict=True))
        ]
        sender = threading.Thread(target=client.sock.sendall, args=(b"".join(frames),))
        sender.start()
        replies = [client.reply() for _ in bodies]
        sender.join()
    assert [(reply.code, reply.file_name) for reply in replies] == [("ok", f"{number}") for number in range(60)]
    assert [reply.digest for reply in replies] == [digest_of("xxh3_128", body) for body in bodies]
    assert shared.store is not None
    assert [(shared.store / f"{number}").read_bytes() for number in range(60)] == bodies


def as_much_as_fits(client: Client, data: bytes) -> memoryview:
    """Send what the kernel takes while nobody reads; returns what is left."""
    left = memoryview(data)
    client.sock.setblocking(False)
    try:
        while left:
            left = left[client.sock.send(left) :]
    except BlockingIOError:
        pass
    client.sock.settimeout(DEADLINE_S)
    return left


@pytest.mark.parametrize("durability", ["process", "power"])
def test_what_was_sent_before_the_connection_was_accepted_keeps_its_order(tmp_path: Path, durability: str) -> None:
    """More than is read at once, so that some of it waits here and the rest in the kernel."""
    bodies = [str(number).encode() * 100 for number in range(1500)]
    with running("--durability", durability, store=tmp_path / "store") as server:
        [worker] = server.workers()
        os.kill(worker, signal.SIGSTOP)
        with Client(server.port) as client:
            frames = [
                client.connection.send_upload(UploadHeader(len(body), f"{number}")) + body
                for number, body in enumerate(bodies)
            ]
            rest = as_much_as_fits(client, b"".join(frames))
            os.kill(worker, signal.SIGCONT)
            sender = threading.Thread(target=client.sock.sendall, args=(rest,))
            sender.start()
            replies = [client.reply() for _ in bodies]
            sender.join()
        assert [(reply.code, reply.file_name) for reply in replies] == [("ok", f"{n}") for n in range(len(bodies))]
        assert [(tmp_path / "store" / f"{number}").read_bytes() for number in range(len(bodies))] == bodies


@both_ways
def test_connections_end_as_they_do_without(shared: Server, size: int) -> None:
    with Client(shared.port) as client:
        assert client.upload(bytes(size), connection="close").connection == "close"
        client.expect_eof()
    with Client(shared.port) as client:
        client.send(bytes(size))
        client.half_close()
        assert client.reply().code == "ok"
        client.expect_eof()
    with Client(shared.port) as client:
        client.send(bytes(size), "good")
        client.send(b"abc", "..")
        assert [client.reply().code for _ in range(2)] == ["ok", "name_rejected"]
        client.expect_eof()


def test_many_at_once_are_all_stored_and_counted_once(shared: Server) -> None:
    before = shared.stored()
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(shared.port)) for _ in range(100)]
        for turn in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d in turn %d" % (number, turn), f"many {number}")
            assert {client.reply().code for client in clients} == {"ok"}
    assert shared.stored() == before + 300
    assert shared.store is not None
    for number in range(100):
        assert (shared.store / f"many {number}").read_bytes() == b"%d in turn 2" % number


# ── A disk that takes its time, or fails ──


class Disk:
    """The disk of a server, under tests/held_disk.py."""

    def __init__(self, folder: Path) -> None:
        self.hold_file = folder / "hold"

    def hold(self, error: str = "") -> None:
        """Let no fsync return, or let each fail with this errno."""
        new = self.hold_file.with_suffix(".new")
        new.write_text(error)
        new.rename(self.hold_file)

    def let_go(self) -> None:
        self.hold_file.unlink(missing_ok=True)

    def wait_until_asked(self) -> None:
        eventually(self.hold_file.with_suffix(".asked").exists, "the disk has been asked")


@contextmanager
def on_held_disk(tmp_path: Path, *options: str) -> Iterator[tuple[Server, Disk]]:
    disk = Disk(tmp_path)
    script = (str(ROOT / "tests" / "held_disk.py"), str(disk.hold_file))
    with running("--durability", "power", *options, store=tmp_path / "store", script=script) as server:
        try:
            yield server, disk
        finally:
            disk.let_go()


@both_ways
def test_nothing_is_said_counted_or_visible_before_the_disk_has_it(tmp_path: Path, size: int) -> None:
    with on_held_disk(tmp_path) as (server, disk), Client(server.port) as client, Client(server.port) as other:
        disk.hold()
        client.send(bytes(size), "a")
        disk.wait_until_asked()
        assert (server.files(), server.stored()) == ({}, 0)
        other.send(b"abc", "..")  # the loop goes on meanwhile
        assert other.reply().code == "name_rejected"
        client.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)
        client.sock.settimeout(DEADLINE_S)
        disk.let_go()
        assert client.reply().code == "ok"
        assert (server.files(), server.stored()) == ({"a": size}, 1)


@both_ways
def test_the_file_of_a_client_that_goes_away_meanwhile_stays(tmp_path: Path, size: int) -> None:
    with on_held_disk(tmp_path) as (server, disk):
        disk.hold()
        with Client(server.port) as client:
            client.send(bytes(size), "a")
            disk.wait_until_asked()
        disk.let_go()
        eventually(lambda: server.stored() == 1, "it is stored")
        assert server.files() == {"a": size}


@both_ways
@pytest.mark.parametrize("stays", [True, False], ids=["the client stays", "the client goes"])
def test_a_drain_waits_for_the_disk(tmp_path: Path, size: int, stays: bool) -> None:
    with on_held_disk(tmp_path) as (server, disk), Client(server.port) as client:
        disk.hold()
        client.send(bytes(size), "a")
        disk.wait_until_asked()
        server.process.terminate()
        eventually(lambda: server.slots()[0].state == "draining", "it drains")
        if not stays:
            client.sock.close()
        disk.let_go()
        if stays:
            reply = client.reply()
            assert (reply.code, reply.connection) == ("ok", "close")
            client.expect_eof()
            client.sock.close()
        assert server.wait() == 0
        assert server.files() == {"a": size}


@both_ways
def test_a_worker_killed_meanwhile_has_acknowledged_nothing(tmp_path: Path, size: int) -> None:
    with on_held_disk(tmp_path) as (server, disk):
        disk.hold()
        with Client(server.port) as client:
            client.send(bytes(size), "a")
            disk.wait_until_asked()
            [worker] = server.workers()
            os.kill(worker, signal.SIGKILL)
            with pytest.raises((ConnectionError, RemoteProtocolError)):
                client.reply()
        disk.let_go()
        eventually(lambda: server.workers() not in ([], [worker]), "it is replaced")
        assert (server.files(), server.temporary_files(), server.stored()) == ({}, [], 0)
        assert upload(server.port, bytes(size), "a").code == "ok"


@both_ways
@pytest.mark.parametrize(("error", "code"), [("EIO", "internal"), ("ENOSPC", "no_space")])
def test_what_the_disk_does_not_take_is_refused_and_not_there(tmp_path: Path, size: int, error: str, code: str) -> None:
    with on_held_disk(tmp_path) as (server, disk):
        assert upload(server.port, b"old", "a").code == "ok"
        disk.hold(error)
        with Client(server.port) as client:
            reply = client.upload(bytes(size), "a")
            assert (reply.status, reply.code, reply.connection) == ("failed", code, "close")
            client.expect_eof()
        assert (server.files(), server.temporary_files(), server.stored()) == ({"a": 3}, [], 1)
        assert server.failures() | {code: 0} == dict.fromkeys(server.failures(), 0)
        disk.let_go()
        assert upload(server.port, bytes(size), "a").code == "ok"
        assert server.files() == {"a": size}


# ── The order, as the kernel sees it ──


def why_no_strace() -> str:
    if STRACE is None:
        return "needs strace: apt-get install strace"
    tried = subprocess.run([STRACE, "-o", "/dev/null", "true"], stderr=subprocess.DEVNULL, check=False)
    return "" if tried.returncode == 0 else "strace may not trace here"


@pytest.mark.skipif(bool(why_no_strace()), reason=why_no_strace())
@both_ways
def test_file_and_folder_are_on_the_disk_before_the_reply(tmp_path: Path, size: int) -> None:
    """By strace: fsync of the file, its rename, fsync of the folder, and then the reply is written."""
    trace, store = tmp_path / "trace", tmp_path / "store"
    calls = "trace=fsync,rename,renameat,renameat2,write,writev,sendto,sendmsg"
    prefix = (str(STRACE), "-D", "-f", "-y", "-qq", "-s", "400", "-e", calls, "-e", "signal=none", "-o", str(trace))
    with running("--durability", "power", store=store, prefix=prefix) as server, Client(server.port) as client:
        for number in range(3):
            assert client.upload(bytes(size), f"name-{number}").code == "ok"
    lines = trace.read_text().splitlines()
    for number in range(3):
        renamed = next(i for i, line in enumerate(lines) if "rename" in line and f'"name-{number}"' in line)
        temporary = re.findall(r'"([^"]*)"', lines[renamed])[0]
        replied = next(i for i, line in enumerate(lines) if f'\\"file_name\\":\\"name-{number}\\"' in line)
        [file_synced] = syncs(lines, store / ".incoming" / "0" / temporary)
        folder_synced = next(i for i in syncs(lines, store) if i > renamed)
        assert end_of(lines, file_synced) < renamed
        assert renamed < folder_synced <= end_of(lines, folder_synced) < replied


def syncs(lines: list[str], path: Path) -> list[int]:
    """The lines on which an fsync of this begins."""
    return [i for i, line in enumerate(lines) if "fsync(" in line and f"<{path}>" in line]


def end_of(lines: list[str], begin: int) -> int:
    """The line on which the call has returned that begins on this one."""
    if "unfinished" not in lines[begin]:
        assert lines[begin].endswith("= 0"), lines[begin]
        return begin
    thread = lines[begin].split()[0]
    end = next(i for i in range(begin + 1, len(lines)) if lines[i].split()[0] == thread)
    assert lines[end].endswith("= 0"), lines[end]
    return end
