"""The real server when something it needs runs out or stands still: descriptors, space, processes, readers."""

import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import servers
from servers import Client, Flood, Server, eventually, running, upload
from small_disks import small_disk
from stores import exfat

from server.protocol import UploadHeader

MIB = 1 << 20


# ── Descriptors ──


FEW_DESCRIPTORS = ("prlimit", "--nofile=200:200")
NO_HURRY = ("--min-rate", "0")  # a test that fills the server up may take longer than a client's grace


def test_connections_beyond_the_descriptors_are_told_busy_and_the_others_go_on(tmp_path: Path) -> None:
    options = ["--max-connections", "40", *NO_HURRY]
    with running(*options, store=tmp_path / "store", prefix=FEW_DESCRIPTORS) as server, ExitStack() as stack:
        clients: list[Client] = []

        def taken_or_told() -> bool:
            return len(server.temporary_files()) == len(clients) or server.failures() != {}

        while server.failures() == {}:  # every connection has its file open: that is the most they need
            clients.append(stack.enter_context(Client(server.port)))
            clients[-1].send_header(1000, f"{len(clients)}")
            clients[-1].sock.sendall(bytes(500))
            eventually(taken_or_told, "the upload has begun or was refused")
        excess = clients.pop()
        for connection in ("keep-alive", "close"):
            reply = excess.reply()
            assert (reply.status, reply.code, reply.connection) == ("rejected", "busy", "close")
            assert str(len(clients)) in reply.message
            excess.expect_eof()
            excess.sock.close()
            excess = stack.enter_context(Client(server.port))
            excess.send(bytes(100), connection=connection)
        assert excess.reply().code == "busy"
        assert server.failures() == {"busy": 3}
        for client in clients:
            client.sock.sendall(bytes(500))
        assert {client.reply().code for client in clients} == {"ok"}
        assert len(clients) > 10
        excess.sock.close()
        clients[0].sock.close()
        eventually(lambda: server.slots()[0].connections_now < len(clients), "there is room again")
        assert upload(server.port, b"abc", "next").code == "ok"
        assert server.files() == {"next": 3} | {f"{number + 1}": 1000 for number in range(len(clients))}


def test_more_files_at_once_than_descriptors_are_told_busy_and_small_uploads_go_on(tmp_path: Path) -> None:
    with running(*NO_HURRY, store=tmp_path / "store", prefix=FEW_DESCRIPTORS) as server, ExitStack() as stack:
        clients: list[Client] = []

        def taken_or_told() -> bool:
            return len(server.temporary_files()) == len(clients) or server.failures() != {}

        while server.failures() == {}:
            clients.append(stack.enter_context(Client(server.port)))
            clients[-1].send_header(1000, f"{len(clients)}")
            clients[-1].sock.sendall(bytes(500))
            eventually(taken_or_told, "the upload has begun or was refused")
        reply = clients.pop().reply()
        assert (reply.code, reply.connection) == ("busy", "close")
        assert f"{len(clients)} files open" in reply.message
        with Client(server.port) as small:
            small.sock.sendall(small.connection.send_upload(UploadHeader(1000, "small")) + bytes(1000))
            assert small.reply().code == "ok"
        clients[0].sock.sendall(bytes(500))
        assert clients[0].reply().code == "ok"
        clients[0].send_header(1000, "again")
        clients[0].sock.sendall(bytes(500))
        clients[0].sock.sendall(bytes(500))
        assert clients[0].reply().code == "ok"
        assert server.failures() == {"busy": 1}
        assert len(clients) > 10


