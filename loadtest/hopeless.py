"""Whether any upload can succeed, by how the first ones failed: a run of which none can is ended at once.

Some failures are the same for every file at any time: a wrong token, a protocol that the server does not speak. Others
are of a moment (`busy`) or of a file (`too_large`), and end no run. A server that only closes may be of either kind, so
it is asked whether it speaks TLS.
"""

import socket
import ssl
from collections.abc import Mapping

from loadtest.tls_link import WITHOUT_A_WORD, is_refusal
from loadtest.wires import Target
from server.printing import one_line

ASKED_WITHIN_S = 2.0
LONGEST_MESSAGE = 200  # of a server's own words

# HTTP: redirections, and what is wrong with the request whatever it carries. Not 408, 409, 413, 429, 500, 503, 507 ...
_OF_ALL_STATUS = {f"http_{code}" for code in (301, 302, 303, 307, 308, *range(400, 408), 410, 411, 415, 421, 426, 501)}
_OF_ALL = {"unauthorized", "bad_length", "bad_header", "bad_reply", "tls_failed", "client_failed", *_OF_ALL_STATUS}
_OTHER_PROTOCOL = ("bad_length", "bad_reply", "connection_lost")


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
        ask = "; does this server speak this protocol (--host, --wire)?" if code in _OTHER_PROTOCOL else ""
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
