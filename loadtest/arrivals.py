"""When uploads are due in the open model: pure functions of time. No clock here, so a schedule is tested as values.

Arrival i of a phase is due where the integral of the rate over the phase passes i. The time is computed from i, never
added up, so a long phase does not drift. A Poisson process has its arrivals from a random generator instead.

A schedule comes in cells of one second, each made on its own: memory stays constant however long a phase is, and any
process can make any part of it. Several load processes stripe each cell, and together send exactly what one would.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from loadtest.option_error import OptionError

ProfileKind: TypeAlias = Literal["constant", "poisson", "ramp", "step"]
Cell: TypeAlias = tuple[int, NDArray[np.int64]]
"""Index of the cell's first arrival in its phase, and the arrivals in ns from the phase's start, ascending."""
_Floats: TypeAlias = NDArray[np.floating[Any]]

MAX_RATE = 1_000_000.0
KINDS: tuple[ProfileKind, ...] = get_args(ProfileKind)

_NS = 1_000_000_000
_FAR_NS = 2.0**62  # later than any phase; an int64 holds it
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_WRITE = {
    "constant": "write one number, such as 2000",
    "poisson": "write one number, such as 2000",
    "ramp": "write FROM-TO, or TO alone to begin at 0, such as 100-2000",
    "step": "write the rate of each step, or the last alone for 25, 50, 75 and 100 % of it, such as 500,1000,2000",
}
_STEPS = (0.25, 0.5, 0.75, 1.0)  # of a single rate


@dataclass(frozen=True, slots=True)
class Profile:
    """How the rate goes over a phase. `rates` are arrivals a second: constant and poisson have one, ramp has its first
    and its last, step has one for each of the equal parts of the phase."""

    kind: ProfileKind
    rates: tuple[float, ...]


def parse_profile(kind: str, rate: str) -> Profile | None:
    """The profile of two options' texts. None for a rate of 0 or none: no open model. OptionError otherwise."""
    if kind not in KINDS:
        raise OptionError(f"arrival profile is {kind!r}, not one of {', '.join(KINDS)}")
    if not rate.strip():
        return None
    parts = [rate] if kind in ("constant", "poisson") else rate.split("-" if kind == "ramp" else ",")
    rates = [_rate(part.strip(), rate, kind) for part in parts]
    if len(rates) == 1 and rates[0] == 0:
        return None
    if kind == "ramp" and len(rates) > 2:
        raise _not_a_rate(rate, kind)
    if not any(rates):
        raise OptionError(f"arrival rate {rate!r} is 0 all the time: nothing would be uploaded")
    if len(rates) == 1 and kind in ("ramp", "step"):
        rates = [0.0, rates[0]] if kind == "ramp" else [rates[0] * share for share in _STEPS]
    return Profile(kind, tuple(rates))


def _rate(part: str, whole: str, kind: str) -> float:
    if not _NUMBER.fullmatch(part):
        raise _not_a_rate(whole, kind)
    rate = float(part)
    if rate > MAX_RATE:
        raise OptionError(f"arrival rate {part!r} is over {MAX_RATE:,.0f} a second")
    return rate


def _not_a_rate(text: str, kind: str) -> OptionError:
    return OptionError(f"arrival rate {text!r} is not one of profile {kind}: {_WRITE[kind]}")


def warm_up(profile: Profile) -> Profile | None:
    """What to warm up with: the rate that the phase begins with, all the time. None where that is 0."""
    if profile.kind in ("constant", "poisson"):
        return profile
    return Profile("constant", profile.rates[:1]) if profile.rates[0] else None


def cells(profile: Profile, duration_s: float, seed: int) -> Iterator[Cell]:
    """The arrivals of one phase, second by second, empty seconds too. All are in [0, duration). The seed matters to a
    Poisson process only. Of constant and Poisson cells the duration only cuts the last one off."""
    duration_ns = round(duration_s * _NS)
    first = 0
    for cell, start_ns in enumerate(range(0, duration_ns, _NS)):
        end_ns = min(start_ns + _NS, duration_ns)
        if profile.kind == "poisson":
            offsets = _poisson(profile.rates[0], seed, cell)
            offsets = offsets[: np.searchsorted(offsets, end_ns)]
        else:
            offsets = _even(profile, duration_ns, start_ns, end_ns)[1]
        yield first, offsets
        first += len(offsets)


