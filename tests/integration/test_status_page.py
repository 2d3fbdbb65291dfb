"""The status page of a real server: what it says, and what it does not let itself be told."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import PATIENCE_S, ask, helper, metrics, page_port, total
from servers import DEADLINE_S, ROOT, Client, Server, command, eventually, running, upload

PAGE = ("--status-port", "0")
FAULTY = ROOT / "tests" / "faulty_server.py"
PATHS = ("/", "/status.json", "/metrics", "/healthz", "/status.css")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """With a page that answers, for tests that only ask."""
    with running(*PAGE) as started:
        helper(started)
        yield started


def raw(server: Server, request: bytes) -> bytes:
    """What comes back for these bytes, until the page closes."""
    with socket.create_connection(("127.0.0.1", page_port(server)), DEADLINE_S) as sock:
        sock.sendall(request)
        received = b""
        while piece := sock.recv(1 << 16):
            received += piece
        return received


# ── What it says ──


def test_metrics_are_what_clients_counted_and_never_run_backwards(tmp_path: Path) -> None:
    """Over the deaths of workers, with uploads that are stored and uploads that fail."""
    stored, size, bad, before = 0, 0, 0, {}
    with running(*PAGE, store=tmp_path / "store", workers=2) as server:
        helper(server)
        for number in range(12):
            body = bytes(number * 1000)
            reply = upload(server.port, body, f"file-{number}")
            assert reply.code == "ok"
            stored, size = stored + 1, size + len(body)
            bad += upload(server.port, b"abc", "bad", digest="xxh3_128:" + "0" * 32).code == "digest_mismatch"
            if number % 4 == 3:
                victim = reply.pid
                os.kill(victim, signal.SIGKILL)
                eventually(lambda dead=victim: dead not in server.workers() and len(server.workers()) == 2, "a new one")
            now = metrics(server)
            for (name, labels), value in before.items():
                assert not name.endswith("_total") or now[name, labels] >= value, f"{name} ran backwards"
            before = now
        assert bad == 12
        assert total(now, "socketswarm_uploads_stored_total") == stored
        assert total(now, "socketswarm_stored_bytes_total") == size
        assert total(now, "socketswarm_uploads_failed_total") == bad
        assert total(now, "socketswarm_uploads_failed_total", code="digest_mismatch") == bad
        assert total(now, "socketswarm_connections_accepted_total") == 24
        assert total(now, "socketswarm_worker_restarts_total") == 3
        assert total(now, "socketswarm_workers_wanted") == 2
        assert total(now, "socketswarm_server_ready") == 1
        assert total(now, "socketswarm_worker_state", state="ready") == 2


def test_metrics_have_help_a_type_and_names_as_prometheus_wants_them(server: Server) -> None:
    answer = ask(server, "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", answer.text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", answer.text, re.MULTILINE))
    assert kinds.keys() == helps.keys()
    assert len(kinds) > 10
    names = {re.split("[{ ]", line)[0] for line in answer.text.splitlines() if not line.startswith("#")}
    assert names == kinds.keys()
    for name, kind in kinds.items():
        assert name.startswith("socketswarm_")
        assert name.endswith("_total") == (kind == "counter")
        assert not re.search("milli|micro|kilo|_ms|_kb|gauge|counter", name)


def test_status_json_is_what_the_command_prints(server: Server) -> None:
    answer = ask(server, "/status.json")
    printed = command("-m", "server", "status", "--json", "--pid", server.pid).stdout
    page = server.state().page
    moving = ("uptime_s", "silent_s")
    shown, said = (re.sub(rf'"({"|".join(moving)})": [0-9.e-]+', "", text) for text in (answer.text, printed))
    assert shown == said
    assert json.loads(answer.text)["servers"][0]["page"] == page


def test_the_ready_line_and_the_state_name_the_page(server: Server) -> None:
    page = f"http://127.0.0.1:{page_port(server)}/"
    assert f", status page: {page}, store: " in server.line
    title = Path(f"/proc/{helper(server)}/cmdline").read_bytes().rstrip(b"\0")
    assert title.decode() == f"socketswarm: status [{server.port}]"
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    assert not re.search("markupsafe|werkzeug", maps), "the supervisor loads no web framework"
    with running() as server:
        assert server.state().page is None
        assert "page" not in server.line


# ── Ready or not ──


def test_it_is_not_ready_before_the_workers_are(tmp_path: Path) -> None:
    """A worker that takes its time to start is let go on by the file `go`."""
    slow = [sys.executable, str(FAULTY), "slow", "--discard", "--port", "0", "--workers", "1", *PAGE]
    process = subprocess.Popen(slow, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=-1, text=True)
    assert process.stdout is not None
    server = Server(process, None, process.stdout)
    try:
        eventually(lambda: (server.folder / "state.json").exists(), "it has a state")
        helper(server)
        answer = ask(server, "/healthz")
        assert (answer.status, answer.text) == (503, "worker 0 is starting\n")
        (tmp_path / "go").touch()
        eventually(lambda: ask(server, "/healthz").status == 200, "it is ready")
    finally:
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
        process.stdout.close()


def test_it_is_ready_then_down_then_ready_then_draining(tmp_path: Path) -> None:
    with running(*PAGE, store=tmp_path / "store", workers=2) as server:
        helper(server)
        answer = ask(server, "/healthz")
        assert (answer.status, answer.text, answer.headers["content-type"]) == (
            200,
            "ok\n",
            "text/plain; charset=utf-8",
        )
        why = "worker 1 is down: the last one was ended by SIGKILL from somebody else\n"
        killed: set[int] = set()

        def is_down() -> bool:
            """The more often it is killed, the longer its slot is empty: at some time for longer than asking takes."""
            for pid in set(server.workers()[1:]) - killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            answer = ask(server, "/healthz")
            return (answer.status, answer.text) == (503, why)

        eventually(is_down, "one worker is down", PATIENCE_S)
        eventually(lambda: ask(server, "/healthz").status == 200, "ready again", PATIENCE_S)
        with Client(server.port) as client:
            assert client.upload(b"abc").code == "ok"
            server.process.terminate()
            eventually(lambda: ask(server, "/healthz").text == "draining\n", "draining")
            assert ask(server, "/healthz").status == 503
            assert client.upload(b"abc").code == "ok"
        assert server.wait() == 0


def test_more_and_fewer_workers_are_known() -> None:
    with running(*PAGE, workers=1) as server:
        helper(server)
        for number, workers in ((signal.SIGTTIN, 2), (signal.SIGTTOU, 1)):
            server.process.send_signal(number)
            eventually(
                lambda wanted=workers: total(metrics(server), "socketswarm_workers_wanted") == wanted, "it has so many"
            )
            assert server.state().workers == workers
            assert ask(server, "/healthz").status == 200


# ── Its port ──


def test_a_port_in_use_is_one_line_that_names_the_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        done = command("-m", "server", "--discard", "--port", "0", "--status-port", port)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert re.match(rf"Error: port {port} is held by pid {os.getpid()} \(", line)


def test_its_port_can_be_freed_whoever_the_helper_has_become() -> None:
    with running(*PAGE) as server:
        helper(server)
        done = command("-m", "server.ports", "release", page_port(server), "--grace", "60s")
        assert done.returncode == 0, done.stdout
        assert server.process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--status-port", "70000"), "status_port is 70000 (from --status-port), not 0 to 65535"),
        (("--status-port", "on"), "status_port (from --status-port): 'on' is neither a port nor off"),
        (
            ("--status-port", "4711", "--port", "4711"),
            "status_port is 4711 (from --status-port), the port of the uploads",
        ),
        (
            ("--status-port", "4711", "--listen", "localhost:4711"),
            "status_port is 4711 (from --status-port), the port of the uploads",
        ),
        (("--status-host", ""), "status_host is '' (from --status-host), not an address"),
    ],
)
def test_what_cannot_work_is_refused(options: tuple[str, ...], words: str) -> None:
    done = command("-m", "server", "--discard", "--check-config", *options)
    assert done.returncode == 2
    assert words in done.stderr


# ── What it does not let itself be told ──


def test_every_answer_has_the_headers_that_keep_browsers_in_check(server: Server) -> None:
    for path in (*PATHS, "/nothing"):
        answer = ask(server, path)
        assert answer.status == (404 if path == "/nothing" else 200)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; ")
        assert "script" not in policy
        assert "unsafe" not in policy
        assert "server" not in answer.headers


def test_head_is_get_without_a_body_and_all_else_is_refused(server: Server) -> None:
    for path in PATHS:
        answer = ask(server, path, "HEAD")
        assert (answer.status, answer.text) == (200, "")
        assert int(answer.headers["content-length"]) > 0 or path == "/healthz"
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"):
        answer = ask(server, "/", method, b"x" * 10)
        assert answer.status == 405
        assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert ask(server, "/", "POST", bytes(100_000)).status in (405, 413)


@pytest.mark.parametrize(
    "path",
    [
        "/../../../etc/passwd",
        "/..%2f..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/templates/",
        "/static/",
        "/templates/status.html.j2",
        "/status.json/",
        "/healthz%00",
        "/<script>alert(1)</script>",
        "//evil.example/healthz",
    ],
)
def test_there_is_nothing_else(server: Server, path: str) -> None:
    answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert re.match(rb"HTTP/1.1 (400|404) ", answer)
    assert b"Location" not in answer
    assert b"root:" not in answer
    assert b"script" not in answer.partition(b"\r\n\r\n")[2]


def test_only_names_of_loopback_are_answered(server: Server) -> None:
    for host in ("127.0.0.1:1", "localhost", "LOCALHOST:80", "[::1]:9", "127.1.2.3"):
        assert ask(server, "/healthz", Host=host).status == 200
    for host in (
        "evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "",
        "]",
        "[::1",
        "a b",
        "127.0.0.1.evil.example",
    ):
        answer = ask(server, "/healthz", Host=host)
        assert answer.status in (400, 421), host
        assert "evil" not in answer.text


def test_a_page_on_another_address_goes_by_names_that_nobody_here_knows() -> None:
    with running(*PAGE, "--status-host", "0.0.0.0") as server:
        helper(server)
        assert ask(server, "/healthz", Host="somewhere.example").status == 200


def test_what_is_no_request_is_refused_and_forgotten(server: Server) -> None:
    pid = helper(server)
    huge = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"
    many = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"
    for request in (huge, many):
        try:
            answer = raw(server, request)
        except ConnectionError:  # it closed while there was more to come
            continue
        assert re.match(rb"HTTP/1.[01] 431 ", answer)
        assert b"waitress" not in answer.lower()
    for request in (
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        assert b"waitress" not in raw(server, request).lower()
    smuggled = b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert b"Traceback" not in raw(server, smuggled + b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert ask(server, "/healthz").status == 200
    assert helper(server) == pid


def test_who_sends_slowly_or_never_reads_is_cut_off(server: Server) -> None:
    """However the seconds are filled; others are answered meanwhile."""
    with socket.create_connection(("127.0.0.1", page_port(server))) as slow:
        pid = helper(server)
        slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")

        def is_cut_off() -> bool:
            try:
                slow.sendall(b"X")
                slow.settimeout(0.2)
                return slow.recv(1) == b""
            except TimeoutError:
                assert ask(server, "/healthz").status == 200
                return False
            except ConnectionError:
                return True

        eventually(is_cut_off, "it is cut off", PATIENCE_S)
        assert helper(server) == pid
