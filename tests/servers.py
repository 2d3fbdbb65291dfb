"""The real server for tests, and a plain client to talk to it.

`running()` starts `python -m server --port 0`, or with `--listen`, as a process of its own, and makes every test that
uses it a test of the end as well: exit code, no process left, runtime folder gone, no temporary file left. Where
nothing tells the difference, that process is forked from one that has imported all it needs (see `nursery`).

`Client` is a blocking socket joined to `protocol.ClientConnection`: what it sends is framed by the same code that real
clients use, and `sock` is there for whoever wants to send something else.
"""

import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest
from nursery import Forked, Nursery, nursery

from server import scoreboard
from server.protocol import ClientConnection, Reply, UploadHeader
from server.scoreboard import Scoreboard, ServerState, SlotView

ROOT = Path(__file__).parents[1]
DEADLINE_S = 30.0
NOBODY = 65534


def as_user(uid: int) -> tuple[str, ...]:
    """In front of a command that shall run as this user, of whom nothing else need be known."""
    return "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--bounding-set=-all"


AS_NOBODY = as_user(NOBODY)

T = TypeVar("T")


def eventually(condition: Callable[[], T], what: str, within_s: float = DEADLINE_S) -> T:
    """The first true value of `condition()`; AssertionError naming `what` when the deadline passes without one."""
    begun_s = time.monotonic()
    while not (value := condition()):
        waited_s = time.monotonic() - begun_s
        assert waited_s < within_s, f"not in time: {what}"
        time.sleep(min(0.005 + waited_s / 20, 0.05))  # who waits for seconds need not keep a core busy with looking
    return value


def _why_not_nobody() -> str:
    """Why no process of this checkout can run as the user nobody; empty when one can."""
    if os.geteuid() != 0:
        return "being somebody else needs root"
    imports = [*AS_NOBODY, sys.executable, "-c", "import server"]
    if subprocess.run(imports, cwd=ROOT, stderr=subprocess.DEVNULL, check=False).returncode != 0:
        return "the user nobody cannot read this checkout"
    return ""


_WHY_NOT_NOBODY = _why_not_nobody()
needs_nobody = pytest.mark.skipif(bool(_WHY_NOT_NOBODY), reason=_WHY_NOT_NOBODY)


def all_pids() -> set[int]:
    return {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()}


def session(leader: int) -> set[int]:
    """Pids of all living processes in the session that `leader` made; zombies count as dead."""
    return {pid for pid in all_pids() if _is_in(leader, pid) and _is_living(pid)}


def _is_in(leader: int, pid: int) -> bool:
    try:
        return os.getsid(pid) == leader
    except ProcessLookupError:
        return False


