"""The protocol without sockets: every rule on headers, names, tokens and replies, and that no split of a stream and no
bytes at all bring anything out of the parser that is not documented.
"""

import hashlib
import json
import sys
import tracemalloc
from collections.abc import Iterable

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from server.failure_codes import SERVER_CODES
from server.protocol import (
    MAX_REPLY_BYTES,
    ClientConnection,
    Data,
    Limits,
    LocalProtocolError,
    RemoteProtocolError,
    Reply,
    ServerConnection,
    ServerEvent,
    Timing,
    UploadComplete,
    UploadHeader,
    UploadStarted,
    decode_header,
    digest_of,
    encode_reply,
    frame,
    new_hasher,
    safe_file_name,
)

# What a peer's bytes can be refused with; the other codes come from outside of the parser.
PARSER_CODES = {"bad_length", "bad_header", "unauthorized", "name_rejected", "too_large", "truncated"}
SHA256 = "sha256:" + "0123456789abcdef" * 4
XXH3 = "xxh3_128:" + "0123456789ABCDEF" * 2

Event = tuple[object, ...]


def upload(body: bytes = b"", file_name: str = "a", **keys: object) -> bytes:
    header = {"file_size": len(body), "file_name": file_name, **keys}
    return frame(json.dumps(header).encode()) + body


def raw_header(text: str) -> bytes:
    return frame(text.encode("utf-8", "surrogatepass"))


def feed(pieces: Iterable[bytes], limits: Limits = Limits(), *, shortcut: bool = False) -> list[Event]:  # noqa: B008
    """What a server makes of a stream that ends after the pieces: events with the Data between two others joined. A
    refusal is the last one. With `shortcut`, whole uploads are taken whole, as a worker does."""
    parser = ServerConnection(limits)
    events: list[Event] = []
    try:
        for piece in pieces:
            view = memoryview(piece)
            while shortcut and (whole := parser.take_whole(view)):
                started, body, view = whole
                note(events, started, Data(body), UploadComplete())
            for event in parser.receive_data(view):
                assert type(event) is not Data or len(event.view) > 0
                note(events, event)
        parser.receive_eof()
    except RemoteProtocolError as error:
        assert error.code in PARSER_CODES
        assert error.code in SERVER_CODES
        assert error.message
        events.append(("refused", error.code, error.message))
    return events


def note(events: list[Event], *more: ServerEvent) -> None:
    for event in more:
        match event:
            case UploadStarted(header, file_name):
                events.append(("started", header, file_name))
            case Data(view) if events[-1][0] == "data":
                events[-1] = ("data", events[-1][1] + bytes(view))  # type: ignore[operator]
            case Data(view) if len(view):
                events.append(("data", bytes(view)))
            case UploadComplete():
                events.append(("complete",))


