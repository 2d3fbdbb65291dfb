"""What systemd gives the server and is told by it; the manager is this test, with sockets of its own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from certificates import Authority
from crowd import crowd
from servers import DEADLINE_S, ROOT, Client, eventually, free_port, running, upload
from slow import first_of

from server.listening import systemd

ACTIVATED = ROOT / "tests" / "activated.py"


def lend(*lent: tuple[socket.socket, str]) -> tuple[Sequence[str], Sequence[int]]:
    """A prefix that passes these sockets by these names, and what the prefix itself must inherit."""
    fds = [sock.fileno() for sock, _ in lent]
    names = ",".join(f"{sock.fileno()}:{name}" for sock, name in lent)
    return (sys.executable, str(ACTIVATED), names), fds


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listening(stack: ExitStack, path: Path | None = None) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_INET if path is None else socket.AF_UNIX))
    sock.bind(("127.0.0.1", 0) if path is None else str(path))
    sock.listen(4096)
    return sock


# ── Sockets that are lent ──


@pytest.mark.parametrize("kind", first_of(["tcp", "unix", "tls"]))
def test_no_connection_is_lost_over_a_restart(stack: ExitStack, kind: str, tmp_path: Path) -> None:
    """Twice, under load: who connects while no server is there waits for the next one."""
    authority, path = Authority(tmp_path), tmp_path / "s"
    sock = listening(stack, path if kind == "unix" else None)
    prefix, fds = lend((sock, "tls" if kind == "tls" else "upload"))
    options = ["--tls-cert", str(authority.server())] if kind == "tls" else []
    port, context = None if kind == "unix" else sock.getsockname()[1], authority.context()
    connects = {"unix": lambda: Client(str(path)), "tls": lambda: Client(port, tls=context), "tcp": port}
    store = tmp_path / "store"
    address = {"unix": f"unix://{path}", "tls": f"tls://127.0.0.1:{port}", "tcp": f"127.0.0.1:{port}"}[kind]
    with ExitStack() as load_stack:
        load = None
        for _ in range(3):
            with running(*options, store=store, workers=2, prefix=prefix, fds=fds) as server:
                assert server.state().addresses == [address]
                if load is None:
                    load = load_stack.enter_context(crowd(connects[kind]))
                load.go_on()
                assert server.stop() == 0
        with running(*options, store=store, workers=2, prefix=prefix, fds=fds):
            load.go_on()
            load_stack.close()
            assert load.failures == []
    load.assert_stored(store)
    assert kind != "unix" or path.exists(), "it is the manager's"


def test_who_waits_when_it_ends_is_served_by_the_next(stack: ExitStack) -> None:
    sock = listening(stack)
    prefix, fds = lend((sock, ""))
    with running(prefix=prefix, fds=fds) as server:
        [worker] = server.workers()
        os.kill(worker, signal.SIGSTOP)
        early = stack.enter_context(Client(server.port))
        early.send(b"abc", connection="close")
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: "draining" in [event["kind"] for event in server.events()], "it ends")
        os.kill(worker, signal.SIGCONT)
        assert server.wait() == 0
    late = stack.enter_context(Client(sock.getsockname()[1]))
    late.send(b"abc", connection="close")
    with running(prefix=prefix, fds=fds):
        assert early.reply().code == "ok"
        assert late.reply().code == "ok"


def test_reloads_and_kills_lose_no_connection(stack: ExitStack, tmp_path: Path) -> None:
    sock = listening(stack)
    prefix, fds = lend((sock, ""))
    with running(store=tmp_path / "store", workers=2, prefix=prefix, fds=fds) as server, crowd(server.port) as load:
        for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGHUP, signal.SIGTTOU):
            server.process.send_signal(number)
            load.go_on(100)
    assert load.failures == []


def test_several_are_lent_with_their_names(stack: ExitStack, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    plain, secure, unix = listening(stack), listening(stack), listening(stack, tmp_path / "s")
    prefix, fds = lend((plain, "upload"), (secure, "tls"), (unix, ""))
    with running("--tls-cert", authority.server(), prefix=prefix, fds=fds) as server:
        ports = [sock.getsockname()[1] for sock in (plain, secure)]
        assert server.state().addresses == [
            f"127.0.0.1:{ports[0]}", f"tls://127.0.0.1:{ports[1]}", f"unix://{tmp_path}/s"
        ]  # fmt: skip
        assert upload(ports[0], b"abc").code == "ok"
        assert upload(ports[1], b"abc", tls=authority.context()).code == "ok"
        assert upload(str(tmp_path / "s"), b"abc").code == "ok"
    assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def test_what_is_lent_to_another_process_is_not_taken() -> None:
    with running(prefix=("env", "LISTEN_PID=1", "LISTEN_FDS=1")) as server:
        assert upload(server.port, b"abc").code == "ok"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("udp", [], "does not listen for streams: its unit needs ListenStream, without Accept"),
        ("connected", [], "does not listen for streams"),
        ("file", [], "passed a descriptor that is no socket"),
        ("tls", [], "needs a certificate: name it as tls_cert"),
        ("unix", [], "the unix socket from the service manager cannot have the name tls"),
        ("plain", ["--tls-cert"], "no socket from the service manager has the name tls (FileDescriptorName=tls)"),
    ],
)
def test_what_is_of_no_use_is_one_line(
    stack: ExitStack, name: str, options: list[str], words: str, tmp_path: Path
) -> None:
    made = {
        "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "connected": lambda: stack.enter_context(socket.create_connection(listening(stack).getsockname())),
        "file": lambda: (tmp_path / "file").open("w"),
        "unix": lambda: listening(stack, tmp_path / "s"),
    }.get(name, lambda: listening(stack))()
    stack.enter_context(made)
    label = {"tls": "tls", "unix": "tls"}.get(name, "")
    command = [sys.executable, str(ACTIVATED), f"{made.fileno()}:{label}", sys.executable, "-m", "server", "--discard"]
    command += [options[0], str(Authority(tmp_path).server())] if options else []
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, pass_fds=[made.fileno()], check=False
    )
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert words in line
    assert "Traceback" not in done.stderr


def test_more_descriptors_than_there_can_be_are_one_line() -> None:
    command = f"LISTEN_PID=$$ LISTEN_FDS={10**18} exec {sys.executable} -m server --discard"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "Error: the service manager passed a descriptor that is no socket: Bad file descriptor\n"


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="no systemd here")
def test_systemds_own_activator(tmp_path: Path) -> None:
    """The first connection starts the server, and is served."""
    port = free_port()
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "-E", "PATH", "-E", f"PYTHONPATH={ROOT}"]
    command += [sys.executable, "-m", "server", "--discard", "--workers", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            reply = eventually(lambda: _first_upload(port), "it listens")
            assert reply == "ok"
        finally:
            process.terminate()
            assert process.wait(DEADLINE_S) in (0, -signal.SIGTERM)


def _first_upload(port: int) -> str | None:
    try:
        return upload(port, b"abc").code
    except ConnectionRefusedError:
        return None


# ── What it tells ──


class Manager:
    """Who is told, at a path or an abstract address."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self.sock.settimeout(DEADLINE_S)
        self.prefix = ("env", f"NOTIFY_SOCKET={address}")

    def __enter__(self) -> "Manager":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def hears(self) -> dict[str, str]:
        """The next message, which is one of the server's own process."""
        return dict(line.split("=", 1) for line in self.sock.recv(1 << 16).decode().splitlines())

    def hears_nothing(self) -> bool:
        self.sock.setblocking(False)
        try:
            return not self.sock.recv(1 << 16)
        except BlockingIOError:
            return True
        finally:
            self.sock.settimeout(DEADLINE_S)


