"""Short runs of Locust without its web page, and servers that follow a script: for tests of what one makes of the
other."""

import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hdrh.histogram import HdrHistogram
from loads import LOCUST, Command, started
from msgspec import structs
from servers import DEADLINE_S, Server, free_port

from reports import run_folder
from reports.run_folder import HistogramsLine, Outcome, Phase
from server.protocol import Reply, Timing, digest_of, encode_reply

HEADLESS = [*LOCUST, "--headless", "--only-summary"]
FAST = ["--warm-up", "0", "--drain", "30s", "--phase-seconds", "1", "--payloads", "4KiB"]
"""In front of a test's own options, the last of which count. A drain ends with the last upload; where the server never
answers, a test says how long it is."""


def host_of(server: Server) -> str:
    return f"tcp://127.0.0.1:{server.port}"


def load(host: str, *options: object) -> list[str]:
    """The command line of a short run."""
    return [*HEADLESS, "--host", host, *FAST, *map(str, options)]


def users(number: int) -> list[str]:
    """The closed model."""
    return ["--users", str(number), "--spawn-rate", "100"]


def together(tmp_path: Path, commands: dict[str, list[str]]) -> list[Command]:
    """Run these commands at the same time, each in a folder of its own, to their end: most of a run is waiting."""
    with ExitStack() as stack:
        jobs = []
        for name, command in commands.items():
            (tmp_path / name).mkdir()
            jobs.append(stack.enter_context(started(tmp_path / name, *command)))
        for job in jobs:
            job.wait()
    return jobs


@contextmanager
def spread(tmp_path: Path, host: str, workers: int, *options: object) -> Iterator[tuple[Command, list[Command]]]:
    """A master's run and that of its workers, which end with it."""
    port = str(free_port())
    with ExitStack() as stack:
        others = []
        for number in range(workers):
            (tmp_path / f"worker-{number}").mkdir(parents=True)
            command = [*LOCUST, "--worker", "--master-port", port]
            others.append(stack.enter_context(started(tmp_path / f"worker-{number}", *command)))
        command = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        command += ["--expect-workers", str(workers)]
        yield stack.enter_context(started(tmp_path, *load(host, *command, *options))), others


# ── what a run folder says ────────────────────────────────────────────────────────────────────────────────────────


def outcome(job: Command) -> Outcome:
    """Of a run that has ended: what its report makes of it, which is what the command exits with."""
    found = run_folder.read_outcome(job.runs()[-1])
    assert found is not None, job.said()
    assert job.process.returncode == found.exit_code, job.said()
    return found


def summary(folder: Path) -> Any:
    return json.loads((folder / run_folder.SUMMARY).read_text())


def measured(folder: Path) -> list[Phase]:
    return [phase for phase in run_folder.read_run(folder).phases if phase.kind == "measure"]


def histogram(folder: Path, phase: str, duration: str) -> HdrHistogram:
    """A phase's durations of this kind, of all size classes; empty when there are none."""
    total = HdrHistogram(1, 3_600_000_000, 3)
    lines = [line for line in run_folder.read_uploads(folder) if isinstance(line, HistogramsLine)]
    for durations in [line for line in lines if line.phase == phase][-1].names.values():
        if duration in durations:
            total.decode_and_add(durations[duration])
    return total


# ── servers that follow a script ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def serving(script: Callable[[socket.socket], None], path: Path | None = None) -> Iterator[str]:
    """The host of a server that plays `script` for each connection, in a thread of its own, until the block ends; then
    all connections are shut, which a script sees as an end or an OSError. With a `path`, of a unix socket there."""
    accepted: list[socket.socket] = []
    threads: list[threading.Thread] = []
    problems: list[Exception] = []

    def play(sock: socket.socket) -> None:
        try:
            script(sock)
        except (OSError, EOFError):  # the client's end, or ours
            pass
        except Exception as problem:
            problems.append(problem)
        sock.close()

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            accepted.append(sock)
            threads.append(threading.Thread(target=play, args=(sock,)))
            threads[-1].start()

    with _listener(path) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}" if path is None else f"unix://{path}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept
            accepting.join(DEADLINE_S)
            for sock in accepted:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # closed already
            for thread in threads:
                thread.join(DEADLINE_S)
    assert not problems, problems


def _listener(path: Path | None) -> socket.socket:
    if path is None:
        return socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1024)
    return listener


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """EOFError when the client closes before."""
    data = bytearray()
    while len(data) < size:
        piece = sock.recv(min(size - len(data), 1 << 16))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def read_header(sock: socket.socket) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(read_exactly(sock, int.from_bytes(read_exactly(sock, 4), "little")))
    return header


def answer(sock: socket.socket, note: Callable[[str, int], Any] = lambda name, size: None, **told: Any) -> bool:
    """Answer one upload as the real server does, but for what is `told` otherwise; whether more may follow."""
    header = read_header(sock)
    data = read_exactly(sock, header["file_size"])
    note(header["file_name"], len(data))
    sock.sendall(stored(header, data, **told))
    return header.get("connection") != "close"


def refuse(sock: socket.socket) -> None:
    """Refuse all uploads, for a reason that may be another one at the next moment."""
    while True:
        header = read_header(sock)
        data = read_exactly(sock, header["file_size"])
        sock.sendall(stored(header, data, status="rejected", code="busy"))


def stored(header: dict[str, Any], data: bytes, **told: Any) -> bytes:
    """The reply of a server that stored `data`, but for what is `told` otherwise."""
    connection = header.get("connection", "keep-alive")
    digest = digest_of("xxh3_128", data)
    reply = Reply("stored", "ok", "", header["file_name"], len(data), digest, connection, 0, 1, Timing(accepted=1))
    return encode_reply(structs.replace(reply, **told))


def reset(sock: socket.socket) -> None:
    """Close with an RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@contextmanager
def script(tmp_path: Path, name: str, *arguments: str) -> Iterator[Command]:
    """A script of tests/ as a process of its own, which ends with the block by a SIGTERM that kills it."""
    folder = tmp_path / name
    folder.mkdir()
    with started(folder, sys.executable, str(Path(__file__).with_name(name)), *arguments) as job:
        try:
            yield job
        finally:
            job.process.terminate()
            job.process.wait()