def test_a_crowd_is_served_or_told_and_takes_nothing_from_those_who_were_there(tmp_path: Path) -> None:
    """Far more connections at one moment than there are descriptors, and at first none of them reads its reply."""
    with running(store=tmp_path / "store", prefix=FEW_DESCRIPTORS) as server, ExitStack() as stack:
        [worker] = server.workers()
        clients = [stack.enter_context(Client(server.port)) for _ in range(10)]
        for client in clients:
            assert client.upload(b"before").code == "ok"
        os.kill(worker, signal.SIGSTOP)  # so that all of the crowd waits in the accept queue
        crowd = [stack.enter_context(Client(server.port)) for _ in range(300)]
        for number, client in enumerate(crowd):
            client.send(bytes(100), f"{number}")
        os.kill(worker, signal.SIGCONT)
        for client in clients * 10:
            assert client.upload(bytes(1000)).code == "ok"
        codes = set()
        for client in crowd:
            codes.add(client.reply().code)
            client.sock.close()
        assert codes == {"ok", "busy"}
        for client in clients:
            assert client.upload(bytes(1000)).code == "ok"
        eventually(lambda: server.slots()[0].connections_now == len(clients), "the crowd is gone")
        assert upload(server.port, b"abc").code == "ok"
        assert server.workers() == [worker]


def test_pipelined_uploads_need_no_more_descriptors_than_one_after_the_other(tmp_path: Path) -> None:
    count = 2000
    with running(store=tmp_path / "store", prefix=FEW_DESCRIPTORS) as server, Client(server.port) as client:
        frames = [client.connection.send_upload(UploadHeader(1, f"{number}")) + b"x" for number in range(count)]
        os.kill(server.workers()[0], signal.SIGSTOP)  # so that as many as possible are read at once
        client.sock.sendall(b"".join(frames))
        os.kill(server.workers()[0], signal.SIGCONT)
        for number in range(count):
            reply = client.reply()
            assert (reply.code, reply.file_name) == ("ok", f"{number}")
        assert len(server.files()) == count


# ── Space ──


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "2m") as mounted:
        yield mounted


def test_a_disk_that_neither_links_nor_takes_every_name(tmp_path: Path) -> None:
    """With what needs either: names of their own, and a quota that knows what is replaced. Whole and in pieces."""
    with exfat(tmp_path) as disk:
        options = ["--collision", "unique", "--max-store", "1MiB"]
        with running(*options, store=disk / "store") as server:
            size = 400 << 10
            assert [upload(server.port, bytes(size), "a.txt").file_name for _ in range(2)] == ["a.txt", "a-1.txt"]
            assert upload(server.port, bytes(size), "a.txt").code == "no_space"
            assert upload(server.port, b"x", "a.txt").file_name == "a-2.txt"
            for body in (b"x", bytes(200 << 10)):
                assert upload(server.port, body, "a:b.txt").code == "name_rejected"
            assert server.files() == {"a.txt": size, "a-1.txt": size, "a-2.txt": 1}
            assert server.temporary_files() == []


def free_bytes(folder: Path) -> int:
    info = os.statvfs(folder)
    return info.f_bavail * info.f_frsize


def sizes(files: list[Path]) -> list[int]:
    return [file.stat().st_size for file in files]


def send_until_answered(client: Client, size: int) -> None:
    """Send a body of that size, or as much of it as the server lets us before it answers."""
    client.sock.setblocking(False)
    while size:
        readable, _, _ = select.select([client.sock], [client.sock], [], servers.DEADLINE_S)
        if readable:
            break
        size -= client.sock.send(bytes(min(size, 64 << 10)))
    client.sock.settimeout(servers.DEADLINE_S)


def expect_no_space(client: Client, size: int, name: str = "large") -> None:
    client.send_header(size, name)
    send_until_answered(client, size)
    reply = client.reply()
    assert (reply.status, reply.code, reply.connection) == ("failed", "no_space", "close")
    assert reply.message
    client.expect_eof()


def test_a_full_disk_fails_the_upload_that_does_not_fit_and_no_other(disk: Path) -> None:
    with running(store=disk / "store") as server, Client(server.port) as other, Client(server.port) as client:
        other.send_header(200_000, "other")
        other.sock.sendall(bytes(100_000))
        eventually(lambda: sizes(server.temporary_files()) == [100_000], "the other has begun")
        before = free_bytes(disk)
        expect_no_space(client, 2_500_000)
        eventually(lambda: free_bytes(disk) >= before - 8192, "what it took is given back")
        other.sock.sendall(bytes(100_000))
        assert other.reply().code == "ok"
        assert other.upload(bytes(1000), "next").code == "ok"
        assert server.files() == {"other": 200_000, "next": 1000}
        assert server.temporary_files() == []
        assert server.failures() == {"no_space": 1}


