"""The store's folders: nothing leads out of them, and nothing is left in them by the dead."""

import errno
import fcntl
import os
from pathlib import Path

import pytest
from stores import Keep, open_descriptors, temporary, visible

from server.storage.folders import INCOMING, empty_slot, lock_store, prepare_store
from server.storage.store import FileStore

# ── Links ──


@pytest.fixture
def outside(root: Path) -> Path:
    """A folder outside the store with a slot in it, and a file that must stay."""
    folder = root.parent / "outside folder"
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "precious").write_bytes(b"precious")
    return folder


def test_an_incoming_folder_swapped_for_a_link_leads_nothing_out(
    root: Path, store: FileStore, keep: Keep, outside: Path
) -> None:
    (root / INCOMING).rename(root / "moved")
    (root / INCOMING).symlink_to(outside)
    store.begin("left", 0).write(memoryview(b"half"))
    assert keep(store, "a", b"x") == "a"
    assert (root / "a").read_bytes() == b"x"
    before = open_descriptors()
    assert empty_slot(root, 0) == 0
    for attempt in (lambda: FileStore(root, 0), lambda: prepare_store(root, 1)):
        with pytest.raises(NotADirectoryError) as caught:
            attempt()
        assert caught.value.filename == str(root / INCOMING)
        assert "symbolic link" in str(caught.value)
    assert open_descriptors() == before
    assert [path.name for path in outside.rglob("*")] == ["0", "precious"]


def test_a_slot_that_is_a_link_is_not_followed(root: Path, outside: Path) -> None:
    (root / INCOMING / "0").rmdir()
    (root / INCOMING / "0").symlink_to(outside / "0")
    assert empty_slot(root, 0) == 0
    with pytest.raises(NotADirectoryError):
        FileStore(root, 0)
    prepare_store(root, 1)
    FileStore(root, 0).close()
    assert (outside / "0" / "precious").exists()


@pytest.mark.parametrize("target", ["nowhere", INCOMING])
def test_an_incoming_folder_that_leads_nowhere_or_to_itself_is_refused(root: Path, target: str) -> None:
    (root / INCOMING).rename(root / "moved")
    (root / INCOMING).symlink_to(target)
    assert empty_slot(root, 0) == 0
    with pytest.raises(NotADirectoryError):
        FileStore(root, 0)


def test_the_root_may_be_a_link_which_is_followed_once(root: Path, keep: Keep) -> None:
    link, other = root.parent / "link", root.parent / "other"
    prepare_store(other, 1)
    link.symlink_to(root)
    prepare_store(link, 1)
    store = FileStore(link, 0)
    link.unlink()
    link.symlink_to(other)
    keep(store, "a", b"x")
    store.close()
    assert (visible(root), visible(other)) == ({"a"}, set())


# ── Boot and burial ──


def test_preparing_makes_the_folders_for_this_user_only(tmp_path: Path) -> None:
    root = tmp_path / "new" / "store"
    before = os.umask(0o077)  # as `serve` sets it
    try:
        prepare_store(root, 3)
    finally:
        os.umask(before)
    assert {entry.name for entry in (root / INCOMING).iterdir()} == {"0", "1", "2"}
    for folder in (root, root / INCOMING, root / INCOMING / "0"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_preparing_again_removes_what_was_left_and_keeps_the_files(root: Path, store: FileStore, keep: Keep) -> None:
    keep(store, "kept", b"x")
    store.begin("lost", 0).write(memoryview(b"half"))
    (root / INCOMING / "stray").write_bytes(b"x")
    (root / INCOMING / "stray folder").mkdir()
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    (root / INCOMING / "link").symlink_to(outside)
    prepare_store(root, 1)
    assert [entry.name for entry in (root / INCOMING).iterdir()] == ["0"]
    assert temporary(root) == []
    assert visible(root) == {"kept"}
    assert (outside / "precious").read_bytes() == b"precious"


def test_an_incoming_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / INCOMING).symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        prepare_store(tmp_path / "store", 1)
    assert (outside / "precious").exists()


def test_a_store_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError) as caught:
        prepare_store(tmp_path / "file", 1)
    assert str(tmp_path / "file") in str(caught.value)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOLCK])
def test_a_store_that_cannot_be_locked_is_named(root: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """By what another server's lock is, and by a file system that has none."""

    def refuse(fd: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with pytest.raises(OSError, match="cannot be locked") as caught:
            lock_store(root)
    assert isinstance(caught.value, BlockingIOError) == (number == errno.EAGAIN)
    assert caught.value.filename == str(root)
    assert open_descriptors() == before


def test_emptying_a_slot_leaves_the_others_alone(root: Path, store: FileStore) -> None:
    other = FileStore(root, 1)
    for incoming in (store.begin("a", 0), store.begin("b", 0), other.begin("c", 0)):
        incoming.write(memoryview(b"half"))
    assert empty_slot(root, 0) == 2
    assert [path.parent.name for path in temporary(root)] == ["1"]
    assert empty_slot(root, 0) == 0
    other.close()


def test_a_replacement_does_not_meet_its_predecessors_files(root: Path, store: FileStore, keep: Keep) -> None:
    store.begin("a", 0).write(memoryview(b"left by the dead"))
    empty_slot(root, 0)
    successor = FileStore(root, 0)
    keep(successor, "a", b"new")
    assert (root / "a").read_bytes() == b"new"
    successor.close()
