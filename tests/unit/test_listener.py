"""Listening sockets: one for each slot, all on one port, and a port in use is an error."""

import fcntl
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.listener import AddressError, PortInUseError, close_all, format_address, listen_per_slot


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listen(stack: ExitStack, slots: int = 1, *, host: str = "127.0.0.1", port: int = 0) -> list[socket.socket]:
    sockets = listen_per_slot(host, port, slots, 128)
    stack.callback(close_all, sockets)
    return sockets


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
    for _ in range(200):
        stack.enter_context(socket.create_connection(("127.0.0.1", port_of(sockets[0]))))
    shares: Counter[int] = Counter()
    for slot, sock in enumerate(sockets):
        while True:
            try:
                accepted, _ = sock.accept()
            except BlockingIOError:
                break
            accepted.close()
            shares[slot] += 1
    assert shares.total() == 200
    assert min(shares[0], shares[1]) > 40


def test_a_port_that_another_server_holds_is_an_error_although_both_would_share(stack: ExitStack) -> None:
    port = port_of(listen(stack, 2)[0])
    before = descriptors()
    with pytest.raises(PortInUseError) as caught:
        listen_per_slot("127.0.0.1", port, 2, 128)
    assert caught.value.port == port
    assert str(port) in str(caught.value)
    assert descriptors() == before


def test_a_port_that_a_sharing_program_holds_is_an_error(stack: ExitStack) -> None:
    other = stack.enter_context(socket.socket())
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    other.bind(("127.0.0.1", 0))
    other.listen()
    with pytest.raises(PortInUseError):
        listen_per_slot("127.0.0.1", port_of(other), 1, 128)


def test_a_port_with_connections_left_in_time_wait_can_be_taken_again(stack: ExitStack) -> None:
    [sock] = listen_per_slot("127.0.0.1", 0, 1, 128)
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
        listen_per_slot(host, 0, 1, 128)
    assert host in str(caught.value)
    assert descriptors() == before


def test_ipv6(stack: ExitStack) -> None:
    try:
        sockets = listen(stack, 2, host="::1")
    except AddressError as error:
        pytest.skip(f"no IPv6 here: {error}")
    port = port_of(sockets[0])
    assert format_address(sockets[1]) == f"[::1]:{port}"
    stack.enter_context(socket.create_connection(("::1", port)))
    listen(stack, 1, port=port)  # the same port of IPv4 is somebody else's


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
