"""A run's life inside Locust: from `test_start` to a run folder with its report, in every mode Locust has.

Locust runs in up to three roles, and this file has one class for each half of the work:

    LoadProcess   where users run (a single process, or each worker): the current phase, payloads, telemetry
    RunKeeper     where the run is kept (a single process, or the master): folder, recorder, plan, merging, report

They talk only through Locust's messages, which a single process loops back to itself, so one code path serves all
modes. The recorder and the report's builder are processes of their own: neither may slow the load or share its fate.

Event handlers of Locust swallow exceptions, so nothing here reports a mistake of the user by raising: options are
checked before a test may start, on the command line in `init`, in the web form before `/swarm` is handled.
"""

import json
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

import gevent
import gevent.event
import msgspec
from flask import Response, jsonify, request
from locust.env import Environment
from locust.rpc.protocol import Message
from locust.runners import MasterRunner, Runner, WorkerRunner

from loadtest import options as load_options
from loadtest.options import LoadOptions, OptionError
from loadtest.payloads import PayloadError, PayloadSet
from loadtest.phases import PlannedPhase
from loadtest.telemetry import Merger, Telemetry
from reports import environment as machine
from reports import run_folder
from reports.run_folder import Appender, Ending, Event, Phase, RunInfo, ServerInfo

RUNS = Path("reports/runs")
BATCH_S = 1.0
HISTOGRAMS_EVERY = 10  # batches
FINAL_BATCHES_TIMEOUT_S = 5.0
RECORDER_TIMEOUT_S = 10.0
REPORT_TIMEOUT_S = 120.0

_PHASE, _BATCH, _HELLO = "socketswarm-phase", "socketswarm-batch", "socketswarm-hello"
_FAILED = "socketswarm-failed"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

log = logging.getLogger("socketswarm")


class Lifecycle:
    """What `users.py` holds of one Locust environment: both halves, or the one that its role has."""

    def __init__(self, environment: Environment) -> None:
        runner = environment.runner
        assert runner is not None
        self._environment = environment
        self._prepared = _Prepared()
        self.load = None if isinstance(runner, MasterRunner) else LoadProcess(environment, self._prepared)
        self._keeper = None if isinstance(runner, WorkerRunner) else RunKeeper(environment)
        # The keeper goes first at the start, so that the recorder runs before the first upload, and last at the end.
        if self._keeper is not None:
            environment.events.test_start.add_listener(self._keeper.on_test_start)
            environment.events.spawning_complete.add_listener(self._keeper.on_spawning_complete)
        if self.load is not None:
            environment.events.test_start.add_listener(self.load.on_test_start)
            environment.events.test_stop.add_listener(self.load.on_test_stop)
        if self._keeper is not None:
            environment.events.test_stop.add_listener(self._keeper.on_test_stop)
            environment.events.quitting.add_listener(self._keeper.on_quitting)
        if environment.web_ui is not None and environment.web_ui.app is not None:
            environment.web_ui.app.before_request(self._check_form)
        _interrupt_only(gevent.getcurrent())

    def check(self, host: str | None, fields: Mapping[str, Any]) -> str | None:
        """What is wrong with these options, in one sentence; None when a test can start with them."""
        try:
            options, _ = self._prepared.get(host, fields)
        except (OptionError, PayloadError) as error:
            return str(error)
        try:
            socket.create_connection(options.address, timeout=5).close()
        except OSError as error:
            return f"no server at {host}: {error.strerror or error}; start one with: make serve"
        return None

    def _check_form(self) -> Response | None:
        """Refuse a web form with wrong options as Locust's page expects a refusal; None lets the request go on."""
        runner = self._environment.runner
        parsed = self._environment.parsed_options
        if request.method == "POST" and _is_cross_site(getattr(parsed, "web_host", None)):
            refused = jsonify({"success": False, "message": "this request comes from a page of another site"})
            refused.status_code = 403
            return refused
        if request.endpoint != "locust.swarm" or runner is None or runner.state in ("spawning", "running"):
            return None
        fields = {**option_fields(self._environment), **request.form.to_dict()}
        fields["verify_digest"] = str(fields["verify_digest"]).lower() == "true"
        problem = self.check(fields.get("host", self._environment.host), fields)
        if request.form.get("user_count", type=int) == 0:  # what is no number, Locust refuses itself
            problem = "number of users is 0: a run needs at least 1 user"
        if problem is None:
            return None
        return jsonify({"success": False, "message": problem, "host": self._environment.host})


def _interrupt_only(main: Any) -> None:
    """Have Ctrl-C raised in Locust's main greenlet, which waits for it. Python raises it wherever it happens to be, and
    that may be a user whose upload is stored but not counted yet."""

    def interrupt() -> None:
        gevent.get_hub().loop.run_callback(main.throw, KeyboardInterrupt)

    gevent.signal_handler(signal.SIGINT, interrupt)


