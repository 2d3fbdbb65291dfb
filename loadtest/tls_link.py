"""TLS over a link. Knows no protocol, as link.py.

Records are made and read in memory (`ssl.MemoryBIO`), and a link moves them: so a handshake waits like everything else,
nothing ever blocks the other users, and the kernel still says when bytes arrived. Letting OpenSSL have the socket
itself was no cheaper (120 µs of CPU an upload of 4 KiB either way, 2.5 and 2.9 ms of 3 MiB), and has no such times.

- An end is a close-notify, with or without TCP's behind it. A server may send one and then wait for ours before it
  closes; so it gets ours, unless TCP is closed already: that would only be answered by a reset.
- The end of TCP without a close-notify is an end as well: whether something is missing, the protocol knows.
- In TLS 1.3 a handshake is over for us before the server has looked at our part of it. If it then ends the connection
  without a word, the handshake has failed, although it seemed to be over.
"""

import ssl
import time

from loadtest.link import SEND_PIECE_BYTES, Address, Link, WaiterFactory

GOODBYE_LIMIT_S = 1.0  # for a server to close TCP after both have said that they are done
_READ_BYTES = 64 << 10  # more than a record has: one read takes all of it

WITHOUT_A_WORD = "the server ended the handshake without a word: does it want a certificate (--cert)?"
_ALERT = "_ALERT_"
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST")


class TlsError(OSError):
    """No TLS with this server; the text says what is wrong."""


def in_words(error: ssl.SSLError) -> str:
    """What is wrong, as a person would say it: OpenSSL's own texts name the line of its source."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not to be trusted: {error.verify_message.rstrip('.')}"
    reason = error.reason or ""
    if is_refusal(error):
        return f"the server refused: {_spelled(reason.partition(_ALERT)[2])}"
    return "the server does not speak TLS" if reason in _NOT_TLS else _spelled(reason) or str(error)


def is_refusal(error: ssl.SSLError) -> bool:
    """Whether the server has said so itself, in TLS."""
    return _ALERT in (error.reason or "")


def _spelled(reason: str) -> str:
    return reason.lower().replace("_", " ")


class TlsLink:
    """A `link.Link` that is encrypted. TlsError for whatever TLS has against the other end."""

    __slots__ = ("_accepted", "_early", "_ended", "_incoming", "_link", "_outgoing", "_tls", "handshake_ns", "stamps")

    def __init__(
        self, address: Address, timeout_s: float, waiter: WaiterFactory, *, context: ssl.SSLContext, server_name: str
    ) -> None:
        """Connect to `address`, and shake hands with who must have a certificate for `server_name`."""
        self._link = link = Link(address, timeout_s, waiter)
        self.handshake_ns, self.stamps = link.handshake_ns, link.stamps
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._accepted = False
        """Whether the server is known to have accepted our part of the handshake."""
        self._ended = False
        """Whether it has sent its close-notify."""
        self._early = b""
        """What it said before anybody asked."""
        try:
            self._shake_hands()
        except BaseException:
            link.close()
            raise

    def _shake_hands(self) -> None:
        try:
            while not self._has_shaken_hands():
                self._link.send(self._outgoing.read())
                data, _ = self._link.receive()
                if not data:
                    raise TlsError(WITHOUT_A_WORD)
                self._incoming.write(data)
            self._link.send(self._outgoing.read())
        except ConnectionError:
            raise TlsError(WITHOUT_A_WORD) from None
        self._accepted = self._tls.version() != "TLSv1.3"

    def _has_shaken_hands(self) -> bool:
        """Go on with what has arrived; False when more must."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            self._link.offer(self._outgoing.read())  # the alert, which tells the server why
            raise TlsError(in_words(error)) from None
        return True

    def established(self) -> bool:
        """Whether neither side has closed. What came meanwhile is read: sessions, which nobody resumes, or an end."""
        try:
            while not self._ended and (pending := self._link.peek()) is not None:
                if not pending:
                    return False
                self._early += self._decrypted(self._link.receive()[0])
        except OSError:
            return False
        return not self._ended

    def send(self, data: bytes | memoryview) -> None:
        """All of it. A piece is larger as records than the link sends at once, so that others get a turn."""
        view = memoryview(data)
        while len(view):
            try:
                written = self._tls.write(view[:SEND_PIECE_BYTES])
            except ssl.SSLError as error:
                raise TlsError(in_words(error)) from None
            view = view[written:]
            self._link.send(self._outgoing.read())

    def receive(self) -> tuple[bytes, int]:
        """What arrived, decrypted, and when: the time of the record's last byte."""
        if self._early:
            early, self._early = self._early, b""
            return early, time.monotonic_ns()
        while not self._ended:
            data, in_kernel_ns = self._arrived()
            if not data:
                return b"", in_kernel_ns
            if plain := self._decrypted(data):
                return plain, in_kernel_ns
        self._await_close()
        return b"", time.monotonic_ns()

    def limit(self, timeout_s: float) -> None:
        self._link.limit(timeout_s)

    def close(self, *, reset: bool = False) -> None:
        """Tell the server, if it is still there, and close."""
        if not reset and not self._ended:
            self._say_goodbye()
        self._link.close(reset=reset)

    def _arrived(self) -> tuple[bytes, int]:
        """Records, or no bytes when TCP has ended; if that was the answer to our handshake, TlsError."""
        try:
            data, in_kernel_ns = self._link.receive()
            if data or self._accepted:
                self._accepted = True
                return data, in_kernel_ns
        except ConnectionError:
            if self._accepted:
                raise
        raise TlsError(WITHOUT_A_WORD)

    def _decrypted(self, data: bytes) -> bytes:
        """What these bytes complete; none when they are no whole record, or say nothing to us."""
        self._incoming.write(data)
        plain = b""
        try:
            while self._incoming.pending and not self._ended:
                piece = self._tls.read(_READ_BYTES)
                self._ended = not piece
                plain += piece
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise TlsError(in_words(error)) from None
        return plain

    def _say_goodbye(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # it is said, and not answered yet; or this was never a TLS connection
        self._link.offer(self._outgoing.read())

    def _await_close(self) -> None:
        """The server has said that it is done. It closes TCP first, so that the TIME_WAIT is its own."""
        try:
            if self._link.established():
                self._say_goodbye()
                self._link.limit(GOODBYE_LIMIT_S)
                while self._link.receive()[0]:
                    pass
        except OSError:
            pass  # it does not, or did so by a reset
