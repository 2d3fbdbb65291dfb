"""The half of a run that makes load: where users run, a single process or each of Locust's workers.

It holds what users ask for at every upload (phase, payloads, options), counts what they did, and sends a batch of it a
second to the half that keeps the run (`keeper.py`). In the open model it runs its share of the schedule instead of
users.
"""

import gc
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import gevent
from locust.env import Environment
from locust.rpc.protocol import Message
from locust.runners import Runner, WorkerRunner

from loadtest import locust_tables, messages
from loadtest import options as load_options
from loadtest.alarm import Alarm
from loadtest.client import Upload
from loadtest.hiccup_meter import HiccupMeter
from loadtest.link import Address
from loadtest.open_model import OpenModel
from loadtest.options import LoadOptions, OptionError
from loadtest.payloads import Payload, PayloadError, PayloadSet
from loadtest.telemetry import Arrival, Sparse, Telemetry, batch_of, sparse
from loadtest.uploader import RunningPhase
from loadtest.wires import CLIENT_FAILURES, Target, WireFactory
from reports.run_delay import run_delay_ns

BATCH_S = 1.0


class FailedUploadError(Exception):
    """A failed upload in Locust's tables, which group by the text: it is the same for every failure of one code."""

    def __init__(self, code: str) -> None:
        super().__init__(f"{code}: {CLIENT_FAILURES[code]}" if code in CLIENT_FAILURES else code)


class Prepared:
    """The options and payloads that were checked last: a test that then starts need not read them again."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._value: tuple[LoadOptions, PayloadSet] | None = None

    def get(self, host: str | None, fields: Mapping[str, Any]) -> tuple[LoadOptions, PayloadSet]:
        """OptionError or PayloadError when no test can start with these."""
        texts = [fields[field] for field in load_options.FIELDS]
        named = [str(fields[option.field]).strip() for option in load_options.OPTIONS if option.reads_files]
        key = (host, *texts, *map(_contents, named))
        if self._value is None or key != self._key:
            self._value = None  # its payloads may be large: not both at once
            options = load_options.validate(host or "", fields)
            self._key, self._value = key, (options, options.load_payloads())
        return self._value


def _contents(name: str) -> tuple[tuple[str, int, int], ...]:
    """What tells one state of a file, or of a folder's files, from another; nothing of one that is not there."""
    below = [Path(base) / file for base, _, files in os.walk(name) for file in files]
    paths = below or ([Path(name)] if name else [])
    try:
        return tuple(sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths))
    except OSError:  # a file that has just gone, or points nowhere: reading them says so
        return ()


def option_fields(environment: Environment) -> dict[str, Any]:
    """Our options of this environment, as texts."""
    parsed = environment.parsed_options
    assert parsed is not None
    return {field: getattr(parsed, field) for field in load_options.FIELDS}


