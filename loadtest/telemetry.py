"""Counts and histograms: raw durations in, one batch a second out; batches of all load processes merged into lines.

Each upload appends its raw durations to an array, in one call; once a second they are binned with numpy into the
buckets of HDR histograms (0.15 µs a value, against 1.2 µs for recording each). A batch is plain data, so that it goes
from a Locust worker to its master as it is; the same path serves a single process. Merging adds bucket counts, so a
percentile of the whole is exact to the histogram's 3 significant digits, and nothing is ever averaged.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from loadtest.client import NOT, Upload
from reports.run_folder import HistogramsLine, Percentiles, SecondOfUploads, UploadsLine, now_ns
from server.failure_codes import DROPPED, UNANSWERED

LOWEST_US, HIGHEST_US, SIGNIFICANT_DIGITS = 1, 3_600_000_000, 3

# Bucket layout of HdrHistogram(LOWEST_US, HIGHEST_US, SIGNIFICANT_DIGITS): 2,048 buckets of 1 µs, then each next 1,024
# twice as wide as the ones before.
_HALF_MAGNITUDE = 10
_HALF = 1 << _HALF_MAGNITUDE
_MASK = 2 * _HALF - 1
_COUNTS_LENGTH: int = HdrHistogram(LOWEST_US, HIGHEST_US, SIGNIFICANT_DIGITS).counts_len

Counts = npt.NDArray[np.uint32]
Batch = dict[str, Any]


def bucket_indices(values_us: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The bucket of each value (microseconds, 0 to HIGHEST_US) in the counts of an HDR histogram."""
    # frexp's exponent is the bit length, exact below 2**53
    bit_length = np.frexp((values_us | _MASK).astype(np.float64))[1].astype(np.int64)
    bucket = bit_length - (_HALF_MAGNITUDE + 1)
    sub_bucket = values_us >> bucket
    index: npt.NDArray[np.int64] = ((bucket + 1) << _HALF_MAGNITUDE) + sub_bucket - _HALF
    return index


def _highest_values() -> npt.NDArray[np.int64]:
    """The highest value (microseconds) that falls into each bucket."""
    index = np.arange(_COUNTS_LENGTH, dtype=np.int64)
    bucket = np.maximum((index >> _HALF_MAGNITUDE) - 1, 0)
    sub_bucket = np.where(index < 2 * _HALF, index, (index & (_HALF - 1)) + _HALF)
    highest: npt.NDArray[np.int64] = ((sub_bucket + 1) << bucket) - 1
    return highest


_HIGHEST = _highest_values()


def percentiles(counts: Counts) -> Percentiles | None:
    """p50, p95, p99 and max in microseconds; None when nothing was counted."""
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1])
    if not total:
        return None
    ranks = np.maximum(1, np.ceil(np.array([0.5, 0.95, 0.99, 1.0]) * total))
    p50, p95, p99, top = (float(value) for value in _HIGHEST[np.searchsorted(cumulative, ranks)])
    return Percentiles(p50=p50, p95=p95, p99=p99, max=top)


def encode(counts: Counts) -> str:
    """The counts as a base64 HDR histogram, readable by every HDR library."""
    histogram = HdrHistogram(LOWEST_US, HIGHEST_US, SIGNIFICANT_DIGITS)
    target = np.ctypeslib.as_array(histogram.counts)
    target[:] = counts
    used = np.flatnonzero(counts)
    if len(used):
        histogram.total_count = int(counts.sum())
        histogram.min_value = int(_HIGHEST[used[0]])
        histogram.max_value = int(_HIGHEST[used[-1]])
    text: bytes = histogram.encode()
    return text.decode()


# An upload's durations as they lie in a tally's array, row after row.
_UPLOAD = ("connect", "handshake", "send", "wait", "read_lag", "close", "service", "transaction")
_ARRIVAL = ("schedule_lag", "pool_wait", "response")

Nanoseconds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Arrival:
    """When an upload of the open model was due, and when the load process woke to it: monotonic nanoseconds."""

    intended_ns: int
    woke_ns: int


