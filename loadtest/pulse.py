"""How a run goes now: its last second, in words, and what the verdict would say of it. Shown while the run goes on.

The report judges measured phases as a whole; this judges one second by the same limits, so that a person who watches
need not wait for the end to hear that the machine is too busy.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reports.run_folder import LoadTick, SecondOfUploads, UploadsLine
from reports.summary import GENERATOR_LIMIT, HICCUP_LIMIT_US, RUN_DELAY_LIMIT
from server.failure_codes import DROPPED


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a question, its answer, and what to make of it."""

    what: str
    now: str
    means: str = ""


class Pulse:
    """The last second of a run."""

    def __init__(self) -> None:
        self._ticks: dict[tuple[str, int], tuple[LoadTick, LoadTick]] = {}
        """load process -> its last two ticks"""
        self._lines: Sequence[UploadsLine] = ()
        self._lasted_s = 1.0
        self._failed = 0
        self._dropped = 0
        self.any_acknowledged = False
        """Whether an upload has succeeded since the run's start."""
        self._broken = ""

    def broken(self, why: str) -> None:
        """The run will be INVALID. What came first is the cause."""
        self._broken = self._broken or why

    def tick(self, tick: LoadTick) -> None:
        _, before = self._ticks.get((tick.host, tick.pid), (tick, tick))
        self._ticks[tick.host, tick.pid] = before, tick

    def second(self, lines: Sequence[UploadsLine], lasted_s: float) -> None:
        """Where a phase changes it may last less, and the first one more."""
        self._lines = lines
        self._lasted_s = lasted_s
        for line in lines:
            for name in line.names.values():
                dropped = name.failures.get(DROPPED, 0)
                self._dropped += dropped
                self._failed += sum(name.failures.values()) - dropped
                self.any_acknowledged |= name.count > 0

    @property
    def any_failed(self) -> bool:
        """Whether an upload has failed since the run's start."""
        return self._failed + self._dropped > 0

    def rows(self) -> list[Row]:
        if not self._lines:
            told = ("INVALID", self._broken) if self._broken else ("–", "nothing was uploaded yet")
            return [Row("Verdict", *told)]
        busiest = self._share(lambda tick: tick.cpu_s)
        delayed = self._share(lambda tick: (tick.run_delay_ns or 0) / 1e9)
        hiccup_us = max((line.hiccup_us.p99 for line in self._lines if line.hiccup_us is not None), default=0.0)
        names = [name for line in self._lines for name in line.names.values()]
        last = [tick for _, tick in self._ticks.values()]
        verdict, why = self._invalid(names) or _verdict(busiest, delayed, hiccup_us)
        slowest = max((shown.p99 for name in names if (shown := name.response_us or name.transaction_us)), default=0.0)
        return [
            Row("Verdict", verdict, why),
            Row("Phase", self._lines[-1].phase),
            Row("Uploads", f"{sum(name.count for name in names) / self._lasted_s:,.0f}/s"),
            Row("p99 of the slowest size class", f"{slowest / 1000:,.2f} ms"),
            Row("Failed", f"{self._failed:,}", "since the run's start"),
            Row("Dropped arrivals", f"{self._dropped:,}", "due while the most uploads were in flight"),
            Row("In flight", f"{sum(tick.in_flight for tick in last):,}"),
            Row("Arrivals waiting", f"{sum(tick.queued for tick in last):,}"),
            Row(
                "Busiest load process", f"{busiest:.0%} of a core", f"over {GENERATOR_LIMIT:.0%} it is the limit itself"
            ),
            Row("Load waited for a core", f"{delayed:.0%} of the time", f"over {RUN_DELAY_LIMIT:.0%} it is too noisy"),
            Row("Hiccups, p99", f"{hiccup_us:,.0f} µs", f"over {HICCUP_LIMIT_US:,.0f} µs the machine is too noisy"),
        ]

    def _invalid(self, names: Sequence[SecondOfUploads]) -> tuple[str, str] | None:
        """A second without a single upload measures nothing."""
        if self._broken:
            return "INVALID", self._broken
        failures: Counter[str] = Counter()
        for name in names:
            failures.update(name.failures)
        if any(name.count for name in names) or not failures:
            return None
        told = ", ".join(f"{code} {number:,}" for code, number in failures.most_common())
        return "INVALID", f"this second, all uploads failed: {told}"

    def _share(self, counter: Callable[[LoadTick], float]) -> float:
        """The largest share of the last tick's time, of all load processes."""
        shares = [
            (counter(now) - counter(before)) / (now.mono_ns - before.mono_ns) * 1e9
            for before, now in self._ticks.values()
            if now.mono_ns > before.mono_ns
        ]
        return max(shares, default=0.0)


def _verdict(busiest: float, delayed: float, hiccup_us: float) -> tuple[str, str]:
    if hiccup_us > HICCUP_LIMIT_US or delayed > RUN_DELAY_LIMIT:
        return "NOISY", "this second, the machine was too busy to measure on"
    if busiest > GENERATOR_LIMIT:
        return "LOWER BOUND", "this second, the load generator was the limit, not the server"
    return "VALID so far", "the whole run is judged at its end"
