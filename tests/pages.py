"""The status page of a server under test, asked as programs ask it."""

import http.client
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families
from servers import Server, eventually

PATIENCE_S = 60.0
"""The helper gives way to every other process, and tests keep all cores busy."""

Sample = tuple[str, frozenset[tuple[str, str]]]
"""The name and the labels of a number."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    """By their names in lower case."""
    text: str


def page_port(server: Server) -> int:
    port = urlsplit(server.state().page or "").port
    assert port is not None, "it has no page"
    return port


def ask(server: Server, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
    """One request over a connection of its own. OSError or HTTPException when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", page_port(server), timeout=PATIENCE_S)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        named = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, named, response.read().decode())
    finally:
        connection.close()


def metrics(server: Server) -> dict[Sample, float]:
    """All numbers, by name and labels."""
    families = text_string_to_metric_families(ask(server, "/metrics").text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def total(found: dict[Sample, float], name: str, **labels: str) -> float:
    """The sum of a name's numbers that have these labels."""
    wanted = set(labels.items())
    return sum(value for (each, its), value in found.items() if each == name and wanted <= its)


def helper(server: Server) -> int:
    """The pid of its status helper, once it answers."""

    def answering() -> bool:
        try:
            return ask(server, "/healthz").status in (200, 503)
        except (OSError, http.client.HTTPException):
            return False

    def living() -> int:
        """0 while the last one has ended, and who follows it is not told of yet."""
        last = [event for event in server.events() if event["kind"] in ("status-started", "status-ended")][-1:]
        return sum(int(event["pid"]) for event in last if event["kind"] == "status-started")

    eventually(answering, "the page answers", PATIENCE_S)
    return eventually(living, "it is told of")
