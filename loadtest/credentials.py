"""Who the load says it is, and whom it trusts: what `--token-file`, `--ca`, `--cert` and `--key` name.

The files are read when a run or a client begins. What is shown or written down (options, command lines, run folders,
logs) has their names; the token itself is only here and in the wires that send it, and no `repr` shows it.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.option_error import OptionError
from loadtest.tls_link import in_words
from loadtest.wires import FRAMED, Target
from server.protocol import MAX_TOKEN, is_token

FIELDS = ("token_file", "ca", "cert", "key")


@dataclass(frozen=True, slots=True)
class Credentials:
    token: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    """How to speak TLS with a `tls://` target; None for any other."""


def read(target: Target, fields: Mapping[str, Any], *, wire: str = "") -> Credentials:
    """Read the files that `fields` names, keyed as FIELDS, for uploads to `target` by the wire of that name or the
    target's own. OptionError for the first mistake."""
    paths = {name: Path(text) for name in FIELDS if (text := str(fields[name] or "").strip())}
    for name in paths:
        if name != "token_file" and target.scheme != "tls":
            raise OptionError(f"{name} is for hosts of tls://, and this one is of {target.scheme}://")
    if "token_file" in paths and (wire or target.scheme not in FRAMED):
        raise OptionError("token file: only the framed protocol carries a token: tcp://, tls:// or unix://")
    if "key" in paths and "cert" not in paths:
        raise OptionError("key: say which certificate it is the key of: --cert")
    token_file = paths.pop("token_file", None)
    return Credentials(
        token=None if token_file is None else _token(token_file),
        tls=_context(**paths) if target.scheme == "tls" else None,
    )


def _token(path: Path) -> str:
    """What is in the file, without the line's end: the server reads its own in the same way."""
    try:
        token = _contents("token file", path, 4 * MAX_TOKEN + 2).decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise OptionError(f"token file: {str(path)!r} is not UTF-8: write the token as text") from None
    if not is_token(token):
        raise OptionError(
            f"token file: what is in {str(path)!r} is no token: write 1 to {MAX_TOKEN} characters on one line"
        )
    return token


def _context(ca: Path | None = None, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """The server must show the host's certificate, signed by one of `ca` or of the system's authorities."""
    authorities = None if ca is None else _contents("ca", ca).decode("ascii", errors="ignore")
    try:
        context = ssl.create_default_context(cadata=authorities if authorities != "" else "\n")  # "" is the system's
    except ssl.SSLError:
        raise OptionError(f"ca: there is no certificate in {str(ca)!r} (PEM)") from None
    if cert is not None:
        _identify(context, cert, key)
    return context


def _identify(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    _contents("cert", cert)  # OpenSSL does not say which of the two it could not read
    if key is not None:
        _contents("key", key)

    def no_password() -> str:  # or OpenSSL would ask at the terminal, which a load process has not
        raise OptionError(f"cert: the key in {str(key or cert)!r} has a password: decrypt it for the load")

    try:
        context.load_cert_chain(cert, key, password=no_password)
    except ssl.SSLError as error:
        where = f"{str(cert)!r} with its key" if key is None else f"{str(cert)!r} with the key in {str(key)!r}"
        raise OptionError(f"cert: there is no certificate in {where} (PEM): {in_words(error)}") from None


def _contents(name: str, path: Path, most_bytes: int = 16 << 20) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most_bytes)
    except OSError as error:
        raise OptionError(f"{name}: {str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError:  # of a NUL, or what is no text
        raise OptionError(f"{name}: {str(path)!r} is no path") from None
