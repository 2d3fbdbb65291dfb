"""The parent: it forks the workers, replaces those that die or hang, and ends them all. It never touches an upload.

Its life is one loop around poll(): it wakes for a signal, for a worker that became ready, or for something that is due,
writes down in its `fleet` what happened, and takes the steps that follow from that. It has one thread. What each signal
means to it, and what follows the end of a worker, is in README.md.
"""

import dataclasses
import gc
import logging
import math
import os
import resource
import signal
import time
from collections.abc import Callable
from functools import partial

from msgspec.structs import replace

from server import processes, scoreboard
from server.fleet import HANDSHAKE_S, LOOK_AGAIN_S, Change, Deaths, Fleet, Fork, Resize, Slot, Wait, WorkerProcess
from server.listening.listener import Group, Listeners
from server.listening.systemd import Manager
from server.options import ConfigError, ServerConfig, printable
from server.pid_file import PidFile
from server.printing import one_line
from server.processes import Wakeups, cpu_of, fork, has_terminal, how_it_ended, is_accident, no_longer_than, show_title
from server.scoreboard import EventLog, Scoreboard, ServerState
from server.settings import needs_restart
from server.status.page_process import StatusHelper
from server.storage.folders import empty_slot
from server.worker import RETIRE, run_worker

LOOK_S = 1.0  # between two looks whether a worker hangs
KILL_AFTER_DRAIN_S = 6.0  # twice what the workers need to end themselves: this is for those that hang
START_S = 3.0  # that a worker may take to start before the drain begins without it
READ_S = 5.0  # that a reload may read its files for: one may have become a pipe, or be on a disk that is gone

UNREADABLE = f"its files could not be read within {READ_S:g} s: one may be a pipe, or a disk be gone"
OK, FAILED, GAVE_UP = 0, 1, 3

log = logging.getLogger("server")


