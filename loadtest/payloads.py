"""What is uploaded: generated sizes or a folder of real files, held once per process.

Which payload is sent next is a function of (seed, user, upload number) only, in the open model of (seed, arrival), so
every phase of a run, and every run with the same seed, sends the same sequence. Names come from a bounded set: however
long a run is, the store never holds more than `NAMES_PER_PAYLOAD` copies of each payload.

Generated payloads are windows into one buffer as large as the largest: many sizes take no more memory than one.
"""

import logging
import math
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from loadtest.client import name_of
from loadtest.option_error import OptionError
from server.protocol import RemoteProtocolError, digest_of, safe_file_name
from server.units import format_size, parse_size

log = logging.getLogger("socketswarm")  # which `run` leaves as it is: then warnings go to standard error

DEFAULT_MIX = "1KiB:10,4KiB:35,16KiB:25,64KiB:20,256KiB:8,1MiB:2"
NAMES_PER_PAYLOAD = 8
VARIANTS_PER_SIZE = 4
MAX_TOTAL_BYTES = 1 << 30  # of memory: the largest of generated sizes, all files of a folder
MAX_WEIGHT = 1_000_000  # so that no sum of weights overflows
LOGNORMAL_SIZES = 64
TELL_EVERY_S = 2.0  # that a folder takes longer than one would wait for in silence
MAX_SIGMA = 4.0  # the largest of 64 sizes is then 16,000 times the median

