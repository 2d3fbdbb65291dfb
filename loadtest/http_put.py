"""HTTP PUT as a second wire, so that a web server stands beside ours in one tool, with the same payloads and durations.

HTTP/1.1 over our own connections, not through a client library: the durations need the moments at which the kernel had
the bytes. Replies are read by geventhttpclient's parser, the one of Locust's fast HTTP user (llhttp, in C).
"""

from functools import lru_cache
from urllib.parse import quote

from geventhttpclient._parser import HTTPParseError, HTTPResponseParser

from loadtest.wire_interface import Answer, Target, WireError


class _Response(HTTPResponseParser):
    """One response: its status, and whether it is whole. Bodies and headers are not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.complete = False

    def _on_message_complete(self) -> None:
        self.complete = self.get_code() >= 200  # 1xx announces the answer, it is none

    def _ignore(self, *_: object) -> None:
        """The parser asks for all of these."""

    _on_message_begin = _on_status = _on_header_field = _on_header_value = _on_headers_complete = _on_body = _ignore


class HttpPutWire:
    """`PUT <folder><name>`; every 2xx is "ok", any other status is the failure `http_<status>`."""

    __slots__ = ("_response", "_target")

    def __init__(self, target: Target) -> None:
        self._target = target
        self._response = _Response()

    def encode(self, name: str, size_bytes: int, *, close: bool) -> bytes:
        self._response = _Response()
        return _head(self._target, name, size_bytes, close)

    def decode(self, data: bytes) -> Answer | None:
        response = self._response
        try:
            response.feed(data)
        except HTTPParseError:
            raise WireError("bad_reply") from None
        return self._answer(keeps_open=bool(response.should_keep_alive())) if response.complete else None

    def end(self) -> Answer | None:
        try:
            self._response.feed(b"")  # the end, to the parser: only a body without a length is whole by it
        except HTTPParseError:
            raise WireError("connection_lost") from None
        if not self._response.complete:
            raise WireError("connection_lost")
        return self._answer(keeps_open=False)

    def _answer(self, *, keeps_open: bool) -> Answer:
        status = self._response.get_code()
        if 200 <= status < 300:
            return Answer("ok", keeps_open=keeps_open)
        return Answer(f"http_{status}", f"the server answered {status}", keeps_open=keeps_open)


@lru_cache(maxsize=8192)  # names come from a bounded set, so most are asked for again
def _head(target: Target, name: str, size_bytes: int, close: bool) -> bytes:
    host = f"[{target.host}]" if ":" in target.host else target.host
    lines = [
        f"PUT {target.path}{quote(name, safe='')} HTTP/1.1",
        f"Host: {host}:{target.port}",
        f"Content-Length: {size_bytes}",
        f"Connection: {'close' if close else 'keep-alive'}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()
