"""What is not known is in no sum and in no mean, and is never 0."""

import pytest

from reports.missing_values import known, mean, most, total


@pytest.mark.parametrize(
    ("values", "told", "summed", "middle", "largest"),
    [
        ([], [], None, None, None),
        ([None, None], [], None, None, None),
        ([1, None, 3], [1, 3], None, 2, 3),
        ([0, 0], [0, 0], 0, 0, 0),
        ([2, 4], [2, 4], 6, 3, 4),
    ],
)
def test_what_is_said_of_values(values, told, summed, middle, largest):
    assert (known(values), total(values), mean(values), most(values)) == (told, summed, middle, largest)
