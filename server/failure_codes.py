"""Every way an upload can fail: its code, its words for people, and whose fault it is. A leaf, which all rooms read.

The server counts its codes and replies with them; what a client sees go wrong it names itself.
"""

from dataclasses import dataclass
from typing import Literal

Fault = Literal["client", "server", "network", "load"]
Stored = Literal["no", "perhaps", "yes"]


@dataclass(frozen=True, slots=True)
class Failure:
    """One code. Its text is constant: people group by it."""

    code: str
    text: str
    fault: Fault
    """Who most likely has to change something; `load` is the machine or the program that uploads."""
    status: Literal["rejected", "failed"] | None
    """The server's reply: refused for what was asked, or failed on the way. None: the client says it."""
    stored: Stored = "no"
    """Whether the file may be on the server: a refusal leaves nothing, but the answer of a stored one can be lost."""

    @property
    def said_by(self) -> Literal["server", "client"]:
        return "client" if self.status is None else "server"

    @property
    def meaning(self) -> str:
        """The text, behind how far the upload came where that is certain."""
        if self.stored == "perhaps":
            return self.text
        if self.stored == "yes":
            return f"acknowledged, but {self.text}"
        return f"{'never sent' if self.status is None else 'refused'}: {self.text}"


DROPPED = "dropped"
NO_LOCAL_PORT = "no_local_port"

# The server's come first, in the order of the scoreboard's words.
FAILURES = (
    Failure("bad_length", "the length of the header is 0 or too large", "client", "rejected"),
    Failure("bad_header", "the header is no JSON of the protocol", "client", "rejected"),
    Failure("unauthorized", "the token is missing or wrong", "client", "rejected"),
    Failure("name_rejected", "the file may not have this name", "client", "rejected"),
    Failure("too_large", "the file is larger than the server takes", "client", "rejected"),
    Failure("exists", "the name is taken, and the server does not replace files", "client", "rejected"),
    Failure("no_space", "the server's disk or quota is full", "server", "failed"),
    Failure("digest_mismatch", "other bytes arrived than their digest says", "client", "failed"),
    Failure("header_timeout", "the header did not come in time", "client", "failed"),
    Failure("idle_timeout", "nothing came for too long within an upload", "client", "failed"),
    Failure("too_slow", "the upload came at less than the lowest rate", "network", "failed"),
    Failure("busy", "the worker had as many connections as it takes", "server", "rejected"),
    Failure("shutting_down", "the server stopped, and its drain was over", "server", "rejected"),
    Failure("internal", "the server met something unforeseen; its log says what", "server", "failed", "perhaps"),
    Failure("truncated", "the connection ended before the file did", "client", "failed"),
    Failure("tls_handshake", "client and server could not agree on TLS, or on who they are", "client", "failed"),
    Failure(DROPPED, "due while the most uploads were in flight", "load", None),
    Failure(NO_LOCAL_PORT, "every local port is taken, by connections or in TIME_WAIT", "load", None),
    Failure("connect_refused", "nobody listens at the address", "server", None),
    Failure("connect_failed", "the connection could not be made", "network", None),
    Failure(
        "tls_failed",
        "no TLS with the server: its certificate is not to be trusted, or the handshake failed",
        "server",
        None,
        "perhaps",
    ),
    Failure("connection_lost", "the server closed the connection before it replied", "server", None, "perhaps"),
    Failure("timeout", "no answer in time", "server", None, "perhaps"),
    Failure("unfinished", "no answer when the run ended", "server", None, "perhaps"),
    Failure("bad_reply", "the reply broke the protocol", "server", None, "perhaps"),
    Failure(
        "client_failed",
        "a mistake in the load's own code, or in a wire of yours; the log has it",
        "load",
        None,
        "perhaps",
    ),
    Failure("digest_differs", "the server reports another digest than the bytes have", "server", None, "yes"),
    Failure("size_differs", "the server reports another number of bytes than were sent", "server", None, "yes"),
)

SERVER_CODES = tuple(failure.code for failure in FAILURES if failure.said_by == "server")
CLIENT_CODES = tuple(failure.code for failure in FAILURES if failure.said_by == "client")
BY_CODE = {failure.code: failure for failure in FAILURES}

# No answer came. In the open model their elapsed time is kept, as the duration `unanswered`.
UNANSWERED = ("timeout", "unfinished")
# No byte of the upload left. After any other the server may have stored the upload, and only its answer was lost.
NEVER_SENT = tuple(code for code in CLIENT_CODES if BY_CODE[code].stored == "no")
# And no connection was made for it, which the server could have counted.
NEVER_CONNECTED = (DROPPED, NO_LOCAL_PORT, "connect_refused")


def failure_of(code: str) -> Failure:
    """The row of any code: those of servers that are not ours too."""
    if code.startswith("http_"):
        return Failure(code, "answered with this HTTP status", "server", "failed", "perhaps")
    return BY_CODE.get(code) or Failure(code, "a code of the server's own", "server", "failed", "perhaps")
