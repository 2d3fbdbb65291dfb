"""Thresholds: conditions under which a run has failed, as people write them: `p99(response) > 20ms; failures > 1%`.

    METRIC                      VALUE
    p99(response)               20ms             p50 p90 p95 p99 p99.9 max, of any of DURATIONS; us ms s min h
    failures                    0  or  1%        uploads that failed, or their share of all
    uploads/s                   1000             acknowledged uploads a second
    cpu(server)                 1.5  or  150%    of the whole server, in cores
    memory(server)              500MiB           the largest sum over its processes

between them one of > >= < <=. This file only reads them, before a run begins: the load refuses a condition that nobody
could evaluate afterwards. What they are compared with is the business of analysis/conditions.py.
"""

import math
import operator
import re
from dataclasses import dataclass
from typing import Literal

from reports import run_folder
from server.units import parse_duration, parse_size

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}

# All but those that say nothing of the server, or of how it was loaded.
DURATIONS = tuple(name for name in run_folder.DURATIONS if name not in ("unanswered", "think"))

OPEN_MODEL_ONLY = {"response": "transaction", "schedule_lag": "", "pool_wait": ""}  # and what to use instead

Metric = Literal["latency", "failures", "failed share", "uploads/s", "cpu", "memory"]

_OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_CONDITION = re.compile(r"([^<>=]+)(>=|<=|>|<)([^<>=]+)")
_LATENCY = re.compile(r"([a-z0-9.]+)\(([a-z_]+)\)")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_METRICS = "pNN(DURATION), failures, uploads/s, cpu(server) or memory(server)"


class ThresholdError(ValueError):
    """A condition that cannot be read; the text is one sentence that says which, and what would be right."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """One condition. `limit` is in microseconds, uploads, a share (0.01 is 1 %), uploads/s, cores or bytes."""

    text: str
    """The condition in its normal form, which `parse` reads again."""
    metric: Metric
    operator: str
    """One of > >= < <=."""
    limit: float
    duration: str = ""
    """What a latency is of, one of DURATIONS; empty for the other metrics."""
    percentile: float = 0.0
    """Which one of a latency; 100 is the maximum."""

    def broken_by(self, value: float) -> bool:
        return bool(_OPERATORS[self.operator](value, self.limit))

    @property
    def wants_less(self) -> bool:
        """Whether a larger value is worse."""
        return self.operator in (">", ">=")


def parse_all(text: str) -> list[Threshold]:
    """Several, separated by `;`; none in an empty text. ThresholdError at the first that is wrong."""
    return [parse(part) for part in text.split(";") if part.strip()]


def parse(text: str) -> Threshold:
    """One condition. ThresholdError when it is none."""
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ThresholdError(f"{text.strip()!r} is no condition: write METRIC > VALUE, such as 'p99(response) > 20ms'")
    metric, sign, value = ("".join(part.split()) for part in match.groups())
    condition = f"{metric} {sign} {value}"
    try:
        return _threshold(condition, metric, sign, value)
    except ValueError as error:
        raise ThresholdError(f"{condition!r} cannot be a condition: {error}") from None


def _threshold(text: str, metric: str, sign: str, value: str) -> Threshold:
    """What the two halves of a condition mean. ValueError that says what is wrong with which of them."""
    if metric == "failures":
        if value.endswith("%"):
            return Threshold(text, "failed share", sign, _percent(value))
        return Threshold(text, "failures", sign, _number(value, "uploads, or a share such as 1%"))
    if metric == "uploads/s":
        return Threshold(text, "uploads/s", sign, _number(value, "uploads a second"))
    if metric == "cpu(server)":
        cores = _percent(value) if value.endswith("%") else _number(value, "cores, or a share of one such as 80%")
        return Threshold(text, "cpu", sign, cores)
    if metric == "memory(server)":
        return Threshold(text, "memory", sign, parse_size(_with_unit(value, "KiB, MiB or GiB", "MiB")))
    return _latency(text, metric, sign, value)


def _latency(text: str, metric: str, sign: str, value: str) -> Threshold:
    match = _LATENCY.fullmatch(metric)
    if match is None:
        raise ValueError(f"there is no metric {metric!r}, write {_METRICS}")
    percentile, duration = match.groups()
    if percentile not in PERCENTILES:
        raise ValueError(f"there is no {percentile!r} of a duration, write one of {', '.join(PERCENTILES)}")
    if duration not in DURATIONS:
        raise ValueError(f"there is no duration {duration!r}, write one of {', '.join(DURATIONS)}")
    limit_us = parse_duration(_with_unit(value, "us, ms or s", "ms")) * 1e6
    return Threshold(text, "latency", sign, limit_us, duration, PERCENTILES[percentile])


def _with_unit(value: str, units: str, example: str) -> str:
    """The value, unless it is a bare number: whoever writes 500 hardly means 500 bytes or seconds."""
    if _NUMBER.fullmatch(value):
        raise ValueError(f"{value!r} has no unit, write {units}, such as {value}{example}")
    return value


def _percent(value: str) -> float:
    """The share: 0.01 for 1%."""
    return _number(value.removesuffix("%"), "percent") / 100


def _number(value: str, of_what: str) -> float:
    if _NUMBER.fullmatch(value) is None or not math.isfinite(float(value)):
        raise ValueError(f"{value!r} is no number of {of_what}")
    return float(value)
