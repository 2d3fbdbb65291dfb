"""What is uploaded: generated sizes or a folder of real files, held once per process.

Which payload a user sends next is a function of (seed, user, upload number) only, so every phase of a run, and every
run with the same seed, sends the same sequence. Names come from a bounded set: however long a run is, the store never
holds more than `NAMES_PER_PAYLOAD` copies of each payload.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from server.protocol import RemoteProtocolError, digest_of, safe_file_name
from server.units import format_size, parse_size

DEFAULT_MIX = "1KiB:10,4KiB:35,16KiB:25,64KiB:20,256KiB:8,1MiB:2"
NAMES_PER_PAYLOAD = 8
VARIANTS_PER_SIZE = 4
MAX_TOTAL_BYTES = 1 << 30  # of memory, and so of what one copy of everything takes in the store
MAX_WEIGHT = 1_000_000  # so that no sum of weights overflows

_SEQUENCE_LENGTH = 1 << 14


class PayloadError(ValueError):
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
        shares = np.asarray(weights, dtype=float)
        shares /= shares.sum()
        self.mean_bytes = float(np.dot(shares, [payload.size_bytes for payload in payloads]))
        generator = np.random.default_rng(seed)
        self._sequence: list[int] = generator.choice(len(payloads), size=_SEQUENCE_LENGTH, p=shares).tolist()

    def pick(self, user: int, upload: int) -> tuple[Payload, str]:
        """The payload of a user's n-th upload in a phase, and the name to store it under."""
        # Users start far apart in one shared sequence; an odd stride reaches every place of it.
        place = (user * 40503 + upload) % _SEQUENCE_LENGTH
        payload = self.payloads[self._sequence[place]]
        return payload, payload.names[(user + upload) % len(payload.names)]


def parse_mix(text: str) -> list[tuple[int, float]]:
    """Sizes and weights of `4KiB:70,64KiB:25,1MiB:5`; a weight that is not given is 1. PayloadError otherwise."""
    mix: list[tuple[int, float]] = []
    for part in text.split(","):
        size_text, colon, weight_text = part.partition(":")
        try:
            size = parse_size(size_text)
        except ValueError as error:
            raise PayloadError(f"payloads: {error}") from None
        try:
            weight = float(weight_text) if colon else 1.0
        except ValueError:
            weight = -1.0
        if not 0 < weight <= MAX_WEIGHT:
            limits = f"above 0 and at most {MAX_WEIGHT:,}"
            raise PayloadError(f"payloads: {weight_text!r} is not a weight: write a number {limits}, such as 4KiB:70")
        mix.append((size, weight))
    total = sum(size for size, _ in mix)
    if total > MAX_TOTAL_BYTES:
        raise PayloadError(f"payloads: {format_size(total)} in all, over {format_size(MAX_TOTAL_BYTES)} of memory")
    return mix


def generated(mix: Sequence[tuple[int, float]], seed: int, *, with_digests: bool) -> PayloadSet:
    """Random, so incompressible, payloads of these sizes: windows into one shared buffer."""
    largest = max(size for size, _ in mix)
    shift = 4096
    buffer = memoryview(np.random.default_rng(seed).bytes(largest + shift * VARIANTS_PER_SIZE))
    payloads, weights = [], []
    for size, weight in mix:
        for variant in range(VARIANTS_PER_SIZE):
            view = buffer[variant * shift : variant * shift + size]
            payloads.append(_payload(f"load-{size}-{variant}", view, NAMES_PER_PAYLOAD, with_digests=with_digests))
            weights.append(weight)
    return PayloadSet(payloads, weights, seed)


def from_folder(folder: Path, seed: int, *, with_digests: bool) -> PayloadSet:
    """Every regular file below `folder`, read into memory, all equally likely, stored under its own last name.

    PayloadError when the folder is missing, empty, too large, or holds a file that cannot be read or named.
    """
    paths = _files(folder)
    payloads = []
    for path in paths:
        try:
            name = safe_file_name(path.name)
            data = path.read_bytes()
        except RemoteProtocolError as error:
            raise PayloadError(f"payload folder: {str(path)!r} cannot be uploaded: {error.message}") from None
        except (OSError, UnicodeEncodeError) as error:
            raise PayloadError(f"payload folder: {str(path)!r} cannot be read: {error}") from None
        payloads.append(_payload(name, memoryview(data), 1, with_digests=with_digests))
    return PayloadSet(payloads, [1.0] * len(payloads), seed)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise PayloadError(f"payload folder: {str(folder)!r} is not a folder")
    try:
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        total = sum(path.stat().st_size for path in paths)
    except OSError as error:
        raise PayloadError(f"payload folder: {error}") from None
    if not paths:
        raise PayloadError(f"payload folder: {str(folder)!r} has no files")
    if total > MAX_TOTAL_BYTES:
        raise PayloadError(
            f"payload folder: {str(folder)!r} has {format_size(total)}, over {format_size(MAX_TOTAL_BYTES)} of memory"
        )
    return paths


def _payload(name: str, view: memoryview, names: int, *, with_digests: bool) -> Payload:
    digest = digest_of("xxh3_128", view) if with_digests else None
    return Payload(name, view, digest, (name,) if names == 1 else tuple(f"{name}-{i}" for i in range(names)))
