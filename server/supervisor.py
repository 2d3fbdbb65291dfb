"""The parent: it forks the workers, replaces those that die, and ends them all. It never touches an upload.

Its life is one loop around poll(): it wakes for a signal (through a pipe, so that nothing happens inside a signal
handler), for a worker that became ready, or for a replacement that is due. It has one thread: a fork copies only the
thread that calls it, and locks held by the others would stay locked for ever in the child.

Workers cannot outlive it: each asked the kernel (PR_SET_PDEATHSIG) to be killed when its parent dies, which also ends
a worker that is stopped or hangs, so a port is never held by orphans.

A worker that ends before it was ever ready could not start, and would not the next time: the server ends with exit
code 1 and the reason. One that dies later is replaced, at once at first and ever later when that keeps happening.
"""

import ctypes
import gc
import logging
import os
import resource
import select
import signal
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from server import scoreboard
from server.config import ServerConfig, printable
from server.listener import close_all, format_address, listen_per_slot
from server.protocol import FAILURE_CODES
from server.scoreboard import EventLog, Scoreboard, ServerState
from server.storage import empty_slot, lock_store, prepare_store
from server.worker import run_worker

# A worker that lived this long died of an accident; a shorter life counts towards the back-off.
LONG_LIFE_S = 5.0
MAX_BACKOFF_S = 10.0
KILL_AFTER_DRAIN_S = 4.0  # the workers end themselves before: this is for those that hang
PR_SET_PDEATHSIG = 1

log = logging.getLogger("server")


class StartError(Exception):
    """The server cannot start; the text says why and what to do."""


@dataclass(slots=True)
class _Slot:
    """A worker's place. `pid` is 0 while it is empty; `due_s` is when it may be filled again (monotonic)."""

    number: int
    listener: socket.socket
    pid: int = 0
    born_s: float = 0.0
    ready: bool = False
    quick_deaths: int = 0
    due_s: float = 0.0
    replaces: int = 0


def respawn_delay_s(quick_deaths: int) -> float:
    """How long to wait before the next worker after that many short lives in a row: 0, 0.1, 0.2, 0.4 ... 10 s."""
    return 0.0 if quick_deaths == 0 else min(MAX_BACKOFF_S, 0.1 * 2.0 ** min(quick_deaths - 1, 10))


