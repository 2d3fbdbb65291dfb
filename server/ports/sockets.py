"""The sockets of a port as the kernel tells of them, through its socket diagnostics, or from /proc where it has none.

A leaf that the port helper, the reports' recorder and tests ask. It loads nothing that is slow to import.
"""

import os
import re
import socket
import struct
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

TIME_WAIT, UDP_UNCONNECTED, LISTEN, BOUND = 6, 7, 10, 13  # include/net/tcp_states.h
_ALL = (1 << 12) - 1  # as a mask of the states before 12; the two after are for the kernel's own use, and bound ones
_ACCEPTS = 1 << 16  # __SO_ACCEPTCON of include/linux/net.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLMSG_ERROR, _REQUEST_DUMP = 4, 20, 2, 0x301  # include/uapi/linux/
_ASK_ONE_BY_ONE = 8  # each port asked for takes a pass over all of the kernel's sockets


class Row(NamedTuple):
    """One socket as the kernel tells of it, whichever way it is asked."""

    family: socket.AddressFamily
    state: int
    here: int
    there: int
    """Local and remote port; 0 where there is none."""
    local: bytes
    """Local address, in the first 4 or all 16 bytes."""
    queue: int
    """Connections that wait to be accepted; bytes that wait to be read where it does not listen."""
    limit: int | None
    """How many connections may wait; None where /proc is asked, which does not tell, or where it does not listen."""
    dropped: int | None
    """Connections that a listening socket had no room for since it was opened; None as above."""
    uid: int
    inode: int
    """They count up as sockets are opened."""

    @property
    def link(self) -> str:
        """What a descriptor of it is a link to, in /proc/PID/fd."""
        return f"socket:[{self.inode}]"


def of_ports(ports: Collection[int], *, udp: bool = False) -> list[Row]:
    """The sockets with one of these ports at either end.

    After a load test the kernel has some 30,000 connections in TIME_WAIT, and writing them all down in /proc/net/tcp
    takes it 60 ms. Its socket diagnostics write down only what is asked for.
    """
    if not udp and len(ports) <= _ASK_ONE_BY_ONE:
        try:
            local = [row for port in ports for row in diagnosed(_ALL, local=port)]
            remote = [row for port in ports for row in diagnosed(_ALL & ~(1 << LISTEN), remote=port)]
            return local + [row for row in remote if row.here not in ports]
        except OSError:
            pass  # a kernel built without them
    return list(listed(set(ports), "udp" if udp else "tcp"))


def diagnosed(states: int, local: int = 0, remote: int = 0) -> Iterator[Row]:
    """TCP sockets in one of `states` (a mask) with this local or remote port, from the kernel's socket diagnostics.

    man 7 sock_diag; include/uapi/linux/inet_diag.h. OSError if the kernel does not offer them. The state "bound" is
    known since Linux 6.8; an older kernel has no row in it.
    """
    ports = socket.htons(local), socket.htons(remote)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            query = struct.pack("=BBBxIHH44x", family, socket.IPPROTO_TCP, _WITH_MEMORY, states, *ports)
            netlink.send(struct.pack("=IHHII", 16 + len(query), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 0, 0) + query)
            for drops, (state, here, there, address, queue, unsent, uid, inode) in _messages(netlink):
                limit, dropped = (unsent, drops) if state == LISTEN else (None, None)
                ports_of_it = socket.ntohs(here), socket.ntohs(there)
                yield Row(family, state, *ports_of_it, address, queue, limit, dropped, uid, inode)


_NLMSGHDR = struct.Struct("=IH10x")
_NLATTR = struct.Struct("=HH")
_SKMEMINFO = 7
_WITH_MEMORY = 1 << (_SKMEMINFO - 1)
_INET_DIAG_MSG = struct.Struct("=xBxxHH16s32xIIII")


def _messages(netlink: socket.socket) -> Iterator[tuple[int | None, tuple[Any, ...]]]:
    """The rows of an answer: (drops, struct inet_diag_msg), each behind a header. OSError if the answer is an error."""
    while True:
        answer, start = netlink.recv(1 << 16), 0
        while start < len(answer):
            length, kind = _NLMSGHDR.unpack_from(answer, start)
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", answer, start + _NLMSGHDR.size)[0]
                raise OSError(code, os.strerror(code))
            if kind != _SOCK_DIAG_BY_FAMILY:
                return
            body = start + _NLMSGHDR.size
            row = _INET_DIAG_MSG.unpack_from(answer, body)
            yield _drops(answer, body + _INET_DIAG_MSG.size, start + length), row
            start += (length + 3) & ~3


def _drops(answer: bytes, start: int, end: int) -> int | None:
    """What was dropped for want of room: among the attributes behind a row, the ninth number of INET_DIAG_SKMEMINFO
    (SK_MEMINFO_DROPS, linux/sock_diag.h); None where that is not there."""
    while start + _NLATTR.size <= end:
        length, kind = _NLATTR.unpack_from(answer, start)
        if kind == _SKMEMINFO and length >= _NLATTR.size + 9 * 4:
            return int.from_bytes(answer[start + _NLATTR.size + 32 : start + _NLATTR.size + 36], sys.byteorder)
        start += max(_NLATTR.size, (length + 3) & ~3)
    return None


def listed(ports: Collection[int], protocol: str) -> Iterator[Row]:
    """The rows of /proc/net/tcp and its kin (man 5 proc_pid_net) with one of the ports at either end.

    An address is written there as 32-bit words in hexadecimal, each in the machine's byte order.
    """
    wanted = {f"{port:04X}" for port in ports}
    for family, path in (socket.AF_INET, f"/proc/net/{protocol}"), (socket.AF_INET6, f"/proc/net/{protocol}6"):
        for line in kernel_text(path).splitlines()[1:]:
            _, local, remote, state, queues, _, _, uid, _, inode = line.split(None, 10)[:10]
            if local[-4:] in wanted or remote[-4:] in wanted:
                words = [int(local[start : start + 8], 16) for start in range(0, len(local) - 5, 8)]
                address = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
                here, there, queue = int(local[-4:], 16), int(remote[-4:], 16), int(queues[9:], 16)
                yield Row(family, int(state, 16), here, there, address, queue, None, None, int(uid), int(inode))


_UNIX_ROW = re.compile(r"\n(?=[0-9A-Fa-f]{8,16}: )")  # for a path may have any character in it, line ends too


def listening_at(path: str) -> list[str]:
    """The links of the unix sockets that listen at a path, by the name that each was bound to (man 5 proc_pid_net)."""
    rows = [row.split(None, 7) for row in _UNIX_ROW.split(kernel_text("/proc/net/unix").removesuffix("\n"))[1:]]
    real = os.path.realpath(path)
    return [
        f"socket:[{row[6]}]"
        for row in rows
        if len(row) == 8 and int(row[3], 16) & _ACCEPTS and row[7][:1] == "/" and os.path.realpath(row[7]) == real
    ]


def kernel_text(path: str) -> str:
    """A file of /proc; empty when it is gone or closed to us."""
    try:
        return os.fsdecode(Path(path).read_bytes())
    except OSError:
        return ""