def _is_living(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text[text.rindex(")") + 2] != "Z"


@dataclass
class Server:
    """A running server. `line` is what it printed when it was ready; `store` is None when it discards."""

    process: "subprocess.Popen[str] | Forked"
    store: Path | None
    log: IO[str]
    line: str = ""
    port: int = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def folder(self) -> Path:
        """Its runtime folder."""
        return scoreboard.runtime_root(os.geteuid()) / str(self.pid)

    def state(self) -> ServerState:
        state = scoreboard.read_state(self.pid)
        assert state is not None, "the server publishes no state"
        return state

    def slots(self) -> list[SlotView]:
        board = Scoreboard.open(self.folder / scoreboard.SCOREBOARD_FILE)
        try:
            return list(board.read())
        finally:
            board.close()

    def workers(self) -> list[int]:
        """Pids of the workers that are ready, by slot, once their supervisor knows it too: by then it has also counted
        them and written down whom they replace."""
        known = {event["pid"] for event in self.events() if event["kind"] == "worker-ready"}
        return [slot.pid for slot in self.slots() if slot.state == "ready" and slot.pid in known]

    def failures(self) -> dict[str, int]:
        """Failed uploads by code, of all slots."""
        counts: dict[str, int] = {}
        for slot in self.slots():
            for code, count in slot.failures.items():
                counts[code] = counts.get(code, 0) + count
        return counts

    def stored(self) -> int:
        """How many uploads were stored, by all slots."""
        return sum(slot.uploads_stored for slot in self.slots())

    def events(self) -> list[dict[str, Any]]:
        """Those that are there whole: of one that is just being written a reader may see the first part."""
        *lines, _ = (self.folder / scoreboard.EVENTS_FILE).read_bytes().split(b"\n")
        return [json.loads(line) for line in lines]

    def files(self) -> dict[str, int]:
        """Size by name of what is visible in the store."""
        assert self.store is not None
        return {entry.name: entry.lstat().st_size for entry in self.store.iterdir() if entry.name != ".incoming"}

    def temporary_files(self) -> list[Path]:
        return [] if self.store is None else sorted(self.store.glob(".incoming/*/*"))

    def messages(self) -> str:
        """What it has written to stderr so far."""
        self.log.seek(0)
        return self.log.read()

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end:\n{self.messages()}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal, as often as asked, and wait for its end; returns the exit code."""
        self.process.send_signal(number)
        return self.wait()


def _nursery() -> Nursery:
    return nursery("click", "server.settings", "server.start", "server.printing")


def command(*words: object, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    """What `python WORD...` says until it ends, with nothing to read: `-m server`, `-m server.ports`, or a script. It
    comes from the nursery."""
    with tempfile.TemporaryFile("w+") as log:
        process = _nursery().start_piped(list(map(str, words)), cwd, dict(os.environ), log)
        assert process.stdout is not None
        with process.stdout:
            out = process.stdout.read()
        code = process.wait(DEADLINE_S)
        log.seek(0)
        return subprocess.CompletedProcess(["python", *words], code, out, log.read())


@contextmanager
def running(
    *options: object,
    store: Path | None = None,
    workers: int | None = 1,
    prefix: Sequence[str] = (),
    script: Sequence[str] = ("-m", "server"),
    cwd: Path = ROOT,
    fds: Sequence[int] = (),
    exit_code: int = 0,
    forked: bool = True,
) -> Iterator[Server]:
    """A server that is ready. Without `store` it discards. `prefix` is a command that becomes it, such as `prlimit`;
    `script` is what Python runs, in `cwd`; it inherits `fds`. With neither `prefix` nor `fds`, and if it may be
    `forked`, it comes from the nursery.

    At the end it is told to stop, unless it has ended already, and everything it should have cleaned up is checked.
    With `exit_code` -9 (the test kills it) its runtime folder is nobody's duty and is removed here.
    """
    where = ["--discard"] if store is None else ["--store", str(store)]
    how_many = [] if workers is None else ["--workers", str(workers)]
    listen = [] if "--listen" in options else ["--port", "0"]
    script = [*script, *listen, *how_many, *where, *map(str, options)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as log:
        process = (
            _nursery().start_piped(script, cwd, environment, log)
            if forked and not prefix and not fds
            else subprocess.Popen(
                [*prefix, sys.executable, *script],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
                pass_fds=fds,
            )
        )
        server = Server(process, store, log)
        try:
            assert process.stdout is not None
            server.line = process.stdout.readline()
            assert server.line.startswith("listening on "), f"it printed {server.line!r}:\n{server.messages()}"
            server.port = port_of(server.line.split()[2].rstrip(","))
            yield server
            if process.poll() is None:
                process.terminate()
            _check_end(server, exit_code)
        finally:
            _end_by_force(server)


def port_of(address: str) -> int:
    """0 of a unix socket."""
    return 0 if address.startswith("unix:") else int(address.rpartition(":")[2])


def _check_end(server: Server, exit_code: int) -> None:
    assert server.wait() == exit_code, server.messages()
    eventually(lambda: not session(server.pid), "every process of the server is gone")
    if exit_code != -signal.SIGKILL:
        assert not server.folder.exists()
        assert server.temporary_files() == []
    assert "Traceback" not in server.messages()


def _end_by_force(server: Server) -> None:
    """Whatever a failed test left: nothing may outlive it."""

    def gone() -> bool:
        living = session(server.pid)
        for pid in living:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return not living

    eventually(gone, "the server is dead")
    server.process.wait()
    assert server.process.stdout is not None
    server.process.stdout.close()
    shutil.rmtree(server.folder, ignore_errors=True)


def _family(port: int | str, host: str) -> socket.AddressFamily:
    if isinstance(port, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class Client:
    """A blocking client; a context manager that closes its socket."""

    def __init__(
        self,
        port: int | str,
        *,
        host: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        receive_buffer_bytes: int | None = None,
        timeout_s: float = DEADLINE_S,
    ) -> None:
        """`port` may be the path of a unix socket."""
        self.sock = socket.socket(_family(port, host))
        self.sock.settimeout(timeout_s)
        if isinstance(port, int):
            self.sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
            )  # or a body waits 40 ms for its header's ACK
        if receive_buffer_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            self.sock.connect((host, port) if isinstance(port, int) else port)
            if tls is not None:
                self.sock = tls.wrap_socket(self.sock, server_hostname=host)
        except OSError:
            self.sock.close()
            raise
        self.connection = ClientConnection()
        self._replies: deque[Reply] = deque()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, body: bytes = b"", file_name: str = "file", **header: Any) -> None:
        """Send one upload, without waiting for its reply."""
        self.send_header(len(body), file_name, **header)
        if body:  # without one the server may have answered and closed already, which a unix socket tells at once
            self.sock.sendall(body)

    def send_header(self, file_size: int, file_name: str = "file", **header: Any) -> None:
        """Send the length and the header of an upload; its body is the caller's."""
        self.sock.sendall(self.connection.send_upload(UploadHeader(file_size, file_name, **header)))

    def reply(self) -> Reply:
        """The next reply. RemoteProtocolError `connection_lost` when the server closes instead."""
        while not self._replies:
            data = self.sock.recv(1 << 16)
            if not data:
                self.connection.receive_eof()
                raise AssertionError("the server closed, and no reply was outstanding")
            self._replies.extend(self.connection.receive_data(data))
        return self._replies.popleft()

    def upload(self, body: bytes = b"", file_name: str = "file", **header: Any) -> Reply:
        self.send(body, file_name, **header)
        return self.reply()

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def expect_eof(self) -> None:
        """The server has nothing more to say and closes, without a reset."""
        assert not self._replies
        assert self.sock.recv(1) == b""


class Flood:
    """Uploads of one byte over a client's connection, all at once: what is sent of them is up to who reads."""

    def __init__(self, client: Client, count: int) -> None:
        client.sock.setblocking(False)
        self._sock = client.sock
        self.left = memoryview(
            b"".join(client.connection.send_upload(UploadHeader(1, "a")) + b"x" for _ in range(count))
        )

    def send(self) -> None:
        """What is taken now. OSError when the server has closed."""
        try:
            while self.left:
                self.left = self.left[self._sock.send(self.left) :]
        except BlockingIOError:
            pass


def upload(
    port: int | str, body: bytes = b"", file_name: str = "file", *, tls: ssl.SSLContext | None = None, **header: Any
) -> Reply:
    """One upload over a connection of its own."""
    with Client(port, tls=tls) as client:
        return client.upload(body, file_name, connection="close", **header)


def free_port() -> int:
    """Nobody has it, nor gets it by chance before it is used: the kernel gives those of another range to who connects,
    or asks for any port, and two tests hardly ask for the same one at once."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = range(10_000, first) if first > 20_000 else range(1024, 1 << 16)
    while not bindable(port := random.SystemRandom().choice(ports)):
        pass
    return port


def bindable(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
