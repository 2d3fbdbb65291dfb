"""The store: a file is visible whole or not at all, and nothing is left of one that failed."""

import errno
import os
from pathlib import Path

import pytest
from stores import Keep, keep_in_pieces, keep_whole, open_descriptors, outcome, temporary, visible

from server.storage.folders import INCOMING, prepare_store
from server.storage.store import DiscardStore, FileStore, StoreError

MIB = 1 << 20


# ── One file ──


def test_a_file_appears_with_commit_and_not_before(root: Path, store: FileStore) -> None:
    incoming = store.begin("a", 0)
    incoming.write(memoryview(b"one"))
    incoming.write(memoryview(b"two"))
    assert visible(root) == set()
    assert len(temporary(root)) == 1
    incoming.commit()
    assert (root / "a").read_bytes() == b"onetwo"
    assert temporary(root) == []


def test_an_empty_file_is_a_file(root: Path, store: FileStore, keep: Keep) -> None:
    keep(store, "empty")
    assert (root / "empty").read_bytes() == b""


def test_an_aborted_file_leaves_nothing(root: Path, store: FileStore) -> None:
    incoming = store.begin("a", 0)
    incoming.write(memoryview(b"half"))
    incoming.abort()
    incoming.abort()
    assert visible(root) == set()
    assert temporary(root) == []


def test_files_that_arrive_at_once_do_not_meet(root: Path, store: FileStore) -> None:
    other = FileStore(root, 1)
    arriving = [
        (store.begin("a", 0), b"1"),
        (store.begin("a", 0), b"2"),
        (other.begin("a", 0), b"3"),
        (store.begin("b", 0), b"4"),
    ]
    for incoming, data in arriving:
        incoming.write(memoryview(data))
    for incoming, data in arriving[:3]:
        incoming.commit()
        assert (root / "a").read_bytes() == data
    arriving[3][0].abort()
    assert visible(root) == {"a"}
    other.close()


def test_no_descriptor_is_left_open(root: Path, store: FileStore, keep: Keep) -> None:
    before = open_descriptors()
    keep(store, "a", b"1")
    store.begin("b", 0).abort()
    (root / "folder").mkdir()
    with pytest.raises(StoreError):
        keep(store, "folder", b"1")
    assert open_descriptors() == before


def test_a_short_write_is_continued(root: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, view: real_write(fd, view[:3]))
    keep_in_pieces(store, "a", b"0123456789")
    assert (root / "a").read_bytes() == b"0123456789"


def test_a_short_write_of_a_whole_file_never_makes_a_short_file(
    root: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = os.write
    monkeypatch.setattr(os, "write", lambda fd, view: real_write(fd, view[:3]))
    try:
        keep_whole(store, "a", b"0123456789")
    except StoreError as error:
        assert error.code == "no_space"
        assert visible(root) == set()
    else:
        assert (root / "a").read_bytes() == b"0123456789"
    assert temporary(root) == []


@pytest.mark.parametrize("name", ["-rf", " ", "C:file", "é" * 127, "a" * 255, "...", "日本語"])
def test_any_harmless_name_can_be_stored(root: Path, store: FileStore, keep: Keep, name: str) -> None:
    keep(store, name, b"x")
    assert visible(root) == {name}


# ── Several at once ──


def test_of_several_at_once_each_has_its_own_fate(root: Path, store: FileStore) -> None:
    (root / "folder").mkdir()
    files = [("a", b"1"), ("folder", b"2"), ("b", b""), (INCOMING, b"3"), ("a", b"4"), ("c", b"5")]
    before = open_descriptors()
    stored = store.put_all([(name, memoryview(content)) for name, content in files])
    assert [outcome(one) for one in stored] == ["a", "name_rejected", "b", "name_rejected", "a", "c"]
    assert {name: (root / name).read_bytes() for name in ("a", "b", "c")} == {"a": b"4", "b": b"", "c": b"5"}
    assert visible(root) == {"a", "b", "c", "folder"}
    assert temporary(root) == []
    assert open_descriptors() == before
    assert store.put_all([]) == []


@pytest.mark.parametrize("call", ["open", "write", "close", "rename"])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_one_that_fails_harms_no_other(
    root: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, call: str, victim: int
) -> None:
    real, calls = getattr(os, call), iter(range(1000))

    def fail_once(*arguments: object, **keywords: object) -> object:
        failing = next(calls) == victim
        result = real(*arguments, **keywords) if call == "close" or not failing else None
        if failing:  # close() reports late errors and closes all the same
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return result

    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_once)
        stored = store.put_all([(f"{number}", memoryview(b"x")) for number in range(3)])
    assert [outcome(one) for one in stored] == ["internal" if n == victim else f"{n}" for n in range(3)]
    assert visible(root) == {"0", "1", "2"} - {f"{victim}"}
    assert temporary(root) == []
    assert open_descriptors() == before


# ── What survives the loss of power ──