def byte_by_byte(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


def refused(stream: bytes, limits: Limits = Limits()) -> str:  # noqa: B008
    """The code that the stream is refused with, which must be so however it is split."""
    events = feed([stream], limits)
    assert events[-1][0] == "refused", events
    assert feed(byte_by_byte(stream), limits) == events
    assert feed([stream], limits, shortcut=True) == events
    return str(events[-1][1])


def accepted(stream: bytes, limits: Limits = Limits()) -> UploadHeader:  # noqa: B008
    """The header of the one upload that the stream is."""
    events = feed([stream], limits)
    assert [event[0] for event in events if event[0] != "data"] == ["started", "complete"], events
    assert feed([stream], limits, shortcut=True) == events
    header = events[0][1]
    assert isinstance(header, UploadHeader)
    return header


# ── Frames, in every split ──

FRAMES = {
    "empty file": upload(b""),
    "one byte": upload(b"x"),
    "some bytes": upload(bytes(range(256))),
    "every key": upload(b"abc", "b", connection="close", digest=SHA256, want_digest="none", token="t"),
    "escapes": raw_header(r'{"file\u005fsize":0,"file_name":"\u00e9\ud83d\ude00"}'),
    "white space": raw_header('\t{ "file_size" : 2 ,\r\n "file_name" : "a" } \n') + b"xy",
    "two in one": upload(b"one", "1") + upload(b"two", "2"),
    "three, the middle one empty": upload(b"one", "1") + upload(b"", "2") + upload(b"three", "3"),
    "a body that looks like a header": upload(upload(b"inner", "inner"), "outer") + upload(b"next"),
}


@pytest.mark.parametrize("stream", FRAMES.values(), ids=FRAMES)
def test_a_stream_means_the_same_in_every_split(stream: bytes) -> None:
    whole = feed([stream])
    assert whole[-1] == ("complete",)
    assert feed(byte_by_byte(stream)) == whole
    for cut in range(len(stream) + 1):
        assert feed([stream[:cut], b"", stream[cut:]]) == whole
        assert feed([stream[:cut], stream[cut:]], shortcut=True) == whole


@pytest.mark.parametrize("stream", FRAMES.values(), ids=FRAMES)
def test_trailing_data_begins_the_next_upload(stream: bytes) -> None:
    following = upload(b"following bytes", "following")
    for cut in range(1, len(following)):
        events = feed([stream + following[:cut]])
        assert events[: len(feed([stream]))] == feed([stream])
        assert events[-1][:2] == ("refused", "truncated")
    assert feed([stream + following]) == feed([stream]) + feed([following])


def test_the_events_of_one_upload() -> None:
    header = UploadHeader(3, "/home/me/photo.jpg")
    assert feed([upload(b"abc", "/home/me/photo.jpg")]) == [
        ("started", header, "photo.jpg"),
        ("data", b"abc"),
        ("complete",),
    ]


def test_the_body_is_passed_on_as_slices_of_what_was_fed() -> None:
    fed = bytearray(upload(b"abcdef") + upload(b"ghi"))
    views = [event.view for event in ServerConnection(Limits()).receive_data(memoryview(fed)) if type(event) is Data]
    assert [bytes(view) for view in views] == [b"abcdef", b"ghi"]
    assert all(view.obj is fed for view in views)


bodies = st.binary(max_size=200)
names = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=40).map(
    lambda text: "x" + text.replace("/", "_").replace("\\", "_")
)
keys = st.fixed_dictionaries(
    {},
    optional={
        "connection": st.sampled_from(["keep-alive", "close"]),
        "digest": st.sampled_from([SHA256, XXH3]),
        "want_digest": st.sampled_from(["xxh3_128", "sha256", "none"]),
        "token": st.text(st.characters(codec="utf-8"), max_size=10),
        "unknown": st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3, alphabet=":ab\\"), inner),
            max_leaves=5,
        ),
    },
)
uploads = st.builds(lambda body, name, keys: (upload(body, name, **keys), name, body), bodies, names, keys)


