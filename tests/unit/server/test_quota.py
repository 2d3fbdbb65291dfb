"""The quota on a real scoreboard and a real folder, without processes: the sums of what several workers count."""

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import eventually
from slow import examples

from server.scoreboard import Scoreboard
from server.storage import naming
from server.storage.folders import prepare_store
from server.storage.quota import Quota, count_store
from server.storage.store import FileStore, StoreError

MOST = 1000


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Scoreboard]:
    made = Scoreboard.create(tmp_path / "board", 3, ["a", "b"])
    yield made
    made.close()


def quotas(board: Scoreboard, most: int = MOST) -> list[Quota]:
    """Of the first seat of every slot, and of a second seat of the last."""
    records = [board.record(slot) for slot in range(board.slots)] + [board.record(board.slots - 1, 1)]
    return [Quota(most, board, record) for record in records]


steps = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["arrive", "keep", "drop"]), st.integers(0, 500), st.integers(0, 900))
)


@examples(50)
@given(steps=steps)
def test_every_worker_sees_what_all_of_them_have(
    steps: list[tuple[int, str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Replacing a larger file makes a worker's own sum negative, which a word of the scoreboard cannot be."""
    shared = Scoreboard.create(tmp_path_factory.mktemp("board") / "board", 3, ["a"])
    workers, taken = quotas(shared), 0
    for worker, what, size, replaced in steps:
        if what == "arrive":
            workers[worker].arrived(size)
            taken += size
        elif what == "keep":
            workers[worker].arrived(size)
            workers[worker].kept(size - replaced)
            workers[worker].arrived(-size)
            taken += size - replaced
        else:
            workers[worker].arrived(size)
            workers[worker].arrived(-size)
        assert {one.room() for one in workers} == {MOST - taken}


def test_what_is_there_at_the_start_counts_but_not_what_is_no_file(board: Scoreboard, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / ".incoming" / "0").mkdir(parents=True)
    (store / ".incoming" / "0" / "1").write_bytes(bytes(500))
    (store / "a").write_bytes(bytes(300))
    (store / "b").symlink_to(store / "a")
    count_store(board, store)
    [quota, *_] = quotas(board)
    assert quota.room() == MOST - 300


def test_counting_again_finds_what_others_did(board: Scoreboard, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "a").write_bytes(bytes(300))
    count_store(board, store)
    one, other, *_ = quotas(board)
    (store / "b").write_bytes(bytes(200))
    one.kept(200)
    other.arrived(50)
    assert one.room() == MOST - 550
    (store / "a").unlink()
    fd = os.open(store, os.O_RDONLY)
    try:
        one.count_again(fd)
        eventually(lambda: other.room() == MOST - 250, "both know of it")
    finally:
        os.close(fd)


def test_a_store_that_holds_more_than_it_may_has_no_room(board: Scoreboard, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(5000))
    count_store(board, tmp_path)
    assert quotas(board)[0].room() <= MOST - 5000


@pytest.mark.parametrize("flag", [naming._RENAME_EXCHANGE, 1 << 20], ids=["known", "unknown"])
def test_workers_that_replace_one_file_at_the_same_time_count_it_once(
    board: Scoreboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: int
) -> None:
    """Each file that is replaced is so by one of them only, however they meet, and where files cannot change places."""
    monkeypatch.setattr(naming, "_RENAME_EXCHANGE", flag)
    folder = tmp_path / "store"
    prepare_store(folder, 2)
    chance = random.Random(1)
    sizes = [chance.randrange(100_000) for _ in range(400)]
    workers = quotas(board, 1 << 30)[:2]
    stores = [FileStore(folder, number, "replace", "process", quota) for number, quota in enumerate(workers)]

    def replace(store: FileStore, own: list[int]) -> None:
        for size in own:
            assert store.put_all([("same", memoryview(bytes(size)))]) == ["same"]

    threads = [threading.Thread(target=replace, args=pair) for pair in zip(stores, (sizes, sizes[::-1]), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert workers[0].room() == (1 << 30) - (folder / "same").stat().st_size
    assert not list((folder / ".incoming").glob("*/*"))
    for store in stores:
        store.close()


def test_what_cannot_be_replaced_is_not_counted(board: Scoreboard, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    prepare_store(folder, 1)
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    [quota, *_] = quotas(board)
    store = FileStore(folder, 0, "replace", "process", quota)
    [refused, link] = store.put_all([("folder", memoryview(b"abc")), ("link", memoryview(b"abc"))])
    assert isinstance(refused, StoreError) and refused.code == "name_rejected"
    assert link == "link"
    assert (folder / "link").read_bytes() == b"abc" and not (folder / "link").is_symlink()
    assert quota.room() == MOST - 3
    assert not list((folder / ".incoming").glob("*/*"))
    store.close()
