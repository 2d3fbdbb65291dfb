"""A server's state in the format that Prometheus reads: `/metrics` of the status page.

Counters are those of the slots, which go on over the deaths of workers, so they never run backwards while the server
lives; a failure code stands there with 0 before it first happens, or a rate over its first occurrence would be lost.
Names follow https://prometheus.io/docs/practices/naming/: units are base units, counters end in `_total`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from server.scoreboard import STATES
from server.status.reader import ServerStatus, SlotStatus, why_not_ready

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(server: ServerStatus, failure_codes: Sequence[str]) -> bytes:
    """All metrics as text; `failure_codes` are those that the server counts."""
    return generate_latest(_Snapshot(server, failure_codes))


class _Snapshot(Collector):
    def __init__(self, server: ServerStatus, failure_codes: Sequence[str]) -> None:
        self._server = server
        self._codes = failure_codes

    def collect(self) -> Iterator[Metric]:
        yield from _of_server(self._server)
        yield from _of_slots(CounterMetricFamily, _COUNTERS, self._server.slots)
        yield _failures(self._server.slots, self._codes)
        yield _states(self._server.slots)
        yield from _of_slots(GaugeMetricFamily, _GAUGES, self._server.slots)


def _of_server(server: ServerStatus) -> Iterator[Metric]:
    shown = {name: server.options.get(name, "") for name in ("accept", "collision", "durability")}
    yield InfoMetricFamily("socketswarm_server", "How the server is set up.", shown)
    started_s = server.started_wall_ns / 1e9
    yield GaugeMetricFamily("socketswarm_server_start_time_seconds", "When it started, since the epoch.", started_s)
    ready, draining = not why_not_ready(server), server.draining
    yield GaugeMetricFamily("socketswarm_server_ready", "1 when every worker serves, as /healthz says.", ready)
    yield GaugeMetricFamily("socketswarm_server_draining", "1 from the moment it was told to stop.", draining)
    yield GaugeMetricFamily("socketswarm_workers_wanted", "Worker processes that there should be.", server.workers)


_Table = Mapping[str, tuple[str, Callable[[SlotStatus], float | None]]]
_COUNTERS: _Table = {
    "uploads_stored": ("Uploads stored and acknowledged.", lambda slot: slot.uploads_stored),
    "stored_bytes": ("Bytes of files in these uploads.", lambda slot: slot.bytes_stored),
    "connections_accepted": ("Connections accepted.", lambda slot: slot.connections_accepted),
    "worker_restarts": ("Processes that this worker's slot had after its first.", lambda slot: slot.restarts),
}
_GAUGES: _Table = {
    "connections_open": ("Connections open now.", lambda slot: slot.connections_now),
    "worker_retiring": ("Processes of this slot that drain after a reload.", lambda slot: len(slot.retiring)),
    "worker_silence_seconds": ("Since its event loop turned last.", lambda slot: slot.silent_s),
}


def _of_slots(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily], table: _Table, slots: Sequence[SlotStatus]
) -> Iterator[Metric]:
    """One value of each metric for every slot that has one."""
    for name, (meaning, value) in table.items():
        family = kind(f"socketswarm_{name}", meaning, labels=("worker",))
        for slot in slots:
            if (number := value(slot)) is not None:
                family.add_metric([str(slot.slot)], number)
        yield family


def _failures(slots: Sequence[SlotStatus], codes: Sequence[str]) -> Metric:
    failed = CounterMetricFamily(
        "socketswarm_uploads_failed",
        "Uploads refused or broken off, by the code of the reply.",
        labels=("worker", "code"),
    )
    for slot in slots:
        for code in codes:
            failed.add_metric([str(slot.slot), code], slot.failures.get(code, 0))
    return failed


def _states(slots: Sequence[SlotStatus]) -> Metric:
    is_in = GaugeMetricFamily("socketswarm_worker_state", "1 for the state it is in.", labels=("worker", "state"))
    for slot in slots:
        for state in STATES:
            is_in.add_metric([str(slot.slot), state], slot.state == state)
    return is_in
