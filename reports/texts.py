"""How a value becomes text that people read: numbers of three digits, durations, and words that strangers chose.

Every output of a report writes its numbers through this file, so that one number looks the same wherever it stands.
Words that somebody else chose (labels, file names, codes of failures, texts of events) go through `plain` or, in
Markdown, through `markdown`; in HTML, Jinja escapes them besides. A leaf: it knows nothing of runs.
"""

import math
import re
from collections.abc import Iterable

from server.printing import one_line


def significant(value: float) -> str:
    """Three significant digits, thousands separated: 0.0123, 1.20, 12,300."""
    if not value:
        return "0"
    rounded = float(f"{value:.2e}")  # first, for 9.999 has as many decimals as 10.0
    decimals = 2 - math.floor(math.log10(abs(rounded)))
    return f"{rounded:,.{max(0, decimals)}f}"


def percent(share: float) -> str:
    return f"{significant(share * 100)} %"


def mebibytes(size_bytes: float) -> str:
    return f"{significant(size_bytes / (1 << 20))} MiB"


def duration(microseconds: float) -> str:
    """A duration for a sentence, in the unit that keeps the number short: 9,990 µs, 44.7 ms, 155 ms, 12.3 s."""
    value = microseconds
    for unit in ("µs", "ms"):
        if value < 10_000:
            return f"{significant(value)} {unit}"
        value /= 1000
    return f"{significant(value)} s"


def at_least(text: str, is_bound: bool = True) -> str:
    """The text, with the sign of a lower bound where it is one."""
    return f"≥ {text}" if is_bound else text


def ranges(numbers: Iterable[int]) -> str:
    """Numbers of cores or slots, as the kernel writes them: `0-3,8`."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def cores_of(text: str) -> set[int]:
    """The numbers in a text of `ranges`. What is no number there counts for nothing."""
    found = re.findall(r"(\d+)(?:-(\d+))?", text)
    return {number for first, last in found for number in range(int(first), int(last or first) + 1)}


def plain(text: object) -> str:
    """The text in one line, with what cannot be printed escaped."""
    return one_line(str(text))


def markdown(text: object) -> str:
    """The text for Markdown, cells of tables included: characters that mean something there are escaped."""
    return "".join(f"\\{c}" if c in r"\`*_[]<>|#~" else c for c in plain(text))
