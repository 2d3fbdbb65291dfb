"""summary.json: what a report says, as data, and what its words mean.

The three outputs are texts made of a `Summary`; a script or a later comparison reads the file. Values only: how they
are found is the business of the files that make them, in analysis/.

`start_s`, `started_s` and `last_seen_s` are seconds since the run's start; CPU is in core-seconds; a share is of one
core; None means "not known" and is never 0. The limits that `lower_bound`, `at_capacity` and the verdict stand on are
named here.
"""

from typing import Literal

import msgspec

from reports.run_folder import PhaseKind, Role
from server.failure_codes import DROPPED, UNANSWERED

SUMMARY_VERSION = 2

GENERATOR_LIMIT = 0.80  # a load process above this share of a core was itself the limit
GENERATOR_WARNING = 0.60  # above it, what waits for its core begins to show in the latencies
CAPACITY = 0.95  # a worker, or a machine, at or above it has no time left
MISSED_TICKS_LIMIT = 0.20  # of the recorder's, in a measure phase
ACHIEVED_LIMIT = 0.99  # of the offered uploads: with less, an open model measured another load than it was asked for
HICCUP_LIMIT_US = 5_000.0  # a sleeper of 1 ms that wakes so late was kept from its core by something else
RUN_DELAY_LIMIT = 0.20  # of the time that a load process was ready to run and did not
THROTTLED_LIMIT = 0.10  # of the periods of a CPU quota: with more of them used up, it decides when uploads end
FOREIGN_LIMIT = 0.50  # of all busy CPU: with more of it, what other programs do is what is measured
SHORTEST_PHASE_S = 1.0

Model = Literal["closed", "open", "none"]
Verdict = Literal["VALID", "LOWER BOUND", "NOISY", "INVALID", "RECORDED"]

ROLE_NAMES: dict[Role, str] = {
    "server-master": "supervisor",
    "server-worker": "worker",
    "server-status": "status page",
    "load-master": "load",
    "load-worker": "load worker",
    "hiccup-meter": "hiccup meter",
    "recorder": "recorder",
}


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """A duration of all samples together, in microseconds; None where there are too few samples."""

    samples: int
    p50: float | None
    p95: float | None
    p99: float | None
    max: float | None
    bound_from: float | None = None
    """The shortest time after which an upload was given up without an answer: values from there on are lower bounds.
    None where all were answered."""

    def is_bound(self, value: float) -> bool:
        return self.bound_from is not None and value >= self.bound_from


class SizeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One size class within a mode."""

    size_class: str
    uploads: int
    uploads_per_s: float
    bytes_per_s: float
    response_us: Latency | None
    service_us: Latency
    transaction_us: Latency
    failures: dict[str, int]


class ModeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """All measure phases of one mode. Rates are only a lower bound where the load or the machine was the limit."""

    mode: str
    phases: list[str]
    duration_s: float
    uploads: int
    bytes: int
    uploads_per_s: float
    bytes_per_s: float
    offered_per_s: float | None
    """Open model: the arrivals that were due. None in the closed model, and where a phase was cut off."""
    achieved_share: float | None
    """The share of the offered uploads that were acknowledged before their phase was over."""
    lower_bound: bool
    at_capacity: bool
    """Neither is said of an INVALID run."""
    response_us: Latency | None
    """None in the closed model, which has none: what a stalled server delays is never sent. In the open model, uploads
    without an answer are among the samples, with the time that they had waited."""
    service_us: Latency
    transaction_us: Latency
    busy_core_us_per_upload: float | None
    """CPU of the whole machine that was neither idle nor waiting for a disk: load, server, kernel and all else."""
    server_core_us_per_upload: float | None
    """CPU as the kernel charged it to the server's processes. On loopback, part of the server's TCP work is charged
    to the client instead, which is why the number above stands beside it."""
    busy_core_s_per_gib: float | None
    server_core_s_per_gib: float | None
    busiest_worker_share: float | None
    """Its share of a core, in the phase in which that was most."""
    mean_worker_share: float | None
    failures: dict[str, int]
    sizes: list[SizeSummary]


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """The second half of a phase beside its first: by which share more (or less, below 0)."""

    rate: float | None
    """Uploads a second; None where the load did not ask for an even rate."""
    busy_core_us: float | None
    """Busy core-microseconds an upload."""


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio in several blocks: the median, and the two that all lie between."""

    median: float
    lowest: float
    highest: float


class Contrast(msgspec.Struct, frozen=True, kw_only=True):
    """What mode `one` is to mode `other`, as ratios within blocks of neighbouring phases. A ratio that some block does
    not know is None."""

    one: str
    other: str
    blocks: int
    coverage: float
    """The probability that the lowest and the highest of so many ratios surround the true median."""
    uploads_per_s: Ratio | None
    transaction_us: Ratio | None
    """The ratio of mean transactions, connect and close included where they happened."""
    busy_core_us: Ratio | None


