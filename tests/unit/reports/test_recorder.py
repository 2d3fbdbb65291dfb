"""The recorder's clock: its ticks keep to a schedule."""

import pytest

from reports.recording.recorder import next_due


@pytest.mark.parametrize(
    ("now", "due", "missed"),
    [
        (1000, 1100, 0),  # on time
        (1099, 1100, 0),
        (1150, 1100, 0),  # late, but the tick can still be made
        (1199, 1100, 0),
        (1200, 1200, 1),  # late by a whole interval
        (1455, 1400, 3),
    ],
)
def test_next_due_keeps_to_the_schedule(now, due, missed):
    assert next_due(1000, now, 100) == (due, missed)
