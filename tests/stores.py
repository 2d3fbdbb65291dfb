"""Ways to put a file into a store, and what can be seen of the store afterwards."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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


@contextmanager
def exfat(folder: Path) -> Iterator[Path]:
    """A file system that has neither links nor RENAME_NOREPLACE, cannot hold every name, and takes `a` and `A` for the
    same: exFAT in a file, through FUSE."""
    if not shutil.which("mkfs.exfat") or not shutil.which("mount.exfat-fuse"):
        pytest.skip("there is no exFAT here: install Debian's exfatprogs and exfat-fuse")
    disk, mounted_at = folder / "disk", folder / "exfat"
    mounted_at.mkdir()
    with disk.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.exfat", disk], stdout=subprocess.DEVNULL, check=True, timeout=60)
    mount = ["mount", "-t", "exfat-fuse", "-o", "loop", disk, mounted_at]
    mounted = subprocess.run(mount, capture_output=True, text=True, timeout=60, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"exFAT cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield mounted_at
    finally:
        subprocess.run(["umount", "--lazy", mounted_at], check=True, timeout=60)  # a test that failed has it open