@given(st.lists(uploads, min_size=1, max_size=4), st.data())
def test_any_split_of_any_valid_stream_gives_the_uploads_that_were_sent(
    sent: list[tuple[bytes, str, bytes]], data: st.DataObject
) -> None:
    stream = b"".join(one for one, _, _ in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    events = feed(pieces)
    assert [event[2] for event in events if event[0] == "started"] == [name for _, name, _ in sent]
    assert [event[1] for event in events if event[0] == "data"] == [body for _, _, body in sent if body]
    assert events[-1] == ("complete",)
    assert events == feed([stream])
    assert events == feed(pieces, shortcut=True)


@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_bytes_bring_out_documented_errors_only(noise: bytes, cut: int) -> None:
    for stream in (noise, frame(noise), frame(b"{" + noise + b"}")):
        whole = feed([stream])
        assert feed([stream[:cut], stream[cut:]]) == whole
        assert feed([stream[:cut], stream[cut:]], shortcut=True) == whole


json_pieces = st.sampled_from(
    [
        *('"file_size"', '"file_name"', '"digest"', '"token"', '"x"', ":", ",", "{", "}", "[", "]", " ", "\\", '"'),
        *("1", "-1", "1e9", "9" * 30, "NaN", "null", "true", '"a"', '"\\u0000"', '"\\ud800"', '"keep-alive"'),
        f'"{SHA256}"',
    ]
)


@given(st.lists(json_pieces, max_size=30))
def test_anything_like_json_brings_out_documented_errors_only(pieces: list[str]) -> None:
    text = "".join(pieces)
    for header in (text, '{"file_size":0,"file_name":"a",' + text + "}"):
        feed([raw_header(header)])


@given(uploads, uploads, st.data())
def test_a_damaged_stream_brings_out_documented_errors_only(
    first: tuple[bytes, str, bytes], second: tuple[bytes, str, bytes], data: st.DataObject
) -> None:
    stream = bytearray(first[0] + second[0])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream)))
        match data.draw(st.sampled_from(["change", "insert", "delete"])):
            case "change":
                stream[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
            case "insert":
                stream[at:at] = data.draw(st.binary(min_size=1, max_size=6))
            case "delete":
                del stream[at : at + data.draw(st.integers(1, 6))]
    limits = Limits(
        token=data.draw(st.sampled_from([None, "t"])), max_file_size=data.draw(st.sampled_from([50, 1 << 34]))
    )
    cut = data.draw(st.integers(0, len(stream)))
    pieces = [bytes(stream[:cut]), bytes(stream[cut:])]
    whole = feed([bytes(stream)], limits)
    assert feed(pieces, limits) == whole
    assert feed(pieces, limits, shortcut=True) == whole


@given(st.lists(st.binary(max_size=5), min_size=1, max_size=5), st.data())
def test_after_an_upload_the_rest_may_be_fed_later(bodies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(upload(body, f"{number}") for number, body in enumerate(bodies))
    cut = data.draw(st.integers(0, len(stream)))
    parser, events = ServerConnection(Limits()), []
    for piece in (stream[:cut], stream[cut:]):
        rest = piece
        while rest:
            for event in parser.receive_data(rest):
                note(events, event)
                if type(event) is UploadComplete:
                    rest = rest[parser.consumed :]
                    break
            else:
                rest = b""
    assert events == feed([stream])


# ── The shortcut for whole uploads ──


def test_a_whole_upload_is_taken_with_the_rest_left() -> None:
    parser = ServerConnection(Limits())
    whole = parser.take_whole(memoryview(upload(b"abc", "/x/a") + upload(b"de", "b") + b"\x01"))
    assert whole is not None
    started, body, rest = whole
    assert (started.file_name, started.header.file_size, bytes(body)) == ("a", 3, b"abc")
    assert not parser.in_upload
    whole = parser.take_whole(rest)
    assert whole is not None
    assert bytes(whole[1]) == b"de"
    assert bytes(whole[2]) == b"\x01"


NOT_WHOLE = {
    "nothing": b"",
    "a part of the length": b"\x10\0\0",
    "the length alone": upload(b"")[:4],
    "a part of the header": upload(b"")[:-1],
    "a part of the body": upload(b"abc")[:-1],
    "a digest to check": upload(b"abc", digest=SHA256),
    "a bad length": b"\0\0\0\0{}",
    "a header that is too large": upload(b"", "a" * 200),
    "a bad header": frame(b"{}"),
    "a bad name": upload(b"abc", ".."),
    "too large": upload(b"x" * 101),
}


@pytest.mark.parametrize("stream", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_what_cannot_be_taken_whole_is_left_as_it_was(stream: bytes) -> None:
    limits = Limits(max_header_size=150, max_file_size=100)
    parser = ServerConnection(limits)
    assert parser.take_whole(memoryview(stream)) is None
    assert not parser.in_upload
    following = ServerConnection(limits).take_whole(memoryview(upload(b"abc")))
    assert parser.take_whole(memoryview(upload(b"abc"))) == following  # nothing has happened
    assert feed([stream], limits, shortcut=True) == feed([stream], limits)


def test_nothing_is_taken_whole_in_the_middle_of_another_upload() -> None:
    outer = upload(upload(b"inner"), "outer")
    for cut in range(1, len(outer)):
        parser = ServerConnection(Limits())
        list(parser.receive_data(outer[:cut]))
        assert parser.take_whole(memoryview(upload(b"inner"))) is None


# ── The length ──


@pytest.mark.parametrize("length", [0, (64 << 10) + 1, 1 << 31, (1 << 32) - 1])
def test_a_header_length_out_of_range_is_refused(length: int) -> None:
    prefix = length.to_bytes(4, "little")
    assert refused(prefix) == "bad_length"
    assert refused(prefix + b"{}") == "bad_length"


def test_a_header_of_the_largest_size_is_accepted_and_no_larger_one() -> None:
    def padded(size: int) -> bytes:
        text = b'{"file_size":0,"file_name":"a"}'
        return frame(text + b" " * (size - len(text)))

    assert accepted(padded(64 << 10)).file_name == "a"
    assert refused(padded((64 << 10) + 1)) == "bad_length"
    assert accepted(padded(100), Limits(max_header_size=100)).file_name == "a"
    assert refused(padded(101), Limits(max_header_size=100)) == "bad_length"


@pytest.mark.parametrize(
    ("stream", "hint"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP"),
        (b"POST /upload HTTP/1.1\r\n", "HTTP"),
        (b"PUT /file HTTP/1.1\r\n", "HTTP"),
        (b"HEAD / HTTP/1.1\r\n", "HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP"),
        (bytes.fromhex("16030102000100"), "TLS"),
        (b"\xff\xff\xff\xff", None),
        (b"hello, server", None),
    ],
)
def test_the_message_says_when_it_looks_like_http_or_tls(stream: bytes, hint: str | None) -> None:
    [(_, code, message)] = feed([stream])
    assert code == "bad_length"
    assert [word for word in ("HTTP", "TLS") if word in str(message)] == ([hint] if hint else [])


# ── The header ──

MINIMAL = '"file_size":0,"file_name":"a"'

BAD_HEADERS = {
    "empty object": "{}",
    "no file_size": '{"file_name":"a"}',
    "no file_name": '{"file_size":0}',
    "array": "[]",
    "string": '"file"',
    "number": "1",
    "null": "null",
    "nothing": " ",
    "unfinished": '{"file_size":0,"file_name":"a"',
    "trailing comma": "{" + MINIMAL + ",}",
    "trailing bytes": "{" + MINIMAL + "}x",
    "two objects": "{" + MINIMAL + "}{" + MINIMAL + "}",
    "trailing NUL": "{" + MINIMAL + "}\0",
    "single quotes": "{'file_size':0,'file_name':'a'}",
    "comment": "{" + MINIMAL + "/**/}",
    "byte order mark": "\ufeff{" + MINIMAL + "}",
    "control character in a string": '{"file_size":0,"file_name":"a\nb"}',
    "lone surrogate": r'{"file_size":0,"file_name":"\ud800"}',
    "lone low surrogate": r'{"file_size":0,"file_name":"\udc00a"}',
    "lone surrogate in an unknown key": "{" + MINIMAL + r',"x":"\ud800"}',
    "unknown escape": r'{"file_size":0,"file_name":"\x41"}',
    **{
        f"file_size {value[:12]}": f'{{"file_size":{value},"file_name":"a"}}'
        for value in (
            *("-1", "1.0", "1.5", "1e3", "0.0", "true", "false", "null", '"1"', "[1]", "{}", "01", "+1", "0x10"),
            *("NaN", "Infinity", "-Infinity", "1e400", "9" * 5000, "-" + "9" * 40),
        )
    },
    **{f"file_name {value}": f'{{"file_size":0,"file_name":{value}}}' for value in ("1", "null", "true", "[]", "{}")},
    **{
        f"{key} {value}": f'{{{MINIMAL},"{key}":{value}}}'
        for key in ("connection", "digest", "want_digest")
        for value in ("1", "null", "true", "[]", '""', '"Close"', '"SHA256"', '"md5"')
    },
    **{f"token {value}": f'{{{MINIMAL},"token":{value}}}' for value in ("1", "null", "true", "[]")},
    **{
        f"digest {value[:24]} {len(value)}": f'{{{MINIMAL},"digest":"{value}"}}'
        for value in (
            *(SHA256[:-1], SHA256 + "0", XXH3[:-1], XXH3 + "0", "sha256", "sha256:", ":", "md5:" + "0" * 32),
            *(SHA256[:-1] + "g", " " + SHA256, SHA256 + " ", SHA256.upper(), SHA256.replace(":", "="), SHA256 + "\\n"),
            "xxh3_128:" + "0" * 64,
        )
    },
    **{f"{value} in an unknown key": f'{{{MINIMAL},"x":{value}}}' for value in ("NaN", "tru", "-", "'a'", "[1,]")},
}


@pytest.mark.parametrize("text", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_bad_header_is_refused(text: str) -> None:
    assert refused(raw_header(text) + b"x" * 10) == "bad_header"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_a_header_in_another_encoding_is_refused(encoding: str) -> None:
    assert refused(frame('{"file_size":0,"file_name":"é"}'.encode(encoding))) == "bad_header"


@pytest.mark.parametrize("raw", [b"\xff", b"\xe9", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"])
def test_a_header_that_is_not_utf8_is_refused(raw: bytes) -> None:
    assert refused(frame(b'{"file_size":0,"file_name":"' + raw + b'"}')) == "bad_header"
    assert refused(frame(b'{"file_size":0,"file_name":"a","x":"' + raw + b'"}')) == "bad_header"


GOOD_HEADERS = {
    "unknown keys": "{" + MINIMAL + ',"x":1,"y":[{"z":null}],"":""}',
    "an unknown key twice": "{" + MINIMAL + ',"x":1,"x":2}',
    "an unknown key that needs escapes, twice": "{" + MINIMAL + r',"\u0078:":1,"x:":2}',
    "known keys inside an unknown one": "{" + MINIMAL + ',"x":{"file_size":1,"file_size":2,"file_name":"b"}}',
    "known keys inside an array": '{"x":[{"file_size":1},{"file_size":2}],' + MINIMAL + "}",
    "a key in another case": "{" + MINIMAL + ',"File_Size":7,"FILE_NAME":"b"}',
    "a value that reads like a key": "{" + MINIMAL + ',"x":"\\"file_size\\":1,"}',
    "colons in an unknown value": "{" + MINIMAL + ',"x":":::","y":{}}',
    "floats and exponents in an unknown key": "{" + MINIMAL + ',"x":[1.5,1e999,-0.0]}',
    "a large integer in an unknown key": "{" + MINIMAL + ',"x":' + "9" * 400 + "}",
    "an integer of 5,000 digits in an unknown key": "{" + MINIMAL + ',"x":' + "9" * 5000 + "}",
    "escaped keys": r'{"file\u005fsize":0,"\u0066ile_name":"a"}',
    "minus zero": '{"file_size":-0,"file_name":"a"}',
    "escaped colon in a digest": "{" + MINIMAL + ',"digest":"' + SHA256.replace(":", r"\u003a") + '"}',
    "nested 200 deep": "{" + MINIMAL + ',"x":' + "[" * 200 + "]" * 200 + "}",
}


@pytest.mark.parametrize("text", GOOD_HEADERS.values(), ids=GOOD_HEADERS)
def test_what_is_unknown_is_ignored(text: str) -> None:
    header = accepted(raw_header(text))
    assert (header.file_size, header.file_name) == (0, "a")


KNOWN = {
    "file_size": "0",
    "file_name": '"a"',
    "connection": '"close"',
    "digest": f'"{SHA256}"',
    "want_digest": '"none"',
    "token": '"t"',
}


def escaped(key: str, position: int) -> str:
    return f"{key[:position]}\\u{ord(key[position]):04x}{key[position + 1 :]}"


@pytest.mark.parametrize("key", KNOWN)
def test_a_known_key_given_twice_is_refused_in_every_spelling(key: str) -> None:
    others = [f'"{other}":{value}' for other, value in KNOWN.items() if other != key]
    value = KNOWN[key]
    first = f'"{key}":{value}'
    spellings = [
        first,
        f'"{key}" : {value}',
        f'"{escaped(key, 0)}":{value}',
        f'"{escaped(key, len(key) - 1)}":{value}',
        '"' + "".join(escaped(letter, 0) for letter in key) + f'":{value}',
    ]
    for second in spellings:
        for members in (
            [first, second, *others],
            [second, first, *others],
            [first, *others, second],
            [*others, second, '"x":{"y":1}', first],
            [second, second, *others],
        ):
            text = "{" + ",".join(members) + "}"
            with pytest.raises(RemoteProtocolError, match=f"bad_header: the header gives {key} twice"):
                decode_header(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        # The digest's own colon, escaped, must not make room for a second key.
        "{" + MINIMAL + ',"digest":"' + SHA256.replace(":", r"\u003a") + '","file_name":"b"}',
        "{" + MINIMAL + ',"digest":"' + SHA256.replace(":", r"\u003A") + '","file_size":9}',
        # Neither may colons elsewhere.
        '{"file_size":0,"file_name":"a:b","file_name":"c:d"}',
        '{"file_size":0,"file_name":"a","x":":","file_size":1}',
        '{"file_size":0,"x":{"file_size":1},"file_size":2,"file_name":"a"}',
    ],
)
def test_no_colon_elsewhere_hides_a_key_given_twice(text: str) -> None:
    assert refused(raw_header(text)) == "bad_header"


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_a_header_nested_as_deeply_as_fits_is_refused(opening: str) -> None:
    closing = "".join({"[": "]", "{": "}"}.get(letter, "") for letter in reversed(opening))
    only_opened = opening * (60_000 // len(opening))
    depth = 60_000 // len(opening + closing)
    complete = f'{{{MINIMAL},"x":{opening * depth}0{closing * depth}}}'
    for text in (only_opened, '{"x":' + only_opened, complete):
        assert feed([raw_header(text)])[-1][:2] == ("refused", "bad_header")


def test_no_depth_brings_out_anything_but_the_documented_error() -> None:
    for depth in (*range(900, 1100), 3_000, 10_000):
        for colon in ("", ":"):  # the second takes the slow path, which nests in its own way
            text = f'{{"file_size":0,"file_name":"a{colon}","x":{"[" * depth}{"]" * depth}}}'
            assert feed([raw_header(text)])[-1][:2] in {("complete",), ("refused", "bad_header")}


@pytest.mark.parametrize("digits", [19, 20, 25, 300, 4299, 4300, 4301, 4400, 60_000])
def test_a_huge_file_size_is_refused_in_a_message_that_can_be_sent(digits: int) -> None:
    for sign in ("", "-"):
        [(_, code, message)] = feed([raw_header(f'{{"file_size":{sign}{"9" * digits},"file_name":"a"}}')])
        assert code in {"too_large", "bad_header"}
        assert len(str(message)) < 5000


def test_a_file_of_the_largest_size_is_accepted_and_no_larger_one() -> None:
    limits = Limits(max_file_size=3)
    assert feed([upload(b"abc")], limits)[-1] == ("complete",)
    assert feed([upload(b"abcd")], limits)[0][:2] == ("refused", "too_large")  # before a byte of body is passed on
    assert feed([upload(b"x", "zero")], Limits(max_file_size=0))[0][:2] == ("refused", "too_large")
    assert feed([upload(b"")], Limits(max_file_size=0))[-1] == ("complete",)


def test_what_was_not_given_is_unset() -> None:
    header = accepted(upload())
    assert header.connection is header.digest is header.want_digest is header.token is UNSET


# ── Names ──


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        ("file", "file"),
        ("/etc/passwd", "passwd"),
        ("../../etc/passwd", "passwd"),
        ("a/../b", "b"),
        ("a//b", "b"),
        (r"C:\Users\me\photo.jpg", "photo.jpg"),
        (r"..\..\boot.ini", "boot.ini"),
        (r"mixed/one\two", "two"),
        (r"mixed\one/two", "two"),
        ("C:file", "C:file"),
        (r"\\host\share\file", "file"),
        ("...", "..."),
        ("..a", "..a"),
        (".hidden", ".hidden"),
        (".incoming", ".incoming"),  # the store's own refusal, not the parser's
        (" ", " "),
        ("-rf", "-rf"),
        ("%2e%2e%2f", "%2e%2e%2f"),
        ("a" * 255, "a" * 255),
        ("/" * 300 + "a" * 255, "a" * 255),
        ("é" * 127 + "a", "é" * 127 + "a"),
        ("😀" * 63 + "abc", "😀" * 63 + "abc"),
        ("日本語.txt", "日本語.txt"),
        ("\u2025\u2025", "\u2025\u2025"),
        ("a\uff0fb", "a\uff0fb"),  # a full-width slash separates nothing
    ],
)
def test_a_name_is_reduced_to_its_last_component(file_name: str, expected: str) -> None:
    assert safe_file_name(file_name) == expected


@pytest.mark.parametrize(
    "file_name",
    [
        *("", ".", "..", "/", "\\", "a/", "a\\", "a/.", "a/..", r"a\..", "/..", "../", "./"),
        *("a\0b", "\0", "a\x1f", "\x01a", "a\nb", "a\tb", "a\rb", "a\x7f", "a\x80", "a\x9f", "é\0", "é\n", "é\x7f"),
        *("a" * 256, "é" * 128, "é" * 127 + "ab", "😀" * 64, "x/" + "a" * 256),
    ],
)
def test_a_name_that_names_no_harmless_file_is_refused(file_name: str) -> None:
    assert refused(upload(b"abc", file_name)) == "name_rejected"


@given(st.text(st.characters(codec="utf-8"), max_size=300))
def test_a_name_is_harmless_or_refused(file_name: str) -> None:
    try:
        name = safe_file_name(file_name)
    except RemoteProtocolError as error:
        assert error.code == "name_rejected"
        return
    assert name not in ("", ".", "..")
    assert not set(name) & set("/\\\0\n\r\x7f\x1b")
    assert 1 <= len(name.encode()) <= 255
    assert file_name.endswith(name)


# ── Tokens ──

TOKENS = {"plain": "s3cret", "empty": "", "not ASCII": "pä$$wörd😀", "with a NUL": "a\0b"}


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_only_the_right_token_opens(token: str) -> None:
    limits = Limits(token=token)
    assert accepted(upload(b"abc", token=token), limits).token == token
    assert refused(upload(b"abc"), limits) == "unauthorized"
    for wrong in (token + "x", token[:-1] or "x", token.upper() + "!", "ÿ", "x" * 1000):
        events = feed([upload(b"abc", token=wrong)], limits)
        assert events[0][:2] == ("refused", "unauthorized")
        assert not token or token not in str(events[0][2])


def test_a_token_that_nobody_asked_for_is_ignored() -> None:
    assert accepted(upload(b"abc", token="x")).token == "x"


def test_who_has_no_token_learns_nothing_else() -> None:
    limits = Limits(token="t", max_file_size=3)
    assert refused(upload(b"too long", "../"), limits) == "unauthorized"


# ── The end of a stream, and misuse ──


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"\x01", "the header ends after 1 bytes"),
        (b"\x10\0\0\0", "the header ends after 4 bytes"),
        (upload(b"")[:-1], f"the header ends after {len(upload(b'')) - 1} bytes"),
        (upload(b"abc")[:-3], "received 0 of 3 bytes"),
        (upload(b"abc")[:-1], "received 2 of 3 bytes"),
        (upload(b"abc") + upload(b"defg")[:-1], "received 3 of 4 bytes"),
    ],
)
def test_an_end_in_the_middle_is_truncated(stream: bytes, message: str) -> None:
    for pieces in ([stream], byte_by_byte(stream)):
        assert feed(pieces)[-1] == ("refused", "truncated", message)


@pytest.mark.parametrize("stream", [b"", upload(b""), upload(b"abc"), upload(b"abc") + upload(b"")])
def test_an_end_between_uploads_is_fine(stream: bytes) -> None:
    parser = ServerConnection(Limits())
    list(parser.receive_data(stream))
    parser.receive_eof()


def test_in_upload_from_the_first_byte_of_the_length_to_the_last_of_the_body() -> None:
    parser = ServerConnection(Limits())
    assert not parser.in_upload
    for piece in byte_by_byte(upload(b"abc"))[:-1]:
        list(parser.receive_data(piece))
        assert parser.in_upload
    list(parser.receive_data(b"c"))
    assert not parser.in_upload


def test_a_finished_connection_takes_no_more() -> None:
    ended = ServerConnection(Limits())
    ended.receive_eof()
    with pytest.raises(LocalProtocolError):
        list(ended.receive_data(b"x"))
    ended.receive_eof()  # asking twice is no misuse: transports may report both an end and a loss

    for stream in (b"\0\0\0\0", frame(b"{}"), upload(b"abc", "..")):
        refusing = ServerConnection(Limits())
        with pytest.raises(RemoteProtocolError):
            list(refusing.receive_data(stream))
        with pytest.raises(LocalProtocolError):
            list(refusing.receive_data(upload(b"abc")))
        refusing.receive_eof()  # the refusal was the last word


# ── Cost ──


def cost_of(parser: ServerConnection, pieces: list[bytes]) -> tuple[int, int]:
    """What it takes to feed the pieces: lines of Python executed, and bytes allocated, copies included."""
    lines = 0

    def count(frame: object, event: str, argument: object) -> object:
        nonlocal lines
        lines += event == "line"
        return count

    allocated = 0
    tracemalloc.start()
    before = sys.gettrace()
    sys.settrace(count)  # type: ignore[arg-type]
    try:
        for piece in pieces:
            now, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            list(parser.receive_data(piece))
            allocated += tracemalloc.get_traced_memory()[1] - now
    finally:
        sys.settrace(before)
        tracemalloc.stop()
    return lines, allocated


@pytest.mark.parametrize("part", ["header", "body"])
def test_a_byte_costs_the_same_at_the_end_as_at_the_beginning(part: str) -> None:
    size = 128 << 10 if part == "header" else 1 << 20
    parser = ServerConnection(Limits(max_header_size=size))
    first, next_ones = b"", [b" "] * 50
    if part == "header":
        first = size.to_bytes(4, "little") + b'{"file_size":0,"file_name":"a"}'
    else:
        first = frame(b'{"file_size":%d,"file_name":"a"}' % (2 * size))
    list(parser.receive_data(first))
    cost_of(parser, next_ones)  # warm-up
    first_lines, first_bytes = cost_of(parser, next_ones)
    for _ in range(size - 400):
        for _ in parser.receive_data(b" "):
            pass
    last_lines, last_bytes = cost_of(parser, next_ones)
    assert last_lines == first_lines
    assert last_bytes < first_bytes + 2 * size  # 50 copies of what has arrived would be 50 times size


# ── The client's side ──

TIMING = Timing(1, 2, 3, 4)
STORED = Reply("stored", "ok", "", "a", 3, XXH3, "keep-alive", 0, 4711, TIMING)
CLOSING = Reply("failed", "truncated", "received 2 of 3 bytes", "a", 2, None, "close", 1, 4712, Timing(1))


def asked(count: int) -> ClientConnection:
    client = ClientConnection()
    for _ in range(count):
        client.send_upload(UploadHeader(3, "a"))
    return client


def bad_reply(client: ClientConnection, stream: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        list(client.receive_data(stream))
    assert caught.value.code == "bad_reply"
    with pytest.raises(LocalProtocolError):
        client.send_upload(UploadHeader(0, "a"))
    return caught.value.message


def test_the_server_reads_what_the_client_writes() -> None:
    header = UploadHeader(3, "é", connection="close", digest=SHA256, want_digest="sha256", token="t")
    assert accepted(ClientConnection().send_upload(header) + b"abc") == header
    minimal = ClientConnection().send_upload(UploadHeader(0, "a"))
    assert json.loads(minimal[4:]) == {"file_size": 0, "file_name": "a"}


def test_the_client_reads_what_the_server_writes_in_every_split() -> None:
    stream = encode_reply(STORED) + encode_reply(CLOSING)
    for cut in range(len(stream) + 1):
        client = asked(2)
        replies = [*client.receive_data(stream[:cut]), *client.receive_data(memoryview(stream)[cut:])]
        assert replies == [STORED, CLOSING]
    client = asked(2)
    assert [reply for piece in byte_by_byte(stream) for reply in client.receive_data(piece)] == [STORED, CLOSING]


def test_a_reply_carries_every_documented_key() -> None:
    assert json.loads(encode_reply(STORED)[4:]) == {
        "status": "stored",
        "code": "ok",
        "message": "",
        "file_name": "a",
        "received": 3,
        "digest": XXH3,
        "connection": "keep-alive",
        "worker": 0,
        "pid": 4711,
        "timing": {"accepted": 1, "header": 2, "last_byte": 3, "stored": 4},
    }


def test_a_reply_that_nobody_asked_for_is_refused() -> None:
    assert "no upload asked" in bad_reply(asked(0), encode_reply(STORED))
    client = asked(1)
    assert list(client.receive_data(encode_reply(STORED))) == [STORED]
    assert "no upload asked" in bad_reply(client, encode_reply(STORED))


@pytest.mark.parametrize("length", [0, MAX_REPLY_BYTES + 1, (1 << 32) - 1])
def test_a_reply_of_an_impossible_length_is_refused_before_it_is_kept(length: int) -> None:
    assert str(length) in bad_reply(asked(1), length.to_bytes(4, "little"))


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b"\xff",
        b"null",
        b"[" * 60_000,
        b"HTTP/1.1 400 Bad Request",
        encode_reply(STORED)[4:-1],
        encode_reply(STORED)[4:].replace(b'"stored"', b'"lost"', 1),
        encode_reply(STORED)[4:].replace(b'"received":3', b'"received":"3"'),
    ],
    ids=repr,
)
def test_a_reply_that_is_none_is_refused(raw: bytes) -> None:
    bad_reply(asked(1), frame(raw[:MAX_REPLY_BYTES]))


