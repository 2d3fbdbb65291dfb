"""A run's life inside Locust: from the first look at its options to a run folder with its report, in every mode.

Locust runs in up to three roles, and a run has two halves:

    load_process.py   where users run (a single process, or each worker): the current phase, payloads, telemetry
    keeper.py         where the run is kept (a single process, or the master): folder, recorder, plan, merging, report

They talk only through Locust's messages (`messages.py`), which a single process loops back to itself, so one code path
serves all modes. This file gives each role its halves, and decides whether a test may start.

Event handlers of Locust swallow exceptions, so nothing reports a mistake of the user by raising: options are checked
before a test may start, on the command line in `init`, in the web form before `/swarm` is handled.
"""

import signal
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import gevent
from flask import Response, jsonify, request
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest import options as load_options
from loadtest import shapes
from loadtest.keeper import RunKeeper
from loadtest.live import Live
from loadtest.load_process import LoadProcess, Prepared, option_fields
from loadtest.options import LoadOptions, OptionError
from loadtest.payloads import PayloadError

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Lifecycle:
    """What `users.py` holds of one Locust environment: both halves, or the one that its role has."""

    def __init__(self, environment: Environment) -> None:
        runner = environment.runner
        assert runner is not None
        self._environment = environment
        self._prepared = Prepared()
        self._options: LoadOptions | None = None  # of the test that was started last
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
        web_ui = environment.web_ui
        if web_ui is not None and web_ui.app is not None and self._keeper is not None:
            web_ui.app.before_request(self._check_form)
            Live(web_ui, self._keeper)
        _interrupt_only(gevent.getcurrent())

    def prepare(self, host: str | None, fields: Mapping[str, Any], users: int) -> str | None:
        """Make ready for a test with these options. What is wrong with them in one sentence, or None."""
        try:
            options, payloads = self._prepared.get(host, fields)
            load_options.check_users(options, users)
            load_options.check_store(options, payloads, users)
        except (OptionError, PayloadError) as error:
            return str(error)
        try:
            socket.create_connection(options.target.address, timeout=5).close()
        except OSError as error:
            return f"no server at {host}: {error.strerror or error}; start one with: make serve"
        self._options = options
        environment = self._environment
        environment.stop_timeout = options.drain_s
        environment.shape_class = None
        if options.shape != "none":
            environment.shape_class = shapes.make(options.shape, users, options.planned_s)
            environment.shape_class.runner = environment.runner
        return None

    def prepare_command_line(self) -> str | None:
        """As `prepare`, with what the command line said."""
        parsed = self._environment.parsed_options
        assert parsed is not None
        fields = option_fields(self._environment)
        if parsed.num_users is None:  # Locust would make it 1
            parsed.num_users = 0 if _is_open(fields) else 1
        return self.prepare(self._environment.host, fields, parsed.num_users)

    def _check_form(self) -> Response | None:
        """Refuse a web form with wrong options as Locust's page expects a refusal; None lets the request go on."""
        runner = self._environment.runner
        parsed = self._environment.parsed_options
        if request.method == "POST" and _is_cross_site(getattr(parsed, "web_host", None)):
            refused = jsonify({"success": False, "message": "this request comes from a page of another site"})
            refused.status_code = 403
            return refused
        if request.endpoint != "locust.swarm" or runner is None:
            return None
        own = option_fields(self._environment)
        fields = {**own, **request.form.to_dict()}
        for option in load_options.OPTIONS:
            if isinstance(option.default, bool):
                fields[option.field] = str(fields[option.field]).lower() == "true"
        # Locust takes any option from a form. A wire would import code of a name that it is told.
        hidden = [option.field for option in load_options.OPTIONS if not option.in_form]
        for field in (*hidden, "run_folder", "run_command", "no_report"):
            if field in request.form and fields[field] != own.get(field):
                return self._refuse(f"{field} can be set on the command line only")
        users = request.form.get("user_count", type=int)
        if runner.state in ("spawning", "running"):
            return self._check_change(users)
        if users is None:
            self._environment.shape_class = None  # or Locust would start the last run's, with unchecked options
            return None  # what is no number, Locust refuses itself
        problem = self.prepare(fields.get("host", self._environment.host), fields, users)
        return None if problem is None else self._refuse(problem)

    def _check_change(self, users: int | None) -> Response | None:
        """While a test runs, only its number of users may change: in the open model they would come on top."""
        try:
            if users is not None and self._options is not None:
                load_options.check_users(self._options, users)
        except OptionError as error:
            return self._refuse(str(error))
        return None

    def _refuse(self, problem: str) -> Response:
        return jsonify({"success": False, "message": problem, "host": self._environment.host})


def _is_open(fields: Mapping[str, Any]) -> bool:
    return str(fields["arrival_rate"]).strip() not in ("", "0")


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
