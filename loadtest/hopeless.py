"""Whether any upload can succeed, by how the first ones failed: a run of which none can is ended at once.

What decides, as long as none was ever acknowledged:

    of every file   a wrong token, a protocol the server does not speak: one such failure, and none of another kind
    of a size       too_large, no_space: the smallest file of the run was refused, and so is each that is larger
    of a name       exists, name_rejected: each name was refused that the run has, but for files of a size that was
    silence         as many uploads were given up as there are users, or uploads at once, and nothing was heard at all
    of a moment     all others, such as busy: never

A server that only closes may be of the first kind or the last, so it is asked whether it speaks TLS.
"""

import math
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from loadtest.tls_link import WITHOUT_A_WORD, is_refusal
from loadtest.wires import Target
from server.printing import one_line

ASKED_WITHIN_S = 2.0
LONGEST_MESSAGE = 200  # of a server's own words

# HTTP: redirections, and what is wrong with the request whatever it carries. Not 408, 409, 413, 429, 500, 503, 507 ...
_OF_ALL_STATUS = {f"http_{code}" for code in (301, 302, 303, 307, 308, *range(400, 408), 410, 411, 415, 421, 426, 501)}
_OF_ALL = {"unauthorized", "bad_length", "bad_header", "bad_reply", "tls_failed", "client_failed", *_OF_ALL_STATUS}
_OTHER_PROTOCOL = ("bad_length", "bad_reply", "connection_lost")
_OF_SIZE = ("too_large", "no_space", "http_413", "http_507")
_OF_NAME = ("exists", "name_rejected")
_UNHEARD = {
    "timeout",
    "connect_failed",
}  # the latter of a unix socket whose queue nobody empties, or a host without way


@dataclass(slots=True)
class FirstFailures:
    """What is known of the uploads that failed before any was acknowledged."""

    messages: dict[str, str] = field(default_factory=dict)
    """code -> what the last one said."""
    count: int = 0
    smallest_refused: float = math.inf
    """In bytes, of those that were refused for their size."""
    names_refused: set[str] = field(default_factory=set)

    def add(self, name: str, size_bytes: int, code: str, message: str) -> None:
        self.messages[code] = message
        self.count += 1
        if code in _OF_SIZE:
            self.smallest_refused = min(size_bytes, self.smallest_refused)
        elif code in _OF_NAME:
            self.names_refused.add(name)

    def why_no_file_can(self, files: Iterable[tuple[int, Sequence[str]]]) -> str | None:
        """Why none of these files can be uploaded, each a size in bytes and the names that it goes by; None when one
        may."""
        code = next((code for code in self.messages if code in (*_OF_SIZE, *_OF_NAME)), None)
        if code is None:
            return None
        for size_bytes, names in files:
            if size_bytes < self.smallest_refused and not self.names_refused.issuperset(names):
                return None
        return f"every file is refused: {code}: {one_line(self.messages[code])[:LONGEST_MESSAGE]}"

    def why_unheard(self, uploaders: int, timeout_s: float) -> str | None:
        """That the server says nothing, once as many uploads were given up as are made at a time."""
        if "timeout" not in self.messages or self.messages.keys() - _UNHEARD or self.count < uploaders:
            return None
        return f"none of the first {self.count:,} was answered within {timeout_s:g} s (--timeout)"


def why_none_can(failed: Mapping[str, str], target: Target) -> str | None:
    """Why no upload to `target` can succeed, when all so far have failed by these codes, each with its message for
    people; None when one may."""
    of_all = {code: message for code, message in failed.items() if code in _OF_ALL and message != WITHOUT_A_WORD}
    if not failed or failed.keys() - of_all.keys() - {"connection_lost"}:
        return None
    is_unclear = any(code in _OTHER_PROTOCOL for code in failed)
    if is_unclear and target.scheme in ("tcp", "http") and _speaks_tls(target):
        instead = ": write tls://HOST:PORT" if target.scheme == "tcp" else ""
        return f"the server speaks TLS, which {target.scheme}:// does not{instead}"
    for code, message in of_all.items():
        ask = "; does this server speak this protocol (--host)?" if code in _OTHER_PROTOCOL else ""
        return f"{code}: {one_line(message)[:LONGEST_MESSAGE]}{ask}"
    return None


def _speaks_tls(target: Target) -> bool:
    """Whoever it is: nothing is sent to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(target.address, ASKED_WITHIN_S) as sock, context.wrap_socket(sock):
            return True
    except ssl.SSLError as error:
        return is_refusal(error)
    except OSError:
        return False
