"""Wires: our own protocol in few lines, and somebody else's, which is found by its name. (HTTP: test_http_put.py.)"""

import json

import pytest
from fake_load import fake_load
from headless import serving
from hypothesis import given
from hypothesis import strategies as st
from line_wire import LineWire

from loadtest.client import UploadClient
from loadtest.link import PollWaiter
from loadtest.load import RunningPhase
from loadtest.option_error import OptionError
from loadtest.uploader import Uploader
from loadtest.wires import Answer, FramedWire, Target, WireError, parse_target, wire_of
from server.protocol import Reply, Timing, digest_of, encode_reply

TARGET = Target("tcp", "127.0.0.1", 1)
DIGEST = digest_of("xxh3_128", b"data")
STORED = Reply("stored", "ok", "", "file", 4, DIGEST, "keep-alive", 0, 1, Timing(accepted=1))
LAST = Reply("stored", "ok", "", "file", 4, DIGEST, "close", 0, 1, Timing(accepted=1))
REFUSED = Reply("rejected", "too_large", "because", None, 0, None, "close", 0, 1, Timing(accepted=1))
NO_DIGEST = Reply("stored", "ok", "", "file", 4, None, "keep-alive", 0, 1, Timing(accepted=1))

# ── ours ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("close", "connection"), [(False, "keep-alive"), (True, "close")])
def test_what_is_asked(close, connection):
    data = FramedWire(TARGET).encode("näme", 5, close=close)
    assert int.from_bytes(data[:4], "little") == len(data) - 4
    assert json.loads(data[4:])["connection"] == connection
    assert (json.loads(data[4:])["file_name"], json.loads(data[4:])["file_size"]) == ("näme", 5)


ANSWERS = {
    "stored": (STORED, Answer("ok", "", DIGEST, 4, file_name="file")),
    "last": (LAST, Answer("ok", "", DIGEST, 4, keeps_open=False, file_name="file")),
    "refused": (REFUSED, Answer("too_large", "because", "", 0, keeps_open=False)),
    "no digest": (
        NO_DIGEST,
        Answer("ok", "", "", 4, file_name="file"),
    ),  # which none has: of a stored file one is promised
}


@pytest.mark.parametrize(("reply", "answer"), ANSWERS.values(), ids=ANSWERS)
@given(st.data())
def test_what_is_answered_however_it_is_cut(reply, answer, data):
    whole = encode_reply(reply)
    cut = data.draw(st.integers(0, len(whole)))
    wire = FramedWire(TARGET)
    wire.encode("file", 4, close=False)
    pieces = [piece for piece in (whole[:cut], whole[cut:]) if piece]
    assert [wire.decode(piece) for piece in pieces] == [None] * (len(pieces) - 1) + [answer]


def test_many_uploads_over_one_wire():
    wire = FramedWire(TARGET)
    for name in ("a", "b", "c"):
        wire.encode(name, 4, close=False)
        assert wire.decode(encode_reply(STORED)).code == "ok"


@pytest.mark.parametrize("data", [bytes(4), b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x02\x00\x00\x00{}"])
def test_what_is_no_answer(data):
    wire = FramedWire(TARGET)
    wire.encode("file", 4, close=False)
    with pytest.raises(WireError) as caught:
        wire.decode(data)
    assert caught.value.code == "bad_reply"


def test_an_end_instead_of_an_answer():
    wire = FramedWire(TARGET)
    wire.encode("file", 4, close=False)
    with pytest.raises(WireError) as caught:
        wire.end()
    assert caught.value.code == "connection_lost"


# ── whose it is ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_scheme_picks_a_wire():
    for host in ("tcp://h:1", "tls://h:1", "unix:///run/socket"):
        assert wire_of(parse_target(host)) is FramedWire
    assert wire_of(parse_target("http://h:1")).__name__ == "HttpPutWire"


@pytest.mark.parametrize("scheme", ["tcp", "http"])
def test_a_wire_by_its_name(scheme):
    assert wire_of(Target(scheme, "h", 1), "line_wire:LineWire") is LineWire
    assert wire_of(Target(scheme, "h", 1), "loadtest.wires:FramedWire") is FramedWire


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("line_wire", "write MODULE:CLASS, such as my_wire:MyWire"),
        ("line_wire:", "cannot be had|write MODULE:CLASS"),
        (":LineWire", "cannot be had: Empty module name"),
        ("line_wire:NoWire", "cannot be had: module 'line_wire' has no attribute 'NoWire'"),
        ("no_such.module:Wire", "cannot be had: No module named 'no_such'"),
        (".line_wire:LineWire", "cannot be had: TypeError"),
        ("broken_wire:Wire", "cannot be had: ZeroDivisionError: on purpose"),
        ("line_wire:__name__", "write MODULE:CLASS"),
    ],
)
def test_wrong_names(tmp_path, monkeypatch, name, said):
    (tmp_path / "broken_wire.py").write_text("raise ZeroDivisionError('on purpose')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(OptionError, match=said):
        wire_of(TARGET, name)


# ── somebody else's ───────────────────────────────────────────────────────────────────────────────────────────────


def lines(*answers):
    """A server of line_wire's protocol that answers so, byte by byte, then closes."""

    def serve(sock):
        file = sock.makefile("rb")
        for answer in answers:
            _, _, size = file.readline().split()
            file.read(int(size))
            for byte in answer:
                sock.sendall(bytes([byte]))

    return serve


@pytest.mark.parametrize(
    ("answers", "codes"),
    [
        ([b"OK 1024\n"] * 3, ["ok", "ok", "ok"]),
        ([b"NO\n"], ["said_no"]),
        ([b"OK 1\n"], ["size_differs"]),
        ([b"HOW?\n"], ["bad_reply"]),
        ([b""], ["connection_lost"]),
        ([b"OK 1024\n", b"OK 10"], ["ok", "connection_lost"]),
    ],
    ids=lambda value: "",
)
def test_a_protocol_of_ones_own(answers, codes):
    """Without a digest, none is compared; its own codes are counted like ours."""
    with serving(lines(*answers)) as host, fake_load(host, wire="line_wire:LineWire") as load:
        uploader = Uploader(load)
        for number in range(len(codes)):
            payload, name = load.payloads.pick(0, number)
            uploader.upload(RunningPhase("p", 0) if not number else load.ended[0].phase, payload, name)
        uploader.close()
    assert load.codes() == codes
    assert [ended.done.connected for ended in load.ended] == [True] + [False] * (len(codes) - 1)


def test_without_gevent():
    with serving(lines(b"OK 1024\n")) as host, fake_load(host) as load:
        plain = UploadClient(parse_target(host), wire=LineWire, waiter=PollWaiter)
        payload, name = load.payloads.pick(0, 0)
        assert plain.upload(name, payload, last=True).error is None
