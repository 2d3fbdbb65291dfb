"""The parent: it forks the workers, replaces those that die or hang, and ends them all. It never touches an upload.

Its life is one loop around poll(): it wakes for a signal (through a pipe, so that nothing happens inside a signal
handler), for a worker that became ready, or for something that is due. It has one thread.

    TERM, INT    drain, then end; a second one ends at once
    HUP          reload: each slot in turn gets a new worker with the configuration as it is now, and only when that is
                 ready the old one drains
    TTIN, TTOU   one worker more, one less

How workers end, and what follows:

    could not start   it ended before it was ever ready, and would do so again: the server ends, exit code 1
    died              replaced, at once at first and ever later while that keeps happening
    hung              its event loop did not turn for `hang_timeout_s`: killed and replaced
    gave up           `max_deaths` within `death_window_s` that nobody else caused: the server ends, exit code 3
"""

import dataclasses
import gc
import heapq
import itertools
import logging
import os
import resource
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import NoReturn

from server import scoreboard
from server.config import MAX_WORKERS, ConfigError, ServerConfig, one_line, printable
from server.failure_codes import SERVER_CODES
from server.listening import systemd
from server.listening.listener import Group, Listeners
from server.listening.systemd import Manager
from server.offspring import CAUGHT, Offspring, fork, how_it_ended, is_accident, show_title
from server.pid_file import PidFile
from server.quota import count_store
from server.scoreboard import SEATS, EventLog, Scoreboard, ServerState
from server.settings import needs_restart
from server.status.page_process import StatusHelper, open_page
from server.storage import empty_slot, lock_store, prepare_store
from server.worker import RETIRE, run_worker

LONG_LIFE_S = 5.0  # who lived this long died of an accident; a shorter life counts towards the back-off
MAX_BACKOFF_S = 10.0
KILL_AFTER_DRAIN_S = 6.0  # twice what the workers need to end themselves: this is for those that hang
LEAST_ROOM = 64  # slots that the scoreboard has at least, for workers that are added
HANDSHAKE_S = 1.0  # that a connection being made may take before its listening socket goes
START_S = 3.0  # that a worker may take to start before the drain begins without it
LOOK_AGAIN_S = 0.01
READ_S = 5.0  # that a reload may read its files for: one may have become a pipe, or be on a disk that is gone
LOOK_FOR_HANGS_S = 1.0

OK, FAILED, GAVE_UP = 0, 1, 3

log = logging.getLogger("server")


class StartError(Exception):
    """The server cannot start; the text says why and what to do."""


@dataclass(slots=True, eq=False)
class _Slot:
    """A worker's place."""

    number: int
    worker: Offspring | None = None
    successor: Offspring | None = None
    """In a reload, until it is ready."""
    retiring: list[Offspring] = field(default_factory=list)
    quick_deaths: int = 0
    replaces: int = 0
    """The pid of a worker that died."""

    @property
    def living(self) -> list[Offspring]:
        return [one for one in (self.worker, self.successor, *self.retiring) if one is not None]

    def free_seat(self) -> int | None:
        taken = {one.seat for one in self.living}
        return next((seat for seat in range(SEATS) if seat not in taken), None)


def respawn_delay_s(quick_deaths: int) -> float:
    """How long to wait before the next worker after that many short lives in a row: 0, 0.1, 0.2, 0.4 ... 10 s."""
    return 0.0 if quick_deaths == 0 else min(MAX_BACKOFF_S, 0.1 * 2.0 ** min(quick_deaths - 1, 10))


