"""What a server was told to do: one frozen value, validated before anything is bound, forked or created.

Its fields are the table of options: default, kind (see `option_kinds`), bounds, help and whether a reload takes it
stand beside the type that mypy knows, and no second table must be held equal to them. This file knows which values can
work, and nothing of where they come from: that is `settings`.
"""

import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from server.addresses import Address, overlap, parse_addresses, write_addresses
from server.certificates import Tls
from server.option_kinds import HOST, NUMBER, OCTAL, PORT_OR_OFF, RATE, SWITCH, option, options_of
from server.printing import one_line, quoted
from server.protocol import Limits
from server.units import DURATION, SIZE, Kind, choice, write_size

MAX_WORKERS = 512
_LIMITS = Limits()  # the protocol's own defaults are the server's
_PORTS = (0, 65_535)
_DAY_S = 86_400.0  # poll() does not take arbitrarily large numbers, nor does listen()

AcceptMode = Literal["per-worker", "shared"]
Collision = Literal["replace", "unique", "reject"]
Durability = Literal["process", "power"]
LogFormat = Literal["text", "json"]


class Problem(NamedTuple):
    """A value that cannot work. `rule` is what follows it in a sentence: "not 1 to 512"."""

    option: str
    value: str
    rule: str
    origin: str = ""
    """Where the value came from, if that is known."""

    def __str__(self) -> str:
        return f"{self.option} is {self.value}{self.origin and f' (from {self.origin})'}, {self.rule}"


class ConfigError(Exception):
    """The configuration cannot work. Each of `problems` is one line that says which value and what to do."""

    def __init__(self, *problems: str | Problem) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.found = problems

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(map(str, self.found))


def printable(path: Path) -> str:
    """The path for people: what is not UTF-8 in it is replaced. On Linux a name may be any bytes, and Python keeps
    those that are no text as surrogates, which can be neither printed nor written as JSON."""
    return str(path).encode(errors="surrogateescape").decode(errors="replace")


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    return Path(text)


def _write_path(path: Path | None) -> str:
    return "none" if path is None else one_line(printable(path))


