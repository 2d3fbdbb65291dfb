"""The half of a run that keeps it: where Locust is a single process or the master.

A `RunKeeper` lives as long as its Locust and makes one `_Run` after the other, as many as a web session starts. A run
has a folder, a recorder, a plan that it follows, and a report at its end; it merges what the load processes send.
"""

import logging
import os
import shlex
import socket
import sys
import time
from pathlib import Path
from typing import Any, cast

import gevent
import gevent.event
import msgspec
from locust.env import Environment
from locust.rpc.protocol import Message
from locust.runners import MasterRunner, Runner

from loadtest import arrivals, messages
from loadtest import options as load_options
from loadtest.load_process import BATCH_S, option_fields
from loadtest.phases import PlannedPhase
from loadtest.pulse import Pulse
from loadtest.recorder_process import RecorderProcess, build_report
from loadtest.telemetry import Merger
from reports import environment as machine
from reports import run_folder
from reports.run_folder import Appender, Ending, Event, LoadTick, Phase, RunInfo

RUNS = Path("reports/runs")
HISTOGRAMS_EVERY = 10  # batches
FINAL_BATCHES_TIMEOUT_S = 5.0
HELLO_TIMEOUT_S = 10.0
LOST_S = 5.0  # a load process that was silent for so long is lost: five batches
HEAD_START_S = 0.3  # from the schedule's sending to its first arrival

log = logging.getLogger("socketswarm")


