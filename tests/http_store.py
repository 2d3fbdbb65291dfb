"""A web server that takes PUT of /dir/load-*, from the standard library: `python http_store.py PORT`. It keeps nothing.
For others in /dir/ it has no space, and elsewhere no time.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Store(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        outside = 507 if self.path.startswith("/dir/") else 503
        self.send_response(201 if self.path.startswith("/dir/load-") else outside)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


Server(("127.0.0.1", int(sys.argv[1])), Store).serve_forever()
