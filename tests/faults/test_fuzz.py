"""Malformed frames, many of them, through the parser and over sockets: only documented answers come out, and nothing
stays behind. `make fuzz` sends a million and ten thousand; FUZZ_SEED, which is printed, repeats a run.
"""

import gc
import json
import os
import random
import socket
from collections import Counter
from pathlib import Path

import psutil
import pytest
from malformed import frames, pieces
from servers import DEADLINE_S, Client, Server, eventually, running, upload

from server.failure_codes import SERVER_CODES
from server.protocol import LENGTH_BYTES, Limits, RemoteProtocolError, ServerConnection

SEED = int(os.environ.get("FUZZ_SEED", "1"))
PARSED = int(os.environ.get("FUZZ_PARSED", "20000"))
SENT = int(os.environ.get("FUZZ_SENT", "500"))
PARSER_CODES = {"bad_length", "bad_header", "unauthorized", "name_rejected", "too_large", "truncated"}
GROWTH_BYTES = 16 << 20

pytestmark = pytest.mark.timeout(3600)


def parse(stream: bytes, chance: random.Random, shortcut: bool) -> str:
    """As a worker does; returns the code that it ends with."""
    parser = ServerConnection(Limits(max_file_size=1 << 40))
    try:
        for piece in pieces(stream, chance):
            view = memoryview(piece)
            while shortcut and (whole := parser.take_whole(view)):
                view = whole[2]
            for _ in parser.receive_data(view):
                pass
        parser.receive_eof()
    except RemoteProtocolError as error:
        assert error.message
        return error.code
    return "ok"


def test_the_parser_refuses_with_documented_codes_and_grows_by_nothing() -> None:
    chance = random.Random(SEED)
    ended: Counter[str] = Counter()
    own = psutil.Process()
    before = 0
    for number, stream in enumerate(frames(SEED, PARSED)):
        if number == PARSED // 10:
            gc.collect()
            before = own.memory_info().rss
        seed = chance.random()
        code = parse(stream, random.Random(seed), shortcut=False)
        assert parse(stream, random.Random(seed), shortcut=True) == code, (SEED, number)
        ended[code] += 1
    print(f"\n{PARSED:,} frames, seed {SEED}: {dict(ended)}")
    assert set(ended) <= PARSER_CODES | {"ok"}
    assert {"bad_length", "bad_header", "name_rejected", "too_large", "truncated", "ok"} <= set(ended)
    assert own.memory_info().rss < before + GROWTH_BYTES


def answers(port: int, stream: bytes, chance: random.Random) -> list[str]:
    """Codes of all replies until the server closes. It does so with a reset where something follows an upload that
    asked to be the last, but not before its reply can be read."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as sock:
        try:
            for piece in pieces(stream, chance):
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused already
        received = b""
        try:
            while data := sock.recv(1 << 16):
                received += data
        except ConnectionResetError:
            pass
    codes = []
    while received:
        end = LENGTH_BYTES + int.from_bytes(received[:LENGTH_BYTES], "little")
        codes.append(json.loads(received[LENGTH_BYTES:end])["code"])
        received = received[end:]
    return codes


def descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def test_over_sockets_every_frame_gets_a_documented_answer_and_nothing_stays(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    ended: Counter[str] = Counter()
    with running("--max-file-size", "1GiB", store=tmp_path / "store") as server:
        with Client(server.port) as client:  # with its first transport libuv opens a descriptor that it keeps
            client.upload(bytes(1000), "0")
        for _ in range(99):
            upload(server.port, bytes(1000), "0")
        # With a loop's first transport libuv opens a descriptor for good, and a busy worker serves short connections
        # without one. One that is slow to speak has a transport.
        with socket.create_connection(("127.0.0.1", server.port)):
            eventually(lambda: server.slots()[0].connections_now == 1, "the silent one has a transport")
        eventually(lambda: server.slots()[0].connections_now == 0, "it is gone")
        worker = psutil.Process(server.workers()[0])
        before, open_before = worker.memory_info().rss, descriptors(worker.pid)
        for number, stream in enumerate(frames(SEED + 1, SENT)):
            codes = answers(server.port, stream, chance)
            assert codes, (SEED, number, "no reply")
            ended.update(codes)
        print(f"\n{SENT:,} frames over sockets, seed {SEED}: {dict(ended)}")
        assert set(ended) <= {"ok", *SERVER_CODES} - {"internal"}
        check_nothing_stayed(server, worker, before, open_before)
        counted = server.failures() | {"ok": server.stored() - 101}
        # What is pipelined behind an upload that the store itself refuses has been taken, and is not answered any more.
        for code in ("ok", "name_rejected"):
            assert counted.pop(code) >= ended.pop(code)
        assert counted == dict(ended)


def check_nothing_stayed(server: Server, worker: psutil.Process, rss: int, open_before: int) -> None:
    assert server.workers() == [worker.pid]
    assert upload(server.port, b"abc", "after").code == "ok"
    eventually(lambda: server.slots()[0].connections_now == 0, "all connections are gone")
    assert server.temporary_files() == []
    eventually(lambda: descriptors(worker.pid) <= open_before, "their descriptors are closed")
    assert worker.memory_info().rss < rss + GROWTH_BYTES
    assert server.store is not None
    assert {path.parent for path in server.store.parent.rglob("*") if path.is_file()} == {server.store}
