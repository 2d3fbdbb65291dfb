"""The store: a file is visible whole or not at all, under its name or none, and nothing leaves the folder."""

import ctypes
import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from server import storage
from server.config import Collision
from server.storage import INCOMING, DiscardStore, FileStore, StoreError, empty_slot, numbered_name, prepare_store

MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    prepare_store(tmp_path / "store", 2)
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[FileStore]:
    with_descriptors = FileStore(root, 0)
    yield with_descriptors
    with_descriptors.close()


Keep = Callable[..., str]


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


@pytest.fixture(params=[keep_in_pieces, keep_whole, keep_in_pieces_durably, keep_whole_durably])
def keep(request: pytest.FixtureRequest) -> Keep:
    """All ways in must give the same."""
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


# ── Taken names ──


class OldLibrary:
    """A C library that cannot rename without replacing."""

    fallocate, fstatfs = storage._libc.fallocate, storage._libc.fstatfs
    sync_file_range = storage._libc.sync_file_range


class OldSystem(OldLibrary):
    """One that could, on a system that cannot."""

    def __init__(self, number: int) -> None:
        self._number = number

    def renameat2(self, *_: object) -> int:
        ctypes.set_errno(self._number)
        return -1


SYSTEMS = {
    "renameat2": storage._libc,
    "EINVAL": OldSystem(errno.EINVAL),
    "ENOSYS": OldSystem(errno.ENOSYS),
    "none": OldLibrary(),
}


@pytest.fixture(params=SYSTEMS.values(), ids=SYSTEMS)
def any_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_libc", request.param)


@pytest.fixture
def storing(root: Path) -> Iterator[Callable[..., FileStore]]:
    """Makes stores of any policy in one folder."""
    made: list[FileStore] = []

    def make(collision: Collision, slot: int = 0) -> FileStore:
        made.append(FileStore(root, slot, collision))
        return made[-1]

    yield make
    for one in made:
        one.close()


Storing = Callable[..., FileStore]


def take(root: Path, name: str, what: str) -> None:
    """Let something have this name."""
    if what == "file":
        (root / name).write_bytes(b"precious")
    elif what == "folder":
        (root / name).mkdir()
    else:
        targets = {"link to outside": root.parent / "outside", "dangling link": "nowhere", "loop": name}
        (root.parent / "outside").write_bytes(b"precious")
        (root / name).symlink_to(targets[what])


TAKEN = ["file", "folder", "link to outside", "dangling link", "loop"]


@pytest.mark.usefixtures("any_system")
@pytest.mark.parametrize("what", TAKEN)
def test_rejecting_leaves_what_has_the_name(root: Path, storing: Storing, keep: Keep, what: str) -> None:
    take(root, "a", what)
    before = (root / "a").lstat().st_ino
    store = storing("reject")
    descriptors = open_descriptors()
    with pytest.raises(StoreError) as caught:
        keep(store, "a", b"new")
    assert (caught.value.code, caught.value.message) == ("exists", "'a' is in the store already")
    assert (root / "a").lstat().st_ino == before
    assert keep(store, "b", b"new") == "b"
    assert visible(root) == {"a", "b"}
    assert temporary(root) == []
    assert open_descriptors() == descriptors
    assert not (root.parent / "outside").exists() or (root.parent / "outside").read_bytes() == b"precious"


def test_rejecting_tells_so_before_the_body_comes(storing: Storing, root: Path) -> None:
    (root / "a").write_bytes(b"old")
    with pytest.raises(StoreError, match="exists"):
        storing("reject").begin("a", 0)
    assert temporary(root) == []


@pytest.mark.usefixtures("any_system")
def test_a_name_that_is_taken_meanwhile_is_refused_at_the_end(storing: Storing, root: Path) -> None:
    incoming = storing("reject").begin("a", 0)
    incoming.write(memoryview(b"new"))
    (root / "a").write_bytes(b"old")
    with pytest.raises(StoreError, match="exists"):
        incoming.commit()
    incoming.abort()
    assert (root / "a").read_bytes() == b"old"
    assert temporary(root) == []


@pytest.mark.usefixtures("any_system")
@pytest.mark.parametrize("what", TAKEN)
def test_a_taken_name_gets_a_number(root: Path, storing: Storing, keep: Keep, what: str) -> None:
    take(root, "a.txt", what)
    take(root, "a-2.txt", what)
    before = (root / "a.txt").lstat().st_ino
    store = storing("unique")
    assert [keep(store, "a.txt", b"%d" % number) for number in range(3)] == ["a-1.txt", "a-3.txt", "a-4.txt"]
    assert [(root / f"a-{number}.txt").read_bytes() for number in (1, 3, 4)] == [b"0", b"1", b"2"]
    assert (root / "a.txt").lstat().st_ino == before
    assert keep(store, "b", b"") == "b"
    assert temporary(root) == []


@pytest.mark.parametrize("collision", ["reject", "unique"])
def test_the_stores_own_folder_is_refused_by_every_policy(storing: Storing, keep: Keep, collision: str) -> None:
    with pytest.raises(StoreError, match="name_rejected"):
        keep(storing(collision), INCOMING, b"x")