class RunKeeper:
    """Locust's events and the load's messages, passed on to the run that they belong to."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._runner = cast(Runner, environment.runner)
        self._run: _Run | None = None
        self._ending: _Run | None = None
        self._finishing: gevent.Greenlet[..., Any] | None = None
        self._runner.register_message(messages.BATCH, self._on_batch)
        self._runner.register_message(messages.HELLO, self._on_hello)
        self._runner.register_message(messages.DONE, self._on_done)
        self._runner.register_message(messages.FAILED, self._on_failed)

    @property
    def pulse(self) -> Pulse:
        """Of the run that goes on, or an empty one."""
        return self._run.pulse if self._run is not None else Pulse()

    def on_test_start(self, **_: Any) -> None:
        if self._finishing is not None:
            self._finishing.join()
        try:
            self._run = _Run(self._environment)
        except OSError as error:
            self._give_up(f"the run folder cannot be written: {error}")
        shape = self._environment.shape_class
        if shape is not None:
            shape.reset_time()  # not while it waited for the last run's report

    def _give_up(self, reason: str) -> None:
        """No run without its evidence: end the test, and a headless Locust with it."""
        print(f"Error: {reason}", file=sys.stderr)
        self._environment.process_exit_code = 2
        headless = getattr(self._environment.parsed_options, "headless", False)
        gevent.spawn(self._runner.quit if headless else self._runner.stop)

    def on_spawning_complete(self, user_count: int, **_: Any) -> None:
        if self._run is not None:
            self._run.spawned(user_count)

    def on_test_stop(self, **_: Any) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.stopping()
            # Not here: the web page waits for this handler. `on_quitting` waits for the greenlet instead.
            self._finishing = gevent.spawn(self._finish, run)

    def _finish(self, run: "_Run") -> None:
        self._ending = run  # final batches may still be on their way
        run.finish()
        self._ending = None

    def on_quitting(self, **_: Any) -> None:
        """Locust ends: stop a test that still runs, with its uploads finished, and wait for its report."""
        self._runner.stop()
        if self._finishing is not None:
            self._finishing.join()

    def _on_batch(self, environment: Environment, msg: Message, **_: Any) -> None:
        run = self._run or self._ending
        if run is not None:
            run.add_batch(str(msg.node_id), msg.data)

    def _on_hello(self, environment: Environment, msg: Message, **_: Any) -> None:
        if self._run is not None:
            self._run.add_load_process(str(msg.node_id), msg.data)

    def _on_done(self, environment: Environment, msg: Message, **_: Any) -> None:
        if self._run is not None:
            self._run.done(str(msg.node_id))

    def _on_failed(self, environment: Environment, msg: Message, **_: Any) -> None:
        if self._run is not None:
            self._run.fail(msg.data["text"])
        self._give_up(msg.data["text"])


class _Run:
    """One run, from its folder to its report."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._runner = cast(Runner, environment.runner)
        fields = option_fields(environment)
        self._options = load_options.validate(environment.host or "", fields)
        self.folder = _make_folder(environment, str(fields["label"]))
        self._uploads = Appender(self.folder / run_folder.UPLOADS)
        self._events = Appender(self.folder / run_folder.EVENTS)
        self._load_ticks = Appender(self.folder / run_folder.LOAD)
        self._builds_report = not getattr(environment.parsed_options, "no_report", False)
        self._merger = Merger()
        self.pulse = Pulse()
        self._phases: list[Phase] = []
        self._planned: dict[str, PlannedPhase] = {}
        self._ending: Ending | None = None
        self._heard_s: dict[str, float] = {}
        """load process -> when it last said something; it is there from its first word to its last"""
        self._final: set[str] = set()
        self._busy: set[str] = set()
        """Open model: those whose arrivals have not all ended."""
        self._all_final = gevent.event.Event()
        self._all_done = gevent.event.Event()
        self._users = 0
        self._closed = False
        self._failed = False
        self._reported: set[str] = set()  # load processes heard of since the last line
        self._line_s = time.monotonic()
        self._lines = 0
        self._info = self._describe(fields)
        self._save()
        self._recorder = RecorderProcess(self.folder, *self._options.target.address)
        self._info = msgspec.structs.replace(
            self._info, server=self._recorder.server, environment=self._info.environment | self._recorder.store()
        )
        first = self._options.plan[0]
        self._begin(PlannedPhase("ramp-up", "warm-up", first.uploads_per_connection, 0), time.monotonic_ns())
        self._plan: gevent.Greenlet[..., Any] | None = None
        if self._options.profile is not None:
            self._plan = gevent.spawn(self._follow_schedule)
        self._watch = gevent.spawn(self._watch_load)
        self._note("run-started", f"run {self._info.id} started")

    # ── while it runs ──

    def spawned(self, user_count: int) -> None:
        """All users are there: the plan may begin. Called again when a person changes the number of users."""
        self._users = user_count
        self._note("users-changed", f"{user_count} users", users=user_count)
        if self._plan is None:
            self._plan = gevent.spawn(self._follow_plan)

    def add_batch(self, sender: str, data: dict[str, Any]) -> None:
        """One load process's last second. Once all have reported, it is a line of the file, stamped now: the clocks of
        other hosts are not ours. One that stopped reporting does not hold up the others."""
        if self._closed:
            return
        batch = data["batch"]
        self._merger.add(batch)
        for phase, delays in data["hiccups"]:
            self._merger.add_hiccups(phase, delays)
        tick = msgspec.convert({**run_folder.now_ns(), **data["tick"]}, LoadTick)
        self._load_ticks.append(tick)
        self.pulse.tick(tick)
        self._failed = self._failed or any(part["failures"] for names in batch.values() for part in names.values())
        self._reported.add(sender)
        if sender in self._heard_s:
            self._heard_s[sender] = time.monotonic()
        overdue = time.monotonic() - self._line_s > 1.9 * BATCH_S
        if self._reported >= self._heard_s.keys() or overdue:
            self._write_second()
        if data["final"]:
            self._final.add(sender)
            self._look_whether_all()

    def add_load_process(self, sender: str, data: dict[str, Any]) -> None:
        if self._plan is not None and isinstance(self._runner, MasterRunner):
            if self._options.profile is not None and self._busy:
                self.fail("a load process joined after the schedule was shared out")
            else:  # it joined late
                self._tell(self._phases[-1].name, self._phases[-1].uploads_per_connection, sender)
        self._heard_s[sender] = time.monotonic()
        if data["host"] == socket.gethostname():
            self._recorder.follow(data["meter_pid"], "hiccup-meter")
            if data["pid"] != os.getpid():
                self._recorder.follow(data["pid"], "load-worker")

    def done(self, sender: str) -> None:
        """All arrivals of this load process have ended."""
        self._busy.discard(sender)
        self._look_whether_all()

    def _watch_load(self) -> None:
        """A load process that is gone took its counts with it: end the run, whose numbers nobody should use."""
        while True:
            gevent.sleep(BATCH_S)
            overdue_s = time.monotonic() - LOST_S
            for sender in [sender for sender, heard_s in self._heard_s.items() if heard_s < overdue_s]:
                if sender in self._final:
                    continue
                del self._heard_s[sender]
                self._busy.discard(sender)
                text = f"a load process was lost: {len(self._heard_s)} of {len(self._heard_s) + 1} are left"
                self._note("load-process-lost", text)
                self._look_whether_all()
                if self._ending is None:
                    self.fail(text)
                    gevent.spawn(self._runner.stop)

    def _look_whether_all(self) -> None:
        if self._final >= self._heard_s.keys():
            self._all_final.set()
        if not self._busy:
            self._all_done.set()

    def stopping(self) -> None:
        """No user runs any more; whoever stopped them may be waiting."""
        if self._plan is not None and self._plan is not gevent.getcurrent():
            self._plan.kill()
        if self._ending is None:
            self._ending = Ending(how="stopped", reason="stopped before its plan was over")

    def fail(self, reason: str) -> None:
        """The run cannot give what was asked for."""
        self._ending = Ending(how="failed", reason=reason)
        self._note("run-failed", reason)

    # ── the plan ──

    def _follow_plan(self) -> None:
        """Closed model: each phase is told to the users as it begins."""
        for planned in self._options.plan:
            self._announce(planned)
            gevent.sleep(planned.duration_s)
        self._announce(self._drain())
        self._complete()

    def _follow_schedule(self) -> None:
        """Open model: the load processes know the plan and start together; here it is only written down."""
        expected = self._runner.worker_count if isinstance(self._runner, MasterRunner) else 1
        deadline_s = time.monotonic() + HELLO_TIMEOUT_S
        while len(self._heard_s) < expected and time.monotonic() < deadline_s:
            gevent.sleep(0.01)
        shares = list(self._heard_s)
        self._busy = set(shares)
        stamp = run_folder.now_ns()
        start_ns = stamp["mono_ns"] + round(HEAD_START_S * 1e9)
        for number, sender in enumerate(shares):
            data = {
                "start_wall_ns": start_ns - stamp["mono_ns"] + stamp["wall_ns"],
                "share": number,
                "shares": len(shares),
            }
            self._runner.send_message(
                messages.SCHEDULE, data, sender if isinstance(self._runner, MasterRunner) else None
            )
        for planned in self._options.plan:
            gevent.sleep((start_ns - time.monotonic_ns()) / 1e9)
            self._begin(planned, start_ns)
            start_ns += round(planned.duration_s * 1e9)
        gevent.sleep((start_ns - time.monotonic_ns()) / 1e9)
        self._begin(self._drain(), start_ns)
        self._all_done.wait(self._options.drain_s + FINAL_BATCHES_TIMEOUT_S)
        self._complete()

    def _drain(self) -> PlannedPhase:
        return PlannedPhase("drain", "drain", self._options.plan[-1].uploads_per_connection, 0)

    def _complete(self) -> None:
        self._ending = Ending(how="completed", reason="its plan was over")
        self._runner.stop()

    def _announce(self, planned: PlannedPhase) -> None:
        """Tell the users first: what they did until now is then counted before the old phase ends."""
        self._tell(planned.name, planned.uploads_per_connection)
        self._begin(planned, time.monotonic_ns())

    def _tell(self, phase: str, uploads_per_connection: int, client_id: str | None = None) -> None:
        data = {"name": phase, "uploads_per_connection": uploads_per_connection}
        self._runner.send_message(messages.PHASE, data, client_id)

    def _begin(self, planned: PlannedPhase, start_ns: int) -> None:
        self._end_phase(start_ns)
        self._planned[planned.name] = planned
        self._phases.append(
            Phase(
                name=planned.name,
                kind=planned.kind,
                uploads_per_connection=planned.uploads_per_connection,
                start_ns=start_ns,
            )
        )
        self._note("phase", f"phase {planned.name}", phase=planned.name)
        self._save()

    def _end_phase(self, end_ns: int) -> None:
        if self._phases and self._phases[-1].end_ns is None:
            phase = self._phases[-1]
            offered = self._offered(self._planned[phase.name], (end_ns - phase.start_ns) / 1e9)
            self._phases[-1] = msgspec.structs.replace(phase, end_ns=end_ns, offered=offered)
            self._uploads.append(self._merger.histograms(phase.name))

    def _offered(self, planned: PlannedPhase, lasted_s: float) -> int | None:
        """How many arrivals were due in a phase that lasted so long; None in the closed model."""
        if self._options.profile is None:
            return None
        profile = self._options.profile_of(planned) if planned.duration_s else None
        if profile is None:
            return 0
        return arrivals.offered(profile, planned.duration_s, self._options.seed, lasted_s)

    def _write_second(self) -> None:
        self._reported.clear()
        self._line_s = time.monotonic()
        lines = self._merger.take_second(self._users)
        for line in lines:
            self._uploads.append(line)
        self.pulse.second(lines)
        self._lines += 1
        if self._lines % HISTOGRAMS_EVERY == 0:
            self._uploads.append(self._merger.histograms(self._phases[-1].name))

    # ── its end ──

    def finish(self) -> None:
        """Collect what is under way, end the recorder, write everything down and build the report."""
        if self._heard_s and not self._all_final.wait(FINAL_BATCHES_TIMEOUT_S):
            missing = len(self._heard_s.keys() - self._final)
            self._note("load-process-lost", f"{missing} load processes never sent their last second", missing=missing)
        self._watch.kill()
        self._closed = True
        self._end_phase(time.monotonic_ns())
        self._write_second()
        for phase in self._merger.phases:
            self._uploads.append(self._merger.histograms(phase))
        recorder_problem = self._recorder.finish()
        if recorder_problem is not None:
            self._note("recorder-failed", recorder_problem)
            log.error(recorder_problem)
        self._note("run-ended", f"run {self._info.id} ended: {self._ending.reason if self._ending else ''}")
        self._info = msgspec.structs.replace(self._info, ended=self._ending)
        self._save()
        for appender in (self._uploads, self._events, self._load_ticks):
            appender.close()
        if self._builds_report:
            build_report(self.folder)
        self._set_exit_code()
        parsed = self._environment.parsed_options
        if parsed is not None and parsed.headless and self._ending is not None and self._ending.how != "stopped":
            self._runner.quit()  # not before: workers that have just stopped would not hear of it

    def _set_exit_code(self) -> None:
        """The report's, which knows more than Locust; without one, whether an upload failed."""
        if self._environment.process_exit_code == 2:
            return
        outcome = run_folder.read_outcome(self.folder)
        if outcome is not None:
            self._environment.process_exit_code = outcome.exit_code
        elif self._failed:
            self._environment.process_exit_code = 1

    def _save(self) -> None:
        self._info = msgspec.structs.replace(self._info, phases=list(self._phases))
        run_folder.write_whole(self.folder / run_folder.RUN, self._info)

    def _note(self, kind: str, text: str, **details: Any) -> None:
        self._events.append(Event(**run_folder.now_ns(), source="load", kind=kind, text=text, details=details))

    def _describe(self, fields: dict[str, Any]) -> RunInfo:
        commit, dirty = machine.git_state(Path.cwd())
        stamp = run_folder.now_ns()
        parsed = self._environment.parsed_options
        closed = self._options.profile is None
        return RunInfo(
            id=self.folder.name,
            label=str(fields["label"]),
            command=shlex.split(getattr(parsed, "run_command", "")) or [Path(sys.argv[0]).name, *sys.argv[1:]],
            host=self._environment.host or "",
            users=int(getattr(parsed, "num_users", None) or 1) if closed else 0,
            model="closed" if closed else "open",
            thresholds=[threshold.text for threshold in self._options.thresholds],
            load_options=fields,
            seed=self._options.seed,
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
