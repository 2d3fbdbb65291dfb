"""Memory of a connection: a line where a ramp carries one, nothing elsewhere."""

import msgspec
import pytest

from reports import run_folder
from reports.analysis.summarise import analyse
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import rewrite

EACH = 4000


def ramped(folder, connections, uss):
    """The folder with so many connections at the n-th tick, and as much USS for so many."""
    host, ticks = list(run_folder.read_host(folder)), list(run_folder.read_processes(folder))
    changed_host, changed = [], []
    for number, (board, tick) in enumerate(zip(host, ticks, strict=True)):
        n = connections(number)
        slots = [
            msgspec.structs.replace(slot, connections_now=n if slot.slot == 0 else 0) for slot in board.scoreboard or ()
        ]
        changed_host.append(msgspec.structs.replace(board, scoreboard=slots))
        samples = [
            msgspec.structs.replace(sample, uss_bytes=sample.uss_bytes and (uss(n) if sample.slot == 0 else 10_000_000))
            for sample in tick.processes
        ]
        changed.append(msgspec.structs.replace(tick, processes=samples))
    rewrite(folder / run_folder.HOST, changed_host)
    rewrite(folder / run_folder.PROCESSES, changed)
    return analyse(folder).summary.server.uss_per_connection_bytes


def test_a_ramp_gives_the_bytes_of_each(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    assert ramped(folder, lambda n: 10 * n, lambda n: 9_000_000 + EACH * n) == pytest.approx(EACH)


@pytest.mark.parametrize(
    ("connections", "uss"),
    [
        (lambda n: 20 + n % 10, lambda n: 9_000_000 + EACH * n),  # no ramp
        (lambda n: 10 * n, lambda n: 9_000_000 + (n * 7919) % 1_000_000),  # no line
        (lambda n: 10 * n, lambda n: 9_000_000),  # nothing grows
        (lambda n: 10 * n, lambda n: 90_000_000 - EACH * n),  # it shrinks, for another reason
    ],
)
def test_what_carries_no_line_has_none(tmp_path, connections, uss):
    assert ramped(run_folders.write(tmp_path / "run"), connections, uss) is None


def test_a_server_that_shows_no_connections_has_none(tmp_path):
    folder = run_folders.write(tmp_path / "run", with_server=False)
    assert analyse(folder).summary.server.uss_per_connection_bytes is None