def calls_of(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[tuple[str, int]]:
    """What is called from here on, in order: the function, and the inode of its descriptor."""
    calls: list[tuple[str, int]] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def watched(*arguments: object, **keywords: object) -> object:
            fd = arguments[0] if isinstance(arguments[0], int) else 0
            inode = os.fstat(fd).st_ino if fd else 0
            result = real(*arguments, **keywords)
            calls.append((name, inode))
            return result

        monkeypatch.setattr(os, name, watched)

    for name in names:
        watch(name)
    return calls


def test_files_are_synced_then_named_then_their_folder_is_synced_once(
    root: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_pieces = store.begin("pieces", 0)
    in_pieces.write(memoryview(b"12"))
    calls = calls_of(monkeypatch, "fsync", "rename")
    assert store.put_all_durably([("a", b"1"), in_pieces, ("b", b"2")]) == ["a", "pieces", "b"]
    inodes = [(root / name).stat().st_ino for name in ("a", "pieces", "b")]
    assert calls[:3] == [("fsync", inode) for inode in inodes]
    assert calls[3:] == [("rename", 0)] * 3 + [("fsync", root.stat().st_ino)]
    assert (root / "pieces").read_bytes() == b"12"


@pytest.mark.parametrize(("number", "code"), [(errno.EIO, "internal"), (errno.ENOSPC, "no_space")])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_file_that_the_disk_does_not_take_never_becomes_visible(
    root: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, victim: int, number: int, code: str
) -> None:
    real, calls = os.fsync, iter(range(1000))

    def fail_once(fd: int) -> None:
        if next(calls) == victim:
            raise OSError(number, os.strerror(number))
        real(fd)

    (root / f"{victim}").write_bytes(b"old")
    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_once)
        stored = store.put_all_durably([(f"{number}", b"new") for number in range(3)])
    assert [outcome(one) for one in stored] == [code if n == victim else f"{n}" for n in range(3)]
    assert {name: (root / name).read_bytes() for name in visible(root)} == {
        f"{n}": b"old" if n == victim else b"new" for n in range(3)
    }
    assert temporary(root) == []
    assert open_descriptors() == before


def test_names_that_the_disk_does_not_take_are_an_error_for_all(
    root: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are visible, but nobody may say that they are stored. What was refused before keeps its own reason."""
    real = os.fsync

    def fail(fd: int) -> None:
        if fd == store.root_fd:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        stored = store.put_all_durably([("a", b"x"), (INCOMING, b"x"), ("b", b"x")])
    assert [outcome(one) for one in stored] == ["internal", "name_rejected", "internal"]
    assert temporary(root) == []


def test_nothing_is_synced_for_nothing(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of(monkeypatch, "fsync")
    assert [outcome(one) for one in store.put_all_durably([(INCOMING, b"x")])] == ["name_rejected"]
    assert calls == []


def test_the_folders_that_lead_to_a_new_store_are_durable_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "new" / "newer" / "store"
    prepare_store(root, 1)
    calls = calls_of(monkeypatch, "fsync")
    before = open_descriptors()
    FileStore(root, 0).close()
    assert calls == []
    FileStore(root, 0, durability="power").close()
    assert {("fsync", folder.stat().st_ino) for folder in (root.parent, root.parent.parent, tmp_path)} <= set(calls)
    assert open_descriptors() == before


@pytest.mark.parametrize("where", ["", "..", "../.."])
def test_a_store_that_cannot_be_made_durable_does_not_open(
    root: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Its own folder's names, or those that lead to it: told at the start, not to each upload."""
    real, inode = os.fsync, (root / where).stat().st_ino

    def fail(fd: int) -> None:
        if os.fstat(fd).st_ino == inode:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(fd)

    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="cannot be made durable") as caught:
            FileStore(root, 0, durability="power")
    assert caught.value.filename == str(root)
    assert open_descriptors() == before


# ── What goes wrong ──


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, "no_space"), (errno.EDQUOT, "no_space"), (errno.EFBIG, "no_space"), (errno.EIO, "internal")],
    ids=["ENOSPC", "EDQUOT", "EFBIG", "EIO"],
)
@pytest.mark.parametrize("call", ["open", "write", "close", "rename"])
def test_an_error_of_the_file_system_has_its_code(
    root: Path, store: FileStore, keep: Keep, monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: str
) -> None:
    real = getattr(os, call)

    def fail(*arguments: object, **keywords: object) -> object:
        if call == "close":
            real(*arguments)  # close() reports late errors and closes all the same
        raise OSError(number, os.strerror(number))

    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StoreError) as caught:
            keep(store, "a", b"x")
    assert caught.value.code == code
    assert os.strerror(number) in caught.value.message
    assert visible(root) == set()
    assert temporary(root) == []
    assert open_descriptors() == before


def test_a_store_that_went_away_is_an_internal_error(root: Path, store: FileStore, keep: Keep) -> None:
    (root / INCOMING / "0").rmdir()
    with pytest.raises(StoreError, match="internal"):
        keep(store, "a", b"x")


def test_what_the_disk_has_no_room_for_is_refused_at_once(root: Path, store: FileStore) -> None:
    with pytest.raises(StoreError) as caught:
        store.begin("large", 1 << 60)
    assert caught.value.code == "no_space"
    assert "the disk has room for" in caught.value.message
    assert list((root / ".incoming" / "0").iterdir()) == []


# ── Large files, and those that nobody keeps ──


def test_a_large_file_is_preallocated_as_far_ahead_as_it_has_come(root: Path, store: FileStore) -> None:
    """So that a client must send something for what it takes from the others."""
    expected, piece = 20 * MIB, bytes(256 << 10)
    incoming = store.begin("large", expected)
    [temporary] = (root / ".incoming" / "0").iterdir()
    ahead = []
    for sent in range(len(piece), expected + 1, len(piece)):
        incoming.write(memoryview(piece))
        info = temporary.stat()
        assert info.st_size == sent
        assert info.st_blocks * 512 <= min(2 * sent, expected) + 64 * 1024
        ahead.append(info.st_blocks * 512 - sent)
    assert incoming.commit() == "large"
    assert (root / "large").stat().st_size == expected
    if store._preallocates:
        assert max(ahead) > 4 * MIB


def test_discarding_takes_everything_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    incoming = DiscardStore().begin(INCOMING, 1)
    incoming.write(memoryview(b"x"))
    assert incoming.commit() == INCOMING
    DiscardStore().begin("a", 0).abort()
    assert DiscardStore().put_all([("a", memoryview(b"x")), ("b", memoryview(b""))]) == ["a", "b"]
    assert list(tmp_path.iterdir()) == []
