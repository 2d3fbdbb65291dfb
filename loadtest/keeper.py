"""The half of a run that keeps it: where Locust is a single process or the master.

A `RunKeeper` lives as long as its Locust and makes one `_Run` after the other, as many as a web session starts. A run
has a folder (`run_writer.py`), a recorder, a plan that it follows, load processes (`roster.py`), and a report at its
end.
"""

import logging
import os
import shlex
import socket
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import gevent
from locust.env import Environment
from locust.rpc.protocol import Message
from locust.runners import STATE_MISSING, STATE_RUNNING, STATE_SPAWNING, MasterRunner, Runner

from loadtest import messages
from loadtest import options as load_options
from loadtest.load_process import BATCH_S, option_fields
from loadtest.options import LoadOptions
from loadtest.plan import PlannedPhase
from loadtest.pulse import Pulse
from loadtest.recorder_process import RecorderProcess, build_report, subject_of
from loadtest.roster import LOST_S, Roster
from loadtest.run_writer import RunWriter
from reports import environment as machine
from reports import run_folder
from reports.run_folder import Ending, RunInfo
from server.printing import in_words

RUNS = Path("reports/runs")
FINAL_BATCHES_TIMEOUT_S = 5.0
READY_TIMEOUT_S = 60.0  # for load processes to read or make their payloads
GOES_ON = (STATE_SPAWNING, STATE_RUNNING)
STARTS_WITHIN_S = 10.0
POLL_S = 0.01
SKEW_LIMIT_S = 0.2  # that another host's clock may be off, its message's way included
HEAD_START_S = 0.3  # from the schedule's sending to its first arrival

log = logging.getLogger("socketswarm")


class RunKeeper:
    """Locust's events and the load's messages, passed on to the run that they belong to."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._runner = cast(Runner, environment.runner)
        self._run: _Run | None = None
        self._ending: _Run | None = None
        """The last one, whose final batches may still be on their way."""
        self._finishing: gevent.Greenlet[..., Any] | None = None
        self.starts = 0
        """How many tests have started so far."""
        self._starting = False
        for message in (messages.HELLO, messages.BATCH, messages.DONE, messages.FAILED, messages.HOPELESS):
            self._runner.register_message(message, self._on_message)

    @property
    def pulse(self) -> Pulse:
        """The current run's pulse, or an empty one."""
        return self._run.pulse if self._run is not None else Pulse()

    @property
    def is_idle(self) -> bool:
        """Whether no run is starting, goes on, or is ending."""
        ended = self._finishing is None or self._finishing.ready()
        return not self._starting and self._run is None and ended

    def on_test_start(self, **_: Any) -> None:
        self.starts += 1
        self._starting = True
        try:
            self._start()
        finally:
            self._starting = False
        shape = self._environment.shape_class
        if shape is not None:
            shape.reset_time()  # not while it waited for the last run's report

    def _start(self) -> None:
        if self._finishing is not None:
            self._finishing.join()
        self._environment.process_exit_code = None  # that was the last run's
        setattr(self._environment.parsed_options, messages.RUN, uuid.uuid4().hex)
        try:
            self._run = _Run(self._environment)
        except OSError as error:
            self._give_up(f"the run folder cannot be written: {in_words(error)}")
        except Exception as error:  # Locust would swallow it, and make load that nobody counts
            log.exception("a run could not be started")
            self._give_up(f"the run could not be started: {error}")

    def _give_up(self, reason: str) -> None:
        """No run without its evidence: end the test, and a headless Locust with it."""
        headless = getattr(self._environment.parsed_options, "headless", False)
        gevent.spawn(self._runner.quit if headless else lambda: stop_soon(self._runner))
        self._say(reason)

    def _say(self, reason: str) -> None:
        """What is wrong with the options after all."""
        self._environment.process_exit_code = 2
        with suppress(OSError):  # a log on a full disk, say: whoever reads it must not keep Locust running
            print(f"Error: {reason}", file=sys.stderr)

    def on_spawning_complete(self, user_count: int, **_: Any) -> None:
        if self._run is not None:
            self._run.spawned(user_count)

    def on_test_stopping(self, **_: Any) -> None:
        if self._run is not None:
            self._run.stopping()

    def on_test_stop(self, **_: Any) -> None:
        run, self._run = self._run, None
        if run is not None:
            # Not here: the web page waits for this handler. `on_quitting` waits for the greenlet instead.
            self._finishing = gevent.spawn(self._finish, run)

    def _finish(self, run: "_Run") -> None:
        self._ending = run
        run.finish()
        self._ending = None

    def on_quitting(self, **_: Any) -> None:
        """Locust ends: stop a test that still runs, with its uploads finished, and wait for its report."""
        self._runner.stop()
        if self._finishing is not None:
            self._finishing.join()

    def _on_message(self, environment: Environment, msg: Message, **_: Any) -> None:
        """Pass it on to the run that it is about, if that still goes on or ends."""
        run = next((run for run in (self._run, self._ending) if run and run.token == msg.data[messages.RUN]), None)
        if run is None:
            return
        sender = str(msg.node_id)
        match msg.type:
            case messages.HELLO:
                run.add_load_process(sender, msg.data)
            case messages.BATCH:
                run.add_batch(sender, msg.data)
            case messages.DONE:
                run.done(sender)
            case messages.FAILED:
                self._fail(run, msg.data["text"])
            case messages.HOPELESS:
                gevent.spawn(self._despair, run, msg.data["text"])

    def _fail(self, run: "_Run", reason: str) -> None:
        run.fail(reason)  # which ends Locust, too
        self._say(reason)

    def _despair(self, run: "_Run", reason: str) -> None:
        """None of one load process's uploads can succeed. Those of others may have: that is known when their last
        second has come, too."""
        if isinstance(self._runner, MasterRunner):
            gevent.sleep(2 * BATCH_S)
        if run is self._run and not run.pulse.any_acknowledged:
            self._environment.stop_timeout = 0  # nor can those that are under way
            self._fail(run, reason)


