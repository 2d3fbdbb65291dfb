"""Ways to put a file into a store, and what can be seen of the store afterwards."""

from collections.abc import Callable
from pathlib import Path

from server.storage.folders import INCOMING
from server.storage.store import FileStore, StoreError

Keep = Callable[..., str]
Storing = Callable[..., FileStore]


def keep_in_pieces(store: FileStore, name: str, *pieces: bytes) -> str:
    incoming = store.begin(name, 0)
    try:
        for piece in pieces:
            incoming.write(memoryview(piece))
        return incoming.commit()
    except StoreError:
        incoming.abort()
        raise


def keep_whole(store: FileStore, name: str, *pieces: bytes) -> str:
    return name_or_raise(*store.put_all([(name, memoryview(b"".join(pieces)))]))


def keep_in_pieces_durably(store: FileStore, name: str, *pieces: bytes) -> str:
    incoming = store.begin(name, 0)
    try:
        for piece in pieces:
            incoming.write(memoryview(piece))
    except StoreError:
        incoming.abort()
        raise
    return name_or_raise(*store.put_all_durably([incoming]))


def keep_whole_durably(store: FileStore, name: str, *pieces: bytes) -> str:
    return name_or_raise(*store.put_all_durably([(name, b"".join(pieces))]))


def name_or_raise(stored: str | StoreError) -> str:
    if isinstance(stored, StoreError):
        raise stored
    return stored


def outcome(stored: str | StoreError) -> str:
    """The name that a file got, or the code of what is wrong with it."""
    return stored.code if isinstance(stored, StoreError) else stored


def visible(root: Path) -> set[str]:
    return {entry.name for entry in root.iterdir()} - {INCOMING}


def temporary(root: Path) -> list[Path]:
    return list((root / INCOMING).glob("*/*"))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
