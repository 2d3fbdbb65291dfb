"""Connections that take what they can get and give little, for the benches:

    python slow_crowd.py --port P --connections 2000 --kind header|body|both|idle [--seconds 60]

`header` and `body` send a byte a second within a header, or within a body of 1 MiB; `idle` sends nothing. It prints
`ready` when all are connected, and at the end one JSON object: how many were cut off, by code (`closed` without one).
"""

import argparse
import collections
import json
import os
import resource
import select
import socket
import sys
import time

HEADER = b'{"file_size":1048576,"file_name":"slow-%d"}'


def first_bytes(kind: str, number: int) -> bytes:
    header = HEADER % number
    if kind == "body":
        return len(header).to_bytes(4, "little") + header
    return b"" if kind == "idle" else (60_000).to_bytes(4, "little") + b"{"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--kind", choices=("header", "body", "idle", "both"), required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    epoll = select.epoll()
    crowd: dict[int, socket.socket] = {}
    for number in range(options.connections):
        sock = socket.socket()
        sock.bind(
            (f"127.0.{os.getpid() % 250}.{2 + number // 20_000}", 0)
        )  # one address has 28,000 ports, for a minute
        sock.connect(("127.0.0.1", options.port))
        sock.setblocking(False)
        kind = options.kind if options.kind != "both" else ("header", "body")[number % 2]
        if begin := first_bytes(kind, number):
            sock.send(begin)
        crowd[sock.fileno()] = sock
        epoll.register(sock.fileno(), select.EPOLLIN)
    print("ready", flush=True)
    ends: collections.Counter[str] = collections.Counter()
    end_s = time.monotonic() + options.seconds
    due_s = {fd: time.monotonic() + at / len(crowd) for at, fd in enumerate(crowd)}  # evenly over the second
    order = collections.deque(due_s.items())
    while crowd and time.monotonic() < end_s:
        for fd, _ in epoll.poll(1.0 if options.kind == "idle" else 0.005):
            try:
                reply = crowd[fd].recv(4096)
            except OSError:
                reply = b""
            ends[json.loads(reply[4:])["code"] if reply else "closed"] += 1
            epoll.unregister(fd)
            crowd.pop(fd).close()
        now_s = time.monotonic()
        while options.kind != "idle" and order and order[0][1] <= now_s:
            fd, was_due_s = order.popleft()
            if fd in crowd:
                try:
                    crowd[fd].send(b"x")
                except OSError:
                    pass  # read at the next poll
                order.append((fd, was_due_s + 1.0))
    json.dump({"cut_off": ends, "left": len(crowd)}, sys.stdout)


if __name__ == "__main__":
    main()
