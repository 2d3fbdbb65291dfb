"""For the benches that store: a folder in memory, so that no disk is measured."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="socketswarm-bench-", dir="/dev/shm"))
    try:
        yield made
    finally:
        shutil.rmtree(made)
