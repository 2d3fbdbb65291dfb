"""The status helper is killed, stopped, stuck, flooded and taken over, and nobody who uploads notices."""

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path

import psutil
import pytest
from certificates import Authority
from crowd import crowd
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pages import ask, helper, page_port
from servers import AS_NOBODY, DEADLINE_S, NOBODY, ROOT, Server, eventually, needs_nobody, running, session, upload

from server.status import confinement
from server.status.page import CPU_SHARE

FAULTY = ROOT / "tests" / "faulty_server.py"
PAGE = ("--status-port", "0")
HANG_TIMEOUT = "5s"  # where all cores are busy, who gives way to all others may wait for a second or two


def ends(server: Server) -> list[str]:
    return [event["how"] for event in server.events() if event["kind"] == "status-ended"]


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


# ── Nobody notices ──


def test_it_is_killed_again_and_again_and_replaced(tmp_path: Path) -> None:
    with running(*PAGE, store=tmp_path / "store", workers=2) as server:
        workers = server.workers()
        for deaths in range(1, 3):
            pid = helper(server)
            with crowd(server.port) as load:
                os.kill(pid, signal.SIGKILL)
                eventually(lambda number=deaths: len(ends(server)) == number, "its death is noted")
                load.go_on()
            assert load.failures == []
            load.assert_stored(tmp_path / "store")
        helper(server)
        assert set(ends(server)) == {"was ended by SIGKILL from somebody else"}
        assert server.workers() == workers
        assert [slot.births for slot in server.slots()] == [1, 1]


def test_it_dies_more_often_than_workers_may_and_the_server_goes_on() -> None:
    with running(*PAGE, "--max-deaths", "1") as server:
        for deaths in range(1, 3):
            os.kill(helper(server), signal.SIGSEGV)
            eventually(lambda number=deaths: len(ends(server)) == number, "its death is noted")
        assert upload(server.port, b"abc").code == "ok"


def test_it_is_stopped_and_killed_for_its_silence(tmp_path: Path) -> None:
    with running(*PAGE, "--hang-timeout", HANG_TIMEOUT, store=tmp_path / "store", workers=2) as server:
        pid = helper(server)
        with crowd(server.port) as load:
            os.kill(pid, signal.SIGSTOP)
            eventually(lambda: ends(server), "it is killed")
            load.go_on()
        assert load.failures == []
        [how] = ends(server)
        assert how.startswith("was ended by SIGKILL from the supervisor, because it hung: ")
        assert helper(server) != pid


def test_it_is_killed_when_its_threads_are_stuck(tmp_path: Path) -> None:
    """Its loop turns, and nobody is answered any more."""
    with faulty(tmp_path, "--hang-timeout", HANG_TIMEOUT) as server:
        pid = helper(server)
        stuck = [socket.create_connection(("127.0.0.1", page_port(server))) for _ in range(2)]
        for sock in stuck:
            sock.sendall(b"GET /stuck HTTP/1.1\r\nHost: localhost\r\n\r\n")
        eventually(lambda: ends(server), "it is killed")
        for sock in stuck:
            sock.close()
        assert helper(server) != pid


def test_why_it_cannot_start_is_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with faulty(tmp_path) as server:
        eventually(lambda: ends(server), "it has ended")
        (tmp_path / "broken").unlink()
        helper(server)
        said = server.messages()
        server.log.truncate(0)  # elsewhere a traceback is a failure
    assert "it ends for a reason nobody foresaw" in said
    assert "Traceback (most recent call last):" in said
    assert "): RuntimeError: it is broken" in said


def test_it_is_not_blamed_for_the_supervisors_own_absence() -> None:
    with running(*PAGE, "--hang-timeout", HANG_TIMEOUT) as server:
        pid = helper(server)
        server.process.send_signal(signal.SIGSTOP)
        eventually(lambda: state_of(server.pid) == "T", "it is stopped")
        threading.Event().wait(6)
        server.process.send_signal(signal.SIGCONT)
        for _ in range(3):
            assert ask(server, "/healthz").status == 200
            threading.Event().wait(1)
        assert helper(server) == pid
        assert ends(server) == []


