"""What a connection costs, from sweeps that carry it and sweeps that do not."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.analysis.fits import sweep_fit
from tests.unit.reports.run_folders import summarise


@pytest.fixture(scope="module")
def phase(tmp_path_factory):
    return next(p for p in summarise(tmp_path_factory.mktemp("run") / "run").phases if p.measured)


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
