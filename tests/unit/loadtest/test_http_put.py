"""The HTTP wire: its head, and what it makes of responses however they are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.http_put import HttpPutWire
from loadtest.wires import Answer, Target, WireError, wire_of

TARGET = Target("http", "127.0.0.1", 8080, "/store/")


def answer_to(*pieces: bytes) -> Answer | None:
    wire = HttpPutWire(TARGET)
    wire.encode("file", 3, close=False)
    found = None
    for piece in pieces:
        assert found is None, "the answer was whole before the response was"
        found = wire.decode(piece)
    return found


def test_the_scheme_picks_the_wire() -> None:
    assert wire_of(TARGET) is HttpPutWire


@pytest.mark.parametrize(("close", "connection"), [(False, b"keep-alive"), (True, b"close")])
def test_head(close: bool, connection: bytes) -> None:
    head = HttpPutWire(TARGET).encode("a b/ä?.bin", 5, close=close)
    lines = head.split(b"\r\n")
    assert lines[0] == b"PUT /store/a%20b%2F%C3%A4%3F.bin HTTP/1.1"
    assert set(lines[1:-2]) == {b"Host: 127.0.0.1:8080", b"Content-Length: 5", b"Connection: " + connection}
    assert lines[-2:] == [b"", b""]


def test_head_for_ipv6() -> None:
    assert b"\r\nHost: [::1]:80\r\n" in HttpPutWire(Target("http", "::1", 80)).encode("f", 1, close=False)


WHOLE = {
    b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n": Answer("ok"),
    b"HTTP/1.1 204 No Content\r\n\r\n": Answer("ok"),
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello": Answer("ok", keeps_open=False),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n": Answer("ok"),
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n": Answer("ok"),
    b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno": Answer("http_413", "the server answered 413"),
    b"HTTP/1.0 500 Oops\r\nContent-Length: 0\r\n\r\n": Answer("http_500", "the server answered 500", keeps_open=False),
}


@pytest.mark.parametrize(("response", "answer"), WHOLE.items())
def test_responses(response: bytes, answer: Answer) -> None:
    assert answer_to(response) == answer
    assert answer_to(*(response[i : i + 1] for i in range(len(response)))) == answer


@given(st.sampled_from(list(WHOLE)), st.data())
def test_any_split_gives_the_same_answer(response: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(response) - 1))
    assert answer_to(response[:cut], response[cut:]) == WHOLE[response]


def test_one_connection_many_answers() -> None:
    wire = HttpPutWire(TARGET)
    for status, code in ((201, "ok"), (507, "http_507"), (204, "ok")):
        wire.encode("file", 0, close=False)
        found = wire.decode(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
        assert found is not None
        assert found.code == code


@pytest.mark.parametrize("response", [b"\x00\x00\x00\x02{}", b"HTTP/9 nonsense\r\n\r\n", b"SSH-2.0-OpenSSH\r\n"])
def test_what_is_no_http(response: bytes) -> None:
    with pytest.raises(WireError) as caught:
        answer_to(response)
    assert caught.value.code == "bad_reply"


def answer_to_end_after(response: bytes) -> Answer | None:
    wire = HttpPutWire(TARGET)
    wire.encode("file", 0, close=False)
    if response:
        assert wire.decode(response) is None
    return wire.end()


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nsome",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nsome",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nsome",
    ],
)
def test_a_body_without_a_length_ends_with_its_connection(response: bytes) -> None:
    assert answer_to_end_after(response) == Answer("ok", keeps_open=False)


@pytest.mark.parametrize(
    "response",
    [
        *WHOLE,
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
        b"HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ],
)
def test_an_answer_that_is_cut_off(response: bytes) -> None:
    """Wherever it is, of one that tells its length it is known; whether the server said that it would close or not."""
    for length in range(len(response)):
        with pytest.raises(WireError) as caught:
            answer_to_end_after(response[:length])
        assert caught.value.code == "connection_lost"
