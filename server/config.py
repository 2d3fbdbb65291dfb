"""What a server was told to do: one frozen value, validated before anything is bound, forked or created."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MAX_WORKERS = 512

AcceptMode = Literal["per-worker", "shared"]
Collision = Literal["replace", "unique", "reject"]
Durability = Literal["process", "power"]


class ConfigError(Exception):
    """The configuration cannot work; the text says which value and what to do."""


def printable(path: Path) -> str:
    """The path for people: what is not UTF-8 in it is replaced. On Linux a name may be any bytes, and Python keeps
    those that are no text as surrogates, which can be neither printed nor written as JSON."""
    return str(path).encode(errors="surrogateescape").decode(errors="replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Sizes in bytes, times in seconds. `store` None means that uploads are counted and discarded."""

    host: str
    port: int
    workers: int
    store: Path | None
    max_header_size: int = 64 << 10
    max_file_size: int = 16 << 30
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

    def __post_init__(self) -> None:
        if sys.platform != "linux":
            raise ConfigError(
                f"the server needs Linux, this is {sys.platform}: it relies on SO_REUSEPORT balancing, pidfds and "
                "/proc. Run it in a Linux container or virtual machine; the load can come from here"
            )
        if not 1 <= self.workers <= MAX_WORKERS:
            raise ConfigError(f"workers is {self.workers}, not 1 to {MAX_WORKERS}")

    def shown_options(self) -> dict[str, str | int | float | bool | None]:
        """The options as the state file and the report show them."""
        return {
            "host": self.host,
            "port": self.port,
            "workers": self.workers,
            "store": None if self.store is None else printable(self.store),
            "max_file_size_bytes": self.max_file_size,
            "drain_timeout_s": self.drain_timeout_s,
            "backlog": self.backlog,
            "accept": self.accept,
            "collision": self.collision,
            "durability": self.durability,
            "hang_timeout_s": self.hang_timeout_s,
            "max_deaths": self.max_deaths,
            "death_window_s": self.death_window_s,
        }
