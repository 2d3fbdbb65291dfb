"""What a connection costs: within blocks of neighbouring phases, from a sweep and from a ramp, where they carry it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import run_folder
from reports.analysis.connection_cost import contrast, sweep_fit
from reports.analysis.summarise import analyse
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import rewrite, summarise

EACH = 4000  # bytes of a connection


@pytest.fixture(scope="module")
def phase(tmp_path_factory):
    """One that was measured."""
    return next(p for p in summarise(tmp_path_factory.mktemp("run") / "run").phases if p.measured)


def phases(phase, *told):
    """Of these (mode, uploads/s, mean transaction, core-µs an upload)."""
    return [
        msgspec.structs.replace(
            phase,
            name=f"{mode}-{number}",
            mode=mode,
            uploads=round(rate * phase.duration_s),
            late=0,
            transaction_mean_us=mean_us,
            busy_core_s=None if cost_us is None else cost_us * round(rate * phase.duration_s) / 1e6,
        )
        for number, (mode, rate, mean_us, cost_us) in enumerate(told)
    ]


def test_two_blocks_in_turned_order(phase):
    found = contrast(
        phases(
            phase, ("long", 1000, 100, 50), ("short", 500, 300, 100), ("short", 480, 200, 90), ("long", 1200, 100, 60)
        ),
        "short",
        "long",
    )
    assert (found.blocks, found.coverage) == (2, 0.5)
    assert (found.uploads_per_s.lowest, found.uploads_per_s.highest) == (pytest.approx(0.4), pytest.approx(0.5))
    assert found.uploads_per_s.median == pytest.approx(0.45)
    assert found.transaction_us.median == pytest.approx(2.5)
    assert found.busy_core_us.lowest == pytest.approx(1.5)


def test_each_phase_is_in_one_block_at_most(phase):
    found = contrast(
        phases(phase, ("long", 10, 1, 1), ("long", 10, 1, 1), ("short", 10, 1, 1), ("long", 10, 1, 1)), "short", "long"
    )
    assert (found.blocks, found.coverage) == (1, 0)


def test_other_modes_and_phases_are_passed_over(phase):
    told = phases(phase, ("long", 10, 1, 1), ("5 per connection", 10, 1, 1), ("short", 10, 1, 1))
    assert contrast(told, "short", "long").blocks == 1
    told[0] = msgspec.structs.replace(told[0], kind="warm-up")
    assert contrast(told, "short", "long") is None


def test_what_one_block_does_not_know_has_no_ratio(phase):
    found = contrast(phases(phase, ("long", 10, None, None), ("short", 10, 5, 5)), "short", "long")
    assert (found.transaction_us, found.busy_core_us) == (None, None)
    assert found.uploads_per_s.median == 1


def test_of_a_bound_there_is_no_ratio(phase):
    told = phases(phase, ("long", 10, 1, 1), ("short", 10, 1, 1))
    told[1] = msgspec.structs.replace(told[1], generator_share=0.99)
    assert contrast(told, "short", "long").uploads_per_s is None


# --- sweep ------------------------------------------------------------------------------------------------------------


def swept(phase, values, request_us=100.0, connection_us=80.0, **changes):
    return [
        msgspec.structs.replace(
            phase,
            uploads_per_connection=k,
            transaction_mean_us=request_us + (connection_us / k if k else 0),
            busy_core_s=phase.acknowledged * (50 + (20 / k if k else 0)) / 1e6,
            **changes,
        )
        for k in values
    ]


@given(request_us=st.floats(1, 1e6), connection_us=st.floats(0, 1e6))
def test_a_line_is_found_whatever_it_is(phase, request_us, connection_us):
    fit = sweep_fit(swept(phase, (1, 2, 5, 20, 0), request_us, connection_us))
    assert fit.transaction_us.request == pytest.approx(request_us, rel=1e-6, abs=1e-3 * (1 + connection_us) / 1e3)
    assert fit.transaction_us.connection == pytest.approx(connection_us, rel=1e-6, abs=1e-6 * (1 + request_us))


def test_both_costs_and_how_well_they_explain(phase):
    fit = sweep_fit(swept(phase, (1, 2, 5, 20, 0)))
    assert fit.uploads_per_connection == [0, 1, 2, 5, 20]
    assert (fit.busy_core_us.request, fit.busy_core_us.connection) == (pytest.approx(50), pytest.approx(20))
    assert fit.transaction_us.r_squared == pytest.approx(1)


def test_a_value_that_was_measured_twice_weighs_as_much_as_others(phase):
    once = sweep_fit(swept(phase, (1, 2, 5, 0)))
    twice = sweep_fit([*swept(phase, (1, 2, 5, 0)), *swept(phase, (1,))])
    assert twice.transaction_us.request == pytest.approx(once.transaction_us.request)


def test_too_few_values_carry_no_line(phase):
    assert sweep_fit(swept(phase, (1, 2, 0))) is None
    assert sweep_fit(swept(phase, (1, 1, 2, 2, 0, 0))) is None


@pytest.mark.parametrize("changes", [{"busiest_worker_share": 0.9}, {"generator_share": 0.95}, {"kind": "warm-up"}])
def test_a_queue_is_no_cost_of_a_connection(phase, changes):
    assert sweep_fit(swept(phase, (1, 2, 5, 0), **changes)) is None


def test_costs_that_were_not_recorded_have_no_line(phase):
    fit = sweep_fit([msgspec.structs.replace(p, busy_core_s=None) for p in swept(phase, (1, 2, 5, 0))])
    assert fit.busy_core_us is None and fit.transaction_us is not None


# --- memory -----------------------------------------------------------------------------------------------------------


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