@contextmanager
def flood(server: Server, kind: Callable[[Server], None]) -> Iterator[None]:
    """Four threads that do nothing else."""
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            try:
                kind(server)
            except (OSError, HTTPException):
                pass

    threads = [threading.Thread(target=go_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(DEADLINE_S)


def requests(server: Server) -> None:
    ask(server, "/metrics")


def connections(server: Server) -> None:
    """Of which none ever asks for anything: more than it takes, and than wait."""
    port = page_port(server)
    with ExitStack() as held:
        for _ in range(100):
            held.enter_context(socket.create_connection(("127.0.0.1", port), 0.2))


@pytest.mark.parametrize("kind", [requests, connections])
def test_it_is_flooded(kind: Callable[[Server], None], tmp_path: Path) -> None:
    with running(*PAGE, store=tmp_path / "store", workers=2) as server:
        pid = helper(server)
        with crowd(server.port) as load, flood(server, kind):
            load.go_on(500)
        assert helper(server) == pid
        assert server.workers() == [slot.pid for slot in server.slots()]
    assert load.failures == []
    load.assert_stored(tmp_path / "store")


def test_a_flood_takes_little_of_a_core_that_nobody_else_wants() -> None:
    with running(*PAGE) as server:
        process = psutil.Process(helper(server))
        before, before_s = process.cpu_times(), time.monotonic()
        with flood(server, requests):
            threading.Event().wait(2)
        after, seconds = process.cpu_times(), time.monotonic() - before_s
        used_s = after.user + after.system - before.user - before.system
        assert used_s < 10 * CPU_SHARE * seconds, "it would take nearly all"


def test_it_dies_with_its_supervisor() -> None:
    """As another user too: the kernel forgets the wish when the user changes."""
    with running(*PAGE, exit_code=-signal.SIGKILL) as server:
        helper(server)
        server.process.kill()
        server.process.wait(DEADLINE_S)
        eventually(lambda: not session(server.pid), "nobody is left")


def test_it_can_be_stopped_at_the_end() -> None:
    with running(*PAGE) as server:
        os.kill(helper(server), signal.SIGSTOP)
        assert server.stop() == 0


def test_a_reload_is_told_to_it(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text('max_file_size = "1MiB"')
    with running(*PAGE, "--config", config) as server:
        helper(server)
        config.write_text('max_file_size = "2MiB"')
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: '"max_file_size": "2MiB"' in ask(server, "/status.json").text, "it knows")


# ── Taken over ──


def faulty(cwd: Path, *options: object, store: Path | None = None, prefix: tuple[str, ...] = ()):
    return running(*PAGE, *options, store=store, script=(str(FAULTY), "page"), cwd=cwd, prefix=prefix)


CHANGES = (
    *("create", "overwrite", "change", "append", "truncate", "rename", "link", "symlink", "unlink", "mkdir", "fifo"),
    *("rmdir", "temporary", "scoreboard", "events", "elsewhere", "fork", "root", "limits"),
)


def attack(server: Server) -> dict[str, str]:
    helper(server)
    answer = ask(server, "/attack")
    assert answer.status == 200, answer.text
    found: dict[str, str] = json.loads(answer.text)
    assert {name: found[name] for name in CHANGES if found[name] == "done"} == {}
    return found


def test_taken_over_it_changes_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with faulty(tmp_path, store=store) as server:
        assert upload(server.port, b"the file", "kept").code == "ok"
        before = marks(store / "kept")
        found = attack(server)
        assert (store / "kept").read_bytes() == b"the file"
        assert marks(store / "kept") == before
        assert [path.name for path in store.iterdir() if path.name != ".incoming"] == ["kept"]
        assert descriptors(server) == {"/dev/null", "socket", "events.jsonl", "pipe", "scoreboard"}
        maps = Path(f"/proc/{helper(server)}/maps").read_text()
        assert [line.split()[1] for line in maps.splitlines() if "scoreboard" in line] == ["r--s"]
        if os.geteuid() == 0:
            assert found["chmod"] == found["read"] == found["secrets"] == "PermissionError"
        assert upload(server.port, b"abc").code == "ok"


def test_taken_over_it_tells_no_secret(tmp_path: Path) -> None:
    """They are found in the memory of who knows them, so they would be found here."""
    token_file, certificate = tmp_path / "token", Authority(tmp_path).server()
    token_file.touch(mode=0o600)
    token_file.write_text("sesame-" * 5)
    key = load_pem_private_key(certificate.read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    secrets = {b"sesame-" * 5, key.private_numbers().private_value.to_bytes(32, sys.byteorder)}
    with running(*PAGE, "--token-file", token_file, "--tls-cert", certificate) as server:
        assert {secret for secret in secrets if secret in memory(server.workers()[0])} == secrets
        assert {secret for secret in secrets if secret in memory(helper(server))} == set()


def memory(pid: int) -> bytes:
    """All that a process could write to."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            where, rights = line.split()[:2]
            start, end = (int(address, 16) for address in where.split("-"))
            if rights.startswith("rw"):
                found.append(os.pread(file.fileno(), end - start, start))
    return b"".join(found)


def marks(path: Path) -> tuple[int, ...]:
    """What any change leaves on a file."""
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_nlink, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def descriptors(server: Server) -> set[str]:
    """What its helper has open; a file by its name."""
    found = set()
    for path in Path(f"/proc/{helper(server)}/fd").iterdir():
        try:
            found.add(str(path.readlink()))
        except FileNotFoundError:  # the connection over which we asked just now
            continue
    return {name if name.startswith("/dev/null") else Path(name.partition(":")[0]).name for name in found}


@needs_nobody
def test_taken_over_from_a_user_who_owns_the_store_it_changes_nothing_either() -> None:
    """Who is no root cannot become somebody else: then Landlock alone keeps it from removing and renaming."""
    folder = Path(tempfile.mkdtemp(prefix="socketswarm-"))
    os.chown(folder, NOBODY, NOBODY)
    try:
        with as_nobody(folder) as server:
            helper(server)
            if not has_landlock():
                eventually(lambda: "no Landlock" in server.messages(), "the log says so")
                pytest.skip("this kernel has no Landlock, as the server's log says")
            assert upload(server.port, b"the file", "kept").code == "ok"
            attack(server)
            assert (folder / "store" / "kept").read_bytes() == b"the file"
    finally:
        shutil.rmtree(folder)


def has_landlock() -> bool:
    try:
        confinement._call(confinement._CREATE_RULESET, None, 0, confinement._ASK_VERSION)
    except OSError:
        return False
    return True


@contextmanager
def as_nobody(folder: Path) -> Iterator[Server]:
    """The runtime folder is another user's then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: NOBODY)
        with faulty(folder, store=folder / "store", prefix=AS_NOBODY) as server:
            yield server
