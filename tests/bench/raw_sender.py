"""The benches' sender: replays prebuilt bytes over many connections and counts replies. Not a load generator: it does
nothing but what keeps a server busy, so that the server is what is measured.

    python raw_sender.py --port P --wire framed|http --connections 50 --size 4096 --seconds 1

A closed loop on epoll: each connection sends its next frame as soon as the last one was answered. With --close each
upload has a connection of its own, for which as little as possible is done: the next one is made when the server has
closed this one, and its reply is looked at only then. A large frame is a file in memory, whose pages the kernel takes
as they are (sendfile(2)): copied, they would keep the sender as busy as the server. Prints one JSON object: uploads,
seconds, sender_cpu (share of its core; over 0.8 the sender may have been the limit).
"""

import _socket
import argparse
import json
import os
import select
import socket
import time

LARGE_BYTES = 1 << 20


def framed(name: str, body: bytes, close: bool) -> bytes:
    header = json.dumps(
        {"file_size": len(body), "file_name": name, "connection": "close" if close else "keep-alive"}
    ).encode()
    return len(header).to_bytes(4, "little") + header + body


def http_put(name: str, body: bytes, close: bool) -> bytes:
    connection = "close" if close else "keep-alive"
    head = f"PUT /{name} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\nConnection: {connection}\r\n\r\n"
    return head.encode() + body


def framed_ok(reply: bytes) -> bool:
    """Whether this is a whole reply; anything but a stored upload ends the bench."""
    if len(reply) < 4 or len(reply) < 4 + int.from_bytes(reply[:4], "little"):
        return False
    if b'"status":"stored"' not in reply:
        raise SystemExit(f"refused: {reply!r}")
    return True


def http_ok(reply: bytes) -> bool:
    if not reply.endswith(b"\r\n\r\n"):
        return False
    if not reply.startswith((b"HTTP/1.1 201", b"HTTP/1.1 204")):
        raise SystemExit(f"refused: {reply!r}")
    return True


class Frame:
    """One prebuilt upload, of which any part can be sent."""

    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data, self._fd = memoryview(data), -1
        if self.size >= LARGE_BYTES:
            self._fd = os.memfd_create("frame")
            with open(self._fd, "wb", closefd=False) as file:
                file.write(data)
            self._data = memoryview(b"")

    def send(self, sock: socket.socket, sent: int) -> int:
        """Send what comes behind the first `sent` bytes; returns how many are sent now."""
        try:
            if self._fd >= 0:
                return sent + os.sendfile(sock.fileno(), self._fd, sent, self.size - sent)
            return sent + sock.send(self._data[sent:] if sent else self._data)
        except BlockingIOError:  # what was sent before is not acknowledged yet
            return sent


class Sender:
    """`connections` sockets to one port, each with its own frames, sent in turn."""

    def __init__(self, port: int, frames: list[list[bytes]], whole) -> None:
        self._address = ("127.0.0.1", port)
        self._frames, self._whole = [[Frame(data) for data in some] for some in frames], whole
        self._next = [0] * len(frames)
        self._sent = [0] * len(frames)
        self._reply = [b""] * len(frames)
        self._epoll = select.epoll()
        self._by_fd: dict[int, int] = {}
        self._sockets: list[socket.socket | None] = [None] * len(frames)
        self.uploads = 0

    def run(self, seconds: float) -> float:
        """Send for about `seconds`; returns how long it really was."""
        start = time.perf_counter()
        for index in range(len(self._frames)):
            self._connect(index)
        end = start + seconds
        while time.perf_counter() < end:
            for fd, event in self._epoll.poll(1.0):
                index = self._by_fd[fd]
                if event & select.EPOLLIN:
                    self._receive(index)
                elif event & select.EPOLLOUT:
                    self._send(index)
        elapsed = time.perf_counter() - start
        for sock in self._sockets:
            sock.close()
        self._epoll.close()
        return elapsed

    def _connect(self, index: int) -> None:
        sock = socket.create_connection(self._address)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sockets[index] = sock
        self._by_fd[sock.fileno()] = index
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._start(index)

    def _start(self, index: int) -> None:
        frame = self._frames[index][self._next[index]]
        self._sent[index] = frame.send(self._sockets[index], 0)
        if self._sent[index] < frame.size:
            self._epoll.modify(self._sockets[index].fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _send(self, index: int) -> None:
        frame = self._frames[index][self._next[index]]
        self._sent[index] = frame.send(self._sockets[index], self._sent[index])
        if self._sent[index] == frame.size:
            self._epoll.modify(self._sockets[index].fileno(), select.EPOLLIN)

    def _receive(self, index: int) -> None:
        data = self._sockets[index].recv(65536)
        if not data:
            raise SystemExit("the server closed a keep-alive connection")
        reply = self._reply[index] + data
        if not self._whole(reply):
            self._reply[index] = reply
            return
        self._reply[index] = b""
        self.uploads += 1
        self._next[index] = (self._next[index] + 1) % len(self._frames[index])
        self._start(index)


class Caller:
    """A connection for each upload, `connections` at a time. Its sockets may block: an upload fits their buffers, and
    they are read when all is there."""

    def __init__(self, port: int, frames: list[list[bytes]], whole) -> None:
        self._address = ("127.0.0.1", port)
        self._frames = [frame for some in frames for frame in some]
        self._whole = whole
        self.uploads = 0

    def run(self, seconds: float) -> float:
        epoll, by_fd = select.epoll(), {}
        frames, at = self._frames, 0
        address, whole = self._address, self._whole
        new_socket = _socket.socket  # without the layer above, which costs 2 us a connection

        def call() -> None:
            nonlocal at
            sock = new_socket(socket.AF_INET, socket.SOCK_STREAM)
            sock.connect(address)
            sock.send(frames[at])
            at = (at + 1) % len(frames)
            by_fd[sock.fileno()] = sock
            epoll.register(sock.fileno(), select.EPOLLRDHUP)

        start = time.perf_counter()
        for _ in range(len(frames) // 4):
            call()
        end = start + seconds
        while time.perf_counter() < end:
            for fd, _ in epoll.poll(1.0):
                sock = by_fd.pop(fd)
                if not whole(sock.recv(65536)):
                    raise SystemExit("half a reply")
                sock.close()
                self.uploads += 1
                call()
        elapsed = time.perf_counter() - start
        for sock in by_fd.values():
            sock.close()
        epoll.close()
        return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--wire", choices=("framed", "http"), required=True)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--close", action="store_true")
    options = parser.parse_args()
    build, whole = (framed, framed_ok) if options.wire == "framed" else (http_put, http_ok)
    body = bytes(range(256)) * (options.size // 256 + 1)
    frames = [
        [build(f"bench-{index:03}-{i}.bin", body[: options.size], options.close) for i in range(4)]
        for index in range(options.connections)
    ]
    cpu = time.process_time()
    sender = Caller(options.port, frames, whole) if options.close else Sender(options.port, frames, whole)
    elapsed = sender.run(options.seconds)
    print(
        json.dumps(
            {
                "uploads": sender.uploads,
                "seconds": elapsed,
                "sender_cpu": (time.process_time() - cpu) / elapsed,
            }
        )
    )


if __name__ == "__main__":
    main()
