"""The status helper process: a page, `/status.json`, `/metrics` and `/healthz` over HTTP, from what the server shows of
itself anyway.

    /             for people, without JavaScript; it renews itself
    /status.json  what `python -m server status --json` prints, of this server
    /metrics      for Prometheus (`prometheus`)
    /healthz      200 "ok", or 503 with a reason a line: draining, or a worker that is starting, down or hangs

It answers whoever reaches its port, so it can do nothing else (`confinement`): it opens the scoreboard read-only and
the events, gives everything else up, and only then answers. It writes nothing, and takes no orders.

Hostile clients keep others from the page at most, never from uploading: few threads, few connections, small requests,
ten seconds for each connection whatever it does, 1 % of a core for all together (2 % in the first second after a rest),
and that only while no worker wants it. Where the page is on loopback, only names of loopback are taken for a Host: any
website could otherwise have its own name point there, and read the page in the browser of somebody who visits it (DNS
rebinding). No answer has a text of the request in it.

A beat goes the way of a request, through the loop and one of the threads, so that it stops when requests are no longer
answered. The supervisor kills whoever is silent.
"""

import gc
import ipaddress
import logging
import os
import re
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlsplit

import jinja2
import msgspec
from flask import Flask, Response, request
from waitress import wasyncore
from waitress.server import TcpWSGIServer, create_server
from waitress.task import ThreadedTaskDispatcher
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from server.printing import in_words
from server.processes import die_with, show_title
from server.scoreboard import Scoreboard, ServerState
from server.status import confinement, prometheus
from server.status.reader import ServerStatus, as_json, describe, why_not_ready
from server.units import format_age, format_size

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BEAT_S = 1.0
CONNECTION_S = 10.0
CONNECTIONS = 100
THREADS = 2
CPU_SHARE = 0.01  # of a core
CPU_SAVED_S = 0.01  # that may be used at once after a time of rest: a browser asks several times
LONGEST_PAUSE_S = 0.3  # a pause is no hang
STATE_BYTES = 1 << 20
HEADER_BYTES = 8 << 10
BODY_BYTES = 1 << 10
NEVER_TO_DISK_BYTES = 64 << 20  # waitress keeps longer answers in files, which may not be written here
_TEMPLATES = Path(__file__).parent / "templates"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

log = logging.getLogger("server")


# ── What is shown ──


class Source:
    """The server as it is now, of which the channel tells. What it needs is opened at once: later, this process cannot
    open it any more. OSError when it cannot be, or the channel has told nothing yet."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._state = state = msgspec.json.decode(channel.recv(STATE_BYTES), type=ServerState)
        self._lock = threading.Lock()
        self._board = Scoreboard.open(state.scoreboard)
        self._events = os.open(state.events, os.O_RDONLY | os.O_CLOEXEC)
        self.failure_codes = self._board.failure_codes

    def read(self) -> ServerStatus:
        return describe(self.state(), self._board, self._events)

    def state(self) -> ServerState:
        with self._lock, suppress(OSError):  # there is no more
            while message := self._channel.recv(STATE_BYTES):
                self._state = msgspec.json.decode(message, type=ServerState)
        return self._state


# ── What is answered ──


def make_app(source: Source) -> Flask:
    """The application. Its files are read at once."""
    app = Flask(__name__, static_folder=None)
    app.debug = False  # whatever the environment says
    app.url_map.merge_slashes = False  # it would redirect to the Host that a client names
    for path, view in _views(source).items():
        app.add_url_rule(path, path, view, methods=["GET"], provide_automatic_options=False)
    hosts = _allowed_hosts(source.state())

    @app.before_request
    def look_at_host() -> Response | None:
        if hosts is None or _is_one_of(hosts, request.headers.get("Host", "localhost")):
            return None
        return Response("421 Misdirected Request: ask by address, or as localhost\n", 421, mimetype="text/plain")

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Response:
        response = Response(f"{error.code} {error.name}\n", error.code, mimetype="text/plain")
        if isinstance(error, MethodNotAllowed):
            response.allow.update(error.valid_methods or ())
        return response

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(_HEADERS)
        return response

    return app


def _views(source: Source) -> dict[str, Callable[[], Response]]:
    """What there is, by path."""
    template = _template("status.html.j2")
    style = (_TEMPLATES / "status.css").read_bytes()

    def page() -> Response:
        server = source.read()
        values = {"server": server, "why_not": why_not_ready(server), "groups": _groups(server.options)}
        return Response(template.render(now_s=time.time(), **values))

    def status() -> Response:
        return Response(as_json([source.read()]) + "\n", mimetype="application/json")

    def metrics() -> Response:
        return Response(
            prometheus.exposition(source.read(), source.failure_codes), content_type=prometheus.CONTENT_TYPE
        )

    def health() -> Response:
        why_not = why_not_ready(source.read())
        return Response("\n".join(why_not or ["ok"]) + "\n", 503 if why_not else 200, mimetype="text/plain")

    def css() -> Response:
        return Response(style, mimetype="text/css")

    return {"/": page, "/status.json": status, "/metrics": metrics, "/healthz": health, "/status.css": css}


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"age": format_age, "size": format_size}
    return environment.get_template(name)


def _allowed_hosts(state: ServerState) -> frozenset[str] | None:
    """The names that the page may be asked by, where it is on loopback; None where it may have others, unknown here."""
    host = urlsplit(state.page or "").hostname or ""
    if not ipaddress.ip_address(host).is_loopback:
        return None
    return frozenset({"localhost", str(state.options["status_host"]).lower()})


def _is_one_of(names: frozenset[str], host: str) -> bool:
    """Whether a Host header names one of them, or any address of loopback; its port is the client's business."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in names or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