_KINDS = {stat.S_IFLNK: "link", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
_SEQUENCE_LENGTH = 1 << 14
_SHIFT_BYTES = 4096  # from one variant's window to the next
_LOGNORMAL = "lognormal:"
_WORDS = (
    "accept address answer arrival backlog balance batch buffer bytes cache client close cluster connect core count "
    "cycle daemon delay digest disk drain event file folder frame header index kernel latency limit listen load master "
    "memory message name network number packet page parent path payload phase port process protocol queue rate reader "
    "record reply report request schedule sender server signal size slot socket status store"
)
_WORDS_AT_ONCE = 1 << 20


class PayloadError(OptionError):
    """The payloads cannot be had; the text says which value and what would be right."""


@dataclass(frozen=True, slots=True)
class Payload:
    """One file's bytes, in memory. Is a client `Body`."""

    name: str
    view: memoryview
    known_digest: str | None
    names: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        return len(self.view)

    def pieces(self) -> Iterable[memoryview]:
        return (self.view,)

    def digest(self) -> str | None:
        return self.known_digest


class PayloadSet:
    """All payloads of a run and the sequence in which users send them."""

    def __init__(self, payloads: Sequence[Payload], weights: Sequence[float], seed: int) -> None:
        self.payloads = tuple(payloads)
        self.largest_bytes = max(payload.size_bytes for payload in payloads)
        shares = np.asarray(weights, dtype=float)
        shares /= shares.sum()
        self._seed = seed
        generator = np.random.default_rng(seed)
        self._sequence: list[int] = generator.choice(len(payloads), size=_SEQUENCE_LENGTH, p=shares).tolist()
        self._earlier, self._in_sequence = _count_earlier(self._sequence, len(payloads))

    def pick(self, user: int, upload: int) -> tuple[Payload, str]:
        """The payload of a user's n-th upload in a phase, and the name to store it under."""
        start, stride, first_name = _course(self._seed, user)
        payload = self.payloads[self._sequence[(start + upload * stride) % _SEQUENCE_LENGTH]]
        return payload, payload.names[(first_name + upload) % len(payload.names)]

    def pick_arrival(self, index: int) -> tuple[Payload, str]:
        """The payload of a phase's arrival in the open model, and the name to store it under.

        A payload takes its names in turn: in the open model many uploads are under way at once, and two of one name
        would meet at the same file.
        """
        rounds, place = divmod(index, _SEQUENCE_LENGTH)
        chosen = self._sequence[place]
        payload = self.payloads[chosen]
        turn = rounds * self._in_sequence[chosen] + self._earlier[place]
        return payload, payload.names[turn % len(payload.names)]

    def store_bytes(self, at_once: int) -> int:
        """The most that the store can need: each name once, and temporary files of `at_once` uploads under way."""
        sizes: dict[str, int] = {}
        for payload in self.payloads:
            for name in payload.names:  # of a folder's files, several may have the same
                sizes[name] = max(payload.size_bytes, sizes.get(name, 0))
        return sum(sizes.values()) + at_once * self.largest_bytes


@cache
def _course(seed: int, user: int) -> tuple[int, int, int]:
    """How a user goes through the sequence of payloads: (place to start, places from one upload to the next, first
    name). Mixed from the number, not a multiple of it: numbers of one load process are 1,024 apart, see
    `LoadProcess.next_user`, so multiples would meet again after 16 users. An odd stride visits every place."""
    start, stride, first_name = np.random.SeedSequence((seed, user)).generate_state(3).tolist()
    return start % _SEQUENCE_LENGTH, stride % _SEQUENCE_LENGTH | 1, first_name


def _count_earlier(sequence: Sequence[int], kinds: int) -> tuple[list[int], list[int]]:
    """For each place of a sequence, how often its number came before; for each number, how often it comes at all."""
    counts = [0] * kinds
    earlier = []
    for number in sequence:
        earlier.append(counts[number])
        counts[number] += 1
    return earlier, counts


def parse_mix(text: str) -> list[tuple[int, float]]:
    """Sizes and weights of `4KiB:70,64KiB:25,1MiB:5`; a weight that is not given is 1. PayloadError otherwise.

    `lognormal:MEDIAN,SIGMA` gives LOGNORMAL_SIZES equally likely sizes; SIGMA is the standard deviation of ln(size).
    """
    given = text.strip()
    if given.startswith(_LOGNORMAL):
        mix = _lognormal(given.removeprefix(_LOGNORMAL))
    else:
        mix = [_weighted(part) for part in text.split(",")]
    largest = max(size for size, _ in mix)
    if largest > MAX_TOTAL_BYTES:
        raise PayloadError(
            f"payloads: sizes up to {format_size(largest)}, over {format_size(MAX_TOTAL_BYTES)} of memory"
        )
    return mix


def _weighted(part: str) -> tuple[int, float]:
    size_text, colon, weight_text = part.partition(":")
    size = _size(size_text)
    weight = _number(weight_text) if colon else 1.0
    if not 0 < weight <= MAX_WEIGHT:
        limits = f"above 0 and at most {MAX_WEIGHT:,}"
        raise PayloadError(f"payloads: {weight_text!r} is not a weight: write a number {limits}, such as 4KiB:70")
    return size, weight


def _lognormal(text: str) -> list[tuple[int, float]]:
    """The distribution's quantiles in the middle of equal parts: no draw, so the sizes need no seed."""
    median_text, _, sigma_text = text.partition(",")
    median, sigma = _size(median_text), _number(sigma_text)
    if not 1 <= median <= MAX_TOTAL_BYTES:
        limits = f"from 1 byte to {format_size(MAX_TOTAL_BYTES)}"
        raise PayloadError(f"payloads: {median_text!r} is not a median: write a size {limits}, such as 16KiB")
    if not 0 < sigma <= MAX_SIGMA:
        limits = f"above 0 and at most {MAX_SIGMA:g}"
        raise PayloadError(
            f"payloads: {sigma_text!r} is not a sigma: write a number {limits}, such as {_LOGNORMAL}16KiB,1.5"
        )
    normal = NormalDist()
    quantiles = [normal.inv_cdf((i + 0.5) / LOGNORMAL_SIZES) for i in range(LOGNORMAL_SIZES)]
    return [(max(1, round(median * math.exp(sigma * quantile))), 1.0) for quantile in quantiles]


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise PayloadError(f"payloads: {error}") from None


def _number(text: str) -> float:
    """NaN for what is none: no comparison holds for it."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def generated(
    mix: Sequence[tuple[int, float]], seed: int, *, with_digests: bool, compressible: bool = False
) -> PayloadSet:
    """Payloads of these sizes, random and so incompressible, or text: windows into one shared buffer."""
    weight_of: dict[int, float] = {}
    for size, weight in mix:
        weight_of[size] = weight_of.get(size, 0.0) + weight  # once each: two would share their names
    fill = _text if compressible else _noise
    buffer = fill(max(weight_of) + _SHIFT_BYTES * (VARIANTS_PER_SIZE - 1), seed)
    payloads, weights = [], []
    for size, weight in weight_of.items():
        for variant in range(VARIANTS_PER_SIZE):
            view = buffer[variant * _SHIFT_BYTES : variant * _SHIFT_BYTES + size]
            payloads.append(_payload(f"load-{size}-{variant}", view, NAMES_PER_PAYLOAD, with_digests=with_digests))
            weights.append(weight)
    return PayloadSet(payloads, weights, seed)


def _noise(size_bytes: int, seed: int) -> memoryview:
    """Random bytes, made in place: a generator's own `bytes` needs twice the memory for a moment."""
    return _bytes_of(np.random.PCG64(seed).random_raw(-(-size_bytes // 8)))


def _text(size_bytes: int, seed: int) -> memoryview:
    """Words in random order, eight bytes each: zlib's fastest level makes a quarter of it."""
    vocabulary = np.frombuffer(b"".join(word.ljust(8).encode() for word in _WORDS.split()), dtype=np.uint64)
    generator = np.random.default_rng(seed)
    words = np.empty(-(-size_bytes // 8), dtype=np.uint64)
    for start in range(0, len(words), _WORDS_AT_ONCE):  # the numbers of the words would take as much memory as they
        part = words[start : start + _WORDS_AT_ONCE]
        part[:] = vocabulary[generator.integers(len(vocabulary), size=len(part))]
    return _bytes_of(words)


def _bytes_of(words: NDArray[np.uint64]) -> memoryview:
    return words.data.cast("B").toreadonly()


def from_folder(folder: Path, seed: int, *, with_digests: bool) -> PayloadSet:
    """Every regular file below `folder`, read into memory, all equally likely, stored under its own last name. Links
    are not followed, pipes and devices not read; that there were some is said.

    PayloadError when the folder is missing, empty, too large, or holds a file or folder that cannot be read, or a file
    that cannot be named.
    """
    payloads = []
    for path in _telling(_files(folder), "read"):
        try:
            name = safe_file_name(name_of(path))
            data = path.read_bytes()
        except RemoteProtocolError as error:
            raise PayloadError(f"payload folder: {str(path)!r} cannot be uploaded: {error.message}") from None
        except OSError as error:
            raise PayloadError(f"payload folder: {str(path)!r} cannot be read: {error.strerror}") from None
        except OptionError as error:
            raise PayloadError(f"payload folder: {error}") from None
        payloads.append(_payload(name, memoryview(data), 1, with_digests=with_digests))
    return PayloadSet(payloads, [1.0] * len(payloads), seed)


def is_folder(path: Path) -> bool:
    """Whether it is a folder. `Path.is_dir` raises for a name that is too long, or where nobody may look."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _files(folder: Path) -> list[Path]:
    if not is_folder(folder):
        raise PayloadError(f"payload folder: {str(folder)!r} is not a folder")
    paths, total = [], 0
    passed_over: Counter[str] = Counter()
    try:
        for path in _telling(_below(folder), "found"):
            info = path.lstat()
            if stat.S_ISREG(info.st_mode):
                paths.append(path)
                total += info.st_size
            else:
                passed_over[_KINDS.get(stat.S_IFMT(info.st_mode), "device")] += 1
            if total > MAX_TOTAL_BYTES:
                limit = format_size(MAX_TOTAL_BYTES)
                raise PayloadError(f"payload folder: {str(folder)!r} has over {limit}, the most that is held in memory")
    except OSError as error:
        raise PayloadError(f"payload folder: {error.filename!r} cannot be read: {error.strerror}") from None
    if passed_over:
        kinds = (f"{number:,} {kind}{'s' * (number > 1)}" for kind, number in sorted(passed_over.items()))
        _tell_once(folder, ", ".join(kinds))
    if not paths:
        raise PayloadError(f"payload folder: {str(folder)!r} has no files")
    return sorted(paths)


def _below(folder: Path) -> Iterator[Path]:
    """All that is below it and no folder. OSError for a folder that cannot be read, which `rglob` passes over."""
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        yield from (Path(parent, name) for name in names)
        yield from (path for name in folders if (path := Path(parent, name)).is_symlink())


@cache
def _tell_once(folder: Path, passed_over: str) -> None:
    """A process reads its folder to look whether it can, and once more for each test."""
    log.warning("payload folder: passed over in %r: %s", str(folder), passed_over)


def _refuse(error: OSError) -> NoReturn:
    raise error


def _telling(paths: Iterable[Path], done: str) -> Iterator[Path]:
    """The same, with a sign of life when they are many."""
    due_s = time.monotonic() + TELL_EVERY_S
    for number, path in enumerate(paths):
        if time.monotonic() >= due_s:
            log.warning("payload folder: %s files %s so far", f"{number:,}", done)
            due_s = time.monotonic() + TELL_EVERY_S
        yield path


def _payload(name: str, view: memoryview, names: int, *, with_digests: bool) -> Payload:
    digest = digest_of("xxh3_128", view) if with_digests else None
    return Payload(name, view, digest, (name,) if names == 1 else tuple(f"{name}-{i}" for i in range(names)))
