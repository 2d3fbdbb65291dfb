"""A protocol of one's own, `--wire line_wire:LineWire`: a line `PUT name size` and the file, then `OK size` or `NO`.

`line_wire:BrokenWire` has a mistake. As a script, `python line_wire.py PORT`, this is the server: it says NO to a name
that has "-3-" in it.
"""

import sys
from socketserver import StreamRequestHandler, ThreadingTCPServer

from loadtest.wires import Answer, WireError


class LineWire:
    def __init__(self, target):
        self._answer = b""

    def encode(self, name, size_bytes, *, close):
        self._answer = b""
        return f"PUT {name} {size_bytes}\n".encode()

    def decode(self, data):
        self._answer += data
        if not self._answer.endswith(b"\n"):
            return None
        word, *numbers = self._answer.split()
        if word == b"OK":
            return Answer("ok", received=int(*numbers))
        if word == b"NO":
            return Answer("said_no", "it does not want this one")
        raise WireError("bad_reply")

    def end(self):
        raise WireError("connection_lost")


class BrokenWire(LineWire):
    def decode(self, data):
        raise ZeroDivisionError("on purpose")


class Lines(StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            _, name, size = line.split()
            received = len(self.rfile.read(int(size)))
            self.wfile.write(b"NO\n" if b"-3-" in name else b"OK %d\n" % received)


class Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Lines).serve_forever()