@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_manager_is_told_of_readiness_reloads_and_the_end(is_abstract: bool, tmp_path: Path) -> None:
    address = f"@socketswarm-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    file = tmp_path / "server.toml"
    file.write_text("")
    with Manager(address) as manager:
        with running("--config", file, prefix=manager.prefix, workers=2) as server:
            assert manager.hears() == {"READY": "1", "STATUS": server.line.rstrip()}
            assert len(server.workers()) == 2
            before_us = time.monotonic_ns() // 1000
            server.process.send_signal(signal.SIGHUP)
            told = manager.hears()
            assert (told["RELOADING"], told["STATUS"]) == ("1", "reloading")
            assert before_us <= int(told["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
            assert manager.hears() == {"READY": "1", "STATUS": "reloaded"}
            file.write_text("workers = many\n")
            server.process.send_signal(signal.SIGHUP)
            assert manager.hears()["RELOADING"] == "1"
            told = manager.hears()
            assert told["READY"] == "1"
            assert told["STATUS"].startswith("not reloaded: ")
            os.kill(server.workers()[0], signal.SIGKILL)
            eventually(lambda: server.slots()[0].births == 3 and len(server.workers()) == 2, "it was replaced")
            assert manager.hears_nothing()
            assert server.stop() == 0
        assert manager.hears() == {"STOPPING": "1", "STATUS": "draining: SIGTERM"}
        assert manager.hears_nothing()


def test_a_server_that_cannot_start_is_not_ready(tmp_path: Path) -> None:
    with Manager(str(tmp_path / "notify")) as manager, running() as other:
        command = [*manager.prefix, sys.executable, "-m", "server", "--discard", "--port", str(other.port)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False)
        assert done.returncode == 1
        assert manager.hears_nothing()


def test_a_manager_that_is_gone_is_no_reason_to_end(tmp_path: Path) -> None:
    with running(prefix=("env", f"NOTIFY_SOCKET={tmp_path}/none")) as server:
        assert upload(server.port, b"abc").code == "ok"
        said = "the service manager could not be told (No such file or directory): listening on"
        eventually(lambda: said in server.messages(), "it says so")


def test_workers_do_not_know_of_it() -> None:
    """What is taken is gone from the environment that they inherit."""
    environment = {"NOTIFY_SOCKET": "@x", "LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a", "PATH": "/bin"}
    systemd.Manager(environment)
    assert systemd.take_sockets(environment) == []
    assert environment == {"PATH": "/bin"}