class LoadProcess:
    """Lives as long as its Locust; a test is from `on_test_start` to `on_test_stop`."""

    def __init__(self, environment: Environment, prepared: Prepared) -> None:
        self._environment = environment
        self._prepared = prepared
        self._runner = cast(Runner, environment.runner)
        self.options: LoadOptions
        self.payloads: PayloadSet
        self.wire: WireFactory
        self.alarm: Alarm
        self.phase = RunningPhase("", 0)
        self.in_flight = 0
        self._run = ""
        self.mistakes = 0
        """Uploads that failed for a reason nobody foresaw."""
        self.addresses: dict[Target, Address] = {}
        self._telemetry = Telemetry()
        self._users = 0
        self._fires = False
        self._open_model: OpenModel | None = None
        self._plan_end: gevent.Greenlet[..., Any] | None = None
        self._meter: HiccupMeter | None = None
        self._hiccups: list[tuple[str, Sparse]] = []
        self._batches: gevent.Greenlet[..., Any] | None = None
        self._runner.register_message(messages.PHASE, self._on_phase)
        self._runner.register_message(messages.SCHEDULE, self._on_schedule)

    # ── a test's life ──

    def on_test_start(self, environment: Environment, **_: Any) -> None:
        self._run = str(getattr(environment.parsed_options, messages.RUN))
        try:
            self.options, self.payloads = self._prepared.get(environment.host, option_fields(environment))
            self.alarm = Alarm()
        except (OptionError, PayloadError, OSError) as error:  # of a worker on another machine without that folder, say
            self._send(messages.FAILED, {"text": f"a load process on {socket.gethostname()}: {error}"})
            return
        self.mistakes = 0
        self.wire = self.options.wire
        self.phase = RunningPhase("ramp-up", self.options.plan[0].uploads_per_connection)
        self.addresses = {}
        self._telemetry = Telemetry()
        self._users = 0
        # Locust's own runner listens to each request; is there anybody else?
        self._fires = len(environment.events.request._handlers) > 1
        gc.collect()
        gc.freeze()  # Locust's own objects, which no later collection has to look through while uploads wait
        self._meter = HiccupMeter()
        hello = {"pid": os.getpid(), "meter_pid": self._meter.pid, "host": socket.gethostname()}
        self._send(messages.HELLO, {**hello, "wall_ns": time.time_ns()})
        self._batches = gevent.spawn(self._send_batches)

    def on_test_stop(self, environment: Environment, **_: Any) -> None:
        if self._plan_end is not None:
            self._plan_end.kill()  # of a test that was stopped early
        model, self._open_model = self._open_model, None
        if model is not None:
            model.drain(self.options.drain_s)
        if isinstance(self._runner, WorkerRunner):
            # After a stop Locust leaves its worker deaf for this long; told to quit meanwhile, it would stay for a
            # minute. The master sends the right time with every start.
            environment.stop_timeout = 0
        batches, self._batches = self._batches, None  # at once: after a shape Locust may stop a test twice
        if batches is not None:
            batches.kill()
            self._send_batch(final=True)
            self.alarm.close()
        meter, self._meter = self._meter, None
        if meter is not None:
            meter.close()

    # ── what uploaders ask for ──

    def next_user(self) -> int:
        """A number for a new user: different for every user of a run, the same in every run."""
        self._users += 1
        # The runner's index tells the workers of one master apart; theirs are interleaved.
        return (self._users - 1) * 1024 + max(0, getattr(self._runner, "worker_index", 0))

    def record(self, phase: RunningPhase, row: str, payload: Payload, done: Upload, arrival: Arrival | None) -> None:
        """Count an upload that has ended."""
        size_bytes = payload.size_bytes
        self._telemetry.record(phase.name, row, size_bytes, done, arrival, late=phase.over_by(done.end_ns))
        if done.error is not None or self._fires:
            begun_ns = done.start_ns if arrival is None else arrival.intended_ns
            self._environment.events.request.fire(
                request_type="UPLOAD",
                name=row,
                response_time=(done.end_ns - begun_ns) / 1e6,
                response_length=size_bytes if done.error is None else 0,
                exception=None if done.error is None else FailedUploadError(done.error.code),
                context={},
            )

    def think(self, phase: RunningPhase, row: str, pause_ns: int) -> None:
        self._telemetry.think(phase.name, row, pause_ns)

    def drop(self, phase: RunningPhase, row: str) -> None:
        """An arrival that is not sent."""
        self._telemetry.drop(phase.name, row)
        self._environment.events.request.fire(
            request_type="UPLOAD",
            name=row,
            response_time=0,
            response_length=0,
            exception=FailedUploadError("dropped"),
            context={},
        )

    # ── what the keeper says ──

    def _on_phase(self, environment: Environment, msg: Message, **_: Any) -> None:
        self.phase.end_ns = time.monotonic_ns()
        self._change_phase(RunningPhase(msg.data["name"], msg.data["uploads_per_connection"]))
        self._send_batch()

    def _on_schedule(self, environment: Environment, msg: Message, **_: Any) -> None:
        """Wall time joins the clocks of several hosts; on one it is exact."""
        start_ns = time.monotonic_ns() + msg.data["start_wall_ns"] - time.time_ns()
        self._open_model = OpenModel(self, start_ns, msg.data["share"], msg.data["shares"])
        planned_end_ns = start_ns + round(self.options.planned_s * 1e9)
        self._plan_end = gevent.spawn(self._await_end, self._open_model, planned_end_ns)
        for planned in self.options.plan:
            self.alarm.at(start_ns, self._phase_begins(planned.name))
            start_ns += round(planned.duration_s * 1e9)
        self.alarm.at(start_ns, self._phase_begins("drain"))

    def _phase_begins(self, name: str) -> Any:
        def begin() -> None:  # in the hub, which cannot wait
            self._change_phase(RunningPhase(name, 0))
            gevent.spawn(self._send_batch)

        return begin

    def _await_end(self, model: OpenModel, planned_end_ns: int) -> None:
        gevent.sleep((planned_end_ns - time.monotonic_ns()) / 1e9)
        model.drain(self.options.drain_s)
        self._send(messages.DONE, {})

    # ── batches ──

    def _send_batches(self) -> None:
        while True:
            gevent.sleep(BATCH_S)
            self._send_batch()

    def _change_phase(self, phase: RunningPhase) -> None:
        self._take_hiccups()
        self.phase = phase

    def _take_hiccups(self) -> None:
        """Those until now belong to this phase."""
        if self._meter is not None and len(delays_us := self._meter.take()):
            self._hiccups.append((self.phase.name, sparse(delays_us)))

    def _send_batch(self, *, final: bool = False) -> None:
        tallied = self._telemetry.take()
        locust_tables.add(self._environment.stats, tallied, uploads=not self._fires)
        self._take_hiccups()
        hiccups, self._hiccups = self._hiccups, []
        self._send(
            messages.BATCH,
            {
                "batch": batch_of(tallied),
                "hiccups": hiccups,
                "tick": self._tick(),
                "final": final,
            },
        )

    def _tick(self) -> dict[str, Any]:
        """What run_folder.LoadTick says of this process, but for the clocks."""
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "cpu_s": time.process_time(),
            "run_delay_ns": run_delay_ns(os.getpid()),
            "in_flight": self.in_flight,
            "queued": self._open_model.queued if self._open_model is not None else 0,
        }

    def _send(self, message: str, data: dict[str, Any]) -> None:
        """To the keeper, with the run that it is about."""
        self._runner.send_message(message, {messages.RUN: self._run, **data})