def _is_cross_site(web_host: str | None) -> bool:
    """Whether this request was made by a page of another site, in the browser of somebody who may start tests.

    Locust answers requests from every origin, so any page could have local files uploaded to a host of its choice. A
    page served on the loopback address must also be asked for by such a name, or another name was pointed at it.
    """
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        return True
    name = urlsplit(f"//{request.host}").hostname
    return web_host in _LOOPBACK and name not in _LOOPBACK


class _Prepared:
    """The options and payloads that were checked last: a test that then starts need not read them again."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._value: tuple[LoadOptions, PayloadSet] | None = None

    def get(self, host: str | None, fields: Mapping[str, Any]) -> tuple[LoadOptions, PayloadSet]:
        """OptionError or PayloadError when no test can start with these."""
        key = (host, *(fields[field] for field in load_options.FIELDS))
        if self._value is None or key != self._key:
            options = load_options.validate(host or "", fields)
            self._key, self._value = key, (options, options.load_payloads())
        return self._value


def option_fields(environment: Environment) -> dict[str, Any]:
    """Our options of this environment, as texts."""
    parsed = environment.parsed_options
    assert parsed is not None
    return {field: getattr(parsed, field) for field in load_options.FIELDS}


class LoadProcess:
    """The half that makes load: what users ask for at every upload, and the batches of what they did."""

    def __init__(self, environment: Environment, prepared: _Prepared) -> None:
        self._environment = environment
        self._prepared = prepared
        self._runner = cast(Runner, environment.runner)
        self.options: LoadOptions
        self.payloads: PayloadSet
        self.phase = ""
        self.uploads_per_connection = 0
        self.telemetry = Telemetry()
        self._users = 0
        self._batches: gevent.Greenlet[..., Any] | None = None
        self._runner.register_message(_PHASE, self._on_phase)

    def on_test_start(self, environment: Environment, **_: Any) -> None:
        try:
            self.options, self.payloads = self._prepared.get(environment.host, option_fields(environment))
        except (OptionError, PayloadError) as error:  # of a worker on another machine, say, without that folder
            self._runner.send_message(_FAILED, {"text": f"a load process on {socket.gethostname()}: {error}"})
            return
        self.phase = "ramp-up"
        self.uploads_per_connection = self.options.plan[0].uploads_per_connection
        self.telemetry = Telemetry()
        self._users = 0
        self._runner.send_message(_HELLO, {"pid": os.getpid(), "host": socket.gethostname()})
        self._batches = gevent.spawn(self._send_batches)

    def on_test_stop(self, environment: Environment, **_: Any) -> None:
        if isinstance(self._runner, WorkerRunner):
            # After a stop Locust leaves its worker deaf for this long; told to quit meanwhile, it would stay for a
            # minute. The master sends the right time with every start.
            environment.stop_timeout = 0
        if self._batches is not None:
            self._batches.kill()
            self._batches = None
            self._send_batch(final=True)

    def next_user(self) -> int:
        """A number for a new user: different for every user of a run, the same in every run."""
        self._users += 1
        # The runner's index tells the workers of one master apart; theirs are interleaved.
        return (self._users - 1) * 1024 + max(0, getattr(self._runner, "worker_index", 0))

    def _on_phase(self, environment: Environment, msg: Message, **_: Any) -> None:
        self.phase = msg.data["name"]
        self.uploads_per_connection = msg.data["uploads_per_connection"]
        self._send_batch(final=False)

    def _send_batches(self) -> None:
        while True:
            gevent.sleep(BATCH_S)
            self._send_batch(final=False)

    def _send_batch(self, *, final: bool) -> None:
        self._runner.send_message(_BATCH, {"batch": self.telemetry.take(), "final": final})


class RunKeeper:
    """The half that keeps the run: one `_Run` after the other, as many as a web session starts."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._runner = cast(Runner, environment.runner)
        self._run: _Run | None = None
        self._ending: _Run | None = None
        self._finishing: gevent.Greenlet[..., Any] | None = None
        self._runner.register_message(_BATCH, self._on_batch)
        self._runner.register_message(_HELLO, self._on_hello)
        self._runner.register_message(_FAILED, self._on_failed)

    def on_test_start(self, **_: Any) -> None:
        if self._finishing is not None:
            self._finishing.join()
        try:
            self._run = _Run(self._environment)
        except OSError as error:
            self._give_up(f"the run folder cannot be written: {error}")

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
            run.add_batch(str(msg.node_id), msg.data["batch"], final=msg.data["final"])

    def _on_hello(self, environment: Environment, msg: Message, **_: Any) -> None:
        if self._run is not None:
            self._run.add_load_process(str(msg.node_id), msg.data["pid"], msg.data["host"])

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
        self._builds_report = not getattr(environment.parsed_options, "no_report", False)
        self._merger = Merger()
        self._phases: list[Phase] = []
        self._ending: Ending | None = None
        self._load_processes = 0
        self._final_batches = 0
        self._users = 0
        self._all_final = gevent.event.Event()
        self._closed = False
        self._failed = False
        self._reported: set[str] = set()  # load processes heard of since the last line
        self._line_s = time.monotonic()
        self._lines = 0
        self._info = self._describe(fields)
        self._save()
        self._recorder = _Recorder(self.folder, *self._options.address)
        self._info = msgspec.structs.replace(
            self._info, server=self._recorder.server, environment=self._info.environment | self._recorder.store()
        )
        first = self._options.plan[0]
        self._begin(PlannedPhase("ramp-up", "warm-up", first.uploads_per_connection, 0))
        self._plan: gevent.Greenlet[..., Any] | None = None
        self._note("run-started", f"run {self._info.id} started")

    # ── while it runs ──

    def spawned(self, user_count: int) -> None:
        """All users are there: the plan may begin. Called again when a person changes the number of users."""
        self._users = user_count
        self._note("users-changed", f"{user_count} users", users=user_count)
        if self._plan is None:
            self._plan = gevent.spawn(self._follow_plan)

    def add_batch(self, sender: str, batch: dict[str, Any], *, final: bool) -> None:
        """One load process's last second. Once all have reported, it is a line of the file, stamped now: the clocks of
        other hosts are not ours. One that stopped reporting does not hold up the others."""
        if self._closed:
            return
        self._merger.add(batch)
        self._failed = self._failed or any(part["failures"] for names in batch.values() for part in names.values())
        self._reported.add(sender)
        overdue = time.monotonic() - self._line_s > 1.9 * BATCH_S
        if len(self._reported) >= self._load_processes or overdue:
            self._write_second()
        if final:
            self._final_batches += 1
            if self._final_batches >= self._load_processes:
                self._all_final.set()

    def add_load_process(self, sender: str, pid: int, host: str) -> None:
        self._load_processes += 1
        if self._plan is not None and isinstance(self._runner, MasterRunner):
            self._tell(self._phases[-1].name, self._phases[-1].uploads_per_connection, sender)  # it joined late
        if host == socket.gethostname() and pid != os.getpid():
            self._recorder.follow(pid, "load-worker")

    def stopping(self) -> None:
        """No user runs any more; whoever stopped them may be waiting."""
        if self._plan is not None and self._plan is not gevent.getcurrent():
            self._plan.kill()
        if self._ending is None:
            self._ending = Ending(how="stopped", reason="stopped before its plan was over")

    def _follow_plan(self) -> None:
        for planned in self._options.plan:
            self._announce(planned)
            gevent.sleep(planned.duration_s)
        last = self._options.plan[-1]
        self._announce(PlannedPhase("drain", "drain", last.uploads_per_connection, 0))
        self._ending = Ending(how="completed", reason="its plan was over")
        self._runner.stop()

    def _announce(self, planned: PlannedPhase) -> None:
        """Tell the users first: what they did until now is then counted before the old phase ends."""
        self._tell(planned.name, planned.uploads_per_connection)
        self._begin(planned)

    def _tell(self, phase: str, uploads_per_connection: int, client_id: str | None = None) -> None:
        data = {"name": phase, "uploads_per_connection": uploads_per_connection}
        self._runner.send_message(_PHASE, data, client_id)

    def fail(self, reason: str) -> None:
        """The run cannot give what was asked for."""
        self._ending = Ending(how="failed", reason=reason)
        self._note("run-failed", reason)

    def _begin(self, planned: PlannedPhase) -> None:
        self._end_phase()
        now = run_folder.now_ns()["mono_ns"]
        self._phases.append(
            Phase(
                name=planned.name,
                kind=planned.kind,
                uploads_per_connection=planned.uploads_per_connection,
                start_ns=now,
            )
        )
        self._note("phase", f"phase {planned.name}", phase=planned.name)
        self._save()

    def _end_phase(self) -> None:
        if self._phases and self._phases[-1].end_ns is None:
            now = run_folder.now_ns()["mono_ns"]
            self._phases[-1] = msgspec.structs.replace(self._phases[-1], end_ns=now)
            self._uploads.append(self._merger.histograms(self._phases[-1].name))

    def _write_second(self) -> None:
        self._reported.clear()
        self._line_s = time.monotonic()
        for line in self._merger.take_second(self._users):
            self._uploads.append(line)
        self._lines += 1
        if self._lines % HISTOGRAMS_EVERY == 0:
            self._uploads.append(self._merger.histograms(self._phases[-1].name))

    # ── its end ──

    def finish(self) -> None:
        """Collect what is under way, end the recorder, write everything down and build the report."""
        if self._load_processes and not self._all_final.wait(FINAL_BATCHES_TIMEOUT_S):
            missing = self._load_processes - self._final_batches
            self._note("batch-missing", f"{missing} load processes never sent their last second", missing=missing)
        self._closed = True
        self._end_phase()
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
        self._uploads.close()
        self._events.close()
        if self._failed and self._environment.process_exit_code is None:
            self._environment.process_exit_code = 1  # Locust does not hear of uploads that never ended
        if self._builds_report:
            _build_report(self.folder)
        parsed = self._environment.parsed_options
        if parsed is not None and parsed.headless and self._ending is not None and self._ending.how == "completed":
            self._runner.quit()  # not before: workers that have just stopped would not hear of it

    def _save(self) -> None:
        self._info = msgspec.structs.replace(self._info, phases=list(self._phases))
        run_folder.write_whole(self.folder / run_folder.RUN, self._info)

    def _note(self, kind: str, text: str, **details: Any) -> None:
        self._events.append(Event(**run_folder.now_ns(), source="load", kind=kind, text=text, details=details))

    def _describe(self, fields: dict[str, Any]) -> RunInfo:
        commit, dirty = machine.git_state(Path.cwd())
        stamp = run_folder.now_ns()
        parsed = self._environment.parsed_options
        return RunInfo(
            id=self.folder.name,
            label=str(fields["label"]),
            command=shlex.split(getattr(parsed, "run_command", "")) or [Path(sys.argv[0]).name, *sys.argv[1:]],
            host=self._environment.host or "",
            users=int(getattr(parsed, "num_users", None) or 1),
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


class _Recorder:
    """The recorder process, as its parent sees it. If it dies the run goes on; the report will say what is missing."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self.server: ServerInfo | None = None
        command = [sys.executable, "-m", "reports", "record", "--out", str(folder), "--host", host]
        command += ["--port", str(port), "--load-pid", str(os.getpid()), "--until-stdin-closes"]
        with (folder / "recorder.log").open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C at the terminal is for us; the recorder must see the drain
            )
        line = gevent.with_timeout(RECORDER_TIMEOUT_S, self._process.stdout.readline, timeout_value=b"")  # type: ignore[union-attr]
        if line:
            self.server = msgspec.convert(json.loads(line)["server"], ServerInfo | None)
        else:
            log.error("the recorder did not start; see %s", folder / "recorder.log")

    def store(self) -> dict[str, str]:
        """What the server stores on, if it is one of ours on this machine: a disk's latency is in every upload's."""
        options = self.server.options if self.server is not None else None
        if not options:
            return {}
        store = options.get("store")
        return {"store": "discarded" if store is None else f"{store} ({machine.filesystem_of(str(store))})"}

    def follow(self, pid: int, role: str) -> None:
        """Have another process recorded."""
        order = json.dumps({"follow": pid, "role": role}) + "\n"
        try:
            cast(IO[bytes], self._process.stdin).write(order.encode())
            cast(IO[bytes], self._process.stdin).flush()
        except OSError:
            pass  # it is gone; `finish` says so

    def finish(self) -> str | None:
        """Let it take its last sample, and wait for it. What is wrong when it did not; None when it did."""
        early = self._process.poll() is not None
        try:
            cast(IO[bytes], self._process.stdin).close()
        except OSError:
            pass
        try:
            code = self._process.wait(RECORDER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        cast(IO[bytes], self._process.stdout).close()
        if early:
            return f"the recorder, pid {self._process.pid}, ended with exit code {code} before the run did"
        if code != 0:
            return f"the recorder, pid {self._process.pid}, took no last sample: exit code {code}"
        return None


def _build_report(folder: Path) -> None:
    """In a process of its own: it needs 160 MiB that Locust should not have."""
    command = [sys.executable, "-m", "reports", "build", str(folder)]
    try:
        built = subprocess.run(
            command, capture_output=True, text=True, timeout=REPORT_TIMEOUT_S, start_new_session=True, check=False
        )
    except subprocess.TimeoutExpired:
        log.error("the report took over %g s; build it with: python -m reports build %s", REPORT_TIMEOUT_S, folder)
        return
    if built.returncode == 0:
        log.info("report\n%s", built.stdout.rstrip())
    else:
        log.error("the report could not be built: %s", built.stderr.strip())
