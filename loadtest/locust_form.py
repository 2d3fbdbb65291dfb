"""Locust's form, checked before Locust sees it: what would start a wrong test, or change one that goes on, is refused
with a sentence that the page shows.

Locust takes any option from a form, answers requests from every origin, and starts a test whatever the last one is
doing; so all of that is decided here.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from flask import Response, jsonify, request
from locust.env import Environment

from loadtest import options as load_options
from loadtest.keeper import GOES_ON, STARTS_WITHIN_S, RunKeeper, until
from loadtest.load_process import option_fields
from loadtest.option_error import OptionError

IDLE_WITHIN_S = 60.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

Prepare = Callable[[str | None, Mapping[str, Any], int], str | None]
"""Lifecycle.prepare: host, options and users of the test to come -> what is wrong with them."""


class Form:
    def __init__(self, environment: Environment, keeper: RunKeeper, prepare: Prepare) -> None:
        self._environment = environment
        self._keeper = keeper
        self._prepare = prepare
        self._accepted_s = -math.inf
        """When the last form was accepted, and how many tests had started until then."""
        self._starts = 0

    def check(self) -> Response | None:
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
        for field in self._command_line_only(parsed):
            if field in request.form and fields[field] != own.get(field):
                return self._refuse(f"{field} can be set on the command line only")
        users = request.form.get("user_count", type=int)
        # A person may press Start twice, or while the last test's uploads are still being waited for.
        if not until(lambda: runner.state in GOES_ON or self._keeper.is_idle, IDLE_WITHIN_S):
            return self._refuse("the last test has not ended yet: try again in a moment")
        if runner.state in GOES_ON:
            return self._check_change(fields, users)
        return self._check_start(fields, users)

    def _command_line_only(self, parsed: Any) -> list[str]:
        """Locust takes any option from a form. A wire would import code of a name that it is told; and who is not on
        this machine could have its files sent to an address of theirs."""
        is_private = getattr(parsed, "web_host", None) in _LOOPBACK or getattr(parsed, "web_login", False)
        options = load_options.OPTIONS
        hidden = [option.field for option in options if not option.in_form or (option.reads_files and not is_private)]
        return [*hidden, "run_folder", "run_command", "no_report"]

    def _check_start(self, fields: Mapping[str, Any], users: int | None) -> Response | None:
        if self._is_starting:
            return self._refuse("a test is starting already")
        if users is None:
            self._environment.shape_class = None  # or Locust would start the last run's, with unchecked options
            return None  # what is no number, Locust refuses itself
        self._accepted_s, self._starts = time.monotonic(), self._keeper.starts
        problem = self._prepare(fields.get("host", self._environment.host), fields, users)
        if problem is not None:
            self._accepted_s = -math.inf
            return self._refuse(problem)
        return None

    @property
    def _is_starting(self) -> bool:
        """A form was accepted, and Locust has not begun its test yet. Another would get in its way."""
        return time.monotonic() - self._accepted_s < STARTS_WITHIN_S and self._keeper.starts == self._starts

    def _check_change(self, fields: Mapping[str, Any], users: int | None) -> Response | None:
        """While a test runs only its users' number may change. The open model has none: they would come on top."""
        own = {**option_fields(self._environment), "host": self._environment.host}
        for field, value in own.items():
            if fields.get(field, value) != value:
                return self._refuse(f"{field} cannot change while a test runs")
        try:
            if users is not None:
                load_options.check_users(load_options.validate(str(own["host"]), own), users)
        except OptionError as error:
            return self._refuse(str(error))
        return None

    def _refuse(self, problem: str) -> Response:
        return jsonify({"success": False, "message": problem, "host": self._environment.host})


def _is_cross_site(web_host: str | None) -> bool:
    """Whether this request was made by a page of another site, in the browser of somebody who may start tests. Locust
    answers requests from every origin, so any page could have local files uploaded to a host of its choice. A page
    served on the loopback address must also be asked for by such a name, or another name was pointed at it."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        return True
    name = urlsplit(f"//{request.host}").hostname
    return web_host in _LOOPBACK and name not in _LOOPBACK
