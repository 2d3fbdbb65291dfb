"""Counts and histograms: raw durations in, one batch a second out; batches of all load processes merged into lines.

Users append raw durations to arrays; once a second they are binned with numpy into the buckets of HDR histograms
(0.15 µs a value, against 1.2 µs for recording each). A batch is plain data, so that it goes from a Locust worker to its
master as it is; the same path serves a single process. Merging adds bucket counts, so a percentile of the whole is
exact to the histogram's 3 significant digits, and nothing is ever averaged.
"""

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from loadtest.client import Upload
from reports.run_folder import (
    DURATIONS,
    HistogramsLine,
    Percentiles,
    SecondOfUploads,
    UploadsLine,
    now_ns,
)

LOWEST_US, HIGHEST_US, SIGNIFICANT_DIGITS = 1, 3_600_000_000, 3

# Bucket layout of HdrHistogram(LOWEST_US, HIGHEST_US, SIGNIFICANT_DIGITS): 2,048 buckets of 1 µs, then each next 1,024
# twice as wide as the ones before.
_HALF_MAGNITUDE = 10
_HALF = 1 << _HALF_MAGNITUDE
_MASK = 2 * _HALF - 1
_COUNTS_LENGTH: int = HdrHistogram(LOWEST_US, HIGHEST_US, SIGNIFICANT_DIGITS).counts_len

Counts = npt.NDArray[np.int64]
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


class _Tally:
    """What one name did since the last batch."""

    __slots__ = ("bytes", "connections", "count", "durations", "failures")

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self.connections = 0
        self.failures: dict[str, int] = {}
        self.durations = {duration: array("q") for duration in DURATIONS}


class Telemetry:
    """One load process's uploads, between two batches."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], _Tally] = {}

    def record(self, phase: str, name: str, size_bytes: int, upload: Upload) -> None:
        """Count one upload that ended, in the phase of its intended time. `name` is run_folder.upload_name's."""
        tally = self._tallies.get((phase, name))
        if tally is None:
            tally = self._tallies[phase, name] = _Tally()
        tally.connections += upload.connected
        if upload.error is not None:
            tally.failures[upload.error.code] = tally.failures.get(upload.error.code, 0) + 1
            return
        tally.count += 1
        tally.bytes += size_bytes
        durations = tally.durations
        for duration in DURATIONS:
            value = getattr(upload, f"{duration}_ns")
            if value is not None:
                durations[duration].append(value)

    def take(self) -> Batch:
        """All since the last call, as plain data: `phase -> name -> counts`. Histograms are sparse (index, count)."""
        tallies, self._tallies = self._tallies, {}
        batch: Batch = {}
        for (phase, name), tally in tallies.items():
            batch.setdefault(phase, {})[name] = {
                "count": tally.count,
                "bytes": tally.bytes,
                "connections": tally.connections,
                "failures": tally.failures,
                "histograms": {key: _sparse(values) for key, values in tally.durations.items() if values},
            }
        return batch


def _sparse(values_ns: "array[int]") -> tuple[bytes, bytes]:
    values_us = np.clip((np.frombuffer(values_ns, dtype=np.int64) + 500) // 1000, 0, HIGHEST_US)
    index, count = np.unique(bucket_indices(values_us), return_counts=True)
    return index.astype("<u4").tobytes(), count.astype("<u4").tobytes()


class Merger:
    """Joins the batches of all load processes into the lines of uploads.jsonl."""

    def __init__(self) -> None:
        self._second: list[Batch] = []
        self._histograms: dict[str, dict[str, dict[str, Counts]]] = {}
        """phase -> name -> duration -> counts since the phase began"""

    def add(self, batch: Batch) -> None:
        if batch:
            self._second.append(batch)

    def take_second(self, users: int) -> list[UploadsLine]:
        """One line a phase for what was added since the last call."""
        batches, self._second = self._second, []
        phases = {phase: None for batch in batches for phase in batch}  # in order, each once
        return [
            UploadsLine(**now_ns(), phase=phase, users=users, names=self._merge(phase, batches)) for phase in phases
        ]

    def histograms(self, phase: str) -> HistogramsLine:
        """The phase's histograms so far."""
        names = {
            name: {duration: encode(counts) for duration, counts in histograms.items()}
            for name, histograms in self._histograms.get(phase, {}).items()
            if histograms  # there are none of a name that only failed
        }
        return HistogramsLine(**now_ns(), phase=phase, names=names)

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
            for duration, sparse in part["histograms"].items():
                index, count = (np.frombuffer(data, dtype="<u4") for data in sparse)
                for target in (second, totals):
                    target.setdefault(duration, np.zeros(_COUNTS_LENGTH, dtype=np.int64))[index] += count
        nothing = np.zeros(1, dtype=np.int64)
        return SecondOfUploads(
            count=sum(part["count"] for part in parts),
            bytes=sum(part["bytes"] for part in parts),
            connections=sum(part["connections"] for part in parts),
            failures=failures,
            service_us=percentiles(second.get("service", nothing)),
            transaction_us=percentiles(second.get("transaction", nothing)),
        )