def serve(config: ServerConfig, reread: Callable[[], ServerConfig] | None = None) -> int:
    """Run the server until TERM or INT and return its exit code: 0 when every worker ended by itself. `reread` gives
    the configuration anew at each HUP, or raises ConfigError.

    Raises StartError, PidFileError, or PortInUseError and AddressError from `listener`, before anything was forked.
    """
    os.umask(config.umask)
    manager = systemd.take_manager(os.environ)
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
            supervisor = Supervisor(config, reread, listeners, board, events, manager, pid_file, page)
            scoreboard.write_state(folder, supervisor.state())
        except OSError as error:
            where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise StartError(where) from error
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
        try:
            lock_store(config.store)  # for as long as this process and its workers live
        except BlockingIOError:
            raise StartError(f"store {config.store} is used by another server; name another folder") from None
        prepare_store(config.store, config.workers)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Supervisor:
    """The loop and what it knows of its workers."""

    def __init__(
        self,
        config: ServerConfig,
        reread: Callable[[], ServerConfig] | None,
        listeners: Listeners,
        board: Scoreboard,
        events: EventLog,
        manager: Manager,
        pid_file: PidFile | None,
        page: Group | None,
    ) -> None:
        self._config = config
        self._reread = reread
        self._listeners = listeners
        self._board = board
        self._events = events
        self._manager = manager
        self._pid_file = pid_file
        self._slots = [_Slot(number) for number in range(config.workers)]
        self._leaving: list[_Slot] = []  # slots whose worker drains for good
        self._to_reload: deque[_Slot] = deque()
        self._reloading = False
        self._before_reload = config
        self._joining: _Slot | None = None  # it gets no connection until its first worker is ready
        self._resizing = False
        self._wanted = config.workers
        self._deaths: deque[float] = deque()  # those that nobody else caused
        outlives = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup
        self._had_terminal = _has_terminal() and not outlives
        self._started_wall_ns = time.time_ns()
        self._announced = False
        self._stopping = False
        self._exit_code = OK
        self._due: list[tuple[float, int, Callable[[], None]]] = []  # a heap
        self._numbers = itertools.count()
        self._checked_s = time.monotonic()
        self._trust_beats_from_s = 0.0
        # Both ends of both pipes are non-blocking: a full pipe must not stop a signal or a worker.
        self._signals_read, self._signals_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._ready_read, self._ready_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._helper = None if page is None else StatusHelper(page, self.state, self._note, self._later)

    def state(self) -> ServerState:
        pid = os.getpid()
        ticks = scoreboard.start_ticks(pid)
        assert ticks is not None
        config, folder = self._config, self._events.path.parent
        return ServerState(
            pid=pid,
            start_ticks=ticks,
            addresses=self._listeners.addresses,
            port=self._listeners.port,
            workers=len(self._slots),
            store=None if config.store is None else printable(config.store.resolve()),
            options=config.shown_options() | {"workers": len(self._slots)},
            scoreboard=str(folder / scoreboard.SCOREBOARD_FILE),
            events=str(self._events.path),
            started_wall_ns=self._started_wall_ns,
            page=None if self._helper is None else self._helper.url,
            draining=self._stopping,
        )

    @property
    def _where(self) -> str:
        return ", ".join(self._listeners.addresses)

    def run(self) -> int:
        """Fork the workers and look after them until all are gone."""
        for number in CAUGHT:
            signal.signal(number, _woken)
        signal.set_wakeup_fd(self._signals_write, warn_on_full_buffer=False)
        self._note("server-started", f"server started on {self._where} with {self._config.workers} workers")
        gc.collect()
        gc.freeze()  # the workers share these pages; a collection in one would copy them
        try:
            for slot in self._slots:
                self._fill(slot)
            if self._helper is not None:
                self._helper.start()
            self._look_for_hangs()
            self._watch()
        finally:
            self._end_at_once()
            if self._helper is not None:
                self._helper.end()
            self._note_end()
            self._close()
        return self._exit_code

    # ── the loop ──

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._signals_read, select.POLLIN)
        poll.register(self._ready_read, select.POLLIN)
        while not self._stopping or any(self._living()):
            for fd, _ in poll.poll(self._timeout_ms()):
                if fd == self._signals_read:
                    self._on_signals(os.read(fd, 4096))
                else:
                    self._read_ready()
            while self._due and self._due[0][0] <= time.monotonic():
                heapq.heappop(self._due)[2]()

    def _later(self, delay_s: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (time.monotonic() + delay_s, next(self._numbers), what))

    def _timeout_ms(self) -> float | None:
        return max(0.0, (self._due[0][0] - time.monotonic()) * 1000) if self._due else None

    def _living(self) -> list[Offspring]:
        return [one for slot in (*self._slots, *self._leaving) for one in slot.living]

    def _on_signals(self, numbers: bytes) -> None:
        self._read_ready()  # first: who serves already must not be taken for one that could not start
        # A whole process group is often signalled at once: know that we stop before we see that workers did. And
        # timeout(1) signals the process and then its group: what arrives together is one wish, not two.
        wishes = [number for number in (signal.SIGTERM, signal.SIGINT) if number in numbers]
        if signal.SIGHUP in numbers and self._had_terminal and not _has_terminal():
            if not self._stopping:  # the shell and the kernel both tell, and neither is in a hurry
                self._stop("its terminal was closed")
        elif wishes:
            self._stop(wishes[0].name)
        elif signal.SIGHUP in numbers:
            self._reload()
        for number in numbers:
            if number in (signal.SIGTTIN, signal.SIGTTOU):
                self._resize(1 if number == signal.SIGTTIN else -1)
        if signal.SIGCHLD in numbers:
            self._reap()

    def _read_ready(self) -> None:
        try:
            pids = os.read(self._ready_read, 4096)
        except BlockingIOError:
            return
        ready = {int.from_bytes(pids[start : start + 4], "little") for start in range(0, len(pids), 4)}
        for worker in self._living():
            if worker.pid in ready:
                worker.is_ready = True
                self._tell("worker-ready", worker, "is ready")
        for slot in self._slots:
            if slot.successor is not None and slot.successor.is_ready:
                self._succeed(slot)
        if self._joining is not None and self._joining.worker is not None and self._joining.worker.is_ready:
            self._joined()
        if (
            not self._announced
            and not self._stopping
            and all(slot.worker is not None and slot.worker.is_ready for slot in self._slots)
        ):
            self._announce()

    def _announce(self) -> None:
        self._announced = True
        store = "discarded" if self._config.store is None else printable(self._config.store)
        count = len(self._slots)
        workers = "1 worker" if count == 1 else f"{count} workers"
        page = f", status page: {self._helper.url}" if self._helper is not None else ""
        text = f"listening on {self._where} with {workers}, pid {os.getpid()}{page}, store: {store}"
        try:
            if self._pid_file is not None:
                self._pid_file.publish()
        except OSError as error:  # somebody took its folder away
            log.warning("the pid file could not be written: %s", error.strerror)
        try:
            print(text, flush=True)
        except OSError as error:  # nobody reads it
            log.warning("it could not be said that the server is ready: %s", error.strerror)
        self._manager.ready(text)

    # ── births ──

    def _fill(self, slot: _Slot) -> None:
        """Give the slot a worker, unless it has one or needs none any more."""
        if slot.worker is not None or self._stopping or slot not in self._slots or slot.free_seat() is None:
            return
        try:
            slot.worker = self._fork(slot)
        except OSError as error:
            self._could_not_fork(slot, error)
            return
        worker, replaces = slot.worker, slot.replaces
        if replaces:
            text = f"worker {slot.number} (pid {replaces}) was replaced by pid {worker.pid}"
            self._note("worker-replaced", text, slot=slot.number, pid=worker.pid, replaces=replaces)
        else:
            text = f"worker {slot.number} started as pid {worker.pid}"
            self._note("worker-started", text, slot=slot.number, pid=worker.pid)

    def _could_not_fork(self, slot: _Slot, error: OSError) -> None:
        if not self._announced:
            log.error("worker %d could not be forked: %s; stopping the server", slot.number, error.strerror)
            self._fail(FAILED, "a worker could not be forked")
            return
        slot.quick_deaths += 1
        delay_s = respawn_delay_s(slot.quick_deaths)
        log.warning("worker %d could not be forked: %s; again in %g s", slot.number, error.strerror, delay_s)
        self._later(delay_s, partial(self._fill, slot))

    def _fork(self, slot: _Slot) -> Offspring:
        """A new worker in a free seat of the slot. OSError when there can be none."""
        seat = slot.free_seat()
        assert seat is not None
        place = _place(slot.number, seat)
        if self._config.store is not None:
            empty_slot(self._config.store, place)
        record = self._board.record(slot.number, seat)
        record[scoreboard.STATE] = scoreboard.STARTING
        record[scoreboard.STARTED_NS] = record[scoreboard.HEARTBEAT_NS] = time.monotonic_ns()
        births = record[scoreboard.BIRTHS] + 1
        try:
            pid = fork(partial(self._be_worker, slot.number, record, births, place), f"worker {slot.number}")
        except OSError:
            record[scoreboard.STATE] = scoreboard.EMPTY
            raise
        record[scoreboard.PID], record[scoreboard.BIRTHS] = pid, births
        return Offspring(pid, slot.number, seat, record, self._config, time.monotonic())

    def _be_worker(self, slot: int, record: memoryview, births: int, place: str) -> None:
        """In the child: keep only what a worker needs, and serve."""
        # As its parent does, which may not run again before this one is ready: whoever sees that must see who it is.
        record[scoreboard.PID], record[scoreboard.BIRTHS] = os.getpid(), births
        doors = self._listeners.keep_only(slot)
        for fd in (self._signals_read, self._signals_write, self._ready_read):
            os.close(fd)
        self._events.close()
        if self._helper is not None:
            self._helper.close()
        show_title(f"socketswarm: worker {slot} [{self._listeners.port or self._where}]")
        run_worker(slot, doors, self._config, self._board, record, self._tell_ready, place)

    def _tell_ready(self) -> None:
        os.write(self._ready_write, os.getpid().to_bytes(4, "little"))
        os.close(self._ready_write)

    # ── deaths ──

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._helper is not None and self._helper.bury(pid, status, usage):
                continue
            for slot in (*self._slots, *self._leaving):
                for worker in slot.living:
                    if worker.pid == pid:
                        self._bury(slot, worker, status, usage)

    def _bury(self, slot: _Slot, worker: Offspring, status: int, usage: resource.struct_rusage) -> None:
        self._clear(worker)
        how = how_it_ended(status, worker.killed_because)
        self._tell("worker-ended", worker, how, how=how, cpu_user_s=usage.ru_utime, cpu_system_s=usage.ru_stime)
        if self._config.store is not None:
            empty_slot(self._config.store, _place(worker.slot, worker.seat))
        if worker in slot.retiring:
            slot.retiring.remove(worker)
            self._leaving = [one for one in self._leaving if one.living]
            if self._stopping and status and worker.is_ready:
                self._exit_code = self._exit_code or FAILED
            if slot is self._joining:
                self._fill(slot)  # it may have waited for a seat
            self._reload_next()
        elif worker is slot.successor:
            slot.successor = None
            self._reload_failed(slot, worker, how)
        else:
            slot.worker = None
            self._replace(slot, worker, status, how)

    def _clear(self, worker: Offspring) -> None:
        worker.record[scoreboard.STATE] = scoreboard.EMPTY
        worker.record[scoreboard.PID] = 0  # after the state: 0 must never be taken for the pid of one that is ready
        worker.record[scoreboard.CONNECTIONS_NOW] = 0
        worker.record[scoreboard.BYTES_ARRIVING] = 0

    def _replace(self, slot: _Slot, worker: Offspring, status: int, how: str) -> None:
        """After the death of a worker that served, or should have."""
        if self._stopping:
            return
        if not worker.is_ready and slot is self._joining:
            self._not_joined(slot, worker, how)
            return
        if not worker.is_ready and not (self._announced and os.WIFSIGNALED(status)):
            log.error("worker %d (pid %d) could not start: it %s; stopping the server", slot.number, worker.pid, how)
            self._fail(FAILED, "a worker could not start")
            return
        if not is_accident(status) or worker.killed_because:
            self._deaths.append(time.monotonic())
            if self._die_too_often():
                log.error("worker %d (pid %d) %s; %s", slot.number, worker.pid, how, self._given_up())
                self._fail(GAVE_UP, self._given_up())
                return
        slot.quick_deaths = 0 if time.monotonic() - worker.born_s > LONG_LIFE_S else slot.quick_deaths + 1
        delay_s = respawn_delay_s(slot.quick_deaths - 1 if slot.quick_deaths else 0)
        slot.replaces = worker.pid
        again = f" in {delay_s:g} s" * (delay_s > 0)
        log.warning("worker %d (pid %d) %s; replacing it%s", slot.number, worker.pid, how, again)
        self._later(delay_s, partial(self._fill, slot))

    def _die_too_often(self) -> bool:
        while self._deaths and self._deaths[0] < time.monotonic() - self._config.death_window_s:
            self._deaths.popleft()
        return len(self._deaths) >= self._config.max_deaths

    def _given_up(self) -> str:
        return f"{len(self._deaths)} workers died within {self._config.death_window_s:g} s: giving up"

    def _look_for_hangs(self) -> None:
        """Kill whose loop does not turn. Beats that were missed while we slept ourselves (stopped, or suspended with
        the machine) prove nothing: then they get a new chance."""
        now = time.monotonic()
        if now - self._checked_s > 2 * LOOK_FOR_HANGS_S:
            self._trust_beats_from_s = now
        self._checked_s = now
        self._later(LOOK_FOR_HANGS_S, self._look_for_hangs)
        if self._had_terminal and not _has_terminal():
            self._had_terminal = False  # it went, and nobody told us to go with it: from now on HUP means reload
        if self._helper is not None:
            self._helper.look(self._config.hang_timeout_s, self._trust_beats_from_s)
        for worker in self._living():
            silent_s = now - max(worker.beat_s, self._trust_beats_from_s)
            if silent_s > self._config.hang_timeout_s:
                self._kill(worker, f"it hung: its loop has not turned for {silent_s:.0f} s")

    def _kill(self, worker: Offspring, why: str) -> None:
        if worker.killed_because is None:
            log.warning("worker %d (pid %d) is killed: %s", worker.slot, worker.pid, why)
            worker.killed_because = why
            os.kill(worker.pid, signal.SIGKILL)

    # ── retiring ──

    def _retire(self, slot: _Slot, worker: Offspring) -> None:
        """Let it drain, whatever serves in its place. One that is not ready yet has no handler for this, and no
        connection: it ends at once."""
        slot.retiring.append(worker)
        if not worker.is_ready:
            worker.killed_because = "it was to end before it was ready"
        os.kill(worker.pid, RETIRE)
        self._later(worker.config.drain_timeout_s + KILL_AFTER_DRAIN_S, partial(self._end_of_drain, worker))

    def _end_of_drain(self, worker: Offspring) -> None:
        if worker in self._living():
            self._kill(worker, "it did not end within the drain timeout")

    # ── reload ──

    def _reload(self) -> None:
        """Slot by slot, so that the first worker that cannot start with the new configuration stops it, and the old
        workers go on."""
        if self._stopping:
            return
        self._tell_manager(self._manager.reloading)
        try:
            with _no_longer_than(READ_S):
                config = self._config if self._reread is None else self._reread()
        except ConfigError as error:
            log.error("not reloaded: %s", error)
            self._not_reloaded(str(error))
            return
        except Exception as error:  # what is wrong with reading is no reason to end
            log.exception("not reloaded, for a reason nobody foresaw")
            self._not_reloaded(f"{type(error).__name__}: {one_line(str(error))}")
            return
        if fixed := needs_restart(self._config, config):
            log.warning("reloading, but %s can only change with a restart", ", ".join(fixed))
            config = _with_fixed(config, self._config, fixed)
        before = self._config
        if not self._reloading:
            self._before_reload = before
        self._reloading = True
        self._config = config
        self._to_reload = deque(self._slots)
        log.info("reloading %d workers", len(self._slots))
        self._note("reload-started", f"reloading {len(self._slots)} workers")
        self._publish()
        if config.workers != before.workers:
            self._resize(config.workers - self._wanted)
        self._reload_next()

    def _not_reloaded(self, why: str) -> None:
        self._note("reload-failed", f"not reloaded: {why}")
        self._tell_manager(partial(self._manager.ready, f"not reloaded: {why}"))

    def _reload_next(self) -> None:
        """One successor at a time; a slot whose seats are all taken by workers that drain waits for one of them."""
        if self._stopping or not self._reloading or any(slot.successor is not None for slot in self._slots):
            return
        while self._to_reload:
            slot = self._to_reload[0]
            if slot.worker is None or slot not in self._slots:
                self._to_reload.popleft()  # whoever fills it has the new configuration
                continue
            if slot.free_seat() is None:
                return
            self._to_reload.popleft()
            try:
                slot.successor = self._fork(slot)
            except OSError as error:
                self._give_up_reload(f"a worker could not be forked: {error.strerror}")
            return
        if any(old.may_accept for slot in self._slots for old in slot.retiring):
            self._later(LOOK_AGAIN_S, self._reload_next)  # who connects now could still be served by one of them
            return
        self._reloading = False
        log.info("reloaded")
        self._note("reload-finished", "reloaded")
        self._tell_manager(partial(self._manager.ready, "reloaded"))

    def _succeed(self, slot: _Slot) -> None:
        successor, old = slot.successor, slot.worker
        assert successor is not None
        slot.worker, slot.successor = successor, None
        if old is not None:
            text = f"worker {slot.number} (pid {old.pid}) was replaced by pid {successor.pid} in a reload"
            self._note("worker-replaced", text, slot=slot.number, pid=successor.pid, replaces=old.pid)
            self._retire(slot, old)
        self._reload_next()

    def _reload_failed(self, slot: _Slot, successor: Offspring, how: str) -> None:
        if self._stopping:
            return
        if successor.config is not self._config:  # of a reload that another one has overtaken
            self._to_reload.append(slot)
            self._reload_next()
            return
        self._give_up_reload(f"the new worker {successor.slot} (pid {successor.pid}) {how} before it was ready")

    def _give_up_reload(self, why: str) -> None:
        self._reloading = False
        new = sum(slot.worker is not None and slot.worker.config is self._config for slot in self._slots)
        self._config = self._before_reload
        self._publish()
        some = f", beside {new} with the new configuration" if new else ""
        log.error("reload given up, the old workers go on%s: %s", some, why)
        self._note("reload-failed", f"reload given up, the old workers go on{some}: {why}")
        self._tell_manager(partial(self._manager.ready, f"reload given up: {why}"))

    def _tell_manager(self, tell: Callable[[], None]) -> None:
        """Of reloads it hears only when it knows that we are ready: the end of one would say so."""
        if self._announced:
            tell()

    # ── more and fewer workers ──

    def _resize(self, change: int) -> None:
        """One step at a time: the next follows when the last one is over, with all connections where they belong."""
        if self._stopping:
            return
        wanted = self._wanted + change
        self._wanted = min(self._board.slots, max(1, wanted))
        if wanted < 1:
            log.warning("not one worker less: the last worker stays")
        elif wanted > self._board.slots:
            log.warning("no more than %d workers: there is no room for others", self._board.slots)
        if self._resizing or self._wanted == len(self._slots):
            return
        self._resizing = True
        if self._wanted > len(self._slots):
            self._add_slot()
        else:
            last = len(self._slots) - 1
            log.info("worker %d is about to leave", last)
            self._listeners.steer_away(last)
            self._fill(self._slots[last])  # whoever waits for a worker that has died is served too
            self._later(HANDSHAKE_S, self._remove_slot)

    def _resized(self) -> None:
        self._listeners.steer_to_all()
        self._resizing = False
        self._publish()
        self._resize(0)
        self._reload_next()

    def _add_slot(self) -> None:
        """A new slot gets no connection before its worker is ready: if that cannot start, none is lost."""
        number = len(self._slots)
        self._listeners.steer_away(number)
        try:
            self._listeners.add()
        except OSError as error:
            log.error("no worker can be added: %s", error.strerror)
            self._wanted = number
            self._resized()
            return
        slot = next((one for one in self._leaving if one.number == number), _Slot(number))
        self._leaving = [one for one in self._leaving if one is not slot]
        self._slots.append(slot)
        self._joining = slot
        self._fill(slot)

    def _joined(self) -> None:
        assert self._joining is not None
        self._log_and_note("worker-added", f"worker {self._joining.number} is added", slot=self._joining.number)
        self._joining = None
        self._resized()

    def _not_joined(self, slot: _Slot, worker: Offspring, how: str) -> None:
        log.error("worker %d (pid %d) could not start, going on without it: it %s", worker.slot, worker.pid, how)
        self._joining = None
        self._drop_last_slot()
        self._wanted = len(self._slots)
        self._has_left(slot)

    def _remove_slot(self) -> None:
        if self._stopping:
            return
        if self._wanted >= len(self._slots):  # somebody thought better of it
            log.info("worker %d stays", len(self._slots) - 1)
            self._resized()
            return
        worker = self._slots[-1].worker
        if worker is not None and not worker.is_ready:
            self._later(LOOK_AGAIN_S, self._remove_slot)  # it is about to start: whoever waits for it would be reset
            return
        number = len(self._slots) - 1
        self._log_and_note("worker-leaves", f"worker {number} leaves", slot=number)
        self._has_left(self._drop_last_slot())

    def _drop_last_slot(self) -> _Slot:
        """Whoever lives in it drains."""
        slot = self._slots.pop()
        self._listeners.remove_last()
        for worker in (slot.worker, slot.successor):
            if worker is not None:
                self._retire(slot, worker)
        slot.worker = slot.successor = None
        slot.quick_deaths = slot.replaces = 0
        if slot.living:
            self._leaving.append(slot)
        return slot

    def _has_left(self, slot: _Slot) -> None:
        """New connections may go to all again when none of its workers has the socket any more: until then the kernel
        would count it among them."""
        if self._stopping:
            return
        if any(worker.may_accept for worker in slot.living):
            self._later(LOOK_AGAIN_S, partial(self._has_left, slot))
        else:
            self._resized()

    def _publish(self) -> None:
        """The state file, as it is now."""
        try:
            scoreboard.write_state(self._events.path.parent, self.state())
        except OSError as error:
            log.warning("the state file could not be written: %s", error.strerror)
        if self._helper is not None:
            self._helper.tell()

    # ── the end ──

    def _fail(self, code: int, why: str) -> None:
        self._exit_code = code
        self._stop(why)

    def _stop(self, why: str) -> None:
        """Drain; asked a second time, end at once."""
        if self._stopping:
            self._kill_all(f"the server was told a second time to stop ({why})")
            return
        if self._announced and self._exit_code == OK:
            for slot in self._slots:
                self._fill(slot)  # whoever waits for a worker that has died is served too
        self._stopping = True
        self._publish()
        self._note("draining", f"draining: {why}")
        self._manager.stopping(f"draining: {why}")
        self._listeners.ignore_new()
        self._drain_when_quiet(time.monotonic())

    def _drain_when_quiet(self, since_s: float) -> None:
        """Who is just connecting is let in first, and who waits for a worker that is about to start: closing would
        reset them."""
        waited_s = time.monotonic() - since_s
        starting = any(slot.worker is not None and not slot.worker.is_ready for slot in self._slots)
        if (starting and waited_s < START_S) or (waited_s < HANDSHAKE_S and not self._listeners.is_quiet()):
            self._later(LOOK_AGAIN_S, partial(self._drain_when_quiet, since_s))
            return
        # Ours go first: then the kernel refuses new connections as soon as each worker has closed its own.
        self._listeners.end()
        for slot in self._slots:
            for worker in (slot.worker, slot.successor):
                if worker is not None:
                    self._retire(slot, worker)
            slot.worker = slot.successor = None

    def _kill_all(self, why: str) -> None:
        for worker in self._living():
            self._exit_code = self._exit_code or FAILED
            self._kill(worker, why)

    def _end_at_once(self) -> None:
        """For an error of our own: no worker is left behind. Usually there is none any more."""
        self._stopping = True
        self._kill_all("the supervisor failed")
        while self._living():
            signal.sigtimedwait({signal.SIGCHLD}, 0.05)
            self._reap()

    def _note_end(self) -> None:
        own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        self._note(
            "server-ended",
            f"server ended with exit code {self._exit_code}",
            cpu_user_s=own.ru_utime,
            cpu_system_s=own.ru_stime,
            children_user_s=workers.ru_utime,
            children_system_s=workers.ru_stime,
        )

    def _close(self) -> None:
        signal.set_wakeup_fd(-1)
        for fd in (self._signals_read, self._signals_write, self._ready_read, self._ready_write):
            os.close(fd)
        self._events.close()

    def _tell(self, kind: str, worker: Offspring, what: str, **fields: object) -> None:
        """Note what became of a worker."""
        text = f"worker {worker.slot} (pid {worker.pid}) {what}"
        self._note(kind, text, slot=worker.slot, pid=worker.pid, **fields)

    def _log_and_note(self, kind: str, text: str, **fields: object) -> None:
        log.info("%s", text)
        self._note(kind, text, **fields)

    def _note(self, kind: str, text: str, **fields: object) -> None:
        try:
            self._events.append(kind, text=text, **fields)
        except OSError as error:  # /dev/shm is full: no reason to end
            log.warning("an event could not be written down (%s): %s", error.strerror, text)


def _place(slot: int, seat: int) -> str:
    """The name of a worker's folder for temporary files: two workers of one slot must not meet."""
    return str(slot) if seat == 0 else f"{slot}.{seat}"


def _with_fixed(config: ServerConfig, old: ServerConfig, names: list[str]) -> ServerConfig:
    return dataclasses.replace(config, **{name: getattr(old, name) for name in names})


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """ConfigError in whatever system call the block still waits then: whoever waits for ever hears no signal."""

    def give_up(number: int, frame: FrameType | None) -> NoReturn:
        raise ConfigError(f"its files could not be read within {seconds:g} s: one may be a pipe, or a disk be gone")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _woken(number: int, frame: FrameType | None) -> None:
    """The pipe has the signal's number already; the loop does the rest."""
