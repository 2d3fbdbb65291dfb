"""What a server was told to do: one frozen value, validated before anything is bound, forked or created.

This file knows which values can work, and nothing of where they come from: that is `settings`. The name of an option is
the name of its field without the unit (`drain_timeout_s` is the option `drain_timeout`).
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from server.addresses import Address, overlap, write_addresses
from server.certificates import Tls
from server.units import write_duration, write_size

MAX_WORKERS = 512

AcceptMode = Literal["per-worker", "shared"]
Collision = Literal["replace", "unique", "reject"]
Durability = Literal["process", "power"]
LogFormat = Literal["text", "json"]

_DAY_S = 86_400.0
# Least, most, and how a value is shown. A worker beats once a second, so a patience of less than 2 s would kill healthy
# ones; poll() and listen() do not take arbitrarily large numbers.
_BOUNDS: dict[str, tuple[float, float, Callable[[Any], str]]] = {
    "port": (0, 65_535, str),
    "status_port": (0, 65_535, str),
    "workers": (1, MAX_WORKERS, str),
    "max_header_size": (1 << 10, 1 << 20, write_size),
    "max_file_size": (1, 1 << 50, write_size),
    "max_store": (0, 1 << 60, write_size),
    "max_connections": (0, 1_000_000, str),
    "header_timeout_s": (1.0, _DAY_S, write_duration),
    "idle_timeout_s": (1.0, _DAY_S, write_duration),
    "min_rate": (0, 1 << 30, write_size),
    "min_rate_grace_s": (1.0, _DAY_S, write_duration),
    "drain_timeout_s": (0.0, _DAY_S, write_duration),
    "backlog": (1, 65_535, str),
    "hang_timeout_s": (2.0, _DAY_S, write_duration),
    "max_deaths": (1, 1_000_000, str),
    "death_window_s": (1.0, _DAY_S, write_duration),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "accept": get_args(AcceptMode),
    "collision": get_args(Collision),
    "durability": get_args(Durability),
    "log_format": get_args(LogFormat),
}


class ConfigError(Exception):
    """The configuration cannot work. Each of `problems` is one line that says which value and what to do."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Problem(NamedTuple):
    """A value that cannot work. `rule` is what follows it in a sentence: "not 1 to 512"."""

    option: str
    value: str
    rule: str

    def told(self, origin: str | None = None) -> str:
        """As a line; `origin` is where the value came from."""
        return f"{self.option} is {self.value}{f' (from {origin})' if origin else ''}, {self.rule}"


def printable(path: Path) -> str:
    """The path for people: what is not UTF-8 in it is replaced. On Linux a name may be any bytes, and Python keeps
    those that are no text as surrogates, which can be neither printed nor written as JSON."""
    return str(path).encode(errors="surrogateescape").decode(errors="replace")


