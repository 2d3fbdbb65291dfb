"""What the server listens on: several addresses, IPv6, unix sockets; and its pid file."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from certificates import Authority
from crowd import crowd
from servers import AS_NOBODY, ROOT, Client, command, eventually, needs_nobody, port_of, running, upload
from servers_of_others import public_folder
from small_disks import fill, small_disk

from server.status import reader

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a unix socket. A test's folder may have a longer name than a socket."""
    folder = tmp_path / "run"
    folder.mkdir()
    return folder / "upload.sock"


def failing(*options: object, code: int = 1, prefix: tuple[str, ...] = ()) -> str:
    """The one line that a server ends with which cannot start."""
    words = ["-m", "server", "--discard", *map(str, options)]
    if prefix:
        real = [*prefix, sys.executable, *words]
        done = subprocess.run(real, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    else:
        done = command(*words)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    [line] = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in done.stderr
    return line


# ── Several ──


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_every_address_is_served_by_every_worker(tmp_path: Path, path: Path) -> None:
    authority = Authority(tmp_path)
    listen = ("--listen", "127.0.0.1:0, [::1]:0,tls://127.0.0.1:0", "--listen", f"unix://{path}")
    with running(*listen, "--tls-cert", authority.server(), store=tmp_path / "store", workers=2) as server:
        four, six, secure, unix = server.state().addresses
        assert server.line.startswith(f"listening on {four}, {six}, {secure}, {unix} with 2 workers")
        assert (four, six) == (f"127.0.0.1:{server.port}", f"[::1]:{port_of(six)}")
        assert (secure, unix) == (f"tls://127.0.0.1:{port_of(secure)}", f"unix://{path}")
        assert server.state().port == server.port
        connects: list[Callable[[], Client]] = [
            lambda: Client(server.port),
            lambda: Client(port_of(six), host="::1"),
            lambda: Client(port_of(secure), tls=authority.context()),
            lambda: Client(str(path)),
        ]
        for number, connect in enumerate(connects):
            served = set()
            for _ in range(200):
                with connect() as client:
                    reply = client.upload(bytes(number), f"{number}")
                    assert reply.code == "ok"
                    served.add(reply.worker)
                if served == {0, 1}:
                    break
            assert served == {0, 1} or number == 3, "who is awake first takes from a shared one"
        for port in map(port_of, (four, six, secure)):
            [found] = reader.read_servers(port=port)
            assert found.pid == server.pid
        assert reader.read_servers(port=1) == []


def test_a_scale_down_and_a_reload_reset_nobody_at_any_address(tmp_path: Path, path: Path) -> None:
    authority = Authority(tmp_path)
    listen = f"127.0.0.1:0,tls://127.0.0.1:0,unix://{path}"
    options = ("--listen", listen, "--tls-cert", authority.server())
    with running(*options, store=tmp_path / "store", workers=2) as server, ExitStack() as stack:
        secure, context = port_of(server.state().addresses[1]), authority.context()
        loads = [
            stack.enter_context(crowd(server.port, long=2, short=2)),
            stack.enter_context(crowd(lambda: Client(secure, tls=context), long=2, short=2)),
            stack.enter_context(crowd(lambda: Client(str(path)), long=2, short=2)),
        ]
        for number, workers in ((signal.SIGTTIN, 3), (signal.SIGTTOU, 2), (signal.SIGHUP, 2), (signal.SIGTTOU, 1)):
            before = server.workers()
            server.process.send_signal(number)
            if number == signal.SIGHUP:
                eventually(lambda old=set(before): not old & set(server.workers()), "all workers are new")
            eventually(lambda wanted=workers: len(server.workers()) == wanted, f"{workers} workers")
            for load in loads:
                load.go_on(20)
    for number, load in enumerate(loads):
        assert load.failures == [], number


@pytest.mark.parametrize(
    ("listen", "words"),
    [
        ("", "'' is not an address: write HOST:PORT"),
        ("12345", "'12345' is not an address"),
        ("::1:12345", "'::1:12345' is not an address: write HOST:PORT or [IPV6]:PORT"),
        ("http://127.0.0.1:1", "'http://127.0.0.1:1' is not an address"),
        ("127.0.0.1:1,,[::1]:1", "'' is not an address"),
        ("127.0.0.1:70000", "'127.0.0.1:70000' is not an address"),
        ("127.0.0.1:1,127.0.0.1:1", "'127.0.0.1:1' is given twice"),
        ("unix:///a,unix:///a", "'unix:///a' is given twice"),
        ("unix://a", "'unix://a' is not the path of a socket"),
        ("unix:///" + "x" * 107, "has 108 bytes in its path, and a socket's may have 107"),
        ("tls://127.0.0.1:0", "listen is tls://127.0.0.1:0 (from --listen), but TLS needs a certificate"),
    ],
)
def test_a_mistake_is_one_line(listen: str, words: str) -> None:
    assert words in failing("--listen", listen, code=2)


def test_host_and_port_are_not_given_beside_a_list() -> None:
    assert "either by listen or by host and port, not both (from --listen and --port)" in failing(
        "--listen", "127.0.0.1:0", "--port", "0", code=2
    )


def test_a_port_in_use_names_who_has_it() -> None:
    with running() as server:
        said = failing("--listen", f"127.0.0.1:0,127.0.0.1:{server.port}")
        assert f"port {server.port} is held by pid {server.pid} (" in said
        said = failing("--listen", f"127.0.0.2:{server.port},0.0.0.0:{server.port}")
        assert said == f"Error: cannot listen on 0.0.0.0:{server.port}: 127.0.0.2:{server.port} has the port already"


# ── Unix sockets ──


def test_uploads_over_a_unix_socket(path: Path, tmp_path: Path) -> None:
    with running("--listen", f"unix://{path}", store=tmp_path / "store", workers=2, forked=False) as server:
        assert (server.state().port, server.state().addresses) == (0, [f"unix://{path}"])
        with Client(str(path)) as client:
            for size in (0, 4096, 3 * MIB):
                assert client.upload(bytes(size), f"{size}").code == "ok"
            client.send(bytes(5), "half")
            client.half_close()
            assert client.reply().code == "ok"
            client.expect_eof()
        with Client(str(path)) as client:
            client.send_header(1 << 40)
            try:
                for _ in range(100):
                    client.sock.sendall(bytes(MIB))
            except OSError:
                pass
            assert client.reply().code == "too_large"
        titles = {Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode() for pid in server.workers()}
        assert titles == {f"socketswarm: worker {slot} [unix://{path}]" for slot in (0, 1)}
        assert f"unix://{path}: pid {server.pid}" in reader.as_text(reader.read_servers(pid=server.pid))
    assert not path.exists()


@pytest.mark.parametrize(("umask", "mode"), [(None, 0o600), ("007", 0o660), ("000", 0o666)])
def test_the_umask_decides_who_may_connect(umask: str | None, mode: int, path: Path) -> None:
    options = [] if umask is None else ["--umask", umask]
    with running("--listen", f"unix://{path}", *options):
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert stat.S_ISSOCK(path.stat().st_mode)


def test_a_path_of_a_living_server_is_an_error_and_that_of_a_dead_one_is_taken(path: Path) -> None:
    with running("--listen", f"unix://{path}", exit_code=-signal.SIGKILL) as server:
        assert f"cannot listen on unix://{path}: pid {server.pid} listens there" in failing(
            "--listen", f"unix://{path}"
        )
        assert upload(str(path), b"abc").code == "ok"
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
    assert path.exists()
    with running("--listen", f"unix://{path}"):
        assert upload(str(path), b"abc").code == "ok"
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_bytes(b"precious")
    assert "there is a file that is no socket; remove it" in failing("--listen", f"unix://{path}")
    assert path.read_bytes() == b"precious"


def test_a_folder_that_is_not_there_is_one_line(path: Path) -> None:
    path.parent.rmdir()
    assert failing("--listen", f"unix://{path}") == f"Error: cannot listen on unix://{path}: No such file or directory"


@needs_nobody
def test_a_folder_that_cannot_be_written_is_one_line(path: Path) -> None:
    for folder in list(path.parents)[:4]:
        folder.chmod(0o755)
    said = failing("--listen", f"unix://{path}", prefix=AS_NOBODY)
    assert said == f"Error: cannot listen on unix://{path}: Permission denied"


@needs_nobody
def test_a_socket_of_another_user_is_one_line() -> None:
    with public_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        folder.chmod(0o777)
        listener.bind(str(folder / "sock"))
        said = failing("--listen", f"unix://{folder}/sock", prefix=AS_NOBODY)
        assert (
            said == f"Error: cannot listen on unix://{folder}/sock: another user's socket is there; name another path"
        )
        assert (folder / "sock").exists()


@needs_nobody
def test_a_port_that_is_roots_is_one_line() -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 1:
        pytest.skip("every port is everybody's here")
    said = failing("--port", "1", prefix=AS_NOBODY)
    assert (
        said == "Error: cannot listen on 127.0.0.1:1: Permission denied; ports below 1024 need root: name a higher one"
    )


def test_what_may_be_a_password_is_in_no_error_and_not_looked_up() -> None:
    for option in ("--host", "--listen", "--status-host"):
        said = failing(option, "hunter2@127.0.0.1:1", code=2)
        assert "what was given" in said and "hunter2" not in said
    said = failing("--host", "hunter2\N{FULLWIDTH COMMERCIAL AT}h")  # which only a lookup would read as one
    assert said.startswith("Error: what was given is not an address of this machine: ")


def test_listening_sockets_may_be_more_than_the_soft_limit() -> None:
    many = ",".join(["127.0.0.1:0"] * 12)
    with running("--listen", many, prefix=("prlimit", "--nofile=10:1000")) as server:
        assert len(server.state().addresses) == 12


def test_nothing_is_left_of_the_first_address_when_the_second_cannot_be_had(path: Path) -> None:
    with running() as server:
        failing("--listen", f"unix://{path},127.0.0.1:{server.port}")
    assert not path.exists()


def test_a_path_that_another_server_has_taken_meanwhile_is_left_to_it(path: Path) -> None:
    with running("--listen", f"unix://{path}"):
        path.unlink()
        other = socket.socket(socket.AF_UNIX)
        other.bind(str(path))
    with other:
        assert path.exists()


def test_the_end_resets_nobody_on_a_unix_socket(path: Path, tmp_path: Path) -> None:
    for _ in range(3):
        options = ("--listen", f"unix://{path}")
        with (
            running(*options, store=tmp_path / "store", workers=2) as server,
            crowd(lambda: Client(str(path))) as load,
        ):
            assert server.stop() == 0
        assert set(load.codes()) <= {"connect_refused"}
        load.assert_stored(tmp_path / "store")


def test_who_waits_on_a_unix_socket_when_it_ends_is_served(path: Path) -> None:
    with running("--listen", f"unix://{path}") as server, ExitStack() as stack:
        [worker] = server.workers()
        os.kill(worker, signal.SIGSTOP)
        clients = [stack.enter_context(Client(str(path))) for _ in range(200)]
        for client in clients:
            client.send(b"abc", connection="close")
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: not path.exists(), "nobody is let in any more")
        os.kill(worker, signal.SIGCONT)
        assert {client.reply().code for client in clients} == {"ok"}
        assert server.wait() == 0


