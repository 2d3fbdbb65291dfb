"""A run's life inside Locust: from the first look at its options to a run folder with its report, in every mode.

Locust runs in up to three roles, and a run has two halves: `load_process.py` where users run, a single process or each
worker, and `keeper.py` in a single process or the master. They talk only through Locust's messages (`messages.py`), so
one code path serves all modes. This file gives each role its halves, and decides whether a test may start.

Event handlers of Locust swallow exceptions, so nothing reports a mistake of the user by raising: options are checked
before a test may start, on the command line in `init`, in the web form before `/swarm` is handled.
"""

import resource
import signal
from collections.abc import Mapping
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest import options as load_options
from loadtest import shapes
from loadtest.keeper import RunKeeper
from loadtest.load import Load
from loadtest.load_process import LoadProcess, option_fields
from loadtest.locust_form import Form
from loadtest.option_error import OptionError
from loadtest.trust_tab import add_trust_tab
from loadtest.wires import parse_target
from reports import signals


class Lifecycle:
    """What `users.py` holds of one Locust environment: both halves, or the one that its role has."""

    def __init__(self, environment: Environment) -> None:
        runner = environment.runner
        assert runner is not None
        _allow_all_descriptors()
        self._environment = environment
        self._load_process = None if isinstance(runner, MasterRunner) else LoadProcess(environment)
        self._keeper = None if isinstance(runner, WorkerRunner) else RunKeeper(environment)
        # The keeper goes first at the start, so that the recorder runs before the first upload, and last at the end.
        if self._keeper is not None:
            environment.events.test_start.add_listener(self._keeper.on_test_start)
            environment.events.spawning_complete.add_listener(self._keeper.on_spawning_complete)
        if self._load_process is not None:
            environment.events.test_start.add_listener(self._load_process.on_test_start)
            environment.events.test_stop.add_listener(self._load_process.on_test_stop)
        if self._keeper is not None:
            environment.events.test_stopping.add_listener(self._keeper.on_test_stopping)
            environment.events.test_stop.add_listener(self._keeper.on_test_stop)
            environment.events.quitting.add_listener(self._keeper.on_quitting)
        web_ui = environment.web_ui
        if web_ui is not None and web_ui.app is not None and self._keeper is not None:
            form = Form(environment, self._keeper, self.prepare)
            web_ui.app.before_request(form.check)
            add_trust_tab(web_ui, self._keeper)
        signals.ignore_unused()  # as our own commands do; TERM, Ctrl-C and QUIT are Locust's
        _interrupt_only(gevent.getcurrent())

    @property
    def load(self) -> Load | None:
        """What uploaders share, where load is made and while a test goes on."""
        return None if self._load_process is None else self._load_process.load

    def prepare(self, host: str | None, fields: Mapping[str, Any], users: int) -> str | None:
        """Make ready for a test with these options. What is wrong with them in one sentence, or None."""
        try:
            options = load_options.validate(host or "", fields)
            load_options.check_users(options, users)
            load_options.check_store(options, options.load_payloads(), users)
            if self._load_process is not None:
                load_options.check_descriptors(options, users)
            load_options.check_server(options, host)
        except OptionError as error:
            return str(error)
        environment = self._environment
        environment.stop_timeout = options.drain_s
        environment.shape_class = None
        if options.shape != "none":
            environment.shape_class = shapes.Stages(options.shape, users, options.planned_s)
            environment.shape_class.runner = environment.runner
        return None

    def host_problem(self) -> str | None:
        """What is wrong with the host of the command line, if it has one: Locust's page would show it to everybody."""
        try:
            if self._environment.host:
                parse_target(self._environment.host)
        except OptionError as error:
            return str(error)
        return None

    def prepare_command_line(self) -> str | None:
        parsed = self._environment.parsed_options
        assert parsed is not None
        fields = option_fields(self._environment)
        if parsed.num_users is None:  # Locust would make it 1
            parsed.num_users = 0 if load_options.is_open(fields) else 1
        return self.prepare(self._environment.host, fields, parsed.num_users)


def _allow_all_descriptors() -> None:
    """A connection each is what load is made of: the soft limit is often 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _interrupt_only(main: Any) -> None:
    """Have Ctrl-C raised in Locust's main greenlet, which waits for it. Python raises it wherever it happens to be, and
    that may be a user whose upload is stored but not counted yet."""

    def interrupt() -> None:
        gevent.get_hub().loop.run_callback(main.throw, KeyboardInterrupt)

    gevent.signal_handler(signal.SIGINT, interrupt)