@given(st.binary(max_size=300))
def test_any_bytes_give_the_client_documented_errors_only(noise: bytes) -> None:
    for stream in (noise, frame(noise), encode_reply(STORED)[: len(noise)] + noise):
        try:
            list(asked(2).receive_data(stream))
        except RemoteProtocolError as error:
            assert error.code == "bad_reply"


def test_an_end_with_replies_outstanding_is_a_lost_connection() -> None:
    for arrived in (b"", encode_reply(STORED)[:-1]):
        client = asked(1)
        assert list(client.receive_data(arrived)) == []
        with pytest.raises(RemoteProtocolError) as caught:
            client.receive_eof()
        assert caught.value.code == "connection_lost"


def test_an_end_with_nothing_outstanding_is_fine_and_final() -> None:
    client = asked(1)
    list(client.receive_data(encode_reply(STORED)))
    client.receive_eof()
    with pytest.raises(LocalProtocolError):
        client.send_upload(UploadHeader(0, "a"))


def test_a_closing_reply_is_the_last() -> None:
    client = asked(1)
    assert list(client.receive_data(encode_reply(CLOSING))) == [CLOSING]
    with pytest.raises(LocalProtocolError):
        client.send_upload(UploadHeader(0, "a"))
    client.receive_eof()


# ── Digests ──


@pytest.mark.parametrize(
    ("algorithm", "reference"), [("sha256", hashlib.sha256), ("xxh3_128", xxhash.xxh3_128)], ids=["sha256", "xxh3_128"]
)
def test_a_digest_is_the_same_at_once_and_in_pieces(algorithm: str, reference: object) -> None:
    for data in (b"", b"a", bytes(range(256)) * 100):
        expected = f"{algorithm}:{reference(data).hexdigest()}"  # type: ignore[operator]
        hasher = new_hasher(algorithm)  # type: ignore[arg-type]
        for piece in byte_by_byte(data):
            hasher.update(piece)
        assert f"{algorithm}:{hasher.hexdigest()}" == expected
        assert digest_of(algorithm, data) == expected  # type: ignore[arg-type]
        assert digest_of(algorithm, memoryview(data)) == expected  # type: ignore[arg-type]
