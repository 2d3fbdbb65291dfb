"""`python -m loadtest upload` against the real server."""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import termios
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import Authority
from headless import answer, read_exactly, read_header, script, serving, stored
from in_process import called
from servers import DEADLINE_S, ROOT, eventually, free_port, running
from stores import exfat

from loadtest.__main__ import cli
from server.protocol import Limits, ServerConnection

TIMEOUT_S = 60


UPLOAD = [sys.executable, "-m", "loadtest", "upload"]


def upload(*arguments):
    return called(cli, ROOT, "upload", *arguments)


def at(port):
    return f"--host=tcp://127.0.0.1:{port}"


def refusal(done, code=1):
    """The one line that says what is wrong."""
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def standard_library():
    """One file of the running Python's standard library for each base name, in whatever case."""
    files = {}
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if name != "site-packages"]
        for name in names:
            path = Path(folder, name)
            if path.is_file() and os.access(path, os.R_OK):
                files.setdefault(name.casefold(), path)
    return {path.name: path for path in files.values()}


def test_the_standard_library_over_one_connection(tmp_path):
    sources = standard_library()
    assert len(sources) > 500
    assert any(path.stat().st_size == 0 for path in sources.values())
    with running(store=tmp_path / "store") as server:
        command = [*UPLOAD, at(server.port), *sources.values()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.stderr == ""
        assert done.returncode == 0
        assert done.stdout.startswith(f"{len(sources)} files, ")
        [slot] = server.slots()
        assert (slot.connections_accepted, slot.uploads_stored) == (1, len(sources))
        assert server.files().keys() == sources.keys()
        for name, source in sources.items():
            assert (server.store / name).read_bytes() == source.read_bytes(), name


def test_a_file_of_no_bytes(tmp_path):
    (tmp_path / "empty").touch()
    with running(store=tmp_path / "store") as server:
        done = upload(at(server.port), tmp_path / "empty")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"1 file, 0 bytes stored at tcp://127.0.0.1:{server.port}\n"
        assert server.files() == {"empty": 0}


@pytest.mark.parametrize(("options", "connections"), [([], 1), (["--close"], 3)])
def test_connections(tmp_path, options, connections):
    files = [tmp_path / f"file-{i}" for i in range(3)]
    for file in files:
        file.write_text(file.name)
    with running(store=tmp_path / "store") as server:
        done = upload(at(server.port), *options, *files)
        assert (done.returncode, done.stderr) == (0, "")
        assert [slot.connections_accepted for slot in server.slots()] == [connections]
        assert server.files() == {file.name: 6 for file in files}


def test_it_stops_at_the_first_that_is_refused(tmp_path):
    for name, size in (("small", 1024), ("large", 4 << 20), ("never", 1)):
        (tmp_path / name).write_bytes(bytes(size))
    with running("--max-file-size", "1KiB", store=tmp_path / "store") as server:
        said = refusal(upload(at(server.port), tmp_path / "small", tmp_path / "large", tmp_path / "never"))
        assert f"{tmp_path}/large: too_large: file_size is {4 << 20}, over the limit of 1024 bytes" in said
        assert said.endswith(f" (tcp://127.0.0.1:{server.port}); 1 of 3 files stored\n")
        assert server.files() == {"small": 1024}


def test_where_nobody_knows_whether_the_last_one_is_stored_that_is_said(tmp_path):
    files = [tmp_path / name for name in ("first", "second", "third")]
    for file in files:
        file.write_bytes(b"abc")

    def answer_one(sock):
        answer(sock)
        read_exactly(sock, read_header(sock)["file_size"])

    with serving(answer_one) as host:
        said = refusal(upload(f"--host={host}", *files))
    assert said.startswith(f"Error: {files[1]}: connection_lost: ")
    assert said.endswith("; 1 of 3 files stored, and perhaps this one\n")


@pytest.mark.parametrize("scheme", ["tcp", "http"])
def test_a_port_that_speaks_tls(tmp_path, scheme):
    """It only closes, and is asked why."""
    files = [tmp_path / name for name in ("one", "two")]
    for file in files:
        file.touch()
    with running("--tls-cert", Authority(tmp_path).server()) as server:
        host = f"{scheme}://127.0.0.1:{server.port}"
        said = refusal(upload(f"--host={host}", *files))
    instead = ": write tls://HOST:PORT" if scheme == "tcp" else ""
    why = f"the server speaks TLS, which {scheme}:// does not{instead} ({host})"
    assert said == f"Error: {files[0]}: {why}; 0 of 2 files stored\n"


def test_a_port_that_speaks_another_protocol(tmp_path):
    (tmp_path / "file").touch()
    with serving(lambda sock: sock.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")) as host:
        said = refusal(upload(f"--host={host}", tmp_path / "file"))
    assert "bad_reply: the reply broke the protocol; does this server speak this protocol (--host)? (tcp://" in said


ALIKE = [("X.TXT", "x.txt"), ("stra\u00dfe", "STRASSE"), ("\u00e9", "e\u0301")]


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_names_that_some_stores_take_for_one_are_two_files(tmp_path, one, other):
    paths = [tmp_path / name for name in (one, "y.txt", other)]
    for path in paths:
        path.write_bytes(b"abc")
    with running(store=tmp_path / "store") as server:
        done = upload(at(server.port), *paths)
        assert server.files() == {path.name: 3 for path in paths}
    assert (done.returncode, done.stdout.startswith("3 files, 9 bytes stored at ")) == (0, True)
    alike = f"{one!r} and {other!r} are one file to a store that does not tell them apart, such as exFAT"
    assert done.stderr == f"Warning: {alike}: it keeps the last\n"


def test_what_is_said_of_exfat_is_true(tmp_path):
    paths = [tmp_path / name for name in ("X.TXT", "x.txt")]
    for path in paths:
        path.write_text(path.name)
    with exfat(tmp_path) as disk, running(store=disk / "store") as server:
        done = upload(at(server.port), *paths)
        assert (done.returncode, done.stderr.count("Warning: 'X.TXT' and 'x.txt' are one file")) == (0, 1)
        assert len(server.files()) == 1
        assert (server.store / "x.txt").read_text() == "x.txt"


@pytest.mark.parametrize(("one", "other"), [("a/x.txt", "b/x.txt"), ("x.txt", "dir\\x.txt"), ("x.txt", "x.txt")])
def test_two_files_of_one_name_are_refused_before_anything_is_sent(tmp_path, one, other):
    paths = [tmp_path / "empty", tmp_path / one, tmp_path / other]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    said = refusal(upload(at(free_port()), *paths), code=2)
    assert f"{paths[1]} and {paths[2]} would both be stored as 'x.txt'" in said


def test_a_web_servers_names_may_have_a_backslash(tmp_path):
    for name in ("x.txt", "dir\\x.txt"):
        (tmp_path / name).touch()
    done = upload(f"--host=http://127.0.0.1:{free_port()}", tmp_path / "x.txt", tmp_path / "dir\\x.txt")
    assert "x.txt: connect_refused: " in refusal(done)


def test_a_name_that_the_file_did_not_have_is_told(tmp_path):
    files = [tmp_path / name for name in ("x.txt", "y.txt", "dir\\z.txt")]
    for file in files:
        file.write_bytes(b"abc")
    with running("--collision", "unique", store=tmp_path / "store") as server:
        (tmp_path / "store" / "x.txt").write_bytes(b"old")
        done = upload(at(server.port), *files)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            f"{files[0]} is stored as 'x-1.txt'",
            f"{files[2]} is stored as 'z.txt'",
            f"3 files, 9 bytes stored at tcp://127.0.0.1:{server.port}",
        ]
        assert server.files() == dict.fromkeys(("x.txt", "x-1.txt", "y.txt", "z.txt"), 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_what_is_stored(tmp_path, number):
    files = [tmp_path / name for name in ("first", "second", "third")]
    for file in files:
        file.write_bytes(b"abc")
    waits = threading.Event()

    def answer_one(sock):
        answer(sock)
        read_header(sock)
        waits.set()
        read_exactly(sock, 1 << 20)

    with serving(answer_one) as host:
        command = [*UPLOAD, f"--host={host}", *map(str, files)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert waits.wait(DEADLINE_S)
            process.send_signal(signal.SIGUSR1)
            process.send_signal(number)
            out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out, err) == (130, "", f"Interrupted: 1 of 3 files stored at {host}\n")


def test_a_name_that_the_server_rejects(tmp_path):
    (tmp_path / "new\nline").touch()
    with running(store=tmp_path / "store") as server:
        done = upload(at(server.port), tmp_path / "new\nline")
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert line.startswith(rf"Error: {tmp_path}/new\nline: name_rejected: ")
        assert server.files() == {}


def test_a_locale_that_has_not_the_names_characters(tmp_path):
    path = tmp_path / "größe"
    path.touch()
    locale = ["env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0"]
    with running(store=tmp_path / "store") as server:
        command = [*locale, *UPLOAD, at(server.port), str(path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert server.files() == {"größe": 0}


def test_a_name_that_is_not_text(tmp_path):
    path = tmp_path / os.fsdecode(b"latin-1-\xfc")
    path.touch()
    (tmp_path / "before").touch()
    with running(store=tmp_path / "store") as server:
        said = refusal(upload(at(server.port), tmp_path / "before", path), code=2)
        assert said == f"Error: {str(path)!r} cannot be uploaded: its name is not UTF-8\n"
        assert server.files() == {}


def test_no_server(tmp_path):
    (tmp_path / "file").touch()
    port = free_port()
    said = refusal(upload(at(port), tmp_path / "file"))
    assert f"connect_refused: nobody listens at the address (tcp://127.0.0.1:{port})" in said


def test_a_web_server(tmp_path):
    """Which tells nothing of what it has, so nothing is compared; what it refuses is named by its status."""
    (tmp_path / "load-1").write_bytes(bytes(100_000))
    (tmp_path / "load-2").touch()
    (tmp_path / "other").touch()
    port = free_port()
    with script(tmp_path, "http_store.py", str(port)):
        eventually(lambda: accepts(port), "the web server listens")
        done = upload("--host", f"http://127.0.0.1:{port}/dir", tmp_path / "load-1", tmp_path / "load-2")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"2 files, 100,000 bytes stored at http://127.0.0.1:{port}/dir\n"
        refused = upload("--host", f"http://127.0.0.1:{port}/dir", "--close", tmp_path / "load-1", tmp_path / "other")
        assert "other: http_507: the server answered 507" in refusal(refused)


def accepts(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("host", ["127.0.0.1:12345", "ssl://127.0.0.1:1", "tcp://127.0.0.1", "tcp://a..b:1"])
def test_a_bad_host(tmp_path, host):
    (tmp_path / "file").touch()
    said = refusal(upload("--host", host, tmp_path / "file"), code=2)
    assert f"{host!r} is not a host: write tcp://HOST:PORT, such as " in said
    assert "or http://HOST:PORT/PATH" in said


@pytest.mark.parametrize(("file", "said"), [("none", "does not exist"), (".", "is a directory")])
def test_what_is_no_file(tmp_path, file, said):
    done = upload(tmp_path / file)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "before").touch()
    with running(store=tmp_path / "store") as server:
        said = refusal(upload(at(server.port), tmp_path / "before", tmp_path / "pipe"), code=2)
        assert "pipe is not a regular file" in said
        assert server.files() == {}


def test_no_files():
    done = upload()
    assert done.returncode == 2
    assert "Missing argument 'FILES...'" in done.stderr


@contextmanager
def on_header(action):
    """The port of a server that calls `action` at the first header, and then reads and says nothing."""
    problems = []

    def serve(listener):
        try:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(DEADLINE_S)
                connection = ServerConnection(Limits())
                while data := sock.recv(1 << 16):
                    if any(connection.receive_data(memoryview(data))):
                        break
                action()
                while sock.recv(1 << 20):
                    pass
        except Exception as problem:
            problems.append(problem)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()
    assert not problems


def test_a_file_that_becomes_shorter(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    with on_header(lambda: os.truncate(path, 0)) as port:
        assert refusal(upload(at(port), path)) == f"Error: {path} became shorter while it was read\n"


def test_a_file_that_grows_is_counted_as_it_was_sent(tmp_path):
    """And so is one that has grown before its turn."""
    files = [tmp_path / name for name in ("first", "second")]
    for file in files:
        file.write_bytes(b"abc")

    def grow(sock):
        header = read_header(sock)
        for file in files:
            with file.open("ab") as more:
                more.write(b"defgh")
        sock.sendall(stored(header, read_exactly(sock, header["file_size"])))
        answer(sock)

    files[0].write_bytes(bytes(10 << 20))  # so that its end is not there before it grows
    with serving(grow) as host:
        done = upload(f"--host={host}", *files)
    warning = f"Warning: {files[0]} grew while it was read: its first 10,485,760 bytes are stored\n"
    assert (done.returncode, done.stderr) == (0, warning)
    assert done.stdout == f"2 files, 10,485,768 bytes stored at {host}\n"


def test_a_file_of_no_size_that_can_be_read_is_refused_before_anything_is_sent(tmp_path):
    (tmp_path / "first").write_bytes(b"abc")
    said = refusal(upload(at(free_port()), tmp_path / "first", "/proc/cpuinfo"), code=2)
    assert said == "Error: /proc/cpuinfo has a size of 0, but can be read: upload a copy of it\n"


def test_a_file_that_vanishes(tmp_path):
    """Between the check of the command line and its turn: here while a pipe of a first file is slow."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(bytes(1000))
    second.touch()
    with running(store=tmp_path / "store") as server, slow_proxy(server.port, second.unlink) as port:
        said = refusal(upload(at(port), first, second))
        assert said == f"Error: {second}: No such file or directory; 1 of 2 files stored\n"
        assert server.files() == {"first": 1000}


@contextmanager
def slow_proxy(port, action):
    """The port of a proxy that calls `action` before it passes on what the server says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)

        def serve():
            client, _ = listener.accept()
            with client, socket.create_connection(("127.0.0.1", port), DEADLINE_S) as server:
                client.settimeout(DEADLINE_S)
                server.sendall(client.recv(1 << 16))
                reply = server.recv(1 << 16)
                action()
                client.sendall(reply)
                client.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()


def test_the_progress_bar_is_for_terminals_only(tmp_path):
    (tmp_path / "file.bin").write_bytes(bytes(3 << 20))
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    try:
        with running(store=tmp_path / "store") as server:
            command = [*UPLOAD, at(server.port), str(tmp_path / "file.bin")]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave) as process:
                os.close(slave)
                shown = b""
                try:
                    while piece := os.read(master, 4096):
                        shown += piece
                except OSError:  # EIO: nobody holds the other end any more
                    pass
                assert process.wait(TIMEOUT_S) == 0
                assert process.stdout.read().startswith(b"1 file, ")
    finally:
        os.close(master)
    assert b"100%" in shown
    assert b"3.00M/3.00M" in shown
    assert b"iB/s" in shown  # in the same units
    assert b"file.bin" in shown