@dataclass(frozen=True, slots=True)
class Tallied:
    """What one name did since the last batch."""

    phase: str
    name: str
    count: int
    bytes: int
    connections: int
    late: int
    failures: dict[str, int]
    durations: dict[str, Nanoseconds]
    """Only those that happened."""


class _Tally:
    __slots__ = ("arrivals", "bytes", "connections", "count", "failures", "late", "thinks", "unanswered", "uploads")

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self.connections = 0
        self.late = 0
        self.failures: dict[str, int] = {}
        self.uploads = array("q")
        self.arrivals = array("q")
        self.unanswered = array("q")
        self.thinks = array("q")

    def durations(self) -> dict[str, Nanoseconds]:
        found = {**_columns(self.uploads, _UPLOAD), **_columns(self.arrivals, _ARRIVAL)}
        found["unanswered"] = np.frombuffer(self.unanswered, dtype=np.int64)
        found["think"] = np.frombuffer(self.thinks, dtype=np.int64)
        return {duration: kept for duration, values in found.items() if len(kept := values[values != NOT])}


def _columns(rows: "array[int]", names: Sequence[str]) -> dict[str, Nanoseconds]:
    table = np.frombuffer(rows, dtype=np.int64).reshape(-1, len(names))
    return {name: table[:, column] for column, name in enumerate(names)}