# ── The pid file ──


def test_a_pid_file_is_there_as_long_as_the_server_is(tmp_path: Path) -> None:
    file = tmp_path / "server.pid"
    with running("--pid-file", file) as server:
        assert file.read_text() == f"{server.pid}\n"
        assert [entry.name for entry in tmp_path.iterdir()] == ["server.pid"]
        said = failing("--port", "0", "--pid-file", file)
        assert said == f"Error: pid_file {file} is that of a running server, pid {server.pid}; name another file"
        assert file.read_text() == f"{server.pid}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_pid_file_of_a_dead_server_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "server.pid"
    with running("--pid-file", file, exit_code=-signal.SIGKILL) as server:
        server.stop(signal.SIGKILL)
    assert file.exists()
    with running("--pid-file", file) as server:
        assert file.read_text() == f"{server.pid}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_pid_file_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert "exists and holds no pid" in failing("--port", "0", "--pid-file", tmp_path / "file")
    assert "cannot be written: there is no folder" in failing("--port", "0", "--pid-file", tmp_path / "none" / "file")
    assert rf"there is no folder {tmp_path}/no\nne" in failing(
        "--port", "0", "--pid-file", tmp_path / "no\nne" / "file"
    )
    assert (tmp_path / "file").read_text() == "precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_pid_file_on_a_full_disk_leaves_nothing_there(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        taken = fill(disk)
        said = failing("--port", "0", "--pid-file", disk / "pid")
        assert "cannot be written: No space left on device" in said
        assert list(disk.iterdir()) == [taken]


def test_a_pid_file_of_somebody_else_is_left_to_them(tmp_path: Path) -> None:
    file = tmp_path / "server.pid"
    with running("--pid-file", file):
        file.write_text("1\n")
    assert file.read_text() == "1\n"
