"""summary.json: what a report says, as data, and what its words mean.

The three outputs are texts made of a `Summary`; a script or a later comparison reads the file. Values only: how they
are found is the business of the files that make them (phases.py, modes.py, processes.py, verdict.py).

`start_s`, `started_s` and `last_seen_s` are seconds since the run's start; CPU is in core-seconds; a share is of one
core; None means "not known" and is never 0. The limits that `lower_bound`, `at_capacity` and the verdict stand on are
named here.
"""

from typing import Literal

import msgspec

from reports.run_folder import PhaseKind, Role

SUMMARY_VERSION = 1

GENERATOR_LIMIT = 0.80  # a load process above this share of a core was itself the limit
GENERATOR_WARNING = 0.60
CAPACITY = 0.95  # a worker at or above it has no time left
MISSED_TICKS_LIMIT = 0.20
SHORTEST_PHASE_S = 1.0

Verdict = Literal["VALID", "LOWER BOUND", "INVALID"]

ROLE_NAMES: dict[Role, str] = {
    "server-master": "supervisor",
    "server-worker": "worker",
    "server-status": "status page",
    "load-master": "load",
    "load-worker": "load worker",
    "recorder": "recorder",
}


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Of the transactions of all samples together, in microseconds; None where there are too few samples."""

    samples: int
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None


class SizeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One size class within a mode."""

    size_class: str
    uploads: int
    uploads_per_s: float
    bytes_per_s: float
    transaction_us: Latency
    failures: dict[str, int]


class ModeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """All measure phases of one mode. Rates are only a lower bound where the generator was the limit."""

    mode: str
    phases: list[str]
    duration_s: float
    uploads: int
    bytes: int
    uploads_per_s: float
    bytes_per_s: float
    lower_bound: bool
    at_capacity: bool
    transaction_us: Latency
    busy_core_us_per_upload: float | None
    """CPU of the whole machine that was neither idle nor waiting for a disk: load, server, kernel and all else."""
    server_core_us_per_upload: float | None
    """CPU as the kernel charged it to the server's processes. On loopback, part of the server's TCP work is charged
    to the client instead, which is why the number above stands beside it."""
    failures: dict[str, int]
    sizes: list[SizeSummary]


class PhaseSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One phase as it went. CPU is None where it was not recorded."""

    name: str
    kind: PhaseKind
    mode: str
    start_s: float
    duration_s: float
    uploads: int
    bytes: int
    connections: int
    failures: dict[str, int]
    busy_core_s: float | None
    server_cpu_s: float | None
    busiest_worker_share: float | None
    generator_share: float | None
    """Of the load process that used most."""
    recorder_missed_share: float

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s

    @property
    def long_enough(self) -> bool:
        """For a rate to mean something."""
        return self.duration_s >= SHORTEST_PHASE_S

    @property
    def measured(self) -> bool:
        return self.kind == "measure" and self.long_enough

    @property
    def generator_limited(self) -> bool:
        return self.generator_share is not None and self.generator_share > GENERATOR_LIMIT

    @property
    def at_capacity(self) -> bool:
        worker, generator = self.busiest_worker_share, self.generator_share
        return worker is not None and generator is not None and worker >= CAPACITY and generator <= GENERATOR_LIMIT


class ProcessSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One process over the run. `share` is its mean share of a core while it lived in measure phases."""

    pid: int
    role: Role
    slot: int | None
    started_s: float
    last_seen_s: float
    ended: bool
    """Gone before the recording was over."""
    cpu_user_s: float | None
    cpu_system_s: float | None
    share: float | None
    rss_max_bytes: int | None
    uss_max_bytes: int | None
    threads: int | None
    fds: int | None
    voluntary_switches: int | None
    involuntary_switches: int | None

    @property
    def name(self) -> str:
        """For people; not unique, since a replaced worker's slot passes on."""
        return ROLE_NAMES[self.role] + ("" if self.slot is None else f" {self.slot}")


class ServerSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The server as a whole. `cpu_total_s` is from its birth on, workers that were replaced included."""

    workers: int
    """Slots, or the most workers alive at once where slots are unknown."""
    cpu_total_s: float | None
    uploads_stored: int | None
    """Between the first and the last tick, from its scoreboard."""


class LoadSummary(msgspec.Struct, frozen=True, kw_only=True):
    """All phases together, as the load counted them."""

    uploads: int
    failures: dict[str, int]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """summary.json."""

    schema_version: int = SUMMARY_VERSION
    run: str
    verdict: Verdict
    reason: str
    warnings: list[str]
    modes: list[ModeSummary]
    phases: list[PhaseSummary]
    processes: list[ProcessSummary]
    server: ServerSummary
    load: LoadSummary