class Telemetry:
    """One load process's uploads, between two batches. Names are run_folder.upload_name's."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], _Tally] = {}

    def record(
        self, phase: str, name: str, size_bytes: int, upload: Upload, arrival: Arrival | None = None, *, late: bool
    ) -> None:
        """Count one upload that ended, in the phase of its intended time; `late` when that phase is over already.
        `arrival` belongs to the open model."""
        tally = self._tally(phase, name)
        tally.connections += upload.connected
        if upload.error is not None:
            code = upload.error.code
            tally.failures[code] = tally.failures.get(code, 0) + 1
            if arrival is not None and code in UNANSWERED:
                tally.unanswered.append(upload.end_ns - arrival.intended_ns)
            return
        tally.count += 1
        tally.bytes += size_bytes
        tally.late += late
        tally.uploads.extend(
            (
                upload.connect_ns,
                upload.handshake_ns,
                upload.send_ns,
                upload.wait_ns,
                upload.read_lag_ns,
                upload.close_ns,
                upload.service_ns,
                upload.transaction_ns,
            )
        )
        if arrival is not None:
            tally.arrivals.extend(
                (
                    arrival.woke_ns - arrival.intended_ns,
                    upload.start_ns - arrival.woke_ns,
                    upload.end_ns - arrival.intended_ns,
                )
            )

    def think(self, phase: str, name: str, pause_ns: int) -> None:
        """The pause that a user of the closed model was told to make after this upload."""
        self._tally(phase, name).thinks.append(pause_ns)

    def drop(self, phase: str, name: str) -> None:
        """An arrival that was not sent, because as many uploads were in flight as may be."""
        failures = self._tally(phase, name).failures
        failures[DROPPED] = failures.get(DROPPED, 0) + 1

    def take(self) -> list[Tallied]:
        """All since the last call."""
        tallies, self._tallies = self._tallies, {}
        return [
            Tallied(phase, name, t.count, t.bytes, t.connections, t.late, t.failures, t.durations())
            for (phase, name), t in tallies.items()
        ]

    def _tally(self, phase: str, name: str) -> _Tally:
        tally = self._tallies.get((phase, name))
        if tally is None:
            tally = self._tallies[phase, name] = _Tally()
        return tally


def batch_of(tallied: Iterable[Tallied]) -> Batch:
    """The counts as plain data: `phase -> name -> counts`. Histograms are sparse (index, count)."""
    batch: Batch = {}
    for part in tallied:
        batch.setdefault(part.phase, {})[part.name] = {
            "count": part.count,
            "bytes": part.bytes,
            "connections": part.connections,
            "late": part.late,
            "failures": part.failures,
            "histograms": {key: sparse((values + 500) // 1000) for key, values in part.durations.items()},
        }
    return batch


Sparse = tuple[bytes, bytes]


def sparse(values_us: Nanoseconds) -> Sparse:
    """(index, count) of the buckets that these microseconds fall into."""
    index, count = np.unique(bucket_indices(np.clip(values_us, 0, HIGHEST_US)), return_counts=True)
    return index.astype("<u4").tobytes(), count.astype("<u4").tobytes()


def _add(target: Counts, found: Sparse) -> None:
    index, count = (np.frombuffer(data, dtype="<u4") for data in found)
    target[index] += count


def _nothing() -> Counts:
    return np.zeros(_COUNTS_LENGTH, dtype=np.uint32)


class Merger:
    """Joins the batches of all load processes into the lines of uploads.jsonl."""

    def __init__(self) -> None:
        self._second: list[Batch] = []
        self._second_hiccups: dict[str, Counts] = {}
        self._hiccups: dict[str, Counts] = {}
        """phase -> counts since the phase began"""
        self._histograms: dict[str, dict[str, dict[str, Counts]]] = {}
        """phase -> name -> duration -> counts since the phase began"""

    def add(self, batch: Batch) -> None:
        if batch:
            self._second.append(batch)

    def add_hiccups(self, phase: str, delays: Sparse) -> None:
        """How late a load process's sleeper woke while this phase went on."""
        for target in (self._second_hiccups, self._hiccups):
            _add(target.setdefault(phase, _nothing()), delays)

    def take_second(self, users: int) -> list[UploadsLine]:
        """One line a phase for what was added since the last call."""
        batches, self._second = self._second, []
        hiccups, self._second_hiccups = self._second_hiccups, {}
        phases = {phase: None for batch in batches for phase in batch}  # in order, each once
        return [
            UploadsLine(
                **now_ns(),
                phase=phase,
                users=users,
                names=self._merge(phase, batches),
                hiccup_us=percentiles(hiccups[phase]) if phase in hiccups else None,
            )
            for phase in phases
        ]

    def histograms(self, phase: str) -> HistogramsLine:
        """The phase's histograms so far."""
        names = {
            name: {duration: encode(counts) for duration, counts in histograms.items()}
            for name, histograms in self._histograms.get(phase, {}).items()
            if histograms  # there are none of a name that only failed
        }
        hiccups = encode(self._hiccups[phase]) if phase in self._hiccups else None
        return HistogramsLine(**now_ns(), phase=phase, names=names, hiccups=hiccups)

    @property
    def phases(self) -> Iterable[str]:
        """Every phase that had an upload."""
        return self._histograms.keys()

    def _merge(self, phase: str, batches: list[Batch]) -> dict[str, SecondOfUploads]:
        parts: dict[str, list[Mapping[str, Any]]] = {}
        for batch in batches:
            for name, part in batch.get(phase, {}).items():
                parts.setdefault(name, []).append(part)
        return {name: self._second_of(phase, name, same) for name, same in parts.items()}

    def _second_of(self, phase: str, name: str, parts: list[Mapping[str, Any]]) -> SecondOfUploads:
        failures: dict[str, int] = {}
        second: dict[str, Counts] = {}
        totals = self._histograms.setdefault(phase, {}).setdefault(name, {})
        for part in parts:
            for code, count in part["failures"].items():
                failures[code] = failures.get(code, 0) + count
            for duration, found in part["histograms"].items():
                for target in (second, totals):
                    _add(target.setdefault(duration, _nothing()), found)
        shown = [name for name in ("service", "transaction", "response") if name in second]
        return SecondOfUploads(
            count=sum(part["count"] for part in parts),
            bytes=sum(part["bytes"] for part in parts),
            connections=sum(part["connections"] for part in parts),
            late=sum(part["late"] for part in parts),
            failures=failures,
            **{f"{name}_us": percentiles(second[name]) for name in shown},
        )
