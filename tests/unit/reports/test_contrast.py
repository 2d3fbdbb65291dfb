"""Short against long, within blocks of neighbouring phases."""

import msgspec
import pytest

from reports.analysis.contrast import contrast
from tests.unit.reports.run_folders import summarise


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
