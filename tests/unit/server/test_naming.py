"""Under which name a file becomes visible, and that nothing else of that name is harmed."""

import ctypes
import errno
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from stores import Keep, Storing, exfat, keep_whole, open_descriptors, outcome, temporary, visible

from server.options import Collision
from server.storage import naming
from server.storage.folders import INCOMING, prepare_store
from server.storage.naming import numbered_name
from server.storage.store import FileStore, StoreError

# ── Taken names ──


class OldSystem:
    """A C library that can rename without replacing, on a system that cannot."""

    def __init__(self, number: int) -> None:
        self._number = number

    def renameat2(self, *_: object) -> int:
        ctypes.set_errno(self._number)
        return -1


SYSTEMS = {
    "renameat2": naming._libc,
    "EINVAL": OldSystem(errno.EINVAL),
    "ENOSYS": OldSystem(errno.ENOSYS),
    "none": object(),  # a library that cannot either
    "no links": OldSystem(errno.EINVAL),
}


def refuse_to_link(*_: object, **__: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture(params=SYSTEMS)
def any_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(naming, "_libc", SYSTEMS[request.param])
    if request.param == "no links":
        monkeypatch.setattr(os, "link", refuse_to_link)


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


# ── Names that a file system cannot hold ──


@pytest.mark.parametrize("collision", ["replace", "unique", "reject"])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOENT, errno.EILSEQ, errno.ENAMETOOLONG])
def test_a_name_that_cannot_be_is_rejected(
    root: Path, storing: Storing, keep: Keep, monkeypatch: pytest.MonkeyPatch, collision: Collision, number: int
) -> None:
    """Whichever call finds out, and whatever the file system says then."""
    store = storing(collision)
    real = {name: getattr(os, name) for name in ("stat", "rename")}

    def refusing(call: str) -> Callable[..., object]:
        def refuse(name: object, *arguments: object, **keywords: object) -> object:
            if b"q?" in (name, *arguments):
                raise OSError(number, os.strerror(number))
            return real[call](name, *arguments, **keywords)

        return refuse

    with monkeypatch.context() as patch:
        patch.setattr(naming, "_libc", OldSystem(errno.EINVAL))
        patch.setattr(os, "link", refuse_to_link)
        for call in real:
            patch.setattr(os, call, refusing(call))
        with pytest.raises(StoreError) as caught:
            keep(store, "q?", b"x")
        assert keep(store, "q", b"x") == "q"
    assert (caught.value.code, "cannot hold the name 'q?'" in caught.value.message) == ("name_rejected", True)
    assert visible(root) == {"q"}
    assert temporary(root) == []


def test_a_temporary_file_that_somebody_removed_is_no_matter_of_names(root: Path, store: FileStore) -> None:
    incoming = store.begin("a", 0)
    temporary(root)[0].unlink()
    with pytest.raises(StoreError, match="internal"):
        incoming.commit()
    incoming.abort()


@pytest.fixture(scope="module")
def other_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with exfat(tmp_path_factory.mktemp("other")) as folder:
        yield folder


@pytest.fixture
def other_root(other_disk: Path) -> Iterator[Path]:
    """A store on a real file system that can do less."""
    prepare_store(other_disk / "store", 2)
    yield other_disk / "store"
    shutil.rmtree(other_disk / "store")


LIKE_ANOTHER = {
    "replace": ["A.txt", "name_rejected"],
    "unique": ["A-1.txt", ".INCOMING-1"],
    "reject": ["exists", "exists"],
}
"""What becomes of a name that differs from one in the store, and from the store's own folder's, in its case only."""


@pytest.mark.parametrize("collision", LIKE_ANOTHER)
def test_exfat_keeps_what_it_can_and_says_what_it_cannot(other_root: Path, keep: Keep, collision: Collision) -> None:
    outcomes = []
    with closing(FileStore(other_root, 0, collision)) as store:
        for name in ("a:b.txt", "q?.txt", "a.txt", "A.txt", INCOMING.upper()):
            try:
                outcomes.append(keep(store, name, name.encode()))
            except StoreError as error:
                outcomes.append(error.code)
    assert outcomes == ["name_rejected", "name_rejected", "a.txt", *LIKE_ANOTHER[collision]]
    assert temporary(other_root) == []
    kept = b"A.txt" if collision == "replace" else b"a.txt"
    assert (other_root / "a.txt").read_bytes() == kept


@pytest.mark.parametrize("collision", ["unique", "reject"])
def test_on_exfat_two_workers_never_take_the_same_name(other_root: Path, collision: Collision) -> None:
    together = threading.Barrier(2)

    def keep_many(slot: int) -> list[str]:
        outcomes: list[str | StoreError] = []
        with closing(FileStore(other_root, slot, collision)) as store:
            for number in range(30):
                together.wait()
                outcomes += store.put_all([(f"{number}", memoryview(b"%d" % slot))])
        return [outcome(one) for one in outcomes]

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(zip(*pool.map(keep_many, (0, 1)), strict=True))
    for number, both in enumerate(outcomes):
        loser = "exists" if collision == "reject" else f"{number}-1"
        assert sorted(both) == sorted([f"{number}", loser])
        assert (other_root / f"{number}").read_bytes() == b"%d" % both.index(f"{number}")