def stop_soon(runner: Runner) -> None:
    """Stop a test that may only just be starting: Locust ignores a stop before it runs."""
    until(lambda: runner.state in GOES_ON, STARTS_WITHIN_S)
    runner.stop()


def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        gevent.sleep(POLL_S)
    return True


class _Run:
    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._runner = cast(Runner, environment.runner)
        fields = option_fields(environment)
        self.token: str = getattr(environment.parsed_options, messages.RUN)
        self._options = load_options.validate(environment.host or "", fields)
        self._ending: Ending | None = None
        self._roster = Roster()
        self._users = 0
        self._stopping = False
        self._closed = False
        self._has_no_report = False
        """Whether one should have been built and could not."""
        folder = _make_folder(environment, str(fields["label"]))
        self._writer = RunWriter(folder, _describe(environment, folder, fields, self._options), self._options)
        self.pulse = self._writer.pulse
        self._note = self._writer.note
        subject = subject_of(self._options.target)
        if not subject:
            self._note("server-unknown", f"who listens at {environment.host} is not known: the server is not recorded")
        self._recorder = RecorderProcess(folder, subject)
        around = self._writer.info.environment | self._recorder.store()
        self._writer.change(server=self._recorder.server, environment=around)
        first = self._options.plan[0]
        ramp_up = PlannedPhase("ramp-up", "warm-up", first.uploads_per_connection, 0)
        self._writer.begin(ramp_up, time.monotonic_ns())
        self._plan = self._spawn(self._follow_schedule) if self._options.profile is not None else None
        self._watch = self._spawn(self._watch_load)
        self._note("run-started", f"run {folder.name} started")

    def _spawn(self, work: Callable[[], None]) -> "gevent.Greenlet[..., Any]":
        """A greenlet of this run's. One that died of a full disk, say, would leave Locust running for ever."""

        def guarded() -> None:
            try:
                work()
            except Exception as error:
                self._cannot_go_on(error)

        return gevent.spawn(guarded)

    def _cannot_go_on(self, error: Exception) -> None:
        if isinstance(error, OSError):
            self._writer.give_room()
        else:
            log.exception("the run cannot go on")
        self.fail(f"the run cannot go on: {in_words(error)}")

    # ── while it runs ──

    def spawned(self, user_count: int) -> None:
        """All users are there: the plan may begin. Called again when a person changes the number of users."""
        self._users = user_count
        self._note("users-changed", f"{user_count} users", users=user_count)
        if self._plan is None:
            self._plan = self._spawn(self._follow_plan)

    def add_batch(self, sender: str, data: dict[str, Any]) -> None:
        """Count one load process's last second, and once all have reported, or one has stopped to, write it down."""
        if self._closed:
            return
        try:
            self._roster.heard(sender, time.monotonic())
            self._writer.add(data)
            if self._roster.all_reported() or self._writer.silent_s > 1.9 * BATCH_S:
                self._roster.begin_second()
                self._writer.write_second(self._users)
            if data["final"]:
                self._roster.final(sender)
                if not self._stopping:
                    self._leave(sender)
        except OSError as error:
            self._cannot_go_on(error)

    def add_load_process(self, sender: str, data: dict[str, Any]) -> None:
        self._check_clock(data)
        if self._started and self._options.profile is not None:
            self._note("load-process-late", "a load process came after the schedule was shared out, and has no share")
        elif self._started:
            self._tell(self._writer.phase.name, self._writer.phase.uploads_per_connection, sender)
        self._roster.came(sender, time.monotonic())
        if data["host"] == socket.gethostname():
            self._recorder.follow(data["meter_pid"], "hiccup-meter")
            if data["pid"] != os.getpid():
                self._recorder.follow(data["pid"], "load-worker")

    @property
    def _started(self) -> bool:
        """Whether the load has been told what to do."""
        return len(self._writer.phases) > 1

    def _check_clock(self, data: dict[str, Any]) -> None:
        """Phases and arrivals of another host follow its clock, and the costs of the server ours."""
        skew_s = (data["wall_ns"] - time.time_ns()) / 1e9
        if data["host"] != socket.gethostname() and abs(skew_s) > SKEW_LIMIT_S:
            self.fail(
                f"the clock of {data['host']} is {skew_s:+.1f} s off ours (at most {SKEW_LIMIT_S} s): "
                "have both follow NTP"
            )

    def done(self, sender: str) -> None:
        """All arrivals of this load process have ended."""
        self._roster.done(sender)

    def _leave(self, sender: str) -> None:
        """It ended in good order, and all that it did is counted."""
        had_share = self._options.profile is not None and self._roster.has_shares
        self._roster.went(sender)
        text = f"a load process left before the run's end: {len(self._roster)} remain"
        self._note("load-process-left", text)
        if had_share or not len(self._roster):
            self.fail(text)

    def _watch_load(self) -> None:
        """A load process that is gone took its counts with it: end the run, whose numbers nobody should use."""
        while True:
            before_s = time.monotonic()
            gevent.sleep(BATCH_S)
            now_s = time.monotonic()
            if now_s - before_s > 2 * BATCH_S:  # we were stopped ourselves: what they sent is not read yet
                self._roster.excuse_silence(now_s)
            for sender in self._roster.lost(now_s):
                self._roster.went(sender)
                text = f"a load process was lost: {len(self._roster)} of {len(self._roster) + 1} are left"
                self._lost(text, silent_s=LOST_S)

    def _lost(self, text: str, **details: float) -> None:
        self._note("load-process-lost", text, **details)
        self.pulse.broken(text)
        if not self._stopping:
            self.fail(text)

    def stopping(self) -> None:
        """The test is about to stop, perhaps before its plan is over: what comes now belongs to no measured phase."""
        self._stopping = True
        if self._plan is not None and self._plan is not gevent.getcurrent():
            self._plan.kill()
        clients = self._runner.clients.all if isinstance(self._runner, MasterRunner) else []
        if clients and all(client.state == STATE_MISSING for client in clients):
            self._ending = self._ending or Ending(how="failed", reason="the last load process was lost")
        if self._ending is None:
            self._ending = Ending(how="stopped", reason="stopped before its plan was over")
        try:
            if self._writer.phase.kind != "drain":
                self._announce(self._drain())
        except OSError as error:
            self._cannot_go_on(error)

    def fail(self, reason: str) -> None:
        """The run cannot give what was asked for, and is ended."""
        if self._ending is None or self._ending.how != "failed":
            self._ending = Ending(how="failed", reason=reason)
            self.pulse.broken(reason)
            log.error(reason)
            with suppress(OSError):
                self._note(run_folder.RUN_FAILED, reason)
        if not self._stopping:
            gevent.spawn(stop_soon, self._runner)

    # ── the plan ──

    def _await_load(self) -> None:
        """Wait until all load processes are ready: one that is not would miss part of the load."""
        expected = self._runner.worker_count if isinstance(self._runner, MasterRunner) else 1
        if not until(lambda: len(self._roster) >= expected, READY_TIMEOUT_S):
            self.fail(f"only {len(self._roster)} of {expected} load processes were ready in {READY_TIMEOUT_S:g} s")
            raise gevent.GreenletExit

    def _follow_plan(self) -> None:
        """Closed model: each phase is told to the users as it begins."""
        self._await_load()
        for planned in self._options.plan:
            self._announce(planned)
            gevent.sleep(planned.duration_s)
        self._announce(self._drain())
        self._complete()

    def _follow_schedule(self) -> None:
        """Open model: the load processes know the plan and start together; here it is only written down."""
        self._await_load()
        shares, most = self._roster.share_out(), self._options.max_in_flight
        if len(shares) > most:  # each has at least one
            self.fail(
                f"at most {most} uploads in flight cannot be dealt out to {len(shares)} load processes: set "
                f"--max-in-flight to at least {len(shares)}"
            )
            return
        stamp = run_folder.now_ns()
        start_ns = stamp["mono_ns"] + round(HEAD_START_S * 1e9)
        for number, sender in enumerate(shares):
            start_wall_ns = start_ns - stamp["mono_ns"] + stamp["wall_ns"]
            data = {"start_wall_ns": start_wall_ns, "share": number, "shares": len(shares)}
            receiver = sender if isinstance(self._runner, MasterRunner) else None
            self._runner.send_message(messages.SCHEDULE, data, receiver)
        for planned in self._options.plan:
            gevent.sleep((start_ns - time.monotonic_ns()) / 1e9)
            self._begin(planned, start_ns)
            start_ns += round(planned.duration_s * 1e9)
        gevent.sleep((start_ns - time.monotonic_ns()) / 1e9)
        self._begin(self._drain(), start_ns)
        until(lambda: not self._roster.has_shares, self._options.drain_s + FINAL_BATCHES_TIMEOUT_S)
        self._complete()

    def _drain(self) -> PlannedPhase:
        return PlannedPhase("drain", "drain", self._options.plan[-1].uploads_per_connection, 0)

    def _complete(self) -> None:
        self._ending = self._ending or Ending(how="completed", reason="its plan was over")
        self._runner.stop()

    def _announce(self, planned: PlannedPhase) -> None:
        """Tell the users first: what they did until now is then counted before the old phase ends."""
        self._tell(planned.name, planned.uploads_per_connection)
        self._begin(planned, time.monotonic_ns())

    def _begin(self, planned: PlannedPhase, start_ns: int) -> None:
        self._writer.begin(planned, start_ns)
        self._recorder.look()

    def _tell(self, phase: str, uploads_per_connection: int, client_id: str | None = None) -> None:
        data = {"name": phase, "uploads_per_connection": uploads_per_connection}
        self._runner.send_message(messages.PHASE, data, client_id)

    # ── its end ──

    def finish(self) -> None:
        """Collect what is under way, end the recorder, write everything down and build the report."""
        # Who was told to stop first finishes its uploads, for as long as a drain may take.
        if not until(lambda: self._roster.all_final, self._options.drain_s + FINAL_BATCHES_TIMEOUT_S):
            self._lost(f"{self._roster.missing} load processes never sent their last second")
        self._watch.kill()
        self._closed = True
        end_ns = time.monotonic_ns()
        recorder_problem = self._recorder.finish()
        parsed = self._environment.parsed_options
        try:
            self._close_books(end_ns, recorder_problem)
            if not getattr(parsed, "no_report", False):
                self._has_no_report = not build_report(self._writer.folder)
        except Exception as error:
            self._cannot_go_on(error)
            self._writer.close()
        self._set_exit_code()
        if parsed is not None and parsed.headless and self._ending is not None and self._ending.how != "stopped":
            self._runner.quit()  # not before: workers that have just stopped would not hear of it

    def _close_books(self, end_ns: int, recorder_problem: str | None) -> None:
        self._writer.end(end_ns, self._users)
        if recorder_problem is not None:
            log.error(recorder_problem)
            if self._writer.has_room:  # or it ended by the same disk, whose end is told already
                self._writer.note_recorder_failed(recorder_problem, end_ns)
        self._note("run-ended", f"run {self._writer.info.id} ended: {self._ending.reason if self._ending else ''}")
        self._writer.change(ended=self._ending)
        self._writer.close()

    def _set_exit_code(self) -> None:
        """The report's, which knows more than Locust; without one, whether an upload failed."""
        if self._environment.process_exit_code == 2:
            return
        outcome = run_folder.read_outcome(self._writer.folder)
        if outcome is not None:
            self._environment.process_exit_code = outcome.exit_code
        elif (
            self._has_no_report or self.pulse.any_failed or (self._ending is not None and self._ending.how == "failed")
        ):
            self._environment.process_exit_code = 1


