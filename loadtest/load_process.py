"""The half of a run that makes load: where users run, a single process or each of Locust's workers.

It holds what users ask for at every upload (`load.py`), and sends a batch of what they did a second to the half that
keeps the run (`keeper.py`). In the open model it runs its share of the schedule instead of users.
"""

import gc
import os
import socket
import time
from functools import partial
from typing import Any, cast

import gevent
from locust.env import Environment
from locust.rpc.protocol import Message
from locust.runners import Runner, WorkerRunner

from loadtest import hopeless, locust_tables, messages
from loadtest import options as load_options
from loadtest.alarm import Alarm
from loadtest.hiccup_meter import HiccupMeter
from loadtest.load import Load, RunningPhase
from loadtest.open_model import OpenModel
from loadtest.option_error import OptionError
from loadtest.telemetry import Sparse, batch_of, sparse
from reports.run_delay import run_delay_ns
from server.printing import in_words

BATCH_S = 1.0


def option_fields(environment: Environment) -> dict[str, Any]:
    """Our options of this environment, as texts."""
    parsed = environment.parsed_options
    assert parsed is not None
    return {field: getattr(parsed, field) for field in load_options.FIELDS}


class LoadProcess:
    """Locust's events and the keeper's messages, passed on to the test that goes on."""

    def __init__(self, environment: Environment) -> None:
        self._test: _Test | None = None
        runner = cast(Runner, environment.runner)
        runner.register_message(messages.PHASE, self._on_phase)
        runner.register_message(messages.SCHEDULE, self._on_schedule)

    @property
    def load(self) -> Load | None:
        """What uploaders share, while a test goes on."""
        return self._test.load if self._test is not None else None

    def on_test_start(self, environment: Environment, **_: Any) -> None:
        run = str(getattr(environment.parsed_options, messages.RUN))
        try:
            self._test = _Test(environment, run)
        except (OptionError, OSError) as error:  # of a worker on another machine without that folder, say
            text = f"a load process on {socket.gethostname()}: {in_words(error)}"
            _send(environment, run, messages.FAILED, {"text": text})
            return
        self._test.say_hello()

    def on_test_stop(self, environment: Environment, **_: Any) -> None:
        test, self._test = self._test, None  # at once: after a shape Locust may stop a test twice
        if test is not None:
            test.end()
        if isinstance(environment.runner, WorkerRunner):
            # After a stop Locust leaves its worker deaf for this long; told to quit meanwhile, it would stay for a
            # minute. The master sends the right time with every start.
            environment.stop_timeout = 0

    def _on_phase(self, environment: Environment, msg: Message, **_: Any) -> None:
        if self._test is not None:
            self._test.begin_phase(msg.data["name"], msg.data["uploads_per_connection"])

    def _on_schedule(self, environment: Environment, msg: Message, **_: Any) -> None:
        if self._test is not None:
            self._test.follow_schedule(msg.data["start_wall_ns"], msg.data["share"], msg.data["shares"])