# ── Options ──

_LIMIT = re.compile("max_|min_|backlog|death_window|token|.*_timeout")


def _groups(options: Mapping[str, str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, (name, value) of each): limits first."""
    limits = [(name.replace("_", " "), value) for name, value in options.items() if _LIMIT.match(name)]
    others = [(name.replace("_", " "), value) for name, value in options.items() if not _LIMIT.match(name)]
    return [("Limits in force", limits), ("Other options", others)]


# ── The process ──


def main() -> NoReturn:
    """What `page_process` starts: the arguments are the descriptors of the listening socket and of the channel to the
    supervisor, and that one's pid. It ends when somebody kills it, or with exit code 1 when it cannot start."""
    if len(sys.argv) != 4:
        sys.exit("server.status.page is no command of its own: give --status-port to python -m server")
    listener, channel = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:3])
    _speak_through(channel)
    try:
        _serve(listener, channel, int(sys.argv[3]))
    except OSError as error:
        log.error("it cannot start: %s", in_words(error))
        sys.exit(1)


def _serve(listener: socket.socket, channel: socket.socket, supervisor: int) -> NoReturn:
    confinement.close_all_but({0, 1, 2, listener.fileno(), channel.fileno()})
    source = Source(channel)
    show_title(f"socketswarm: status [{source.state().port}]")
    app = make_app(source)
    for path in ("/", "/metrics", "/healthz"):
        app.test_client().get(path)  # what is imported late may not be readable any more
    if problem := confinement.confine():
        log.warning("nothing but its own code keeps it from the store: %s", problem)
    die_with(supervisor)  # anew, since the kernel forgets it when the user changes
    gc.freeze()  # what was loaded stays, and needs no looking through
    # Now that all is loaded: a flood of requests makes no worker wait, for this class gives way to every other at once.
    # Being nice was not enough: a worker that woke up had to wait for the end of the helper's turn.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    _answer(app, listener, channel, source)


def _speak_through(channel: socket.socket) -> None:
    """What is written to stderr goes to the supervisor, which logs it."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    os.dup2(channel.fileno(), 2)
    logging.raiseExceptions = False  # a line that nobody takes is lost
    # In one message: Python writes a traceback piece by piece, and of so many most would be lost.
    sys.excepthook = lambda *error: log.critical("it ends for a reason nobody foresaw", exc_info=error)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("waitress").setLevel(logging.ERROR)  # that there are many requests is no news


def _answer(app: Flask, listener: socket.socket, channel: socket.socket, source: Source) -> NoReturn:
    sockets: dict[int, object] = {}
    budget = _Budget()
    server = create_server(
        budget.around(app),
        map=sockets,
        sockets=[listener],
        threads=THREADS,
        backlog=CONNECTIONS,
        connection_limit=CONNECTIONS,
        max_request_header_size=HEADER_BYTES,
        max_request_body_size=BODY_BYTES,
        outbuf_overflow=NEVER_TO_DISK_BYTES,
        outbuf_high_watermark=NEVER_TO_DISK_BYTES,
        ident="",
    )
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))  # its threads are there, and it needs no children
    beat, due_s = _Beat(channel), 0.0
    while True:
        wasyncore.loop(timeout=BEAT_S, use_poll=True, map=sockets, count=1)
        budget.keep()
        if time.monotonic() >= due_s:
            due_s = time.monotonic() + BEAT_S
            source.state()  # or messages would pile up while nobody asks
            _end_long_connections(server)
            beat.pass_through(server.task_dispatcher)


class _Budget:
    """CPU time that this process takes at most, by pauses before it goes on: even of a core that would have been idle a
    flood takes something from the others, who find their caches cold."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paid_until_s = 0.0
        self._used_s = time.process_time()

    def keep(self) -> None:
        """Pause until the time since the last call is enough for what was used. Who else comes waits for its turn."""
        with self._lock:
            now_s, used_s = time.monotonic(), time.process_time()
            since_s = max(self._paid_until_s, now_s - CPU_SAVED_S / CPU_SHARE)
            self._paid_until_s = min(since_s + (used_s - self._used_s) / CPU_SHARE, now_s + LONGEST_PAUSE_S)
            self._used_s = used_s
            if self._paid_until_s > now_s:
                time.sleep(self._paid_until_s - now_s)

    def around(self, app: "WSGIApplication") -> "WSGIApplication":
        def paced(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
            self.keep()
            return app(environ, start_response)

        return paced


class _Beat:
    """A task for the threads, one at a time. It goes before the requests that wait: to have many is not to hang."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._is_under_way = False

    def pass_through(self, dispatcher: ThreadedTaskDispatcher) -> None:
        if not self._is_under_way:
            self._is_under_way = True
            with dispatcher.lock:
                dispatcher.queue.appendleft(self)
                dispatcher.queue_cv.notify()

    def service(self) -> None:
        """Answer the request, in one of the threads."""
        self._is_under_way = False
        with suppress(BlockingIOError):  # the supervisor does not listen, and nobody else looks at beats
            self._channel.send(b"\n")


def _end_long_connections(server: TcpWSGIServer) -> None:
    """waitress ends silent ones only: a client that sends a byte now and then, or never reads, could stay for ever."""
    since_s = time.time() - CONNECTION_S
    for channel in list(server.active_channels.values()):
        if channel.creation_time < since_s and not channel.requests:
            channel.handle_close()


if __name__ == "__main__":
    main()
