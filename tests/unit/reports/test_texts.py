"""Numbers and strangers' words, as people read them."""

import pytest

from reports.texts import cores_of, duration, markdown, plain, ranges, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0123456, "0.0123"),
        (1.2, "1.20"),
        (9.999, "10.0"),
        (99.96, "100"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1234.0, "1,230"),
        (999_900.0, "1,000,000"),
        (-12.34, "-12.3"),
    ],
)
def test_numbers_have_three_significant_digits(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [
        (0, "0 µs"),
        (212.4, "212 µs"),
        (9_990, "9,990 µs"),
        (10_000, "10.0 ms"),
        (155_000, "155 ms"),
        (12.34e6, "12.3 s"),
    ],
)
def test_a_duration_has_the_unit_that_keeps_it_short(microseconds, text):
    assert duration(microseconds) == text


def test_no_control_character_comes_through():
    assert plain("a\x1b[31m\nb\r\x9bc\u2028") == r"a\x1b[31m\nb\r\x9bc\u2028"


def test_nothing_means_anything_in_markdown():
    assert markdown("a|b *c* <d>\n# [e](f)") == r"a\|b \*c\* \<d\>\\n\# \[e\](f)"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1], "0-1"), ([8, 0, 1, 2, 3], "0-3,8"), ([0, 2, 4], "0,2,4"), ([5, 5, 6], "5-6")],
)
def test_ranges(numbers, text):
    assert ranges(numbers) == text
    assert cores_of(text) == set(numbers)
