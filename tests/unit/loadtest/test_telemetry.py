"""Counts and histograms: the same buckets as hdrh's, nothing averaged, nothing lost between processes."""

import math

import msgspec
import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given
from hypothesis import strategies as st
from slow import examples

from loadtest import telemetry
from loadtest.client import Upload, UploadError
from loadtest.telemetry import (
    HIGHEST_US,
    LOWEST_US,
    SIGNIFICANT_DIGITS,
    Arrival,
    Merger,
    Telemetry,
    batch_of,
    bucket_indices,
    sparse,
)
from reports.run_folder import HistogramsLine, UploadsLine

EDGES = [0, 1, 2, 1023, 1024, 2047, 2048, 2049, 4095, 4096, 1_000_000, HIGHEST_US - 1, HIGHEST_US]
values = st.one_of(st.sampled_from(EDGES), st.integers(0, HIGHEST_US), st.integers(0, 32).map(lambda bit: 1 << bit))
values = values.filter(lambda value: value <= HIGHEST_US)


def hdr():
    return HdrHistogram(LOWEST_US, HIGHEST_US, SIGNIFICANT_DIGITS)


def counts_of(values_us):
    counts = np.zeros(hdr().counts_len, dtype=np.int64)
    np.add.at(counts, bucket_indices(np.array(values_us, dtype=np.int64)), 1)
    return counts


PARTS = ("connect", "handshake", "send", "wait", "read_lag", "close", "service", "transaction")


def acked(transaction_us=100, connected=False, **durations_ns):
    durations = {"service_ns": transaction_us * 1000, "transaction_ns": transaction_us * 1000} | durations_ns
    return Upload(error=None, start_ns=1, end_ns=10, connected=connected, **durations)


def failed(code, connected=False, start_ns=1, end_ns=10):
    connect_ns = {"connect_ns": 5} if connected else {}
    return Upload(error=UploadError(code), start_ns=start_ns, end_ns=end_ns, connected=connected, **connect_ns)


class Recorder(Telemetry):
    """Most uploads are in time, and of the closed model."""

    def record(self, *upload, late=False):
        super().record(*upload, late=late)

    def batch(self):
        return batch_of(self.take())


def merged(*batches):
    """(seconds by phase, histograms by phase) of a merger that got these."""
    merger = Merger()
    for batch in batches:
        merger.add(batch)
    seconds = {line.phase: line for line in merger.take_second(users=7)}
    return seconds, {phase: merger.histograms(phase) for phase in merger.phases}


def without_clocks(line):
    return msgspec.structs.replace(line, mono_ns=0, wall_ns=0)


# ── buckets ───────────────────────────────────────────────────────────────────────────────────────────────────────


@examples(50)
@given(st.lists(values, min_size=1, max_size=50))
def test_buckets_are_hdrhs_own(values_us):
    theirs = hdr()
    for value in values_us:
        assert theirs.record_value(value)
    assert counts_of(values_us).tolist() == list(theirs.counts)


@given(st.lists(values, min_size=1, max_size=200))
def test_percentiles_are_those_of_the_values_to_3_digits(values_us):
    told = telemetry.percentiles(counts_of(values_us))
    ordered = sorted(values_us)
    for text, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
        exact = ordered[max(1, math.ceil(share * len(ordered))) - 1]
        assert exact <= getattr(told, text) <= exact * 1.001 + 1e-9


def test_percentiles_by_hand():
    told = telemetry.percentiles(counts_of(range(1, 101)))
    assert (told.p50, told.p95, told.p99, told.max) == (50, 95, 99, 100)
    assert telemetry.percentiles(counts_of([])) is None


@examples(25)  # hdrh takes its time
@given(st.lists(values, max_size=50))
def test_encoded_histograms_are_read_by_hdrh(values_us):
    text = telemetry.encode(counts_of(values_us))
    decoded = HdrHistogram.decode(text)
    theirs = hdr()
    for value in values_us:
        theirs.record_value(value)
    assert list(decoded.counts) == list(theirs.counts)
    assert decoded.get_total_count() == len(values_us)
    assert decoded.get_max_value() == theirs.get_max_value()
    for percentile in (50, 95, 99, 100):
        assert decoded.get_value_at_percentile(percentile) == theirs.get_value_at_percentile(percentile)