def test_a_disk_that_fills_up_under_several_uploads_keeps_what_was_stored(disk: Path) -> None:
    """Four of 900 KB, in turns of a part each: they cannot all fit, and who does not is told so."""
    with running(*NO_HURRY, store=disk / "store") as server, ExitStack() as stack:
        assert upload(server.port, b"kept", "kept").code == "ok"
        clients = [stack.enter_context(Client(server.port)) for _ in range(4)]
        for number, client in enumerate(clients):
            client.send_header(900_000, f"{number}")
            client.sock.sendall(b"x")
        eventually(lambda: sizes(server.temporary_files()) == [1] * 4, "there was room for each when it began")
        for client in clients:
            client.sock.sendall(bytes(399_999))
        eventually(lambda: sizes(server.temporary_files()) == [400_000] * 4, "all have begun")
        codes = []
        for client in clients:
            send_until_answered(client, 500_000)
            codes.append(client.reply().code)
        assert set(codes) == {"ok", "no_space"}
        stored = {f"{number}": 900_000 for number, code in enumerate(codes) if code == "ok"}
        assert server.files() == {"kept": 4} | stored
        assert (server.store / "kept").read_bytes() == b"kept"  # type: ignore[operator]


@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_full_disk_is_said_of_small_files_too(disk: Path, connection: str) -> None:
    with running(store=disk / "store") as server:
        with (disk / "ballast").open("wb", buffering=0) as ballast:
            try:
                while ballast.write(bytes(4096)) == 4096:
                    pass
            except OSError:
                pass
        with Client(server.port) as client:
            reply = client.upload(bytes(5000), "small", connection=connection)
            assert (reply.status, reply.code, reply.connection) == ("failed", "no_space", "close")
            client.expect_eof()
        assert server.files() == {}
        assert server.temporary_files() == []
        (disk / "ballast").unlink()
        assert upload(server.port, bytes(5000), "small").code == "ok"


@pytest.mark.parametrize("size", [100_001, MIB])
def test_a_limit_on_file_sizes_is_no_space(tmp_path: Path, size: int) -> None:
    with running(store=tmp_path / "store", prefix=("prlimit", "--fsize=100000:100000")) as server:
        with Client(server.port) as client:
            expect_no_space(client, size)
        assert upload(server.port, bytes(100_000), "largest").code == "ok"
        assert server.files() == {"largest": 100_000}
        assert server.temporary_files() == []
        assert [slot.births for slot in server.slots()] == [1]  # SIGXFSZ killed nobody


def test_a_store_that_is_taken_away_is_an_internal_error_and_back_it_works(tmp_path: Path) -> None:
    with running(store=tmp_path / "store") as server:
        incoming = tmp_path / "store" / ".incoming" / "0"
        incoming.rmdir()
        for body in (b"abc", bytes(MIB)):
            with Client(server.port) as client:
                client.send_header(len(body))
                client.sock.sendall(body)
                reply = client.reply()
                assert (reply.status, reply.code, reply.connection) == ("failed", "internal", "close")
        [worker] = server.workers()
        incoming.mkdir()
        os.kill(worker, signal.SIGKILL)  # its replacement opens the folder anew
        eventually(lambda: server.workers() not in ([], [worker]), "it was replaced")
        assert upload(server.port, b"abc").code == "ok"


# ── Processes that stand still ──


def state_of(pid: int) -> str:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2]


