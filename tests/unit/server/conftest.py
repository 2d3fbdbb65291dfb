"""A store in a folder of its own, and every way into it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from stores import Keep, Storing, keep_in_pieces, keep_in_pieces_durably, keep_whole, keep_whole_durably

from server.options import Collision
from server.storage.folders import prepare_store
from server.storage.store import FileStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    prepare_store(tmp_path / "store", 2)
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[FileStore]:
    with_descriptors = FileStore(root, 0)
    yield with_descriptors
    with_descriptors.close()


@pytest.fixture(params=[keep_in_pieces, keep_whole, keep_in_pieces_durably, keep_whole_durably])
def keep(request: pytest.FixtureRequest) -> Keep:
    """All ways in must give the same."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def storing(root: Path) -> Iterator[Storing]:
    """Makes stores of any policy in one folder."""
    made: list[FileStore] = []

    def make(collision: Collision, slot: int = 0) -> FileStore:
        made.append(FileStore(root, slot, collision))
        return made[-1]

    yield make
    for one in made:
        one.close()