def _describe(environment: Environment, folder: Path, fields: dict[str, Any], options: LoadOptions) -> RunInfo:
    commit, dirty = machine.git_state(Path.cwd())
    stamp = run_folder.now_ns()
    parsed = environment.parsed_options
    closed = options.profile is None
    return RunInfo(
        id=folder.name,
        label=str(fields["label"]),
        command=shlex.split(getattr(parsed, "run_command", "")) or [Path(sys.argv[0]).name, *sys.argv[1:]],
        host=environment.host or "",
        users=int(getattr(parsed, "num_users", None) or 1) if closed else 0,
        model="closed" if closed else "open",
        thresholds=[threshold.text for threshold in options.thresholds],
        load_options=fields,
        seed=options.seed,
        git_commit=commit,
        git_dirty=dirty,
        environment=machine.fingerprint(),
        started_mono_ns=stamp["mono_ns"],
        started_wall_ns=stamp["wall_ns"],
    )


def _make_folder(environment: Environment, label: str) -> Path:
    given = getattr(environment.parsed_options, "run_folder", "")
    if given and not (Path(given) / run_folder.RUN).exists():
        Path(given).mkdir(parents=True, exist_ok=True)
        return Path(given)
    return run_folder.create(Path(given) if given else RUNS / run_folder.new_run_id(label))
