"""What the code of a failed upload means, and whether its file may be on the server nevertheless. A leaf.

The codes are the server's replies (server/protocol.py) and what a client sees go wrong (loadtest/wires.py); this room
knows them only by name, since it also reports on a run folder that came from elsewhere.
"""

from typing import Literal, NamedTuple

from reports.run_folder import DROPPED, NEVER_SENT, NO_LOCAL_PORT

Stored = Literal["no", "perhaps", "yes"]


class Meaning(NamedTuple):
    text: str
    stored: Stored
    """Whether the file may be there: a refusal leaves nothing, but an answer can be lost after the file was stored."""


_REFUSED = {
    "bad_length": "the length of the header is 0 or too large",
    "bad_header": "the header is no JSON of the protocol",
    "unauthorized": "the token is missing or wrong",
    "name_rejected": "the file may not have this name",
    "too_large": "the file is larger than the server takes",
    "exists": "the name is taken, and the server does not replace files",
    "no_space": "the server's disk or quota is full",
    "digest_mismatch": "other bytes arrived than their digest says",
    "header_timeout": "the header did not come in time",
    "idle_timeout": "nothing came for too long within an upload",
    "too_slow": "the upload came at less than the lowest rate",
    "busy": "the worker had as many connections as it takes",
    "shutting_down": "the server stopped, and its drain was over",
    "truncated": "the connection ended before the file did",
    "tls_handshake": "client and server could not agree on TLS, or on who they are",
}
_UNSENT = {
    DROPPED: "due while the most uploads were in flight",
    NO_LOCAL_PORT: "the load's machine had no port left",
    "connect_refused": "nobody listened, or the server refused the connection",
    "connect_failed": "the connection could not be made",
}
_UNCLEAR = {
    "tls_failed": "no TLS with the server: a certificate is not to be trusted, or the handshake failed",
    "internal": "the server met something unforeseen; its log says what",
    "connection_lost": "the connection ended before the answer",
    "timeout": "no answer in time",
    "unfinished": "no answer when the run ended",
    "bad_reply": "the answer broke the protocol",
    "client_failed": "the load's own code failed; its log says how",
}
_ACKNOWLEDGED = {
    "digest_differs": "acknowledged, but the server names another digest",
    "size_differs": "acknowledged, but the server names another size",
}


def meaning(code: str) -> Meaning:
    """Of any code: those of servers that are not ours too."""
    if code in _REFUSED:
        return Meaning(f"refused: {_REFUSED[code]}", "no")
    if code in NEVER_SENT:
        return Meaning(f"never sent: {_UNSENT[code]}", "no")
    if code in _ACKNOWLEDGED:
        return Meaning(_ACKNOWLEDGED[code], "yes")
    if code.startswith("http_"):
        return Meaning("answered with this HTTP status", "perhaps")
    return Meaning(_UNCLEAR.get(code, "a code of the server's own"), "perhaps")
