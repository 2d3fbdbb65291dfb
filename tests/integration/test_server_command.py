"""`python -m server` from outside: where its options come from, what `status` says of it, and what it logs."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import servers
from servers import DEADLINE_S, ROOT, Client, Server, eventually, free_port, running, upload

from server.logs import LINES
from server.protocol import UploadHeader
from server.status.reader import read_servers


def command(*arguments: object, code: int = 0) -> "subprocess.CompletedProcess[str]":
    """`python -m server ARGUMENTS`, which ends by itself, without a traceback."""
    done = servers.command("-m", "server", *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def status(*arguments: object) -> dict[str, Any]:
    """The one server that `status --json` tells of."""
    document: dict[str, Any] = json.loads(command("status", "--json", *arguments).stdout)
    [server] = document["servers"]
    assert isinstance(server, dict)
    return server


def break_off(port: int) -> None:
    """An upload that its client does not finish."""
    with Client(port) as client:
        client.send_header(10)
        client.half_close()
        assert client.reply().code == "truncated"


def refused(port: int, stream: bytes) -> str:
    """The code with which the server refuses these bytes."""
    with Client(port) as client:
        client.connection.send_upload(UploadHeader(0, "never sent"))  # so that a reply is expected
        client.sock.sendall(stream)
        return client.reply().code


# ── Options ──


def test_a_running_server_has_the_strongest_value_of_each_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file = tmp_path / "server.toml"
    config_file.write_text('workers = 7\nmax_file_size = "1MiB"\ndrain_timeout = "7s"\nhang_timeout = 7')
    monkeypatch.setenv("SOCKETSWARM_CONFIG", str(config_file))
    monkeypatch.setenv("SOCKETSWARM_WORKERS", "9")
    monkeypatch.setenv("SOCKETSWARM_MAX_FILE_SIZE", "4KiB")
    monkeypatch.setenv("SOCKETSWARM_STORE", "not/this")
    with running("--hang-timeout", "8s", store=tmp_path / "store", workers=2) as server:
        options = server.state().options
        assert upload(server.port, bytes(4097)).code == "too_large"
    assert (options["workers"], options["max_file_size"]) == ("2", "4KiB")
    assert (options["drain_timeout"], options["hang_timeout"]) == ("7s", "8s")
    assert options["store"] == str(tmp_path / "store")


def test_the_configuration_is_shown_with_where_each_value_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file = tmp_path / "server.toml"
    config_file.write_text("max_file_size = 1048576\ndiscard = true")
    monkeypatch.setenv("SOCKETSWARM_DRAIN_TIMEOUT", "0.5")
    done = command("--print-config", "--config", config_file, "--port", "1", "--workers", "3")
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    shown = {name: re.split(r"\s{2,}", rest) for name, rest in rows.items()}
    assert shown["config"] == [str(config_file), "flag --config"]
    assert shown["workers"] == ["3", "flag --workers"]
    assert shown["drain_timeout"] == ["0.5s", "environment SOCKETSWARM_DRAIN_TIMEOUT"]
    assert shown["max_file_size"] == ["1MiB", f"file {config_file}"]
    assert shown["hang_timeout"] == ["30s", "default"]
    assert done.stderr == ""


def test_where_nothing_can_be_written_is_one_line() -> None:
    with running() as server, Path("/dev/full").open("w") as full:
        for words in ("--print-config --discard", "--check-config --discard", f"status --pid {server.pid}"):
            done = subprocess.run(
                [sys.executable, "-m", "server", *words.split()],
                cwd=ROOT,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=DEADLINE_S,
            )
            assert (done.returncode, done.stderr) == (1, "Error: stdout cannot be written: No space left on device\n")


def test_a_check_touches_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        done = command("--check-config", "--store", tmp_path / "new" / "store", "--port", port)
    assert (done.stdout, done.stderr) == ("configuration is fine\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_check_of_a_running_servers_configuration_is_fine(tmp_path: Path) -> None:
    place = ("--listen", f"127.0.0.1:0,unix://{tmp_path}/socket", "--pid-file", tmp_path / "pid")
    with running(*place, store=tmp_path / "store") as server:
        again = command("--check-config", *place, "--store", tmp_path / "store", "--status-port", server.port)
        assert again.stdout == "configuration is fine\n"


def test_a_check_tells_every_mistake_in_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOCKETSWARM_WORKERS", "0")
    for action in ("--check-config", "--print-config"):
        done = command(action, "--discard", "--durability", "power", code=2)
        assert done.stdout == ""
        assert done.stderr.splitlines() == [
            "Error: workers is 0 (from SOCKETSWARM_WORKERS), not 1 to 512",
            "Error: durability is power (from --durability), but discard keeps nothing: leave one of them out",
        ]
    monkeypatch.delenv("SOCKETSWARM_WORKERS")
    (tmp_path / "file").write_bytes(b"")
    done = command("--check-config", "--store", tmp_path / "file", code=2)
    assert (done.stdout, done.stderr) == (
        "",
        f"Error: store {tmp_path}/file cannot be used: {tmp_path}/file is not a folder\n",
    )


def test_a_check_tells_what_this_machine_has_against_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    addresses = f"203.0.113.1:0,no.such.invalid:0,unix://{tmp_path}/none/a,unix://{tmp_path}/file"
    page = ("--status-port", 0, "--status-host", "203.0.113.2")
    done = command(
        "--check-config", "--discard", "--listen", addresses, *page, "--pid-file", tmp_path / "none" / "pid", code=2
    )
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines.pop(1).startswith("Error: 'no.such.invalid' is not an address of this machine: ")
    assert lines == [
        "Error: cannot listen on 203.0.113.1:0: Cannot assign requested address",
        f"Error: cannot listen on unix://{tmp_path}/none/a: there is no folder {tmp_path}/none",
        f"Error: cannot listen on unix://{tmp_path}/file: there is a file that is no socket; remove it or name another "
        "path",
        "Error: status page: cannot listen on 203.0.113.2:0: Cannot assign requested address",
        f"Error: pid_file {tmp_path}/none/pid cannot be written: there is no folder {tmp_path}/none",
    ]
    done = command("--check-config", "--discard", "--pid-file", tmp_path / "file", code=2)
    assert done.stderr == f"Error: pid_file {tmp_path}/file exists and holds no pid; remove it or name another file\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_slip_in_a_variable_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOCKETSWARM_WROKERS", "3")
    warning = "SOCKETSWARM_WROKERS in the environment is not known; did you mean SOCKETSWARM_WORKERS?"
    assert command("--check-config", "--discard").stderr == f"Warning: {warning}\n"
    with running() as server:
        [line] = server.messages().splitlines()
    assert line.endswith(f" WARNING {warning}")


def test_options_of_the_server_are_none_of_a_command() -> None:
    assert "follow it" in command("--discard", "status", code=2).stderr
    assert "not both" in command("status", "--pid", "1", "--port", "1", code=2).stderr
    assert "--wrong" in command("status", "--wrong", code=2).stderr
    assert "--json" in command("status", "--help").stdout


# ── Status ──


def test_status_tells_what_clients_did_and_what_happened_to_workers(tmp_path: Path) -> None:
    with running(store=tmp_path / "store", workers=2) as server, Client(server.port) as client:
        for number in range(3):
            assert client.upload(b"12345", f"file-{number}").code == "ok"
        break_off(server.port)
        eventually(lambda: sum(slot.connections_now for slot in server.slots()) == 1, "one connection is left")
        idle = next(slot for slot in server.slots() if not slot.connections_now)
        os.kill(idle.pid, signal.SIGKILL)
        eventually(lambda: idle.pid not in server.workers() and len(server.workers()) == 2, "it was replaced")

        told = status("--port", server.port)
        assert told == told | {"pid": server.pid, "port": server.port, "workers": 2, "draining": False}
        assert told["store"] == str(tmp_path / "store")
        assert told["totals"] == {
            "restarts": 1,
            "connections_now": 1,
            "connections_accepted": 2,
            "uploads_stored": 3,
            "bytes_stored": 15,
            "failures": {"truncated": 1},
        }
        assert [slot["pid"] for slot in told["slots"]] == server.workers()
        assert [slot["restarts"] for slot in told["slots"]] == [int(slot.slot == idle.slot) for slot in server.slots()]
        assert all(0 < slot["uptime_s"] < told["uptime_s"] + 1 for slot in told["slots"])
        assert any(
            f"(pid {idle.pid}) was ended by SIGKILL from somebody else" in each["text"] for each in told["events"]
        )

        text = command("status", "--pid", server.pid).stdout
        assert text.startswith(f"127.0.0.1:{server.port}: pid {server.pid}, up ")
        assert f", 2 of 2 workers ready, store: {tmp_path}/store\n" in text
        assert "1 truncated" in text
        assert f"(pid {idle.pid}) was ended by SIGKILL from somebody else\n" in text


def test_a_reload_takes_the_new_file_and_is_seen_as_one_thing(tmp_path: Path) -> None:
    config_file = tmp_path / "server.toml"
    config_file.write_text("max_file_size = 10")
    with running("--config", config_file, workers=2) as server, Client(server.port) as client:
        assert client.upload(bytes(10)).code == "ok"
        config_file.write_text('max_file_size = 11\ndurability = "power"')
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: status("--pid", server.pid)["events"], "the reload was tried")
        config_file.write_text("max_file_size = 11")
        os.kill(server.pid, signal.SIGHUP)
        eventually(lambda: upload(server.port, bytes(11)).code == "ok", "a new worker has the new value")
        eventually(lambda: status("--pid", server.pid)["events"][-1]["kind"] == "reload-finished", "it was reloaded")
        eventually(lambda: sum(bool(slot.retiring) for slot in server.slots()) == 1, "the idle one has ended")

        told = status("--pid", server.pid)
        assert [event["kind"] for event in told["events"]] == ["reload-failed", "reload-started", "reload-finished"]
        assert f"durability is power (from {config_file}), but discard keeps nothing" in told["events"][0]["text"]
        assert told["options"]["max_file_size"] == "11B"
        assert told["totals"]["restarts"] == 2
        [retiring] = [slot for slot in told["slots"] if slot["retiring"]]  # that of the client, who is still there
        assert retiring["state"] == "ready"
        assert "ready +1 retiring" in command("status", "--pid", server.pid).stdout


def test_status_without_a_choice_tells_of_every_server_of_this_user() -> None:
    with running() as one, running() as other:
        pids = {server["pid"] for server in json.loads(command("status", "--json").stdout)["servers"]}
        assert {one.pid, other.pid} <= pids
        assert f":{other.port}: pid {other.pid}, " in command("status").stdout


def test_a_server_that_is_not_there_is_one_line() -> None:
    with running("--listen", f"127.0.0.1:{free_port()}") as server:
        [worker] = server.workers()
        told = command("status", "--pid", worker, code=1)
        assert told.stderr == f"Error: pid {worker} is no running server; its workers have other pids than it has\n"
    for choice, of in (("--pid", server.pid), ("--port", server.port)):
        told = command("status", "--json", choice, of, code=1)
        assert told.stdout == ""
        assert re.fullmatch(rf"Error: .*\b{of}\b.*\n", told.stderr)


def test_a_server_that_hangs_is_seen_as_well() -> None:
    with running() as server:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            assert status("--pid", server.pid)["slots"][0]["state"] == "ready"
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_a_drain_is_seen() -> None:
    with running() as server, Client(server.port) as client:
        client.send_header(2)
        eventually(lambda: server.slots()[0].connections_now, "the upload has begun")
        server.process.terminate()
        told = eventually(lambda: [s for s in read_servers(pid=server.pid) if s.draining], "it drains")
        assert ", draining, store: discarded\n" in command("status", "--pid", server.pid).stdout
        assert told[0].totals.connections_now == 1
        client.sock.sendall(b"ok")
        assert client.reply().code == "ok"
        assert server.wait() == 0


def test_a_server_is_read_at_any_moment_of_its_life() -> None:
    """From before its first file to after its last: each look shows it as it is or not at all."""
    looks = []
    with start() as process:
        while not looks or looks[-1] != [2, "ready"]:
            looks += look(process.pid)
            assert process.poll() is None
        process.terminate()
        while process.poll() is None:
            look(process.pid)
    assert process.returncode == 0
    assert look(process.pid) == []


def look(pid: int) -> list[list[Any]]:
    """How many slots a server shows, and the state of the last of them."""
    return [[len(found.slots), found.slots[-1].state if found.slots else ""] for found in read_servers(pid=pid)]


@contextmanager
def start() -> Iterator["subprocess.Popen[bytes]"]:
    """A server that has just been started, and is not waited for."""
    arguments = ["--port", "0", "--workers", "2", "--discard"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, "-m", "server", *arguments], cwd=ROOT, stdout=said, stderr=said)
        try:
            yield process
            process.wait(DEADLINE_S)
        finally:
            process.kill()
            process.wait()


# ── Logs ──


def test_uploads_that_are_stored_write_nothing(tmp_path: Path) -> None:
    with running("--log-format", "json", store=tmp_path / "store", workers=2) as server:
        for number in range(20):
            assert upload(server.port, b"x", f"file-{number}").code == "ok"
        with Client(server.port) as client:
            for _ in range(20):
                assert client.upload(bytes(100_000)).code == "ok"
        assert server.stop() == 0
        [line] = server.messages().splitlines()
        assert json.loads(line)["message"] == "draining: SIGTERM"


def test_each_failure_is_a_line_for_people() -> None:
    with running() as server:
        assert upload(server.port, b"", "..").code == "name_rejected"
        assert refused(server.port, b"GET / HTTP/1.1\r\n\r\n") == "bad_length"
        one, other = server.messages().splitlines()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO worker 0: name_rejected: ", one)
    assert " INFO worker 0: bad_length: " in other


def test_json_logs_are_json_to_the_last_line() -> None:
    with running("--log-format", "json") as server:
        [worker] = server.workers()
        assert upload(server.port, b"", "..").code == "name_rejected"
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: server.workers() not in ([], [worker]), "it was replaced")
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.messages().splitlines()]
    assert all(line.keys() >= {"time", "level", "pid", "message"} for line in lines)
    assert (lines[0]["level"], lines[0]["pid"]) == ("info", worker)
    assert lines[0]["message"].startswith("worker 0: name_rejected: ")
    assert any(line["level"] == "warning" and line["pid"] == server.pid for line in lines[1:])


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_flood_of_failures_is_counted_not_written(log_format: str) -> None:
    with running("--log-format", log_format) as server:
        flood(server, 5 * LINES)
        assert server.stop() == 0
        messages = server.messages()
    written = messages.count("worker 0: bad_length: ")
    counted = sum(int(number) for number in re.findall(r"and (\d+) more ", messages))
    assert written + counted == 5 * LINES
    assert LINES <= written <= 2 * LINES  # at most one window ends meanwhile
    assert written < len(messages.splitlines()) <= written + 2


def flood(server: Server, failures: int) -> None:
    for _ in range(failures):
        assert refused(server.port, bytes(4)) == "bad_length"
    assert server.failures() == {"bad_length": failures}


def test_no_client_writes_lines_of_its_own() -> None:
    with running() as server:
        for header in (b'{"file_size": 1, "file_name": "a\\n2026 ERROR forged \\u001b[2J"}', b'{"a\n\x1b[2J":'):
            assert refused(server.port, len(header).to_bytes(4, "little") + header + b"x") in (
                "name_rejected",
                "bad_header",
            )
        lines = server.messages().split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert all(" INFO worker 0: " in line for line in lines[:2])
