"""What a server is put together from, in which order, and how it is taken apart again."""

import os
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from server import scoreboard
from server.failure_codes import SERVER_CODES
from server.listening import systemd
from server.listening.listener import Group, Listeners
from server.options import MAX_WORKERS, ServerConfig, find_store_problem, printable
from server.pid_file import PidFile
from server.ports.holders import read_process
from server.printing import in_words, one_line
from server.scoreboard import EventLog, Scoreboard, ServerState
from server.status.page_process import open_page
from server.storage.folders import holder_of, lock_store, prepare_store
from server.storage.quota import count_store
from server.supervisor import Supervisor

LEAST_ROOM = 64  # slots that the scoreboard has at least, for workers that are added


class StartError(Exception):
    """The server cannot start; the text says why and what to do."""


def serve(config: ServerConfig, reread: Callable[[], ServerConfig]) -> int:
    """Run the server until TERM or INT and return its exit code: 0 when every worker ended by itself. `reread` gives
    the configuration anew at each HUP, or raises ConfigError. Raises StartError, PidFileError, or PortInUseError and
    AddressError from `listener`, before anything was forked."""
    os.umask(config.umask)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a listening socket for each worker takes some, too
    manager = systemd.Manager(os.environ)
    with ExitStack() as at_the_end:
        listeners = _listen(config)
        at_the_end.callback(listeners.end)
        pid_file = None
        if config.pid_file is not None:
            pid_file = PidFile(config.pid_file)
            at_the_end.callback(pid_file.remove)
        page = open_page(config)
        if page is not None:
            at_the_end.callback(page.close)
        try:
            _prepare(config)
            folder = scoreboard.create_runtime_folder()
            at_the_end.callback(scoreboard.remove_runtime_folder, folder)
            room = min(MAX_WORKERS, max(config.workers, LEAST_ROOM))
            board = Scoreboard.create(folder / scoreboard.SCOREBOARD_FILE, room, SERVER_CODES)
            if config.store is not None and config.max_store:
                count_store(board, config.store)
            events = EventLog(folder / scoreboard.EVENTS_FILE)
            identity = _identity(config, folder, listeners, page)
            scoreboard.write_state(folder, identity)
            supervisor = Supervisor(config, reread, identity, listeners, board, events, manager, pid_file, page)
        except OSError as error:
            raise StartError(in_words(error)) from error
        return supervisor.run()


def _listen(config: ServerConfig) -> Listeners:
    """On what a service manager lends, or else on the addresses of the configuration."""
    try:
        lent = systemd.take_sockets(os.environ)
    except OSError as error:
        raise StartError(f"the service manager passed a descriptor that is no socket: {error.strerror}") from None
    if lent:
        return Listeners.lent(lent, has_certificate=config.tls is not None)
    return Listeners.open(config.addresses, config.workers, config.backlog, config.accept)


def _prepare(config: ServerConfig) -> None:
    if config.store is not None:
        if problem := find_store_problem(config.store):
            raise StartError(f"store {printable(config.store)} cannot be used: {problem}")
        try:
            lock_store(config.store)  # for as long as this process and its workers live
        except BlockingIOError:
            raise StartError(
                f"store {one_line(printable(config.store))} is used by {_who_has(config.store)}; name another folder: "
                "--store DIR, or make serve STORE=DIR"
            ) from None
        prepare_store(config.store, config.workers)


def _who_has(store: Path) -> str:
    pid = holder_of(store)
    process = None if pid is None else read_process(pid)
    return "another server" if process is None else str(process)


def _identity(config: ServerConfig, folder: Path, listeners: Listeners, page: Group | None) -> ServerState:
    pid = os.getpid()
    ticks = scoreboard.start_ticks(pid)
    assert ticks is not None
    return ServerState(
        pid=pid,
        start_ticks=ticks,
        addresses=listeners.addresses,
        port=listeners.port,
        workers=config.workers,
        store=None if config.store is None else printable(config.store.resolve()),
        options=config.shown(),
        scoreboard=str(folder / scoreboard.SCOREBOARD_FILE),
        events=str(folder / scoreboard.EVENTS_FILE),
        started_wall_ns=time.time_ns(),
        page=None if page is None else f"http://{page.address}/",
    )
