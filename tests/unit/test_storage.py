"""The store: a file is visible whole or not at all, under its name or none, and nothing leaves the folder."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.storage import INCOMING, DiscardStore, FileStore, StoreError, empty_slot, prepare_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    prepare_store(tmp_path / "store", 2)
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[FileStore]:
    with_descriptors = FileStore(root, 0)
    yield with_descriptors
    with_descriptors.close()


Keep = Callable[..., None]


def keep_in_pieces(store: FileStore, name: str, *pieces: bytes) -> None:
    incoming = store.begin(name)
    try:
        for piece in pieces:
            incoming.write(memoryview(piece))
        incoming.commit()
    except StoreError:
        incoming.abort()
        raise


def keep_whole(store: FileStore, name: str, *pieces: bytes) -> None:
    [stored] = store.put_all([(name, memoryview(b"".join(pieces)))])
    if isinstance(stored, StoreError):
        raise stored


@pytest.fixture(params=[keep_in_pieces, keep_whole])
def keep(request: pytest.FixtureRequest) -> Keep:
    """Both ways in must give the same."""
    return request.param  # type: ignore[no-any-return]


def outcome(stored: str | StoreError) -> str:
    """The name that a file got, or the code of what is wrong with it."""
    return stored.code if isinstance(stored, StoreError) else stored


def visible(root: Path) -> set[str]:
    return {entry.name for entry in root.iterdir()} - {INCOMING}


def temporary(root: Path) -> list[Path]:
    return list((root / INCOMING).glob("*/*"))


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# ── One file ──


def test_a_file_appears_with_commit_and_not_before(root: Path, store: FileStore) -> None:
    incoming = store.begin("a")
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
    incoming = store.begin("a")
    incoming.write(memoryview(b"half"))
    incoming.abort()
    incoming.abort()
    assert visible(root) == set()
    assert temporary(root) == []


def test_files_that_arrive_at_once_do_not_meet(root: Path, store: FileStore) -> None:
    other = FileStore(root, 1)
    arriving = [(store.begin("a"), b"1"), (store.begin("a"), b"2"), (other.begin("a"), b"3"), (store.begin("b"), b"4")]
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
    store.begin("b").abort()
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


# ── Replacing ──


def test_a_file_is_replaced_whole(root: Path, store: FileStore, keep: Keep) -> None:
    """A reader that opens the name again and again finds one of the two, never nothing and never a mix."""
    sizes = {b"a": 300_000, b"b": 100_000}
    keep(store, "file", b"a" * sizes[b"a"])
    seen: set[bytes] = set()
    problems: list[str] = []
    done = threading.Event()

    def read_again_and_again() -> None:
        while not done.is_set():
            try:
                content = (root / "file").read_bytes()
            except OSError as error:
                problems.append(str(error))
                return
            letter = content[:1]
            if content != letter * sizes.get(letter, -1):
                problems.append(f"{len(content)} bytes with {set(content)}")
            seen.add(letter)

    reader = threading.Thread(target=read_again_and_again)
    reader.start()
    try:
        for round_number in range(1000):
            letter = b"ba"[round_number % 2 :][:1]
            keep(store, "file", *[letter * (sizes[letter] // 4)] * 4)
            if round_number > 100 and len(seen) == 2:
                break
    finally:
        done.set()
        reader.join()
    assert problems == []
    assert seen == {b"a", b"b"}


@pytest.mark.parametrize("target", ["outside", "missing", ".", "self"])
def test_a_symbolic_link_of_that_name_is_replaced_not_followed(
    root: Path, store: FileStore, keep: Keep, target: str
) -> None:
    outside = root.parent / "outside"
    outside.write_bytes(b"precious")
    (root / "link").symlink_to({"outside": outside, "self": "link"}.get(target, target))
    keep(store, "link", b"new")
    assert not (root / "link").is_symlink()
    assert (root / "link").read_bytes() == b"new"
    assert outside.read_bytes() == b"precious"


def test_a_folder_of_that_name_is_refused_and_kept(root: Path, store: FileStore, keep: Keep) -> None:
    (root / "folder").mkdir()
    (root / "folder" / "precious").write_bytes(b"precious")
    (root / "empty").mkdir()
    for name in ("folder", "empty"):
        with pytest.raises(StoreError) as caught:
            keep(store, name, b"x")
        assert caught.value.code == "name_rejected"
        assert name in caught.value.message
    assert (root / "folder" / "precious").read_bytes() == b"precious"
    assert temporary(root) == []


def test_the_stores_own_folder_is_no_file_name(root: Path, store: FileStore, keep: Keep) -> None:
    with pytest.raises(StoreError, match="name_rejected"):
        keep(store, INCOMING, b"x")
    assert (root / INCOMING / "0").is_dir()


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


# ── Boot and burial ──


def test_preparing_makes_the_folders_for_this_user_only(tmp_path: Path) -> None:
    root = tmp_path / "new" / "store"
    prepare_store(root, 3)
    assert {entry.name for entry in (root / INCOMING).iterdir()} == {"0", "1", "2"}
    for folder in (root, root / INCOMING, root / INCOMING / "0"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_preparing_again_removes_what_was_left_and_keeps_the_files(root: Path, store: FileStore, keep: Keep) -> None:
    keep(store, "kept", b"x")
    store.begin("lost").write(memoryview(b"half"))
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


def test_emptying_a_slot_leaves_the_others_alone(root: Path, store: FileStore) -> None:
    other = FileStore(root, 1)
    for incoming in (store.begin("a"), store.begin("b"), other.begin("c")):
        incoming.write(memoryview(b"half"))
    assert empty_slot(root, 0) == 2
    assert [path.parent.name for path in temporary(root)] == ["1"]
    assert empty_slot(root, 0) == 0
    other.close()


def test_a_replacement_does_not_meet_its_predecessors_files(root: Path, store: FileStore, keep: Keep) -> None:
    store.begin("a").write(memoryview(b"left by the dead"))
    empty_slot(root, 0)
    successor = FileStore(root, 0)
    keep(successor, "a", b"new")
    assert (root / "a").read_bytes() == b"new"
    successor.close()


def test_discarding_takes_everything_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    incoming = DiscardStore().begin(INCOMING)
    incoming.write(memoryview(b"x"))
    assert incoming.commit() == INCOMING
    DiscardStore().begin("a").abort()
    assert DiscardStore().put_all([("a", memoryview(b"x")), ("b", memoryview(b""))]) == ["a", "b"]
    assert list(tmp_path.iterdir()) == []