# ── one process ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_batch_is_plain_data_and_takes_everything_once():
    own = Recorder()
    own.record("long-1", "long ≤4 KiB", 4096, acked(connected=True, connect_ns=40_000))
    own.record("long-1", "long ≤4 KiB", 1000, acked())
    own.record("long-1", "long ≤4 KiB", 1000, failed("timeout"))
    batch = own.batch()
    assert own.batch() == {}
    part = batch["long-1"]["long ≤4 KiB"]
    assert (part["count"], part["bytes"], part["connections"], part["failures"]) == (2, 5096, 1, {"timeout": 1})
    assert set(part["histograms"]) == {"connect", "service", "transaction"}
    # As Locust sends it from a worker to its master.
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(batch))
    [(_, line)] = merged(again)[0].items()
    assert without_clocks(line) == without_clocks(merged(batch)[0]["long-1"])


def test_failures_are_counted_by_code_and_have_no_durations():
    own = Recorder()
    for code in ("timeout", "busy", "timeout"):
        own.record("p", "short ≤4 KiB", 5, failed(code, connected=True))
    seconds, histograms = merged(own.batch())
    second = seconds["p"].names["short ≤4 KiB"]
    assert (second.count, second.bytes, second.connections) == (0, 0, 3)
    assert second.failures == {"timeout": 2, "busy": 1}
    assert second.service_us is None
    assert second.transaction_us is None
    assert histograms["p"].names == {}


def test_nanoseconds_are_rounded_and_bounded():
    own = Recorder()
    for ns in (-5, 0, 499, 500, 1_499, 1_500, 2**62):
        own.record("p", "long ≤4 KiB", 1, acked(wait_ns=ns))
    text = merged(own.batch())[1]["p"].names["long ≤4 KiB"]["wait"]
    told = HdrHistogram.decode(text)
    assert [told.get_count_at_value(us) for us in (0, 1, 2, HIGHEST_US)] == [3, 2, 1, 1]


def test_durations_that_did_not_happen_are_not_counted():
    own = Recorder()
    own.record("p", "long ≤4 KiB", 1, acked(connected=True, **{f"{name}_ns": 1000 for name in PARTS}))
    own.record("p", "long ≤4 KiB", 1, acked())
    histograms = merged(own.batch())[1]["p"].names["long ≤4 KiB"]
    totals = {name: HdrHistogram.decode(text).get_total_count() for name, text in histograms.items()}
    assert totals == dict.fromkeys(PARTS, 1) | {"service": 2, "transaction": 2}


def test_late_uploads_are_counted_apart():
    own = Recorder()
    for late in (False, True, True):
        own.record("p", "long ≤4 KiB", 1, acked(), late=late)
    second = merged(own.batch())[0]["p"].names["long ≤4 KiB"]
    assert (second.count, second.late) == (3, 2)


# ── the open model ────────────────────────────────────────────────────────────────────────────────────────────────


def durations_of(own):
    """Microseconds by duration, of one name of one phase."""
    [part] = own.take()
    return {name: (values / 1000).tolist() for name, values in part.durations.items()}


def test_an_arrival_is_timed_from_when_it_was_due():
    own = Recorder()
    done = Upload(error=None, start_ns=1_700_000, end_ns=5_000_000, connected=False, transaction_ns=3_300_000)
    own.record("p", "long ≤4 KiB", 1, done, Arrival(intended_ns=1_000_000, woke_ns=1_200_000))
    found = durations_of(own)
    assert found == {"schedule_lag": [200], "pool_wait": [500], "response": [4000], "transaction": [3300]}


@pytest.mark.parametrize(("code", "kept"), [("timeout", True), ("unfinished", True), ("connection_lost", False)])
def test_what_was_never_answered_keeps_its_elapsed_time(code, kept):
    own = Recorder()
    own.record("p", "long ≤4 KiB", 1, failed(code, end_ns=9_000_000), Arrival(1_000_000, 1_000_000))
    assert durations_of(own) == ({"unanswered": [8000]} if kept else {})


def test_in_the_closed_model_nothing_was_due():
    own = Recorder()
    own.record("p", "long ≤4 KiB", 1, failed("timeout"))
    own.record("p", "long ≤4 KiB", 1, acked())
    assert set(durations_of(own)) == {"service", "transaction"}


def test_dropped_arrivals_are_failures():
    own = Recorder()
    own.drop("p", "long ≤4 KiB")
    own.drop("p", "long ≤4 KiB")
    second = merged(own.batch())[0]["p"].names["long ≤4 KiB"]
    assert (second.count, second.failures) == (0, {"dropped": 2})