def test_stopping_and_continuing_the_supervisor_kills_no_worker(tmp_path: Path) -> None:
    with running(store=tmp_path / "store", workers=2) as server:
        workers = server.workers()
        beats = [slot.heartbeat_ns for slot in server.slots()]
        os.kill(server.pid, signal.SIGSTOP)
        eventually(lambda: state_of(server.pid) == "T", "it stands still")
        for number in range(20):
            assert upload(server.port, bytes(1000), f"{number}").code == "ok"
        eventually(
            lambda: all(slot.heartbeat_ns > beat for slot, beat in zip(server.slots(), beats, strict=True)),
            "the workers live on",
        )
        os.kill(server.pid, signal.SIGCONT)
        assert upload(server.port, b"abc").code == "ok"
        assert server.workers() == workers
        assert [slot.births for slot in server.slots()] == [1, 1]
        assert [event["kind"] for event in server.events()].count("worker-started") == 2


def test_a_worker_that_dies_while_the_supervisor_stands_still_is_replaced_afterwards() -> None:
    with running(workers=2) as server:
        victim, other = server.workers()
        os.kill(server.pid, signal.SIGSTOP)
        eventually(lambda: state_of(server.pid) == "T", "it stands still")
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: state_of(victim) == "Z", "it is dead")
        os.kill(server.pid, signal.SIGCONT)
        eventually(lambda: len(server.workers()) == 2 and victim not in server.workers(), "it was replaced")
        assert other in server.workers()


def test_a_worker_that_hangs_is_killed_when_the_drain_timeout_has_passed() -> None:
    with running("--drain-timeout", "0s", workers=2, exit_code=1) as server:
        os.kill(server.workers()[0], signal.SIGSTOP)
        assert server.stop() == 1
        assert "it did not end within the drain timeout" in server.messages()


def test_a_worker_that_dies_again_and_again_is_replaced_ever_later() -> None:
    with running() as server:
        killed: set[int] = set()

        def waits_longer() -> bool:
            for pid in set(server.workers()) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            return "replacing it in 0.2 s" in server.messages()

        eventually(waits_longer, "it has to wait longer")
        assert "replacing it in 0.1 s" in server.messages()
        eventually(lambda: set(server.workers()) - killed, "there is one again")
        assert upload(server.port, b"abc").code == "ok"


# ── Clients that do not read ──


def has_stalled(server: Server) -> bool:
    """Whether the server has stored nothing more for a while. Too short a while would only weaken the test."""
    before = server.stored()
    for _ in range(20):
        select.select([], [], [], 0.01)
        if server.stored() != before:
            return False
    return True


def test_a_client_that_pipelines_and_never_reads_gets_no_memory() -> None:
    count = 20_000
    with running() as server, Client(server.port, receive_buffer_bytes=4096) as client:
        worker = psutil.Process(server.workers()[0])
        with Client(server.port) as warm:
            for _ in range(200):
                warm.upload(b"x")
        before = worker.memory_info().rss
        stored_before = server.stored()
        flood = Flood(client, count)

        def stalled() -> bool:
            flood.send()
            return has_stalled(server)

        eventually(stalled, "the server waits for the client to read")
        assert server.stored() - stored_before < count
        assert worker.memory_info().rss < before + 8 * MIB
        assert upload(server.port, b"abc").code == "ok"  # others are served meanwhile

        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
        answered = 0
        while answered < count:  # now it reads, and nothing was lost
            readable, _, _ = select.select([client.sock], [client.sock] if flood.left else [], [], servers.DEADLINE_S)
            flood.send()
            if readable:
                for reply in client.connection.receive_data(client.sock.recv(1 << 16)):
                    assert reply.code == "ok"
                    answered += 1
        assert server.stored() - stored_before == count + 1


def test_a_client_that_never_reads_does_not_hold_up_the_drain_for_ever() -> None:
    with running("--drain-timeout", "300ms") as server, Client(server.port, receive_buffer_bytes=4096) as client:
        flood = Flood(client, 20_000)

        def stalled() -> bool:
            flood.send()
            return has_stalled(server)

        eventually(stalled, "the server waits for the client to read")
        assert server.stop() == 0