def stripe(first: int, offsets: NDArray[np.int64], k: int, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What load process k of n sends of a cell: (indices, offsets) of the arrivals whose index is k modulo n."""
    skip = (k - first) % n
    return np.arange(first + skip, first + len(offsets), n, dtype=np.int64), offsets[skip::n]


def offered(profile: Profile, duration_s: float, seed: int, until_s: float) -> int:
    """How many arrivals of a phase are due before `until_s` of it."""
    duration_ns = round(duration_s * _NS)
    until_ns = min(round(until_s * _NS), duration_ns)
    if until_ns <= 0:
        return 0
    if profile.kind != "poisson":
        first, offsets = _even(profile, duration_ns, until_ns - 1, until_ns)
        return first + len(offsets)
    last = until_ns // _NS
    rate = profile.rates[0]
    whole = sum(int(_generator(seed, cell).poisson(rate)) for cell in range(last))
    return whole + int(np.searchsorted(_poisson(rate, seed, last), until_ns))


# ── a Poisson process ─────────────────────────────────────────────────────────────────────────────────────────────


def _generator(seed: int, cell: int) -> np.random.Generator:
    return np.random.default_rng((seed, cell))


def _poisson(rate: float, seed: int, cell: int) -> NDArray[np.int64]:
    """One cell: given how many arrivals there are, those of a Poisson process are uniform and independent."""
    generator = _generator(seed, cell)
    offsets = generator.integers(cell * _NS, (cell + 1) * _NS, size=generator.poisson(rate))
    offsets.sort()
    return offsets


# ── rates that are given, not drawn ───────────────────────────────────────────────────────────────────────────────


def _even(profile: Profile, duration_ns: int, start_ns: int, end_ns: int) -> Cell:
    """The arrivals in [start, end). The integral of the rate says where to look, give or take the rounding of a float;
    the arrivals' own times decide. So each belongs to exactly one cell, at the edges too."""
    margin = 2
    lowest = max(0, int(_integral(profile, duration_ns, start_ns)) - margin)
    indices = np.arange(lowest, int(_integral(profile, duration_ns, end_ns)) + margin + 1, dtype=np.int64)
    times = _times(profile, duration_ns, indices)
    low, high = np.searchsorted(times, (start_ns, end_ns))
    return lowest + int(low), times[low:high]


def _integral(profile: Profile, duration_ns: int, until_ns: int) -> float:
    """How many arrivals the rate adds up to, from the phase's start."""
    until_s = until_ns / _NS
    if profile.kind == "constant":
        return profile.rates[0] * until_s
    if profile.kind == "ramp":
        low, high = profile.rates
        return low * until_s + (high - low) * until_s * (until_ns / duration_ns) / 2
    edges_ns, sums = _steps(profile, duration_ns)
    return float(np.interp(until_ns, edges_ns, sums))


def _times(profile: Profile, duration_ns: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """When these arrivals are due, in ns: the inverse of the integral. Behind the last one: at the end or later."""
    times: _Floats
    if profile.kind == "constant":
        times = indices * float(_NS) / profile.rates[0]
    elif profile.kind == "ramp":
        times = _ramp_times(profile, duration_ns, indices)
    else:
        times = _step_times(profile, duration_ns, indices)
    return np.clip(times, 0.0, _FAR_NS).astype(np.int64)


def _ramp_times(profile: Profile, duration_ns: int, indices: NDArray[np.int64]) -> _Floats:
    begin, end = profile.rates
    if begin <= end:
        return _rise_times(begin, end, duration_ns, indices.astype(np.float64))
    total = _integral(profile, duration_ns, duration_ns)
    return duration_ns - _rise_times(end, begin, duration_ns, total - indices)  # a fall is a rise seen from its end


def _rise_times(low: float, high: float, duration_ns: int, counts: _Floats) -> _Floats:
    """When a rate that rises from low to high adds up to these counts, in ns."""
    per_s2 = (high - low) / (duration_ns / _NS)
    # The quadratic formula in the form that divides by a sum: the usual one loses all digits when the ramp is flat.
    divisor = low + np.sqrt(np.maximum(low * low + 2 * per_s2 * counts, 0.0))
    times = np.zeros(len(counts))  # where a rise from 0 begins, both sides of the division are 0
    np.divide(2.0 * _NS * counts, divisor, out=times, where=divisor > 0)
    return times


def _step_times(profile: Profile, duration_ns: int, indices: NDArray[np.int64]) -> _Floats:
    edges_ns, sums = _steps(profile, duration_ns)
    # From the right: where a step has rate 0, what is due at its beginning belongs to the next step that has not.
    step = np.searchsorted(sums, indices, side="right") - 1
    rates = np.array((*profile.rates, np.inf))  # behind the last step all are due at its end
    times: _Floats = edges_ns[step] + (indices - sums[step]) * _NS / rates[step]
    return times


def _steps(profile: Profile, duration_ns: int) -> tuple[_Floats, _Floats]:
    """The edges of the steps, and how many arrivals the rate adds up to until each."""
    count = len(profile.rates)
    edges_ns = duration_ns * (np.arange(count + 1) / count)
    sums = np.concatenate(([0.0], np.cumsum(profile.rates) * (duration_ns / _NS / count)))
    return edges_ns, sums
