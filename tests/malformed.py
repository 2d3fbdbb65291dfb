"""Frames that no well-meaning client sends, from a seed: what is in one of them follows from its number.

They are made the way attackers and broken clients make them: a good frame that is changed in one place, a header of the
right shape with wrong values, a length that lies, another protocol, noise. Some turn out to be good frames after all.
"""

import json
import random
from collections.abc import Callable, Iterator

LENGTHS = (0, 1, 2, 3, 4, 255, 65_535, 65_536, 65_537, 2**31 - 1, 2**31, 2**32 - 1)
NUMBERS = (0, 1, 3, -1, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 1.0, 3.5, 1e300)
VALUES = (*NUMBERS, True, False, None, "", "3", [], [3], {}, {"file_size": 3}, "\x00", "\ud800", "ä", "keep-alive")
NAMES = (
    *(
        "a",
        "",
        ".",
        "..",
        "/",
        "\\",
        "../a",
        "..\\a",
        "a/..",
        "/etc/passwd",
        "C:\\a",
        "a\x00b",
        "a\nb",
        "\x1b[2J",
        "\x7f",
    ),
    *(
        ".incoming",
        ".incoming/0/1",
        "a/.incoming",
        "x" * 255,
        "x" * 256,
        "ä" * 127,
        "ä" * 128,
        "\u202e",
        " ",
        "con",
        "a" * 5000,
    ),
)
KEYS = ("file_size", "file_name", "connection", "digest", "want_digest", "token", "File_Size", "file_size ", "", "x")
STRANGERS = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PUT /a HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"EHLO localhost\r\n",
    b"*1\r\n$4\r\nPING\r\n",
    b"\x00" * 64,
    b"\xff" * 64,
)


def frames(seed: int, count: int) -> Iterator[bytes]:
    for number in range(count):
        chance = random.Random(seed * 1_000_003 + number)
        yield chance.choice(_KINDS)(chance)


def pieces(stream: bytes, chance: random.Random) -> list[bytes]:
    """The stream, cut where it may be."""
    cuts = sorted(chance.randrange(len(stream) + 1) for _ in range(chance.randrange(4)))
    return [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


def _framed(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(4, "little") + header + body


def _good(chance: random.Random) -> bytes:
    size = chance.choice((0, 1, 3, 100))
    header: dict[str, object] = {"file_size": size, "file_name": f"{chance.randrange(10)}"}
    if chance.random() < 0.3:
        header["connection"] = chance.choice(("keep-alive", "close"))
    if chance.random() < 0.2:
        header["digest"] = "xxh3_128:" + "0" * 32
    return _framed(json.dumps(header).encode(), bytes(size))


def _changed_in_one_place(chance: random.Random) -> bytes:
    frame = bytearray(_good(chance))
    at = chance.randrange(len(frame))
    how = chance.randrange(4)
    if how == 0:
        frame[at] = chance.randrange(256)
    elif how == 1:
        frame[at] ^= 1 << chance.randrange(8)
    elif how == 2:
        del frame[at : at + chance.randrange(1, 9)]
    else:
        frame[at:at] = chance.randbytes(chance.randrange(1, 9))
    return bytes(frame)


def _cut_off(chance: random.Random) -> bytes:
    frame = _good(chance)
    return frame[: chance.randrange(1, len(frame))]


def _wrong_values(chance: random.Random) -> bytes:
    header = {"file_size": 3, "file_name": "a", chance.choice(KEYS): chance.choice(VALUES)}
    if chance.random() < 0.3:
        header.pop(chance.choice(KEYS[:2]), None)
    return _framed(json.dumps(header).encode(), b"abc")


def _bad_names(chance: random.Random) -> bytes:
    header = json.dumps({"file_size": 3, "file_name": chance.choice(NAMES)}, ensure_ascii=chance.random() < 0.5)
    return _framed(header.encode(errors="surrogatepass"), b"abc")


def _twice(chance: random.Random) -> bytes:
    key = chance.choice(KEYS)
    again = key if chance.random() < 0.7 else "".join(f"\\u{ord(letter):04x}" for letter in key)
    values = (json.dumps(chance.choice(VALUES)) for _ in range(2))
    first, second = values
    return _framed(f'{{"file_size":3,"file_name":"a","{key}":{first},"{again}":{second}}}'.encode(), b"abc")


def _lying_length(chance: random.Random) -> bytes:
    return chance.choice(LENGTHS).to_bytes(4, "little") + _good(chance)[4:]


def _lying_size(chance: random.Random) -> bytes:
    size = chance.choice((0, 2, 4, 1000, 2**31 - 1, 2**40, 2**62))
    return _framed(json.dumps({"file_size": size, "file_name": "a"}).encode(), b"abc")


def _deep(chance: random.Random) -> bytes:
    depth = chance.choice((10, 1000, 1024, 1025, 5000, 20_000) if chance.random() < 0.02 else (10, 100, 400))
    opening, closing = chance.choice((("[", "]"), ('{"a":', "}")))
    nested = opening * depth + "0" + closing * depth * chance.choice((0, 1))
    return _framed(f'{{"file_size":3,"file_name":"a","x":{nested}}}'.encode()[: 64 << 10], b"abc")


def _other_encoding(chance: random.Random) -> bytes:
    text = json.dumps({"file_size": 3, "file_name": "ä", "x": "ß"}, ensure_ascii=False)
    encoding = chance.choice(("utf-16", "utf-32", "latin-1", "cp500", "utf-8-sig", "utf-7"))
    return _framed(text.encode(encoding), b"abc")


def _stranger(chance: random.Random) -> bytes:
    return chance.choice(STRANGERS) + chance.randbytes(chance.randrange(64))


def _noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(1, 300))


def _noise_in_a_frame(chance: random.Random) -> bytes:
    return _framed(chance.randbytes(chance.randrange(1, 300)))


def _several(chance: random.Random) -> bytes:
    return b"".join(chance.choice((_good, _changed_in_one_place, _bad_names))(chance) for _ in range(3))


_KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    _changed_in_one_place,
    _changed_in_one_place,
    _cut_off,
    _wrong_values,
    _bad_names,
    _twice,
    _lying_length,
    _lying_size,
    _deep,
    _other_encoding,
    _stranger,
    _noise,
    _noise_in_a_frame,
    _several,
)
