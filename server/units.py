"""Sizes, durations and shares as people write them: `64KiB`, `1.5MB`, `30s`, `500ms`, `5%`; and kinds of values that
options can have, each with its units. A leaf: all rooms read it.

`parse_` reads what a person typed, `write_` is its opposite and reads back as the same value, `format_` is for reading
only and may round.

Units are exact: KiB, MiB, GiB are powers of 1024 (`K`, `M`, `G` and lower case mean the same); kB, MB, GB are powers of
1000. A minute is `min`: of `m`, which is a size too, nobody knows what is meant. What cannot be read is a ValueError
whose text says what would be right.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

MAX_UNIX_PATH_BYTES = 107  # of a unix socket: sun_path of struct sockaddr_un (linux/un.h) has one more, for the NUL

_BINARY = {"": 1, "b": 1, "k": 1 << 10, "kib": 1 << 10, "m": 1 << 20, "mib": 1 << 20, "g": 1 << 30, "gib": 1 << 30}
_SIZES = _BINARY | {"kb": 1000, "mb": 1000**2, "gb": 1000**3}
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "min": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zµ%]*)\s*", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes. ValueError for anything that is not a size of whole bytes."""
    value = _parse(text, _SIZES)
    if value is None or value != int(value):
        raise ValueError(f"{text!r} is not a size: write bytes, or a number with KiB, MiB or GiB, such as 64KiB")
    return int(value)


def parse_duration(text: str) -> float:
    """Seconds. ValueError for anything that is not a duration."""
    value = _parse(text, _SECONDS)
    if value is None:
        raise ValueError(f"{text!r} is not a duration: write seconds, or a number with ms, s, min or h, such as 30s")
    return value


def parse_share(text: str) -> float:
    """A part of one, from `5%` or `0.05`. ValueError for anything that is not one: `5` would be five times all."""
    value = _parse(text, {"": 1.0, "%": 0.01})
    if value is None or (value > 1 and "%" not in text):
        raise ValueError(f"{text!r} is not a share: write percent, such as 5%")
    return value


def _parse(text: str, units: dict[str, int] | dict[str, float]) -> float | None:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2].lower() not in units:
        return None
    value = float(match[1]) * units[match[2].lower()]
    return value if math.isfinite(value) else None


def format_size(size_bytes: float) -> str:
    """`4 KiB`, `1.5 MiB`: three significant digits at most."""
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes:.0f} B"


def write_size(size_bytes: int) -> str:
    """`16GiB`, `1500B`: the largest unit of which it is a whole number."""
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}"
    return f"{size_bytes}B"


def write_duration(seconds: float) -> str:
    """`30s`, `0.5s`, to the nanosecond."""
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def format_age(seconds: float) -> str:
    """`42s`, `3m07s`, `2h05m`, `3d04h`."""
    whole = int(seconds)
    for big, big_s, small, small_s in ("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1):
        if whole >= big_s:
            return f"{whole // big_s}{big}{whole % big_s // small_s:02}{small}"
    return f"{whole}s"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: how it is read from text (ValueError when it is none), and written for people."""

    metavar: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str
    is_text: bool = False
    """Whether a file must put it in quotes; sizes, numbers and times may stand there bare."""
    choices: tuple[str, ...] = ()
    """All that can work, if these are so few."""


def choice(of: object) -> Kind:
    """One of the words of a Literal."""
    words = get_args(of)
    return Kind("|".join(words), str, is_text=True, choices=words)


SIZE = Kind("SIZE", parse_size, write_size)
DURATION = Kind("TIME", parse_duration, write_duration)