def test_of_equal_names_at_once_each_gets_its_own(storing: Storing, root: Path) -> None:
    files = [("a", b"%d" % number) for number in range(70)]
    names = storing("unique").put_all([(name, memoryview(body)) for name, body in files])
    assert names == ["a", *(f"a-{number}" for number in range(1, 70))]
    assert [(root / name).read_bytes() for name in names if isinstance(name, str)] == [body for _, body in files]


@pytest.mark.usefixtures("any_system")
def test_two_workers_never_take_the_same_name(storing: Storing, root: Path) -> None:
    stores, together = [storing("unique", slot) for slot in (0, 1)], threading.Barrier(2)

    def keep_many(slot: int) -> dict[str, bytes]:
        bodies = {}
        for number in range(200):
            together.wait()
            body = b"%d of %d" % (number, slot)
            bodies[keep_whole(stores[slot], f"name {number // 10}", body)] = body
        return bodies

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(keep_many, (0, 1))
    assert len(first | second) == 400
    assert {name: (root / name).read_bytes() for name in first | second} == first | second


@pytest.mark.usefixtures("any_system")
def test_of_two_workers_one_is_refused(storing: Storing, root: Path) -> None:
    stores, together = [storing("reject", slot) for slot in (0, 1)], threading.Barrier(2)

    def keep_many(slot: int) -> list[str]:
        outcomes = []
        for number in range(200):
            together.wait()
            outcomes += stores[slot].put_all([(f"{number}", memoryview(b"%d" % slot))])
        return [outcome(one) for one in outcomes]

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(zip(*pool.map(keep_many, (0, 1)), strict=True))
    for number, both in enumerate(outcomes):
        assert sorted(both) == sorted([f"{number}", "exists"])
        assert (root / f"{number}").read_bytes() == b"%d" % both.index(f"{number}")


def test_a_free_number_is_found_with_few_looks(storing: Storing, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thousandth upload of a name must not ask a thousand times."""
    (root / "a").touch()
    for number in range(1, 1000):
        (root / f"a-{number}").touch()
    store, looks, stat = storing("unique"), Counter[str](), os.stat

    def counted(*arguments: object, **keywords: object) -> os.stat_result:
        looks["stat"] += 1
        return stat(*arguments, **keywords)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", counted)
        assert keep_whole(store, "a", b"x") == "a-1000"
    assert looks["stat"] < 25


file_names = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=255)


@given(file_names, st.integers(1, 10**6))
def test_a_numbered_name_is_a_name_of_its_own(name: str, number: int) -> None:
    assume(name not in (".", "..") and len(name.encode()) <= 255)
    numbered = numbered_name(name, number)
    assert f"-{number}" in numbered
    assert "/" not in numbered
    assert 0 < len(numbered.encode()) <= 255
    assert numbered != numbered_name(name, number + 1)
    if len(name.encode()) < 240:
        assert numbered.replace(f"-{number}", "", 1) == name or f"-{number}" in name


@pytest.mark.parametrize(
    ("name", "numbered"),
    [
        ("a", "a-1"),
        ("a.txt", "a-1.txt"),
        ("a.tar.gz", "a.tar-1.gz"),
        (".hidden", ".hidden-1"),
        ("a.", "a.-1"),
        ("a" * 255, "a" * 253 + "-1"),
        ("a" * 251 + ".txt", "a" * 249 + "-1.txt"),
        ("é" * 125 + ".txt", "é" * 124 + "-1.txt"),
        ("a." + "b" * 253, "a." + "b" * 251 + "-1"),
    ],
)
def test_numbered_names(name: str, numbered: str) -> None:
    assert numbered_name(name, 1) == numbered


def test_a_name_of_255_bytes_can_be_taken_twice(storing: Storing, root: Path, keep: Keep) -> None:
    store = storing("unique")
    names = {keep(store, "日" * 85, b"x") for _ in range(12)}
    assert len(names) == 12
    assert visible(root) == names


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


def test_a_store_that_cannot_be_made_durable_does_not_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="cannot be made durable") as caught:
            FileStore(root, 0, durability="power")
    assert caught.value.filename == str(root)
    assert open_descriptors() == before


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


def test_what_the_disk_has_no_room_for_is_refused_at_once(root: Path, store: FileStore) -> None:
    with pytest.raises(StoreError) as caught:
        store.begin("large", 1 << 60)
    assert caught.value.code == "no_space"
    assert "the disk has room for" in caught.value.message
    assert list((root / ".incoming" / "0").iterdir()) == []


def test_discarding_takes_everything_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    incoming = DiscardStore().begin(INCOMING, 1)
    incoming.write(memoryview(b"x"))
    assert incoming.commit() == INCOMING
    DiscardStore().begin("a", 0).abort()
    assert DiscardStore().put_all([("a", memoryview(b"x")), ("b", memoryview(b""))]) == ["a", "b"]
    assert list(tmp_path.iterdir()) == []
