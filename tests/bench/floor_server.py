"""The floor under every upload server in Python: the system calls of one, in a bare loop that parses nothing.

    python floor_server.py --port P --store DIR --frame BYTES --body BYTES [--close]

It knows how long each frame is, so it reads nothing in them: receive, open, write, close, rename, send, step by step
for all that came in a turn, as our server does. What ours takes longer is what its protocol, digests, counters, replies
and event loop cost.
"""

import argparse
import itertools
import os
import select
import socket

REPLY = b'{"status":"stored"}'.ljust(300)
REPLY = len(REPLY).to_bytes(4, "little") + REPLY
RECEIVE_BYTES = 256 << 10
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class Floor:
    def __init__(self, port: int, store: str, frame: int, body: int, close: bool) -> None:
        self._frame, self._header, self._close = frame, frame - body, close
        os.makedirs(f"{store}/.incoming", exist_ok=True)  # noqa: PTH103
        self._root = os.open(store, os.O_RDONLY)
        self._incoming = os.open(f"{store}/.incoming", os.O_RDONLY)
        self._numbers = itertools.count()
        self._buffers = [memoryview(bytearray(RECEIVE_BYTES)) for _ in range(129)]
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._sockets: dict[int, socket.socket] = {}
        self._arriving: dict[int, tuple[int, bytes, int]] = {}  # by socket: file, its temporary name, bytes so far

    def serve(self) -> None:
        while True:
            whole: list[tuple[int, memoryview]] = []
            for fd, _ in self._epoll.poll(-1, 64):
                if fd == self._listener.fileno():
                    self._accept(whole)
                else:
                    self._receive(fd, whole)
            self._store(whole)

    def _accept(self, whole: list[tuple[int, memoryview]]) -> None:
        while len(whole) < 64:
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            client.setblocking(False)
            fd = client.fileno()
            self._sockets[fd] = client
            if not self._close or self._receive(fd, whole) is None:  # not here yet
                self._epoll.register(fd, select.EPOLLIN)

    def _receive(self, fd: int, whole: list[tuple[int, memoryview]]) -> int | None:
        view = self._buffers[len(whole)]
        try:
            count = self._sockets[fd].recv_into(view)
        except BlockingIOError:
            return None
        except OSError:
            count = 0
        if not count:
            self._sockets.pop(fd).close()
        elif count == self._frame:
            whole.append((fd, view[self._header : count]))
        else:
            self._receive_piece(fd, view[:count])
        return count

    def _receive_piece(self, fd: int, view: memoryview) -> None:
        if fd not in self._arriving:
            name = b"%d" % next(self._numbers)
            self._arriving[fd] = os.open(name, NEW, 0o600, dir_fd=self._incoming), name, 0
        file, name, size = self._arriving[fd]
        os.write(file, view[max(0, self._header - size) :])
        size += len(view)
        self._arriving[fd] = file, name, size
        if size >= self._frame:
            del self._arriving[fd]
            os.close(file)
            os.rename(name, f"floor-{fd}", src_dir_fd=self._incoming, dst_dir_fd=self._root)
            self._sockets[fd].send(REPLY)

    def _store(self, whole: list[tuple[int, memoryview]]) -> None:
        names = [b"%d" % number for number in itertools.islice(self._numbers, len(whole))]
        files = [os.open(name, NEW, 0o600, dir_fd=self._incoming) for name in names]
        for file, (_, body) in zip(files, whole, strict=True):
            os.write(file, body)
        for file in files:
            os.close(file)
        for name, (fd, _) in zip(names, whole, strict=True):
            os.rename(name, f"floor-{fd}", src_dir_fd=self._incoming, dst_dir_fd=self._root)
        for fd, _ in whole:
            self._sockets[fd].send(REPLY)
            if self._close:
                self._sockets.pop(fd).close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option in ("--port", "--frame", "--body"):
        parser.add_argument(option, type=int, required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--close", action="store_true")
    Floor(**vars(parser.parse_args())).serve()
