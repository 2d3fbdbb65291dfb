"""Locust's entry point: `locust -f loadtest/users.py`. One user class, its options, and the hooks of a run's life.

There is one `UploadUser`: whether connections are long or short belongs to the phase of the run, not to the user, so
that both are compared with the same users and the same payloads.
"""

import random
import sys
import time
from typing import Any

import gevent
import gevent.event
from locust import User, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import WorkerRunner
from locust.user.task import LOCUST_STATE_STOPPING

from loadtest.client import Upload, UploadClient, UploadError
from loadtest.lifecycle import Lifecycle, LoadProcess, option_fields
from loadtest.options import DEFAULT_PHASE_SECONDS, DEFAULT_SEED, DEFAULT_WAIT
from loadtest.payloads import DEFAULT_MIX, Payload
from loadtest.phases import PLANS
from reports.run_folder import mode_of, upload_name

BACK_OFF_S = 0.5  # after a failed connection: without it users without a server would spin

_lifecycles: dict[Environment, Lifecycle] = {}


@events.init_command_line_parser.add_listener
def _add_options(parser: LocustArgumentParser) -> None:
    """Texts only: Locust's form converts by the type of the default, and answers what it cannot convert with a 500."""
    parser.add_argument(
        "--plan", choices=list(PLANS), default="compare", help="compare: long, short, short, long connections"
    )
    parser.add_argument(
        "--phase-seconds", default=DEFAULT_PHASE_SECONDS, help="length of each measured phase, such as 10s"
    )
    parser.add_argument("--payloads", default=DEFAULT_MIX, help="generated sizes and weights, such as 4KiB:70,1MiB:5")
    parser.add_argument("--payload-dir", default="", help="upload the files of this folder instead")
    parser.add_argument(
        "--wait", default=DEFAULT_WAIT, help="mean pause of a user between uploads, such as 40ms; 0 for none"
    )
    parser.add_argument("--verify-digest", action="store_true", default=True, help="compare the reply's digest")
    parser.add_argument("--no-verify-digest", dest="verify_digest", action="store_false", include_in_web_ui=False)
    parser.add_argument("--seed", default=DEFAULT_SEED, help="of sizes, order and pauses: the same seed, the same run")
    parser.add_argument("--label", default="load", help="goes into the run folder's name and the report")
    parser.add_argument(
        "--run-folder", default="", include_in_web_ui=False, help="default: reports/runs/<time>-<label>"
    )
    parser.add_argument("--run-command", default="", include_in_web_ui=False, help="how to repeat the run, if not so")
    parser.add_argument(
        "--no-report", action="store_true", include_in_web_ui=False, help="leave the report to be built later"
    )


@events.init.add_listener
def _begin(environment: Environment, **_: Any) -> None:
    if environment.runner is None:
        return
    lifecycle = _lifecycles[environment] = Lifecycle(environment)
    parsed = environment.parsed_options
    starts_now = parsed is not None and (parsed.headless or parsed.autostart)
    if starts_now and not isinstance(environment.runner, WorkerRunner):
        problem = lifecycle.check(environment.host, option_fields(environment))
        if problem is not None:
            print(f"Error: {problem}", file=sys.stderr)
            sys.exit(2)


class UploadUser(User):
    """Uploads one file after the other, as the run's phase says."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        load = _lifecycles[environment].load
        assert load is not None  # users run where load is made
        self._load: LoadProcess = load
        self._number = load.next_user()
        self._random = random.Random(f"{load.options.seed}/{self._number}")
        self._client = UploadClient(*load.options.address)
        self._phase = ""
        self._uploads = 0  # in this phase
        self._on_connection = 0
        self._stopping = gevent.event.Event()

    wait_time = constant(0)  # the pause is part of the task, so that a stop can end it: see `stop`

    def stop(self, force: bool = False) -> bool:
        """Locust would kill a user that it sees waiting; by the time the kill arrives the wait may be over, and an
        upload be cut off and counted nowhere. So a user is only asked, and ends after its upload or pause."""
        if force:
            return bool(super().stop(force=True))
        self._state = LOCUST_STATE_STOPPING
        self._stopping.set()
        return False

    def _pause(self) -> None:
        """Until the next upload: the mean, give or take half, so that users do not march in step."""
        mean = self._load.options.wait_s
        if self._stopping.wait(mean * self._random.uniform(0.5, 1.5) if mean else 0):
            raise StopUser

    def on_stop(self) -> None:
        self._client.close()

    @task
    def upload(self) -> None:
        """One upload of the current phase; the connection is opened, kept or closed as that says."""
        load = self._load
        phase, per_connection = load.phase, load.uploads_per_connection
        if phase != self._phase:
            self._phase, self._uploads = phase, 0
            self._client.close()
            self._on_connection = 0
        payload, name = load.payloads.pick(self._number, self._uploads)
        self._uploads += 1
        self._on_connection += 1
        last = self._on_connection == per_connection  # never, with 0
        start_ns = time.monotonic_ns()
        try:
            done = self._client.upload(name, payload, close=last)
        except gevent.GreenletExit:  # the stop timeout has passed: a server that hangs must not go uncounted
            unfinished = Upload(None, UploadError("unfinished"), start_ns, 0, False)
            load.telemetry.record(phase, _row(per_connection, payload), payload.size_bytes, unfinished)
            raise
        if last or done.error is not None:
            self._on_connection = 0
        row = _row(per_connection, payload)
        load.telemetry.record(phase, row, payload.size_bytes, done)
        self._report(row, payload.size_bytes, done)
        if done.error is not None and done.error.code in ("connect_refused", "connect_failed"):
            gevent.sleep(BACK_OFF_S)
        self._pause()

    def _report(self, row: str, size_bytes: int, done: Upload) -> None:
        """For Locust's own tables; ours come from the telemetry."""
        self.environment.events.request.fire(
            request_type="UPLOAD",
            name=row,
            response_time=(done.transaction_ns or 0) / 1e6,
            response_length=size_bytes if done.error is None else 0,
            exception=done.error,
            context={},
        )


def _row(per_connection: int, payload: Payload) -> str:
    return upload_name(mode_of(per_connection), payload.size_bytes)