class LineFit(msgspec.Struct, frozen=True, kw_only=True):
    """request + connection / K, in microseconds; `r_squared` is the share of the scatter that the line explains."""

    request: float
    connection: float
    r_squared: float


class SweepFit(msgspec.Struct, frozen=True, kw_only=True):
    """What a request and what a connection costs, from a sweep of uploads per connection."""

    uploads_per_connection: list[int]
    """0 means no end."""
    transaction_us: LineFit | None
    busy_core_us: LineFit | None


class PhaseSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One phase as it went. CPU is None where it was not recorded, and what only the open model has in the other."""

    name: str
    kind: PhaseKind
    mode: str
    uploads_per_connection: int
    start_s: float
    duration_s: float
    uploads: int
    late: int
    """Those of `uploads` that were acknowledged only after the phase's end; they are in no rate."""
    carried: int
    """Late uploads of the phase before: this one had to take them too."""
    in_flight_at_end: float | None
    """Uploads that a server which keeps up has under way when the phase ends: its highest rate times how long an
    upload takes when nothing is queued (Little's law)."""
    bytes: int
    connections: int
    failures: dict[str, int]
    offered: int | None
    """Arrivals that were due, those that were dropped included. None also where the phase was cut off."""
    offered_per_s: float | None
    achieved_share: float | None
    """The share of the offered uploads that were acknowledged before the phase was over."""
    transaction_mean_us: float | None
    drift: Drift | None
    """None also in an INVALID run."""
    schedule_lag_us: Latency | None
    pool_wait_us: Latency | None
    hiccup_us: Latency
    """How late sleepers of 1 ms woke beside the load: it measures the machine."""
    busy_core_s: float | None
    foreign_share: float | None
    """The share of `busy_core_s` that was charged to no process of server, load or recorder: other programs, and the
    kernel's own threads. None where the server was not recorded."""
    machine_share: float | None
    """How busy the cores of this machine were, with whatever, that the load may run on. None where no load runs
    here."""
    server_cpu_s: float | None
    busiest_worker_share: float | None
    steal_share: float | None
    """The share of all cores' time that the hypervisor gave to others."""
    disk_wait_share: float | None
    """The share of all cores' time that was idle because something waited for a disk."""
    mean_worker_share: float | None
    generator_share: float | None
    """What the load process that used most, on whatever host, used of a core."""
    generator_run_delay_share: float | None
    """The share of the time in which a load process was ready to run and waited for a CPU: of the one that waited
    most."""
    recorder_missed_share: float
    server_throttled_share: float | None = None
    """The share of the periods of its CPU quota in which the server had used it up: of the quota that most held it up.
    None where nothing limits its CPU."""
    load_throttled_share: float | None = None

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s

    @property
    def long_enough(self) -> bool:
        """Whether a rate of it means something."""
        return self.duration_s >= SHORTEST_PHASE_S - 1e-6  # a difference of two rounded times

    @property
    def measured(self) -> bool:
        return self.kind == "measure" and self.long_enough

    @property
    def mostly_foreign(self) -> bool:
        """Its busy CPU says more of other programs than of uploads."""
        return self.foreign_share is not None and self.foreign_share > FOREIGN_LIMIT

    @property
    def busy_core_us_per_upload(self) -> float | None:
        return None if self.busy_core_s is None or not self.acknowledged else self.busy_core_s / self.acknowledged * 1e6

    @property
    def acknowledged(self) -> int:
        """Uploads that were acknowledged before its end: what rates and costs are about."""
        return self.uploads - self.late

    @property
    def dropped(self) -> int:
        return self.failures.get(DROPPED, 0)

    @property
    def unanswered(self) -> int:
        return sum(self.failures.get(code, 0) for code in UNANSWERED)

    @property
    def short_of_offered(self) -> bool:
        """Fewer were taken than came: some were late or dropped. One that failed was sent, and ended. What is in flight
        at a phase's end is late, however well the server keeps up: as many count as taken as were in flight at its
        start, or would be at its end if nothing was queued."""
        in_flight = max(self.carried, min(self.late, self.in_flight_at_end or 0))
        taken = self.acknowledged + in_flight + sum(self.failures.values()) - self.dropped
        return bool(self.offered) and taken < ACHIEVED_LIMIT * (self.offered or 0)

    @property
    def generator_limited(self) -> bool:
        return self.generator_share is not None and self.generator_share > GENERATOR_LIMIT

    @property
    def machine_limited(self) -> bool:
        """Load and server had to share a machine that had no time left, and neither filled a core alone."""
        full = self.machine_share is not None and self.machine_share >= CAPACITY
        return full and not self.at_capacity and self.generator_share is not None

    @property
    def load_throttled(self) -> bool:
        """The load stood still for want of its CPU quota, which it may share with the server."""
        return self.load_throttled_share is not None and self.load_throttled_share > THROTTLED_LIMIT

    @property
    def limited(self) -> bool:
        """Something else than the server was the limit, so its rates are a lower bound."""
        return self.generator_limited or self.machine_limited or self.load_throttled

    @property
    def at_quota(self) -> bool:
        """The server used all CPU that it is allowed."""
        return self.server_throttled_share is not None and self.server_throttled_share >= CAPACITY

    @property
    def at_capacity(self) -> bool:
        if self.generator_share is None or self.generator_share > GENERATOR_LIMIT or self.load_throttled:
            return False
        return self.at_quota or (self.busiest_worker_share is not None and self.busiest_worker_share >= CAPACITY)


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
    cores: str | None = None
    """The cores that it was last seen to be allowed to run on, as the kernel lists them: `0-3,8`."""

    @property
    def name(self) -> str:
        """What people call it; not unique, since a replaced worker's slot passes on."""
        return ROLE_NAMES[self.role] + ("" if self.slot is None else f" {self.slot}")


class ServerSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The server as a whole. `cpu_total_s` is from its birth on, workers that were replaced included."""

    workers: int
    """Slots, or the most workers alive at once where slots are unknown."""
    cpu_total_s: float | None
    uploads_stored: int | None
    """What its scoreboard rose by, between the first and the last tick."""
    memory_peak_bytes: int | None
    """The largest sum over its processes at one tick, of PSS; of RSS where PSS was never read of all of them."""
    memory_kind: Literal["PSS", "RSS"]
    memory_readings: int
    """At how many ticks it was read. What forked processes share is in the sum of their PSS once; in that of USS it
    would be missing, and in that of RSS it is there once for each. But PSS is read seldom, since it is dear."""
    rss_peak_bytes: int | None
    """The largest sum of RSS, which is read at every tick: an upper bound of what was used."""
    uss_per_connection_bytes: float | None
    """What a connection takes, from a run in which their number rose or fell by 100 at least; None where the data do
    not carry it."""


class TcpSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel saw of TCP over the run. Queues and states are of the server's port, the rest of the machine."""

    queue_waiting: int | None
    """The most connections that waited to be accepted from one socket at one tick, relative to `queue_limit`."""
    queue_limit: int | None
    dropped: int | None
    """Connections that the server's listening sockets had no room for; None where the kernel does not tell."""
    states: dict[str, int]
    """The most connections in each state at one tick."""
    time_wait: int | None
    """The most sockets of the machine in TIME_WAIT."""
    counters: dict[str, int]
    """What the kernel counted meanwhile, by its own names."""
    sent_bytes: dict[str, int]
    """Bytes by the name of the network interface."""


class ControlGroupSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A control group that limited server or load, and what happened in it while it was recorded. None is what it does
    not limit, or the kernel does not tell."""

    path: str
    """Its folder."""
    roles: list[Role]
    quota_cores: float | None
    periods: int | None
    throttled_periods: int | None
    """Those in which the quota was used up, and all processes stood still."""
    throttled_s: float | None
    """For how long, summed over cores."""
    memory_limit_bytes: int | None
    """From which on the kernel takes memory back."""
    memory_peak_bytes: int | None
    """The most that was read, at few ticks; files in the page cache included."""
    memory_limit_hits: int | None
    oom_kills: int | None


class LoadSummary(msgspec.Struct, frozen=True, kw_only=True):
    """All phases together, as the load counted them."""

    uploads: int
    failures: dict[str, int]


class ThresholdResult(msgspec.Struct, frozen=True, kw_only=True):
    """A condition under which the run has failed, and what was measured. What could not be measured is broken too."""

    condition: str
    measured: str
    """For people: the value of each mode."""
    broken: bool
    why: str
    """Empty where it held."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """summary.json."""

    schema_version: int = SUMMARY_VERSION
    run: str
    model: Model
    verdict: Verdict
    reason: str
    """In a word: of an INVALID run what happened first, which the rest may follow from."""
    also_broken: list[str] = []
    """The rest, of an INVALID run."""
    binding: str
    """What was at its limit, with its evidence; empty when nothing was measured, or nothing that may be used."""
    exit_code: int
    """What a command exits with that judges the run: 4 INVALID or NOISY, 3 a threshold is broken, 1 the run failed, or
    an upload did and no threshold says how many may; 0 none of these."""
    warnings: list[str]
    thresholds: list[ThresholdResult]
    modes: list[ModeSummary]
    contrast: Contrast | None
    """Short connections against long ones, where both were measured. This and `sweep` are None in an INVALID run."""
    sweep: SweepFit | None
    phases: list[PhaseSummary]
    processes: list[ProcessSummary]
    server: ServerSummary
    tcp: TcpSummary | None
    load: LoadSummary
    control_groups: list[ControlGroupSummary] = []