class Supervisor:
    def __init__(
        self,
        config: ServerConfig,
        reread: Callable[[], ServerConfig],
        identity: ServerState,
        listeners: Listeners,
        board: Scoreboard,
        events: EventLog,
        manager: Manager,
        pid_file: PidFile | None,
        page: Group | None,
    ) -> None:
        self._fleet = Fleet(config, board.slots)
        self._reread = reread
        self._identity = identity
        self._listeners = listeners
        self._where = ", ".join(listeners.addresses)
        self._board = board
        self._events = events
        self._manager = manager
        self._pid_file = pid_file
        self._deaths = Deaths()
        self._had_terminal = has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # nohup
        self._wakeups = Wakeups()
        self._announced = False
        self._closing_since_s: float | None = None  # from the wish to stop until the listening sockets are closed
        self._exit_code = OK
        self._looked_s = time.monotonic()
        self._trust_beats_from_s = 0.0
        self._helper = StatusHelper(page, self._state, events.note)

    def _state(self) -> ServerState:
        workers = self._fleet.count
        options = self._fleet.config.shown() | {"workers": str(workers)}
        return replace(self._identity, workers=workers, options=options, draining=self._fleet.is_stopping)

    def run(self) -> int:
        """Fork the workers and look after them until all are gone."""
        self._wakeups.catch_signals()
        self._events.note("server-started", f"server started on {self._where} with {self._fleet.count} workers")
        gc.collect()
        gc.freeze()  # the workers share these pages; a collection in one would copy them
        try:
            self._watch()
        finally:
            self._end_at_once()
            self._helper.end()
            self._note_end()
            self._wakeups.close()
            self._events.close()
        return self._exit_code

    # ── the loop ──

    def _watch(self) -> None:
        until_s = self._do_what_is_due()
        while not self._fleet.is_stopping or self._fleet.living:
            signals, ready = self._wakeups.wait(until_s)
            if ready:
                self._on_ready(ready)  # before the signals: it must not be taken for one that could not start
            self._on_signals(signals)
            until_s = self._do_what_is_due()

    def _do_what_is_due(self) -> float:
        """Returns until when that is all (monotonic), unless something happens."""
        now_s = time.monotonic()
        if self._looked_s + LOOK_S <= now_s:
            self._look_for_hangs(now_s)
        again_s = min(self._take_steps(), self._drain_when_quiet(now_s))
        if self._helper.due_s <= now_s:  # after the workers
            self._helper.start()
        return min(again_s, self._helper.due_s, self._looked_s + LOOK_S)

    def _take_steps(self) -> float:
        """All that the fleet wants now. Returns when it will want another (monotonic), unless something happens."""
        while not isinstance(step := self._fleet.next_step(time.monotonic()), Wait):
            self._take(step)
        return step.until_s

    def _take(self, step: Fork | Change) -> None:
        last = self._fleet.count - 1
        match step:
            case Fork(slot) if slot.worker is None:
                self._fill(slot)
            case Fork(slot):
                self._fork_successor(slot)
            case Change.ADD_SLOT:
                self._add_slot()
            case Change.STEER_AWAY:
                log.info("worker %d is about to leave", last)
                self._listeners.steer_away(last)
                self._fleet.steered_away(time.monotonic())
            case Change.REMOVE_SLOT:
                self._log_and_note("worker-leaves", f"worker {last} leaves", slot=last)
                self._remove_slot()
            case Change.STEER_TO_ALL:
                self._steer_to_all()
            case Change.END_RELOAD:
                self._fleet.before_reload = None
                self._log_and_note("reload-finished", "reloaded")
                self._tell_manager(partial(self._manager.ready, "reloaded"))

    def _on_ready(self, pids: set[int]) -> None:
        for worker in self._fleet.living:
            if worker.pid in pids:
                worker.is_ready = True
                self._tell("worker-ready", worker, "is ready")
        for slot in self._fleet.slots:
            if slot.successor is not None and slot.successor.is_ready:
                self._succeed(slot, slot.successor)
        self._take_steps()
        if not self._announced and not self._fleet.is_stopping and all(slot.is_ready for slot in self._fleet.slots):
            self._announce()

    def _on_signals(self, numbers: bytes) -> None:
        # A whole process group is often signalled at once: know that we stop before we see that workers did. And
        # timeout(1) signals the process and then its group: what arrives together is one wish, not two.
        wishes = [number for number in processes.STOPS if number in numbers]
        if signal.SIGHUP in numbers and self._had_terminal and not has_terminal():
            if not self._fleet.is_stopping:  # the shell and the kernel both tell, and neither is in a hurry
                self._stop("its terminal was closed")
        elif wishes:
            self._stop(wishes[0].name)
        elif signal.SIGHUP in numbers:
            self._reload()
        for number in numbers:
            if number in (signal.SIGTTIN, signal.SIGTTOU):
                self._resize(self._fleet.wanted + (1 if number == signal.SIGTTIN else -1))
            elif text := processes.UNUSED.get(number):
                log.info("%s", text)
        if signal.SIGCHLD in numbers:
            self._reap()

    def _announce(self) -> None:
        self._announced = True
        count, store = self._fleet.count, self._fleet.config.store
        workers = "1 worker" if count == 1 else f"{count} workers"
        page = f", status page: {self._identity.page}" if self._identity.page else ""
        text = f"listening on {self._where} with {workers}, pid {os.getpid()}{page}, store: "
        text += "discarded" if store is None else one_line(printable(store))
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

    def _fill(self, slot: Slot) -> None:
        try:
            worker = slot.worker = self._fork(slot)
        except OSError as error:
            self._put_off(slot, error)
            return
        if replaces := slot.replaces:
            text = f"worker {slot.number} (pid {replaces}) was replaced by pid {worker.pid}"
            self._events.note("worker-replaced", text, slot=slot.number, pid=worker.pid, replaces=replaces)
        else:
            text = f"worker {slot.number} started as pid {worker.pid}"
            self._events.note("worker-started", text, slot=slot.number, pid=worker.pid)

    def _put_off(self, slot: Slot, error: OSError) -> None:
        if not self._announced:
            log.error("worker %d could not be forked: %s; stopping the server", slot.number, error.strerror)
            self._stop("a worker could not be forked", FAILED)
            return
        delay_s = slot.could_not_fork(time.monotonic())
        log.warning("worker %d could not be forked: %s; again in %g s", slot.number, error.strerror, delay_s)

    def _fork(self, slot: Slot) -> WorkerProcess:
        """A new worker in a free seat of the slot. OSError when there can be none."""
        seat = slot.free_seat()
        assert seat is not None
        record = self._board.record(slot.number, seat)
        worker = WorkerProcess(slot.number, seat, record, self._fleet.config, time.monotonic())
        self._empty_folder(worker)
        record[scoreboard.STATE] = scoreboard.STARTING
        record[scoreboard.STARTED_NS] = record[scoreboard.HEARTBEAT_NS] = time.monotonic_ns()
        births = record[scoreboard.BIRTHS] + 1
        try:
            worker.pid = fork(partial(self._be_worker, worker, births), f"worker {slot.number}", RETIRE)
        except OSError:
            record[scoreboard.STATE] = scoreboard.EMPTY
            raise
        record[scoreboard.PID], record[scoreboard.BIRTHS] = worker.pid, births
        return worker

    def _be_worker(self, worker: WorkerProcess, births: int) -> None:
        """Serve, in the child, which keeps only what a worker needs."""
        # As its parent does, which may not run again before this one is ready: whoever sees that must see who it is.
        worker.record[scoreboard.PID], worker.record[scoreboard.BIRTHS] = os.getpid(), births
        doors = self._listeners.keep_only(worker.slot)
        self._wakeups.become_worker()
        self._events.close()
        self._helper.close()
        show_title(f"socketswarm: worker {worker.slot} [{self._listeners.port or self._where}]")
        tell = self._wakeups.tell_ready
        run_worker(worker.slot, doors, worker.config, self._board, worker.record, tell, worker.place)

    def _empty_folder(self, worker: WorkerProcess) -> None:
        if worker.config.store is not None:
            empty_slot(worker.config.store, worker.place)

    # ── deaths ──

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if not self._helper.bury(pid, status, usage) and (found := self._fleet.find(pid)):
                self._bury(*found, status, usage)

    def _bury(self, slot: Slot, worker: WorkerProcess, status: int, usage: resource.struct_rusage) -> None:
        scoreboard.clear_seat(worker.record)
        how = how_it_ended(status, worker.killed_because)
        self._tell("worker-ended", worker, how, how=how, **cpu_of(usage))
        self._empty_folder(worker)
        is_stopping = self._fleet.is_stopping
        if worker in slot.retiring:
            slot.retiring.remove(worker)
            if is_stopping and status and worker.is_ready:
                self._exit_code = self._exit_code or FAILED
        elif worker is slot.successor:
            slot.successor = None
            if worker.config is self._fleet.config and not is_stopping:  # no other reload has overtaken its own
                self._give_up_reload(f"the new worker {worker.slot} (pid {worker.pid}) {how} before it was ready")
        else:
            slot.worker = None
            if not is_stopping:
                self._replace(slot, worker, status, how)

    def _replace(self, slot: Slot, worker: WorkerProcess, status: int, how: str) -> None:
        """After the death of a worker that served, or should have."""
        if not worker.is_ready and self._fleet.resize is Resize.JOINING and slot is self._fleet.slots[-1]:
            log.error("worker %d (pid %d) could not start, going on without it: it %s", slot.number, worker.pid, how)
            self._remove_slot()
            self._fleet.want(slot.number)
            return
        if not worker.is_ready and not (self._announced and os.WIFSIGNALED(status)):
            log.error("worker %d (pid %d) could not start: it %s; stopping the server", slot.number, worker.pid, how)
            self._stop("a worker could not start", FAILED)
            return
        now_s, config = time.monotonic(), self._fleet.config
        if not is_accident(status) or worker.killed_because:
            deaths = self._deaths.count(now_s, config.death_window_s)
            if deaths >= config.max_deaths:
                why = f"{deaths} workers died within {config.death_window_s:g} s: giving up"
                log.error("worker %d (pid %d) %s; %s", slot.number, worker.pid, how, why)
                self._stop(why, GAVE_UP)
                return
        delay_s = slot.died(worker, now_s)
        again = f" in {delay_s:g} s" * (delay_s > 0)
        log.warning("worker %d (pid %d) %s; replacing it%s", slot.number, worker.pid, how, again)

    def _look_for_hangs(self, now_s: float) -> None:
        """Whoever missed beats while we slept ourselves (stopped, or with the machine) gets a new chance."""
        if now_s - self._looked_s > 2 * LOOK_S:
            self._trust_beats_from_s = now_s
        self._looked_s = now_s
        if self._had_terminal and not has_terminal():
            self._had_terminal = False  # it went, and nobody told us to go with it: from now on HUP means reload
        hang_timeout_s = self._fleet.config.hang_timeout_s
        self._helper.look(hang_timeout_s, self._trust_beats_from_s)
        for worker in self._fleet.living:
            if why := worker.find_reason_to_kill(now_s, hang_timeout_s, self._trust_beats_from_s):
                self._kill(worker, why)

    def _kill(self, worker: WorkerProcess, why: str) -> None:
        if not worker.is_killed:
            log.warning("worker %d (pid %d) is killed: %s", worker.slot, worker.pid, why)
            worker.is_killed, worker.killed_because = True, why
            os.kill(worker.pid, signal.SIGKILL)

    def _retire(self, worker: WorkerProcess) -> None:
        """Let it drain. One that is not ready yet has no handler for this, and no connection: it ends at once."""
        if not worker.is_ready:
            worker.killed_because = "it was to end before it was ready"
        os.kill(worker.pid, RETIRE)
        worker.drains_until_s = time.monotonic() + worker.config.drain_timeout_s + KILL_AFTER_DRAIN_S

    # ── reload ──

    def _reload(self) -> None:
        if self._fleet.is_stopping:
            return
        self._tell_manager(self._manager.reloading)
        before = self._fleet.config
        try:
            with no_longer_than(READ_S, ConfigError(UNREADABLE)):
                config = self._reread()
            if fixed := needs_restart(before, config):  # what is new may not go with what stays
                config = dataclasses.replace(config, **{name: getattr(before, name) for name in fixed})
        except ConfigError as error:
            log.error("not reloaded: %s", error)
            self._not_reloaded(f"not reloaded: {error}")
            return
        except Exception as error:  # what is wrong with reading is no reason to end
            log.exception("not reloaded, for a reason nobody foresaw")
            self._not_reloaded(f"not reloaded: {type(error).__name__}: {one_line(str(error))}")
            return
        if fixed:
            log.warning("reloading, but %s can only change with a restart", ", ".join(fixed))
        self._fleet.reload(config)
        self._log_and_note("reload-started", f"reloading {self._fleet.count} workers")
        self._publish()
        if config.workers != before.workers:
            self._resize(config.workers)

    def _fork_successor(self, slot: Slot) -> None:
        try:
            slot.successor = self._fork(slot)
        except OSError as error:
            self._give_up_reload(f"a worker could not be forked: {error.strerror}")

    def _succeed(self, slot: Slot, successor: WorkerProcess) -> None:
        if old := slot.succeed():
            text = f"worker {slot.number} (pid {old.pid}) was replaced by pid {successor.pid} in a reload"
            self._events.note("worker-replaced", text, slot=slot.number, pid=successor.pid, replaces=old.pid)
            self._retire(old)

    def _give_up_reload(self, why: str) -> None:
        new = self._fleet.give_up_reload()
        self._publish()
        some = f", beside {new} with the new configuration" if new else ""
        text = f"reload given up, the old workers go on{some}: {why}"
        log.error("%s", text)
        self._not_reloaded(text, f"reload given up: {why}")

    def _not_reloaded(self, text: str, status: str | None = None) -> None:
        self._events.note("reload-failed", text)
        self._tell_manager(partial(self._manager.ready, status or text))

    def _tell_manager(self, tell: Callable[[], None]) -> None:
        """Tell the service manager, if it knows that we are ready: it would take the end of a reload for that."""
        if self._announced:
            tell()

    # ── more and fewer workers ──

    def _resize(self, wanted: int) -> None:
        if not self._fleet.is_stopping and (problem := self._fleet.want(wanted)):
            log.warning("%s", problem)

    def _add_slot(self) -> None:
        number = self._fleet.count
        self._listeners.steer_away(number)
        try:
            self._listeners.add()
        except OSError as error:
            log.error("no worker can be added: %s", error.strerror)
            self._fleet.want(number)
            self._steer_to_all()
        else:
            self._fleet.add_slot()

    def _remove_slot(self) -> None:
        """The last, and whoever lives in it drains."""
        self._listeners.remove_last()
        for worker in self._fleet.remove_slot():
            self._retire(worker)

    def _steer_to_all(self) -> None:
        last = self._fleet.count - 1
        if self._fleet.resize is Resize.JOINING:
            self._log_and_note("worker-added", f"worker {last} is added", slot=last)
        elif self._fleet.resize is Resize.STEERED_AWAY:
            log.info("worker %d stays", last)
        self._listeners.steer_to_all()
        self._fleet.resize = Resize.SETTLED
        self._publish()

    def _publish(self) -> None:
        """The state file, as it is now."""
        try:
            scoreboard.write_state(self._events.path.parent, self._state())
        except OSError as error:
            log.warning("the state file could not be written: %s", error.strerror)
        self._helper.tell()

    # ── the end ──

    def _stop(self, why: str, exit_code: int = OK) -> None:
        """Drain; asked a second time, end at once."""
        if self._fleet.is_stopping:
            self._kill_all(f"the server was told a second time to stop ({why})")
            return
        self._exit_code = exit_code
        if self._announced and exit_code == OK:
            for slot in self._fleet.empty_slots:  # whoever waits for a worker that has died is served too
                self._fill(slot)
        self._fleet.is_stopping = True
        self._publish()
        if exit_code == OK:  # otherwise the error has been said
            log.info("draining: %s", why)
        self._events.note("draining", f"draining: {why}")
        self._manager.stopping(f"draining: {why}")
        self._listeners.ignore_new()
        self._closing_since_s = time.monotonic()

    def _drain_when_quiet(self, now_s: float) -> float:
        """Who is just connecting is let in first, and who waits for a worker that is about to start: closing would
        reset them. Returns when to look again (monotonic)."""
        if self._closing_since_s is None:
            return math.inf
        waited_s = now_s - self._closing_since_s
        starting = any(slot.is_starting for slot in self._fleet.slots)
        if (starting and waited_s < START_S) or (waited_s < HANDSHAKE_S and not self._listeners.is_quiet()):
            return now_s + LOOK_AGAIN_S
        # Ours go first: then the kernel refuses new connections as soon as each worker has closed its own.
        self._listeners.end()
        self._closing_since_s = None
        for slot in self._fleet.slots:
            for worker in slot.retire():
                self._retire(worker)
        return math.inf

    def _kill_all(self, why: str) -> None:
        for worker in self._fleet.living:
            self._exit_code = self._exit_code or FAILED
            self._kill(worker, why)

    def _end_at_once(self) -> None:
        """For an error of our own: no worker is left behind. Usually there is none any more."""
        self._fleet.is_stopping = True
        self._kill_all("the supervisor failed")
        while self._fleet.living:
            signal.sigtimedwait({signal.SIGCHLD}, 0.05)
            self._reap()

    def _note_end(self) -> None:
        own, workers = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        text = f"server ended with exit code {self._exit_code}"
        self._events.note("server-ended", text, **cpu_of(own), **cpu_of(workers, "children"))

    def _tell(self, kind: str, worker: WorkerProcess, what: str, **fields: object) -> None:
        text = f"worker {worker.slot} (pid {worker.pid}) {what}"
        self._events.note(kind, text, slot=worker.slot, pid=worker.pid, **fields)

    def _log_and_note(self, kind: str, text: str, **fields: object) -> None:
        log.info("%s", text)
        self._events.note(kind, text, **fields)
