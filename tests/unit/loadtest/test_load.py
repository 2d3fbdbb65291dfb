"""What all who upload in a process share: user numbers, phases, and whom they tell what they did."""

import pytest
from fake_load import fake_load

from loadtest.client import Upload, UploadError
from loadtest.load import RunningPhase, row_of
from loadtest.telemetry import Arrival

NOWHERE = "tcp://127.0.0.1:1"


def an_upload(error=None):
    return Upload(error=error, start_ns=2_000_000, end_ns=5_000_000, connected=True)


def test_over_by():
    phase = RunningPhase("p", 0)
    assert not phase.over_by(10**18)
    phase.end_ns = 100
    assert [phase.over_by(mono_ns) for mono_ns in (99, 100, 101)] == [False, False, True]


def test_rows():
    assert [row_of(each, 4096) for each in (0, 1, 2)] == ["long ≤4 KiB", "short ≤4 KiB", "2 per connection ≤4 KiB"]


def test_no_two_users_have_one_number():
    numbers = []
    for worker_index in range(3):
        with fake_load(NOWHERE, worker_index=worker_index) as load:
            numbers += [load.next_user() for _ in range(3)]
    assert numbers == [0, 1024, 2048, 1, 1025, 2049, 2, 1026, 2050]


@pytest.mark.parametrize("arrival", [None, Arrival(1_000_000, 1_500_000)], ids=["closed", "open"])
@pytest.mark.parametrize("fires_all", [False, True])
def test_whom_locust_tells(arrival, fires_all):
    """Each failure, and each upload if somebody listens. The response began when it was due."""
    phase = RunningPhase("p", 0)
    with fake_load(NOWHERE, fires_all=fires_all) as load:
        payload, _ = load.payloads.pick(0, 0)
        load.record(phase, payload, "f", an_upload(), arrival)
        load.record(phase, payload, "f", an_upload(UploadError("too_large", "17 is too large")), arrival)
        load.record(phase, payload, "f", an_upload(UploadError("said_no")), arrival)
    took_ms = 3.0 if arrival is None else 4.0
    fired = [(event["name"], event["response_time"], event["response_length"]) for event in load.fired]
    assert fired == [("long ≤4 KiB", took_ms, 1024)] * fires_all + [("long ≤4 KiB", took_ms, 0)] * 2
    texts = ["too_large: the file is larger than the server takes", "said_no"]
    assert [str(event["exception"]) for event in load.fired] == ["None"] * fires_all + texts
    [tallied] = load.telemetry.take()
    assert (tallied.count, tallied.failures) == (1, {"too_large": 1, "said_no": 1})


def test_an_arrival_that_is_dropped_has_failed():
    with fake_load(NOWHERE) as load:
        load.drop(RunningPhase("p", 1), load.payloads.pick(0, 0)[0])
    [event] = load.fired
    assert (event["name"], event["response_time"]) == ("short ≤4 KiB", 0)
    assert str(event["exception"]) == "dropped: due while the most uploads were in flight"
    assert load.telemetry.take()[0].failures == {"dropped": 1}


def test_pauses_are_counted():
    with fake_load(NOWHERE) as load:
        load.think(RunningPhase("p", 0), load.payloads.pick(0, 0)[0], 40_000_000)
    assert load.telemetry.take()[0].durations["think"].tolist() == [40_000_000]
