"""Which run is compared with which."""

import random

import pytest

from reports.comparison.runs import pairs


def paired(order, baseline="A", candidate="B"):
    return pairs([(label, number) for number, label in enumerate(order)], baseline, candidate)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("ABBA", [(0, 1), (3, 2)]),
        ("ABAB", [(0, 1), (2, 3)]),
        ("ABBAABBA", [(0, 1), (3, 2), (4, 5), (7, 6)]),
        ("AAABBAAABBAAABB", None),  # only two thirds have a partner of their own
        ("ABBAABBAAAB", [(0, 1), (3, 2), (4, 5), (7, 6), (9, 10)]),  # one run was lost
        ("AAAABBBB", None),
        ("BBBBAAAA", None),
        ("ACBBCAC", [(0, 2), (5, 3)]),  # what is not compared is passed over
    ],
)
def test_neighbours_are_pairs(order, expected):
    assert paired(order) == expected


def test_of_three_labels_each_is_paired_with_the_baseline():
    assert paired("ABCCBA", "A", "C") == [(0, 2), (5, 3)]
    assert paired("ABCCBA", "A", "B") == [(0, 1), (5, 4)]


def test_no_run_is_in_two_pairs():
    chance = random.Random(1)
    for _ in range(200):
        found = paired(chance.choices("AB", k=30)) or []
        runs = [run for pair in found for run in pair]
        assert len(runs) == len(set(runs))