FOLDER = Kind("DIR", _path, _write_path, is_text=True)
FILE = Kind("FILE", _path, _write_path, is_text=True)
ADDRESSES = Kind("ADDRESS,...", parse_addresses, write_addresses, is_text=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Sizes in bytes, times in seconds. `store` None means that uploads are counted and discarded."""

    config: Path | None = option(
        None, FILE, "TOML file with any of these options, such as: workers = 8", is_shown=False
    )
    host: str = option("127.0.0.1", HOST, "address to listen on; loopback unless you say so")
    port: int = option(12345, NUMBER, "0 takes a free one", bounds=_PORTS)
    listen: tuple[Address, ...] = option(
        (),
        ADDRESSES,
        "in place of host and port, one or more of HOST:PORT, [IPV6]:PORT, tls://HOST:PORT and unix:///PATH, with "
        "commas between them or each with a flag of its own",
    )
    tls_cert: Path | None = option(
        None,
        FILE,
        "certificate with its chain (PEM): host and port, or the tls:// addresses of listen, speak TLS",
        reloads=True,
        is_shown=False,
    )
    tls_key: Path | None = option(None, FILE, "its key, unless that is in the same file", reloads=True, is_shown=False)
    tls_client_ca: Path | None = option(
        None, FILE, "clients must show a certificate that one of these has signed (PEM)", reloads=True, is_shown=False
    )
    workers: int = option(4, NUMBER, "worker processes", bounds=(1, MAX_WORKERS), reloads=True)
    store: Path | None = option(
        None, FOLDER, "folder that uploads go to; made if it is missing; if relative, then to the working directory"
    )
    discard: bool = option(False, SWITCH, "receive, check and count uploads, but keep none")
    max_file_size: int = option(
        _LIMITS.max_file_size, SIZE, "larger files are refused", bounds=(1, 1 << 50), reloads=True
    )
    max_header_size: int = option(
        _LIMITS.max_header_size, SIZE, "larger headers are refused", bounds=(1 << 10, 1 << 20), reloads=True
    )
    max_store: int = option(
        0,
        SIZE,
        "bytes that the store may hold; 0 for as many as the disk can",
        bounds=(0, 1 << 60),
        zero="the disk's room",
    )
    max_connections: int = option(
        0,
        NUMBER,
        "of each worker, which tells others that it is busy; 0 for as many as it has descriptors for",
        bounds=(0, 1_000_000),
        zero="as descriptors allow",
        reloads=True,
    )
    header_timeout_s: float = option(
        10.0, DURATION, "from a header's first byte to its last", bounds=(1.0, _DAY_S), reloads=True
    )
    idle_timeout_s: float = option(
        75.0,
        DURATION,
        "that a client may be silent, within an upload or between two",
        bounds=(1.0, _DAY_S),
        reloads=True,
    )
    min_rate: int = option(
        1 << 10,
        RATE,
        "a second, that an upload must keep on average once the grace is over; 0 for none",
        bounds=(0, 1 << 30),
        zero="none",
        reloads=True,
    )
    min_rate_grace_s: float = option(10.0, DURATION, "see --min-rate", bounds=(1.0, _DAY_S), reloads=True)
    token_file: Path | None = option(
        None,
        FILE,
        "file with the token that every upload must carry; readable by its owner only",
        reloads=True,
        is_shown=False,
    )
    umask: int = option(
        0o077,
        OCTAL,
        "permissions that the store's files and folders do not get; by default all but the owner's",
        bounds=(0, 0o077),
        because="the server itself must read and write its files",
        reloads=True,
    )
    collision: Collision = option(
        "replace",
        choice(Collision),
        "an upload whose name is taken replaces the file, gets a name of its own, or is refused",
        reloads=True,
    )
    durability: Durability = option(
        "process",
        choice(Durability),
        "what an acknowledged upload survives: the death of any process, or of the machine's power",
        reloads=True,
    )
    drain_timeout_s: float = option(
        30.0, DURATION, "how long TERM waits for open connections", bounds=(0.0, _DAY_S), reloads=True
    )
    hang_timeout_s: float = option(
        30.0,
        DURATION,
        "a worker whose event loop stands still for so long is killed and replaced",
        bounds=(2.0, _DAY_S),  # it beats once a second: with less patience healthy ones would be killed
        reloads=True,
    )
    max_deaths: int = option(
        10,
        NUMBER,
        "so many workers that died by themselves within the death window end the server",
        bounds=(1, 1_000_000),
        reloads=True,
    )
    death_window_s: float = option(60.0, DURATION, "see --max-deaths", bounds=(1.0, _DAY_S), reloads=True)
    accept: AcceptMode = option(
        "per-worker", choice(AcceptMode), "a listening socket for each worker, or one that all accept from"
    )
    backlog: int = option(4096, NUMBER, "connections that may wait to be accepted, a socket", bounds=(1, 65_535))
    pid_file: Path | None = option(None, FILE, "has the server's pid from when it is ready to its end")
    log_format: LogFormat = option("text", choice(LogFormat), "of what stderr says, a line an incident")
    status_port: int | None = option(
        None,
        PORT_OR_OFF,
        "of a page of what the workers do, with /metrics and /healthz; 0 takes a free one; off by default",
        bounds=_PORTS,
    )
    status_host: str = option("127.0.0.1", HOST, "address of that page, which whoever reaches it may read")

    tls: Tls | None = None
    """What was read from the files of the certificate, its key and its clients' authority."""
    token: str | None = field(default=None, repr=False)
    """What was read from the token file."""

    def __post_init__(self) -> None:
        if sys.platform != "linux":
            raise ConfigError(
                f"the server needs Linux, this is {sys.platform}: it relies on SO_REUSEPORT balancing, pidfds and "
                "/proc. Run it in a Linux container or virtual machine; the load can come from here"
            )
        if problems := list(self._problems()):
            raise ConfigError(*problems)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where to listen."""
        return self.listen or (Address("tcp" if self.tls is None else "tls", self.host, self.port),)

    def shown(self) -> dict[str, str]:
        """The options as the state file, the status page and reports show them."""
        shown = {each.name: each.shown(getattr(self, each.field)) for each in OPTIONS if each.is_shown}
        tls = "none" if self.tls is None else "client certificates" if self.tls.asks_clients else "yes"
        return shown | {"tls": tls, "token": "none" if self.token is None else "required"}

    def _problems(self) -> Iterator[str | Problem]:
        if self.discard == (self.store is not None):
            yield "say where uploads go: either --store DIR or --discard"
        for name in ("host", "status_host"):
            value = getattr(self, name)
            if not value or not value.isprintable() or set(value) & set("@/?#"):
                yield Problem(name, quoted(value), "not an address: name one of this machine, such as 127.0.0.1")
        if self.listen:
            listen, speaks_tls = write_addresses(self.listen), any(address.scheme == "tls" for address in self.listen)
            if speaks_tls and self.tls is None:
                yield Problem("listen", listen, "but TLS needs a certificate: name it as tls_cert")
            if self.tls is not None and not speaks_tls:
                yield Problem("listen", listen, "but there is a tls_cert: write tls:// for it")
        for each in OPTIONS:
            value = getattr(self, each.field)
            if rule := each.broken_rule(value):
                yield Problem(each.name, repr(value) if each.kind.choices else each.kind.write(value), rule)
        if self.status_port:
            page = Address("tcp", self.status_host, self.status_port)
            if any(overlap(page, address) for address in self.addresses):
                yield Problem("status_port", str(self.status_port), "the port of the uploads: choose another")
        # With nothing kept these promise nothing, and a report of the run would show them as if they had cost anything.
        if self.discard:
            keeps_nothing = "but discard keeps nothing: leave one of them out"
            if self.durability == "power":
                yield Problem("durability", self.durability, keeps_nothing)
            if self.collision in ("unique", "reject"):
                yield Problem("collision", self.collision, "but discard keeps no names: leave one of them out")
            if self.max_store:
                yield Problem("max_store", write_size(self.max_store), keeps_nothing)


OPTIONS = options_of(ServerConfig)


def find_store_problem(store: Path) -> str | None:
    """Why uploads cannot go to this folder; None when they can. It only looks: nothing is made or locked."""
    incoming = store / ".incoming"
    if os.path.lexists(incoming):
        if incoming.is_symlink():
            return f"{printable(incoming)} is a link, not a folder"
        if problem := find_folder_problem(incoming):
            return problem
    return find_folder_problem(next(path for path in (store, *store.absolute().parents) if os.path.lexists(path)))


def find_folder_problem(folder: Path) -> str | None:
    """Why nothing can be put into this folder; None when it can. It only looks."""
    if os.access(folder, os.W_OK | os.X_OK) and folder.is_dir():
        return None
    try:  # Python's access() does not tell why. To make a file without a name fails for the same reason
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except (FileNotFoundError, NotADirectoryError):
        is_there = os.path.lexists(folder)
        return f"{printable(folder)} is not a folder" if is_there else f"there is no folder {printable(folder)}"
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # not every file system has such files; what forbids them comes first
            return f"{printable(folder)} cannot be written: {error.strerror}"
    return None
