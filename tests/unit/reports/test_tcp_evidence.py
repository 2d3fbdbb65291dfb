"""TCP as the kernel saw it over a run: peaks of what is looked at, and what counters rose by."""

import msgspec

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.pages.recorded_tables import tcp_table
from reports.run_folder import AcceptQueue, NetworkBytes
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import rewrite, summarise


def changed(folder, change):
    """The folder with another history of the host: `change(number, tick)` -> changes."""
    ticks = list(run_folder.read_host(folder))
    rewrite(
        folder / run_folder.HOST,
        [msgspec.structs.replace(tick, **change(number, tick)) for number, tick in enumerate(ticks)],
    )
    return analyse(folder)


def test_counters_are_what_they_rose_by(tmp_path):
    tcp = summarise(tmp_path / "run", drops_per_s=2).tcp
    assert tcp.dropped == 2 * 44
    uploads = summarise(tmp_path / "again").load.uploads
    assert uploads > tcp.counters["PassiveOpens"] > 0


def test_sockets_of_a_server_that_was_started_anew_begin_at_nothing(tmp_path):
    def queues(number, tick):
        return {"accept_queues": [AcceptQueue(waiting=0, limit=10, dropped=number % 40)]}

    folder = run_folders.write(tmp_path / "run")
    ticks = len(list(run_folder.read_host(folder)))
    rounds, rest = divmod(ticks - 1, 40)
    assert changed(folder, queues).summary.tcp.dropped == rounds * 39 + rest


def test_the_fullest_queue_counts_relative_to_its_limit(tmp_path):
    def queues(number, tick):
        return {"accept_queues": [AcceptQueue(waiting=50, limit=1000), AcceptQueue(waiting=number % 7, limit=10)]}

    tcp = changed(run_folders.write(tmp_path / "run"), queues).summary.tcp
    assert (tcp.queue_waiting, tcp.queue_limit) == (6, 10)


def test_states_are_peaks_and_the_most_frequent_comes_first(tmp_path):
    def states(number, tick):
        return {"tcp_states": {"close-wait": 2, "established": 10 + number % 3}, "tcp_time_wait": number % 5}

    analysis = changed(run_folders.write(tmp_path / "run"), states)
    assert list(analysis.summary.tcp.states.items()) == [("established", 12), ("close-wait", 2)]
    assert analysis.summary.tcp.time_wait == 4
    assert list(analysis.timeline.connections) == ["close-wait", "established", "TIME_WAIT"]
    assert max(analysis.timeline.connections["established"].values) == 12


def test_what_was_not_recorded_is_not_known(tmp_path):
    def nothing(number, tick):
        return {"accept_queues": None, "tcp_states": None, "kernel": {}, "network": {}}

    analysis = changed(run_folders.write(tmp_path / "run"), nothing)
    tcp = analysis.summary.tcp
    assert (tcp.queue_waiting, tcp.states, tcp.counters, tcp.sent_bytes) == (None, {}, {}, {})
    assert [row.cells[0] for row in tcp_table(tcp).rows] == ["TIME_WAIT"]
    assert (dict(analysis.timeline.connections), len(analysis.timeline.accept_queue.t_s)) == ({}, 0)


def test_one_tick_tells_nothing(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    rewrite(folder / run_folder.HOST, list(run_folder.read_host(folder))[:1])
    assert analyse(folder).summary.tcp is None
    assert "has fewer than two ticks" in tcp_table(None).note


def test_the_table_marks_what_is_wrong(tmp_path):
    tcp = summarise(tmp_path / "run", queued=100, drops_per_s=1).tcp
    rows = {row.cells[0]: row for row in tcp_table(tcp).rows}
    assert (rows["accept queue"].cells[1], rows["accept queue"].kind) == ("100", "bad")
    assert (rows["dropped"].cells[1], rows["dropped"].kind) == ("44", "bad")
    assert rows["established"].cells[1] == "20"


def test_interfaces_that_moved_nothing_are_left_out(tmp_path):
    def network(number, tick):
        busy = NetworkBytes(received=0, sent=number * 1_000_000)
        return {"network": {"eth0": NetworkBytes(received=5, sent=7), "lo": busy}}

    tcp = changed(run_folders.write(tmp_path / "run"), network).summary.tcp
    named = [row.cells[0] for row in tcp_table(tcp).rows]
    assert "lo" in named and "eth0" not in named
