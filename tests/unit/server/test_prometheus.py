"""A server's state as Prometheus reads it."""

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from server.status import prometheus
from server.status.reader import ServerStatus, SlotStatus, Totals

SLOT = SlotStatus(
    slot=0,
    pid=7,
    state="ready",
    uptime_s=1.5,
    silent_s=0.25,
    restarts=2,
    last_end=None,
    connections_now=3,
    connections_accepted=2**53 - 1,
    uploads_stored=5,
    bytes_stored=6,
    failures={"bad_header": 4},
    retiring=(8, 9),
)
TOTALS = Totals(restarts=0, connections_now=0, connections_accepted=0, uploads_stored=0, bytes_stored=0, failures={})
SERVER = ServerStatus(
    pid=1,
    addresses=["127.0.0.1:1"],
    port=1,
    page=None,
    started_wall_ns=1_500_000_000,
    uptime_s=1.0,
    draining=False,
    workers=1,
    store=None,
    options={"accept": 'a "quoted"\nline\\'},
    slots=[SLOT],
    totals=TOTALS,
    events=[],
)


def parsed(server: ServerStatus) -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name and by the labels' values, in the order of the labels' names."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    text = prometheus.exposition(server, ("bad_header", "truncated")).decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


def test_every_value_stands_where_it_belongs() -> None:
    found = parsed(SERVER)
    assert found["socketswarm_server_info"] == {('a "quoted"\nline\\', "", ""): 1}
    assert found["socketswarm_server_start_time_seconds"] == {(): 1.5}
    assert found["socketswarm_server_ready"] == {(): 1}
    assert found["socketswarm_server_draining"] == {(): 0}
    assert found["socketswarm_uploads_stored_total"] == {("0",): 5}
    assert found["socketswarm_stored_bytes_total"] == {("0",): 6}
    assert found["socketswarm_connections_accepted_total"] == {("0",): 2**53 - 1}
    assert found["socketswarm_uploads_failed_total"] == {("bad_header", "0"): 4, ("truncated", "0"): 0}
    assert found["socketswarm_worker_restarts_total"] == {("0",): 2}
    assert found["socketswarm_worker_retiring"] == {("0",): 2}
    assert found["socketswarm_worker_silence_seconds"] == {("0",): 0.25}
    states = found["socketswarm_worker_state"]
    assert states == {(state, "0"): state == "ready" for state in ("empty", "starting", "ready", "draining")}


def test_of_an_empty_slot_there_is_no_silence() -> None:
    empty = msgspec.structs.replace(SLOT, state="empty", pid=None, uptime_s=None, silent_s=None)
    found = parsed(msgspec.structs.replace(SERVER, slots=[empty]))
    assert found["socketswarm_server_ready"] == {(): 0}
    assert "socketswarm_worker_silence_seconds" not in found


def test_without_a_worker_yet_there_are_the_servers_own() -> None:
    found = parsed(msgspec.structs.replace(SERVER, slots=[], draining=True))
    assert found["socketswarm_workers_wanted"] == {(): 1}
    assert found["socketswarm_server_draining"] == {(): 1}