def test_pauses_are_those_that_were_told():
    own = Recorder()
    own.think("p", "long ≤4 KiB", 40_000_000)
    own.think("p", "long ≤4 KiB", 0)
    assert durations_of(own) == {"think": [40_000, 0]}


def test_hiccups_of_all_processes_are_added_to_their_phase():
    merger, own = Merger(), Recorder()
    own.record("p", "long ≤4 KiB", 1, acked())
    merger.add(own.batch())
    for delays_us in ([50, 60], [70], [6000]):
        merger.add_hiccups("p", sparse(np.array(delays_us)))
    merger.add_hiccups("q", sparse(np.array([1])))
    [line] = merger.take_second(1)
    assert (line.hiccup_us.p50, line.hiccup_us.max) == (60, pytest.approx(6000, rel=0.001))
    told = HdrHistogram.decode(merger.histograms("p").hiccups)
    assert told.get_total_count() == 4
    assert merger.histograms("never").hiccups is None


# ── many processes ────────────────────────────────────────────────────────────────────────────────────────────────

PHASES = ("warm-up", "long-1")
NAMES = ("long ≤4 KiB", "long ≤1 MiB")
uploads = st.tuples(
    st.sampled_from(PHASES),
    st.sampled_from(NAMES),
    st.integers(0, 10**6),
    st.one_of(
        st.builds(acked, st.integers(0, 10**7), st.booleans(), wait_ns=st.integers(0, 10**9)),
        st.builds(failed, st.sampled_from(["timeout", "busy"]), st.booleans()),
    ),
)


@given(st.lists(st.tuples(st.integers(0, 2), uploads), max_size=40))
def test_many_processes_give_what_one_would(recorded):
    several, one = [Recorder() for _ in range(3)], Recorder()
    for process, upload in recorded:
        several[process].record(*upload)
        one.record(*upload)
    seconds, histograms = merged(*(own.batch() for own in several))
    seconds_of_one, histograms_of_one = merged(one.batch())
    assert {p: without_clocks(s) for p, s in seconds.items()} == {
        p: without_clocks(s) for p, s in seconds_of_one.items()
    }
    assert {p: h.names for p, h in histograms.items()} == {p: h.names for p, h in histograms_of_one.items()}


@given(st.lists(uploads, max_size=40), st.integers(1, 5))
def test_histograms_of_many_seconds_give_what_one_would(recorded, seconds):
    merger, own, one = Merger(), Recorder(), Recorder()
    count = 0
    for n, upload in enumerate(recorded):
        own.record(*upload)
        one.record(*upload)
        if n % seconds == 0:
            merger.add(own.batch())
            count += sum(name.count for line in merger.take_second(1) for name in line.names.values())
    merger.add(own.batch())
    count += sum(name.count for line in merger.take_second(1) for name in line.names.values())
    _, expected = merged(one.batch())
    assert {phase: merger.histograms(phase).names for phase in merger.phases} == {
        p: h.names for p, h in expected.items()
    }
    assert count == sum(upload.error is None for *_, upload in recorded)


def test_seconds_are_for_looking_at():
    own = Recorder()
    for us in range(1, 101):
        own.record("p", "long ≤4 KiB", 10, acked(us))
    merger = Merger()
    merger.add(own.batch())
    [line] = merger.take_second(users=7)
    assert (line.phase, line.users) == ("p", 7)
    assert line.mono_ns > 0 and line.wall_ns > 0
    second = line.names["long ≤4 KiB"]
    assert (second.count, second.bytes) == (100, 1000)
    assert (second.transaction_us.p50, second.transaction_us.max) == (50, 100)
    assert merger.take_second(users=7) == []


def test_a_second_across_two_phases_has_a_line_each():
    own = Recorder()
    own.record("long-1", "long ≤4 KiB", 1, acked())
    own.record("short-1", "short ≤4 KiB", 1, acked())
    seconds, histograms = merged(own.batch(), {})
    assert list(seconds) == list(histograms) == ["long-1", "short-1"]
    assert list(seconds["short-1"].names) == ["short ≤4 KiB"]


@pytest.mark.parametrize("batches", [[], [{}], [{}, {}]])
def test_nothing_gives_no_lines(batches):
    assert merged(*batches) == ({}, {})
    assert Merger().histograms("never").names == {}


def test_lines_are_of_the_schema():
    own = Recorder()
    own.record("p", "long ≤4 KiB", 1, acked())
    seconds, histograms = merged(own.batch())
    for line in (seconds["p"], histograms["p"]):
        assert msgspec.json.decode(msgspec.json.encode(line), type=UploadsLine | HistogramsLine) == line