def one_line(text: str) -> str:
    """The text with what cannot be printed escaped: it neither breaks a line nor moves a terminal's cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Sizes in bytes, times in seconds. `store` None means that uploads are counted and discarded."""

    host: str
    port: int
    workers: int
    store: Path | None
    listen: tuple[Address, ...] = ()
    """In place of `host` and `port`."""
    tls: Tls | None = None
    pid_file: Path | None = None
    max_header_size: int = 64 << 10
    max_file_size: int = 16 << 30
    max_store: int = 0
    """Bytes that the store may hold; 0 for as many as the disk has room for."""
    max_connections: int = 0
    """Of each worker; 0 for as many as it has descriptors for."""
    header_timeout_s: float = 10.0
    """From a header's first byte to its last."""
    idle_timeout_s: float = 75.0
    """That a client may be silent, within an upload or between two."""
    min_rate: int = 1 << 10
    """Bytes a second that an upload must keep, on average, from `min_rate_grace_s` after its header on; 0 for none."""
    min_rate_grace_s: float = 10.0
    token: str | None = field(default=None, repr=False)
    """Which every upload must carry."""
    umask: int = 0o077
    """Permissions that files and folders of the store do not get."""
    drain_timeout_s: float = 30.0
    backlog: int = 4096
    accept: AcceptMode = "per-worker"
    """A listening socket for each worker, over which the kernel spreads connections; or one that all accept from."""
    collision: Collision = "replace"
    """What becomes of an upload whose name is taken: it replaces the file, gets a name of its own, or is refused."""
    durability: Durability = "process"
    """What an acknowledged upload survives: the death of any process, or of the machine's power."""
    hang_timeout_s: float = 30.0
    """A worker whose event loop did not turn for so long is killed and replaced."""
    max_deaths: int = 10
    """So many workers that died by themselves within `death_window_s`, and the server gives up."""
    death_window_s: float = 60.0
    log_format: LogFormat = "text"
    status_port: int | None = None
    """Where the status page is; None for no page."""
    status_host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if sys.platform != "linux":
            raise ConfigError(
                f"the server needs Linux, this is {sys.platform}: it relies on SO_REUSEPORT balancing, pidfds and "
                "/proc. Run it in a Linux container or virtual machine; the load can come from here"
            )
        problems = list(find_problems({each.name: getattr(self, each.name) for each in fields(self)}))
        if problems:
            raise ConfigError(*(problem.told() for problem in problems))

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where to listen."""
        return _in_force(self.listen, self.tls, self.host, self.port)

    def shown_options(self) -> dict[str, str | int | float | bool | None]:
        """The options as the state file and the report show them."""
        return {
            "host": self.host,
            "port": self.port,
            "listen": write_addresses(self.listen) if self.listen else None,
            "tls": None if self.tls is None else "client certificates" if self.tls.asks_clients else "yes",
            "pid_file": None if self.pid_file is None else printable(self.pid_file),
            "workers": self.workers,
            "store": None if self.store is None else printable(self.store),
            "max_header_size_bytes": self.max_header_size,
            "max_file_size_bytes": self.max_file_size,
            "max_store_bytes": self.max_store,
            "max_connections": self.max_connections,
            "header_timeout_s": self.header_timeout_s,
            "idle_timeout_s": self.idle_timeout_s,
            "min_rate_bytes_per_s": self.min_rate,
            "min_rate_grace_s": self.min_rate_grace_s,
            "token_required": self.token is not None,
            "umask": f"{self.umask:03o}",
            "drain_timeout_s": self.drain_timeout_s,
            "backlog": self.backlog,
            "accept": self.accept,
            "collision": self.collision,
            "durability": self.durability,
            "hang_timeout_s": self.hang_timeout_s,
            "max_deaths": self.max_deaths,
            "death_window_s": self.death_window_s,
            "log_format": self.log_format,
            "status_port": self.status_port,
            "status_host": self.status_host,
        }


def _in_force(listen: tuple[Address, ...], tls: Tls | None, host: str, port: int) -> tuple[Address, ...]:
    return listen or (Address("tcp" if tls is None else "tls", host, port),)


def find_problems(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a ServerConfig of these values, by option. Whoever knows origins asks before making one."""
    for name in ("host", "status_host"):
        if not values[name] or not values[name].isprintable():
            yield Problem(name, repr(values[name]), "not an address: name one of this machine, such as 127.0.0.1")
    if values["listen"]:
        speaks_tls = any(address.scheme == "tls" for address in values["listen"])
        if speaks_tls and values["tls"] is None:
            yield Problem(
                "listen", write_addresses(values["listen"]), "but TLS needs a certificate: name it as tls_cert"
            )
        if values["tls"] is not None and not speaks_tls:
            yield Problem("listen", write_addresses(values["listen"]), "but there is a tls_cert: write tls:// for it")
    for name, (least, most, write) in _BOUNDS.items():
        if values[name] is not None and not least <= values[name] <= most:
            yield Problem(name.removesuffix("_s"), write(values[name]), f"not {write(least)} to {write(most)}")
    if values["status_port"]:
        page = Address("tcp", values["status_host"], values["status_port"])
        uploads = _in_force(*(values[name] for name in ("listen", "tls", "host", "port")))
        if any(overlap(page, address) for address in uploads):
            yield Problem("status_port", str(values["status_port"]), "the port of the uploads: choose another")
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            yield Problem(name, repr(values[name]), f"not {', '.join(choices[:-1])} or {choices[-1]}")
    if not 0 <= values["umask"] <= 0o777 or values["umask"] & 0o700:
        yield Problem(
            "umask", f"{values['umask']:03o}", "not 000 to 077: the server itself must read and write its files"
        )
    # With nothing kept these promise nothing, and a report of the run would show them as if they had cost anything.
    if values["store"] is None:
        if values["durability"] == "power":
            yield Problem("durability", "power", "but discard keeps nothing: leave one of them out")
        if values["collision"] in ("unique", "reject"):
            yield Problem("collision", values["collision"], "but discard keeps no names: leave one of them out")
        if values["max_store"]:
            yield Problem(
                "max_store", write_size(values["max_store"]), "but discard keeps nothing: leave one of them out"
            )


def find_store_problem(store: Path) -> str | None:
    """Why uploads cannot go to this folder; None when they can. It only looks: nothing is made or locked."""
    incoming = store / ".incoming"
    if os.path.lexists(incoming) and (incoming.is_symlink() or not incoming.is_dir()):
        return f"{printable(incoming)} is not a folder"
    return find_folder_problem(next(path for path in (store, *store.absolute().parents) if os.path.lexists(path)))


def find_folder_problem(folder: Path) -> str | None:
    """Why nothing can be put into this folder; None when it can. It only looks."""
    if not os.path.lexists(folder):
        return f"there is no folder {printable(folder)}"
    if not folder.is_dir():
        return f"{printable(folder)} is not a folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{printable(folder)} cannot be written by this user"
    return None
