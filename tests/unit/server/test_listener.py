"""Listening sockets: one for each slot, all on one port, or one for all; and a port in use is an error."""

import errno
import fcntl
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from servers import DEADLINE_S, eventually

from server.addresses import Address
from server.listening import unix_sockets
from server.listening.listener import AddressError, Group, Listeners, PortInUseError, format_address
from server.options import AcceptMode


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def open_group(host: str, port: int, slots: int, mode: AcceptMode = "per-worker") -> Group:
    return Group.open(Address("tcp", host, port), slots, 128, mode)


def listen_on(stack: ExitStack, slots: int = 1, *, host: str = "127.0.0.1", port: int = 0) -> Group:
    listeners = open_group(host, port, slots)
    stack.callback(listeners.close)
    return listeners


def listen(stack: ExitStack, slots: int = 1, *, host: str = "127.0.0.1", port: int = 0) -> list[socket.socket]:
    listeners = listen_on(stack, slots, host=host, port=port)
    return [listeners.door_of(slot).sock for slot in range(slots)]


def accepted(sock: socket.socket) -> int:
    """How many connections waited there; they are closed."""
    number = 0
    while True:
        try:
            sock.accept()[0].close()
        except BlockingIOError:
            return number
        number += 1


def shares_of(sockets: Sequence[socket.socket], connections: int) -> list[int]:
    """How many of so many connections each got. A client may know that it is connected before the server's side does:
    the last packet of a handshake waits for the kernel, as all do."""
    shares = [0] * len(sockets)

    def all_came() -> bool:
        for number, sock in enumerate(sockets):
            shares[number] += accepted(sock)
        return sum(shares) >= connections

    eventually(all_came, "all connections are there")
    return shares


def connect(stack: ExitStack, port: int, number: int) -> None:
    for _ in range(number):
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))


def port_of(sock: socket.socket) -> int:
    port = sock.getsockname()[1]
    assert isinstance(port, int)
    return port


def descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_one_socket_for_each_slot_on_one_port(stack: ExitStack) -> None:
    sockets = listen(stack, 4)
    assert len({port_of(sock) for sock in sockets}) == 1
    assert len({os.fstat(sock.fileno()).st_ino for sock in sockets}) == 4
    for sock in sockets:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert not sock.getblocking()
        assert fcntl.fcntl(sock, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_every_socket_gets_its_share_of_connections(stack: ExitStack) -> None:
    """200 connections over 2 sockets: that one gets fewer than 40 has a probability below 1e-17."""
    sockets = listen(stack, 2)
    connect(stack, port_of(sockets[0]), 200)
    shares = shares_of(sockets, 200)
    assert sum(shares) == 200
    assert min(shares) > 40


def test_a_port_that_another_server_holds_is_an_error_although_both_would_share(stack: ExitStack) -> None:
    port = port_of(listen(stack, 2)[0])
    before = descriptors()
    with pytest.raises(PortInUseError) as caught:
        open_group("127.0.0.1", port, 2)
    assert caught.value.port == port
    assert str(port) in str(caught.value)
    assert descriptors() == before


def test_a_port_that_a_sharing_program_holds_is_an_error(stack: ExitStack) -> None:
    other = stack.enter_context(socket.socket())
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    other.bind(("127.0.0.1", 0))
    other.listen()
    with pytest.raises(PortInUseError):
        open_group("127.0.0.1", port_of(other), 1)


def test_a_port_with_connections_left_in_time_wait_can_be_taken_again(stack: ExitStack) -> None:
    sock = open_group("127.0.0.1", 0, 1).door_of(0).sock
    port = port_of(sock)
    with socket.create_connection(("127.0.0.1", port)) as client:
        sock.setblocking(True)
        accepted, _ = sock.accept()
        accepted.close()  # the server closes first, so TIME_WAIT is on its side
        assert client.recv(1) == b""
    sock.close()
    assert port_of(listen(stack, 2, port=port)[1]) == port


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a" * 70, "127.0.0.1 ", "1.2.3.4.5"])
def test_an_address_that_is_not_ours_is_an_error_that_names_it(host: str) -> None:
    before = descriptors()
    with pytest.raises(AddressError) as caught:
        open_group(host, 0, 1)
    assert host in str(caught.value)
    assert descriptors() == before


def test_ipv6(stack: ExitStack) -> None:
    [other] = listen(stack)
    port = port_of(other)  # of IPv4: the same port of IPv6 is somebody else's
    try:
        sockets = listen(stack, 2, host="::1", port=port)
    except AddressError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert format_address(sockets[1]) == f"[::1]:{port}"
    stack.enter_context(socket.create_connection(("::1", port)))


def test_an_address_as_people_write_it(stack: ExitStack) -> None:
    [sock] = listen(stack)
    assert format_address(sock) == f"127.0.0.1:{port_of(sock)}"


def test_a_program_that_is_started_does_not_inherit_them(stack: ExitStack) -> None:
    sockets = listen(stack, 3)
    inodes = {f"socket:[{os.fstat(sock.fileno()).st_ino}]" for sock in sockets}
    done = subprocess.run(
        ["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True, timeout=60, close_fds=False
    )
    assert "pipe:" in done.stdout
    assert not inodes & set(done.stdout.split())


# ── More and fewer ──


def test_a_socket_that_is_about_to_go_gets_no_new_connection(stack: ExitStack) -> None:
    listeners = listen_on(stack, 3)
    listeners.steer_away(2)
    connect(stack, listeners.port, 100)
    shares = shares_of([listeners.door_of(slot).sock for slot in range(3)], 100)
    assert sum(shares) == 100
    assert shares[2] == 0
    assert min(shares[:2]) > 10  # of 50: below has a probability of 1e-17
    last = listeners.door_of(2).sock
    listeners.remove_last()
    assert last.fileno() == -1


def test_one_that_is_added_gets_its_share(stack: ExitStack) -> None:
    listeners = listen_on(stack, 2)
    listeners.steer_away(1)
    listeners.remove_last()
    listeners.add()
    listeners.add()
    listeners.steer_to_all()
    listeners.steer_to_all()  # to ask for what is so already is no error
    connect(stack, listeners.port, 150)
    shares = shares_of([listeners.door_of(slot).sock for slot in range(3)], 150)
    assert sum(shares) == 150
    assert min(shares) > 10


def test_shared_is_one_socket_for_any_number(stack: ExitStack) -> None:
    listeners = open_group("127.0.0.1", 0, 4, "shared")
    stack.callback(listeners.close)
    assert len({listeners.door_of(slot).sock for slot in range(4)}) == 1
    listeners.steer_away(2)
    listeners.remove_last()
    listeners.add()
    listeners.steer_to_all()
    connect(stack, listeners.port, 10)
    assert shares_of([listeners.door_of(9).sock], 10) == [10]


def test_a_worker_keeps_only_its_own(stack: ExitStack) -> None:
    listeners = listen_on(stack, 3)
    others = [listeners.door_of(0).sock, listeners.door_of(2).sock]
    own = listeners.keep_only(1).sock
    assert own is listeners.door_of(1).sock and own.fileno() >= 0
    assert [sock.fileno() for sock in others] == [-1, -1]


# ── The end ──


def test_before_the_end_nobody_connects_any_more_and_who_is_there_is_not_reset(stack: ExitStack) -> None:
    listeners = listen_on(stack, 1)
    early = stack.enter_context(socket.create_connection(("127.0.0.1", listeners.port)))
    listeners.ignore_new()
    late = stack.enter_context(socket.socket())
    late.setblocking(False)
    assert late.connect_ex(("127.0.0.1", listeners.port)) == errno.EINPROGRESS
    eventually(listeners.is_quiet, "who was connecting is there")
    server_end = listeners.door_of(0).sock.accept()[0]
    stack.callback(server_end.close)
    assert accepted(listeners.door_of(0).sock) == 0
    listeners.close()
    early.sendall(b"abc")
    assert server_end.recv(3) == b"abc"
    server_end.sendall(b"def")
    assert early.recv(3) == b"def"


# ── Unix sockets ──


def connect_unix(stack: ExitStack, path: Path) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.connect(str(path))
    return sock


def test_at_the_end_of_a_unix_socket_nobody_connects_any_more_and_who_waits_is_accepted(
    stack: ExitStack, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    listeners = Listeners.open([Address("unix", path=str(path))], 2, 128, "per-worker")
    copy = listeners.keep_only(1)[0].sock.dup()
    stack.callback(copy.close)
    early = connect_unix(stack, path)
    late = stack.enter_context(socket.socket(socket.AF_UNIX))
    path_fd = os.open(path, os.O_PATH)  # as one that has found it, and is just about to connect
    stack.callback(os.close, path_fd)
    listeners.ignore_new()
    assert not path.exists()
    listeners.end()
    with pytest.raises(ConnectionRefusedError):
        late.connect(f"/proc/self/fd/{path_fd}")
    accepted_one, _ = copy.accept()
    stack.callback(accepted_one.close)
    with pytest.raises(OSError, match=r"Invalid argument|temporarily unavailable"):
        copy.accept()
    accepted_one.sendall(b"abc")
    assert early.recv(3) == b"abc"


def test_the_path_of_a_successor_is_left_to_it(stack: ExitStack, tmp_path: Path) -> None:
    """Its file may have the inode that ours had, as a second name of ours has."""
    path, second = tmp_path / "s", tmp_path / "second"
    listeners = Listeners.open([Address("unix", path=str(path))], 1, 128, "shared")
    second.hardlink_to(path)
    listeners.ignore_new()
    assert not path.exists()
    path.hardlink_to(second)
    for _ in range(2):  # as a drain and then the end of all
        listeners.end()
        assert path.exists()


def test_of_two_that_start_on_a_path_at_once_the_first_has_it(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound, chmod = threading.Event(), Path.chmod

    def slow_chmod(path: Path, mode: int) -> None:
        """Between bind() and listen()."""
        bound.set()
        time.sleep(0.2)
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", slow_chmod)
    monkeypatch.setattr(unix_sockets, "TURN_S", DEADLINE_S)
    path = tmp_path / "s"
    with ThreadPoolExecutor() as pool:
        first = pool.submit(unix_sockets.listen, path, 128)
        assert bound.wait(DEADLINE_S)
        with pytest.raises(unix_sockets.PathError, match=f"pid {os.getpid()} listens there"):
            unix_sockets.listen(path, 128)
        sock, _ = first.result()
    stack.callback(sock.close)
    connect_unix(stack, path)


def test_who_keeps_the_turn_keeps_nobody_from_starting(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_sockets, "TURN_S", 0.1)
    with unix_sockets._turn(tmp_path):
        sock, _ = unix_sockets.listen(tmp_path / "s", 128)
    stack.callback(sock.close)
    connect_unix(stack, tmp_path / "s")


def test_closing_a_unix_socket_here_changes_nothing_for_others(stack: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "s"
    group = Group.open(Address("unix", path=str(path)), 1, 128, "shared")
    copy = group.door_of(0).sock.dup()
    stack.callback(copy.close)
    stack.callback(path.unlink)
    group.close()
    connect_unix(stack, path)
    assert accepted(copy) == 1


# ── Several addresses ──


def test_when_one_address_cannot_be_had_none_is_kept(stack: ExitStack, tmp_path: Path) -> None:
    taken = port_of(listen(stack, 1)[0])
    before = descriptors()
    path = tmp_path / "s"
    with pytest.raises(PortInUseError):
        addresses = [
            Address("unix", path=str(path)),
            Address("tcp", "127.0.0.1", 0),
            Address("tcp", "127.0.0.1", taken),
        ]
        Listeners.open(addresses, 2, 128, "per-worker")
    assert descriptors() == before
    assert not path.exists()


def test_the_first_port_stands_for_all(stack: ExitStack, tmp_path: Path) -> None:
    unix, tcp, tls = Address("unix", path=f"{tmp_path}/s"), Address("tcp", "127.0.0.1"), Address("tls", "127.0.0.1")
    listeners = Listeners.open([unix, tcp, tls], 2, 128, "per-worker")
    stack.callback(listeners.end)
    assert listeners.addresses[:2] == [f"unix://{tmp_path}/s", f"127.0.0.1:{listeners.port}"]
    doors = listeners.keep_only(1)
    assert [door.is_tls for door in doors] == [False, False, True]
    assert not any(door.is_lent for door in doors)