class _Test:
    def __init__(self, environment: Environment, run: str) -> None:
        """OptionError or OSError when it cannot be made here."""
        self._environment = environment
        self._run = run
        options = load_options.validate(environment.host or "", option_fields(environment))
        request = environment.events.request
        # Locust's own runner listens to each request; is there anybody else?
        self._fires_all = len(request._handlers) > 1
        index = max(0, getattr(environment.runner, "worker_index", 0))
        payloads = options.load_payloads()
        self.load = Load(options, payloads, Alarm(), request.fire, fires_all=self._fires_all, worker_index=index)
        self._open_model: OpenModel | None = None
        self._plan_end: gevent.Greenlet[..., Any] | None = None
        gc.collect()
        gc.freeze()  # Locust's own objects, which no later collection has to look through while uploads wait
        self._judged: set[str] = set()
        self._is_hopeless = False
        self._hiccups: list[tuple[str, Sparse]] = []
        self._meter = HiccupMeter()
        self._batches = gevent.spawn(self._send_batches)

    def say_hello(self) -> None:
        hello = {"pid": os.getpid(), "meter_pid": self._meter.pid, "host": socket.gethostname()}
        _send(self._environment, self._run, messages.HELLO, {**hello, "wall_ns": time.time_ns()})

    def end(self) -> None:
        """Wait for what is under way in the open model, and tell the keeper what was done last."""
        if self._plan_end is not None:
            self._plan_end.kill()  # of a test that was stopped early
        if self._open_model is not None:
            self._open_model.drain(self._environment.stop_timeout)
        self._batches.kill()
        self._send_batch(final=True)
        self.load.alarm.close()
        self._meter.close()

    # ── phases ──

    def begin_phase(self, name: str, uploads_per_connection: int) -> None:
        """Closed model: users are in this phase from now on."""
        self.load.phase.end_ns = time.monotonic_ns()
        self._change_phase(RunningPhase(name, uploads_per_connection))
        self._send_batch()

    def follow_schedule(self, start_wall_ns: int, share: int, shares: int) -> None:
        """Open model: the plan starts then. Wall time joins the clocks of several hosts; on one it is exact."""
        options, alarm = self.load.options, self.load.alarm
        start_ns = time.monotonic_ns() + start_wall_ns - time.time_ns()
        self._open_model = OpenModel(self.load, start_ns, share, shares)
        planned_end_ns = start_ns + round(options.planned_s * 1e9)
        self._plan_end = gevent.spawn(self._await_end, self._open_model, planned_end_ns)
        for planned in options.plan:
            alarm.at(start_ns, partial(self._begin_phase_in_hub, planned.name))
            start_ns += round(planned.duration_s * 1e9)
        alarm.at(start_ns, partial(self._begin_phase_in_hub, "drain"))

    def _begin_phase_in_hub(self, name: str) -> None:
        self._change_phase(RunningPhase(name, 0))
        gevent.spawn(self._send_batch)  # the hub cannot wait

    def _change_phase(self, phase: RunningPhase) -> None:
        self._take_hiccups()
        self.load.phase = phase

    def _await_end(self, model: OpenModel, planned_end_ns: int) -> None:
        gevent.sleep((planned_end_ns - time.monotonic_ns()) / 1e9)
        model.drain(self.load.options.drain_s)
        _send(self._environment, self._run, messages.DONE, {})

    # ── batches ──

    def _send_batches(self) -> None:
        while True:
            gevent.sleep(BATCH_S)
            self._send_batch()
            self._judge_first_uploads()

    def _judge_first_uploads(self) -> None:
        """A run of which no upload can succeed is ended."""
        if self._is_hopeless or self.load.any_acknowledged:
            return
        why = self._why_none_can()
        if why is not None and not self.load.any_acknowledged:
            self._is_hopeless = True
            text = f"no upload to {self._environment.host} can succeed: {why}"
            _send(self._environment, self._run, messages.HOPELESS, {"text": text})

    def _why_none_can(self) -> str | None:
        """Another protocol, which the server may have to be asked of, is thought of once for each new way to fail."""
        load, failed = self.load, self.load.failed_first
        files = ((payload.size_bytes, payload.names) for payload in load.payloads.payloads)
        why = failed.why_no_file_can(files) or failed.why_unheard(load.uploaders, load.options.timeout_s)
        if why is None and self._judged < failed.messages.keys():
            self._judged = set(failed.messages)
            why = hopeless.why_none_can(dict(failed.messages), load.options.target)
        return why

    def _take_hiccups(self) -> None:
        """Those until now belong to this phase."""
        if len(delays_us := self._meter.take()):
            self._hiccups.append((self.load.phase.name, sparse(delays_us)))

    def _send_batch(self, *, final: bool = False) -> None:
        tallied = self.load.telemetry.take()
        locust_tables.add(self._environment.stats, tallied, uploads=not self._fires_all)
        self._take_hiccups()
        hiccups, self._hiccups = self._hiccups, []
        batch = {"batch": batch_of(tallied), "hiccups": hiccups, "tick": self._tick(), "final": final}
        _send(self._environment, self._run, messages.BATCH, batch)

    def _tick(self) -> dict[str, Any]:
        """What run_folder.LoadTick says of this process, but for the clocks."""
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "cpu_s": time.process_time(),
            "run_delay_ns": run_delay_ns(os.getpid()),
            "in_flight": self.load.in_flight,
            "queued": self._open_model.queued if self._open_model is not None else 0,
        }


def _send(environment: Environment, run: str, message: str, data: dict[str, Any]) -> None:
    """Send something to the keeper, with the run that it is about."""
    cast(Runner, environment.runner).send_message(message, {messages.RUN: run, **data})
