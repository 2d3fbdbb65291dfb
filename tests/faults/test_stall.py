"""All workers stop together for two seconds: the open model shows it; the closed model, which stops too, does not."""

import os
import signal
import threading
import time

from headless import histogram, host_of, load, measured, users
from loads import acked, failures, started
from servers import running

RATE, MEASURE_S, STALL_S, USERS = 500, 9, 2.0, 20


def longer(durations, than_s):
    """How many there are."""
    recorded = durations.get_recorded_iterator()
    return sum(item.count_at_value_iterated_to for item in recorded if item.value_iterated_to > than_s * 1e6)


def test_a_stall_is_seen_by_the_open_model_only(tmp_path):
    """Both models at the same time, so that it is the same stall.

    Of N arrivals at a rate λ, those that are due in a stall of S seconds wait for the rest of it: so the p99 is
    S - 0.01 N / λ. Of N users, each has at most one upload that waits, and none is sent meanwhile.
    """
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    with running(workers=4) as server:
        options = ["--plan", "long", "--phase-seconds", MEASURE_S, "--drain", "10s", "--no-report"]
        opened_command = load(host_of(server), *options, "--arrival-rate", RATE)
        closed_command = load(host_of(server), *options, *users(USERS), "--wait", "40ms")
        with (
            started(tmp_path / "open", *opened_command) as opened,
            started(tmp_path / "closed", *closed_command) as closed,
        ):
            opened.in_phase("long-1")
            closed.in_phase("long-1")
            workers = server.workers()
            assert len(workers) == 4
            try:
                for pid in workers:
                    os.kill(pid, signal.SIGSTOP)
                stopped_ns = time.monotonic_ns()
                threading.Event().wait(STALL_S)  # this is the stall
                continued_ns = time.monotonic_ns()
            finally:
                for pid in workers:
                    os.kill(pid, signal.SIGCONT)
            assert (opened.wait(), closed.wait()) == (0, 0), opened.said() + closed.said()

    [open_folder], [closed_folder] = opened.runs(), closed.runs()
    for folder in (open_folder, closed_folder):
        [phase] = measured(folder)
        assert phase.start_ns < stopped_ns < continued_ns < phase.end_ns
        assert failures(folder) == {}
    [phase] = measured(open_folder)
    assert phase.offered == acked(open_folder, "long-1") == RATE * MEASURE_S  # none was lost

    stall_s = (continued_ns - stopped_ns) / 1e9
    response = histogram(open_folder, "long-1", "response")
    p99_s = response.get_value_at_percentile(99) / 1e6
    expected_s = stall_s - 0.01 * RATE * MEASURE_S / RATE
    assert response.get_total_count() == RATE * MEASURE_S
    assert response.get_max_value() / 1e6 >= stall_s - 0.01
    assert longer(response, than_s=0.1) >= 0.8 * RATE * (stall_s - 0.1)
    assert 0.85 * expected_s <= p99_s <= 1.15 * expected_s + 0.3  # a busy machine is slow to catch up

    transaction = histogram(closed_folder, "long-1", "transaction")
    assert transaction.get_total_count() == acked(closed_folder, "long-1")
    assert 0 < longer(transaction, than_s=stall_s / 2) <= USERS
    assert transaction.get_value_at_percentile(99) / 1e6 < p99_s / 4