def serve(config: ServerConfig) -> int:
    """Run the server until TERM or INT and return its exit code: 0 when every worker ended by itself, otherwise 1.

    Raises StartError, or PortInUseError and AddressError from `listener`, before anything was forked.
    """
    with ExitStack() as at_the_end:
        listeners = listen_per_slot(config.host, config.port, config.workers, config.backlog)
        at_the_end.callback(close_all, listeners)
        try:
            _prepare(config)
            folder = scoreboard.create_runtime_folder()
            at_the_end.callback(scoreboard.remove_runtime_folder, folder)
            board = Scoreboard.create(folder / scoreboard.SCOREBOARD_FILE, config.workers, FAILURE_CODES)
            supervisor = Supervisor(config, listeners, board, EventLog(folder / scoreboard.EVENTS_FILE))
            scoreboard.write_state(folder, supervisor.state())
        except OSError as error:
            where = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            raise StartError(where) from error
        return supervisor.run()


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
        self, config: ServerConfig, listeners: list[socket.socket], board: Scoreboard, events: EventLog
    ) -> None:
        self._config = config
        self._slots = [_Slot(number, listener) for number, listener in enumerate(listeners)]
        self._board = board
        self._events = events
        self._address = format_address(listeners[0])
        self._port: int = listeners[0].getsockname()[1]
        self._announced = False
        self._stopping = False
        self._kill_at_s = float("inf")
        self._killed: dict[int, str] = {}  # pids we killed, and why
        self._exit_code = 0
        # Both ends of both pipes are non-blocking: a full pipe must not stop a signal or a worker.
        self._signals_read, self._signals_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._ready_read, self._ready_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def state(self) -> ServerState:
        pid = os.getpid()
        ticks = scoreboard.start_ticks(pid)
        assert ticks is not None
        folder = self._events.path.parent
        return ServerState(
            pid=pid,
            start_ticks=ticks,
            addresses=[self._address],
            port=self._port,
            workers=self._config.workers,
            store=None if self._config.store is None else printable(self._config.store.resolve()),
            options=self._config.shown_options(),
            scoreboard=str(folder / scoreboard.SCOREBOARD_FILE),
            events=str(self._events.path),
            started_wall_ns=time.time_ns(),
        )

    def run(self) -> int:
        """Fork the workers and look after them until all are gone."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, _woken)
        signal.set_wakeup_fd(self._signals_write, warn_on_full_buffer=False)
        self._note("server-started", f"server started on {self._address} with {self._config.workers} workers")
        gc.collect()
        gc.freeze()  # the workers share these pages; a collection in one would copy them
        try:
            self._watch()
        finally:
            self._end_at_once()
            self._note_end()
            self._close()
        return self._exit_code

    # ── the loop ──

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(self._signals_read, select.POLLIN)
        poll.register(self._ready_read, select.POLLIN)
        while True:
            self._fill_slots()
            if self._stopping and not any(slot.pid for slot in self._slots):
                return
            for fd, _ in poll.poll(self._timeout_ms()):
                if fd == self._signals_read:
                    self._on_signals(os.read(fd, 4096))
                else:
                    self._on_ready(os.read(fd, 4096))
            if time.monotonic() >= self._kill_at_s:
                self._kill_at_s = float("inf")
                self._kill_all("it did not end within the drain timeout")

    def _timeout_ms(self) -> float | None:
        wakes = [slot.due_s for slot in self._slots if not slot.pid and not self._stopping]
        wakes.append(self._kill_at_s)
        until = min(wakes) - time.monotonic()
        return None if until == float("inf") else max(0.0, until * 1000)

    def _on_signals(self, numbers: bytes) -> None:
        # A whole process group is often signalled at once: know that we stop before we see that workers did. And
        # timeout(1) signals the process and then its group: what arrives together is one wish, not two.
        wishes = [number for number in (signal.SIGTERM, signal.SIGINT) if number in numbers]
        if wishes:
            self._stop(wishes[0].name)
        if signal.SIGCHLD in numbers:
            self._reap()

    def _on_ready(self, slots: bytes) -> None:
        for pid_bytes in (slots[i : i + 4] for i in range(0, len(slots), 4)):
            pid = int.from_bytes(pid_bytes, "little")
            for slot in self._slots:
                if slot.pid == pid:
                    slot.ready = True
                    self._note("worker-ready", f"worker {slot.number} (pid {pid}) is ready", slot=slot.number, pid=pid)
        if not self._announced and all(slot.ready for slot in self._slots):
            self._announced = True
            store = "discarded" if self._config.store is None else printable(self._config.store)
            count = self._config.workers
            workers = "1 worker" if count == 1 else f"{count} workers"
            print(f"listening on {self._address} with {workers}, pid {os.getpid()}, store: {store}", flush=True)

    # ── births and deaths ──

    def _fill_slots(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if not slot.pid and not self._stopping and slot.due_s <= now:
                try:
                    self._fork(slot)
                except OSError as error:
                    self._could_not_fork(slot, error)

    def _could_not_fork(self, slot: _Slot, error: OSError) -> None:
        if not self._announced:
            log.error("worker %d could not be forked: %s; stopping the server", slot.number, error.strerror)
            self._exit_code = 1
            self._stop("a worker could not be forked")
            return
        slot.quick_deaths += 1
        delay_s = respawn_delay_s(slot.quick_deaths)
        slot.due_s = time.monotonic() + delay_s
        log.warning("worker %d could not be forked: %s; again in %g s", slot.number, error.strerror, delay_s)

    def _fork(self, slot: _Slot) -> None:
        threads = Path("/proc/self/task").stat().st_nlink - 2  # one folder a thread
        assert threads == 1, f"the supervisor has {threads} threads and must not fork"
        record = self._board.record(slot.number)
        record[scoreboard.STATE] = scoreboard.STARTING
        record[scoreboard.STARTED_NS] = time.monotonic_ns()
        # Signals wait until the child has its own handlers: it must not write into our pipe.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))
        parent = os.getpid()
        try:
            pid = os.fork()
            if pid == 0:
                self._become_worker(slot, parent, mask)
            record[scoreboard.PID] = pid
            record[scoreboard.BIRTHS] += 1
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        slot.pid, slot.born_s, slot.ready = pid, time.monotonic(), False
        if slot.replaces:
            text = f"worker {slot.number} (pid {slot.replaces}) was replaced by pid {pid}"
            self._note("worker-replaced", text, slot=slot.number, pid=pid, replaces=slot.replaces)
        else:
            self._note("worker-started", f"worker {slot.number} started as pid {pid}", slot=slot.number, pid=pid)

    def _become_worker(self, slot: _Slot, parent: int, mask: set[int | signal.Signals]) -> NoReturn:
        """In the child: keep only what a worker needs, serve, and never return into the supervisor's code."""
        code = 1
        try:
            _die_with(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for other in self._slots:
                if other is not slot:
                    other.listener.close()
            for fd in (self._signals_read, self._signals_write, self._ready_read):
                os.close(fd)
            self._events.close()
            gc.enable()
            run_worker(slot.number, slot.listener, self._config, self._board.record(slot.number), self._tell_ready)
            code = 0
        except OSError as error:
            log.error("worker %d: %s", slot.number, error)
        except BaseException:
            log.exception("worker %d: ended by an error", slot.number)
        finally:
            logging.shutdown()
            os._exit(code)

    def _tell_ready(self) -> None:
        os.write(self._ready_write, os.getpid().to_bytes(4, "little"))
        os.close(self._ready_write)

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for slot in self._slots:
                if slot.pid == pid:
                    self._bury(slot, status, usage)

    def _bury(self, slot: _Slot, status: int, usage: resource.struct_rusage) -> None:
        pid, slot.pid = slot.pid, 0
        self._clear_record(slot)
        how = _how_it_ended(status, self._killed.pop(pid, None))
        self._note(
            "worker-ended",
            f"worker {slot.number} (pid {pid}) {how}",
            slot=slot.number,
            pid=pid,
            how=how,
            cpu_user_s=usage.ru_utime,
            cpu_system_s=usage.ru_stime,
        )
        if self._config.store is not None:
            empty_slot(self._config.store, slot.number)
        if self._stopping:
            return
        if not slot.ready and not (self._announced and os.WIFSIGNALED(status)):
            log.error("worker %d (pid %d) could not start: it %s; stopping the server", slot.number, pid, how)
            self._exit_code = 1
            self._stop("a worker could not start")
            return
        slot.quick_deaths = 0 if time.monotonic() - slot.born_s > LONG_LIFE_S else slot.quick_deaths + 1
        delay_s = respawn_delay_s(slot.quick_deaths - 1 if slot.quick_deaths else 0)
        slot.due_s = time.monotonic() + delay_s
        slot.replaces = pid
        log.warning(
            "worker %d (pid %d) %s; replacing it%s", slot.number, pid, how, f" in {delay_s:g} s" * (delay_s > 0)
        )

    def _clear_record(self, slot: _Slot) -> None:
        record = self._board.record(slot.number)
        record[scoreboard.PID] = 0
        record[scoreboard.STATE] = scoreboard.EMPTY
        record[scoreboard.CONNECTIONS_NOW] = 0

    # ── the end ──

    def _stop(self, why: str) -> None:
        """Drain; asked a second time, end at once."""
        if self._stopping:
            self._kill_all(f"the server was told a second time to stop ({why})")
            return
        self._stopping = True
        self._kill_at_s = time.monotonic() + self._config.drain_timeout_s + KILL_AFTER_DRAIN_S
        self._note("draining", f"draining: {why}")
        # Ours go first: then the kernel refuses new connections as soon as each worker has closed its own.
        close_all([slot.listener for slot in self._slots])
        for slot in self._slots:
            if slot.pid:
                os.kill(slot.pid, signal.SIGTERM)

    def _kill_all(self, why: str) -> None:
        for slot in self._slots:
            if slot.pid:
                log.warning("worker %d (pid %d) is killed: %s", slot.number, slot.pid, why)
                self._killed[slot.pid] = why
                self._exit_code = 1
                os.kill(slot.pid, signal.SIGKILL)

    def _end_at_once(self) -> None:
        """For an error of our own: no worker is left behind. Usually there is none any more."""
        self._stopping = True
        self._kill_all("the supervisor failed")
        while any(slot.pid for slot in self._slots):
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

    def _note(self, kind: str, text: str, **fields: object) -> None:
        self._events.append(kind, text=text, **fields)


def _woken(number: int, frame: FrameType | None) -> None:
    """The pipe has the signal's number already; the loop does the rest."""


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies (prctl(2)); for a parent already dead, end here."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(1)


def _how_it_ended(status: int, killed_because: str | None) -> str:
    if not os.WIFSIGNALED(status):
        return f"ended with exit code {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    by = f"the supervisor, because {killed_because}" if killed_because else "somebody else"
    return f"was ended by {name} from {by}" if number in (signal.SIGKILL, signal.SIGTERM) else f"died of {name}"
