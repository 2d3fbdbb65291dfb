"""Locust's entry point: `locust -f loadtest/users.py`. One user class, its options, and the hooks of a run's life.

There is one `UploadUser`: whether connections are long or short belongs to the phase of the run, not to the user, so
that both are compared with the same users and the same payloads. It is the closed model; in the open model there are no
users, see open_model.py.
"""

import random
import sys
import time
from argparse import Action, ArgumentParser, Namespace
from typing import Any

import gevent.event
from locust import User, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import WorkerRunner
from locust.user.task import LOCUST_STATE_STOPPING

from loadtest.lifecycle import Lifecycle
from loadtest.load import Load, RunningPhase
from loadtest.options import OPTIONS
from loadtest.payloads import Payload
from loadtest.uploader import Uploader
from server.failure_codes import NO_LOCAL_PORT

# After an upload that may have failed before anything waited: a refused connection, a mistake in a wire. Without this
# pause the next would, too, and nobody else had a turn. Every other upload waits for its socket.
BACK_OFF_S = 0.5
_FAILED_AT_ONCE = (NO_LOCAL_PORT, "connect_refused", "connect_failed", "client_failed")

_lifecycles: dict[Environment, Lifecycle] = {}


class _Join(Action):
    """`--fail-if A --fail-if B` is `--fail-if 'A; B'`."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None) -> None:
        known = getattr(namespace, self.dest)
        setattr(namespace, self.dest, f"{known}; {values}" if known else values)


@events.init_command_line_parser.add_listener
def _add_options(parser: LocustArgumentParser) -> None:
    """Texts only: Locust's form converts by the type of the default, and answers what it cannot convert with a 500."""
    for option in OPTIONS:
        if option.field == "fail_if":
            parser.add_argument(option.flag, default=option.default, action=_Join, help=option.help)
        elif isinstance(option.default, bool):
            parser.add_argument(option.flag, action="store_true", default=option.default, help=option.help)
            if option.default:
                no = option.flag.replace("--", "--no-", 1)
                parser.add_argument(no, dest=option.field, action="store_false", include_in_web_ui=False)
        else:
            parser.add_argument(
                option.flag,
                default=option.default,
                choices=option.kind.choices or None,
                include_in_web_ui=option.in_form,
                help=option.help,
            )
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
    if isinstance(environment.runner, WorkerRunner):
        return
    parsed = environment.parsed_options
    starts_now = parsed is not None and (parsed.headless or parsed.autostart)
    problem = lifecycle.prepare_command_line() if starts_now else lifecycle.host_problem()
    if problem is not None:
        print(f"Error: {problem}", file=sys.stderr)
        sys.exit(2)


class UploadUser(User):
    """Uploads one file after the other, as the run's phase says."""

    wait_time = constant(0)  # the pause is part of the task, so that a stop can end it: see `stop`

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        load = _lifecycles[environment].load
        assert load is not None  # users run where load is made, and as long as a test goes on
        self._load: Load = load
        self._number = load.next_user()
        self._random = random.Random(f"{load.options.seed}/{self._number}")
        self._uploader = Uploader(load)
        self._stopping = False
        self._awake = gevent.event.Event()

    def stop(self, force: bool = False) -> bool:
        """Locust would kill a user that it sees waiting; by the time the kill arrives the wait may be over, and an
        upload be cut off and counted nowhere. So a user is only asked, and ends after its upload or pause."""
        if force:
            return bool(super().stop(force=True))
        self._state = LOCUST_STATE_STOPPING
        self._stopping = True
        self._awake.set()
        return False

    def on_stop(self) -> None:
        self._uploader.close()

    @task
    def upload(self) -> None:
        """Upload until told to stop. One call for all uploads: choosing a task anew for each costs Locust 10 µs."""
        phase: RunningPhase | None = None
        number = 0
        while not self._stopping:
            if phase is not self._load.phase:
                phase, number = self._load.phase, 0
            payload, name = self._load.payloads.pick(self._number, number)
            number += 1
            done = self._uploader.upload(phase, payload, name)
            if done.error is not None and done.error.code in _FAILED_AT_ONCE:
                self._awake.wait(BACK_OFF_S)
            self._pause(phase, payload)
        raise StopUser

    def _pause(self, phase: RunningPhase, payload: Payload) -> None:
        """Pause until the next upload: the mean, give or take half, so that users do not march in step."""
        load = self._load
        pause_ns = round(load.options.wait_s * self._random.uniform(0.5, 1.5) * 1e9)
        load.think(phase, payload, pause_ns)
        if not pause_ns:
            return
        load.alarm.at(time.monotonic_ns() + pause_ns, self._awake.set)
        self._awake.wait()
        self._awake.clear()
