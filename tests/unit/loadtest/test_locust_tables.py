"""Locust's tables, filled from raw durations, beside those that Locust fills by itself, upload by upload.

Locust is imported in a process of its own: it patches the whole interpreter.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ROOT

SCRIPT = Path(__file__).parents[2] / "locust_tables.py"
FIELDS = (
    "num_requests",
    "num_none_requests",
    "num_failures",
    "total_response_time",
    "min_response_time",
    "max_response_time",
    "total_content_length",
    "reqs",
    "timed",
)


@pytest.fixture(scope="module")
def tables():
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_same_rows_as_locusts_own(tables):
    assert (
        tables["ours"].keys()
        == tables["locusts"].keys()
        == {
            "UPLOAD long ≤4 KiB",
            "UPLOAD short ≤64 KiB",
            "CONNECT short",
            "CLOSE short",
            "CONNECT long",
            "Aggregated",
        }
    )


@pytest.mark.parametrize("field", FIELDS)
def test_the_same_numbers_as_locusts_own(tables, field):
    for row, expected in tables["locusts"].items():
        assert tables["ours"][row][field] == pytest.approx(expected[field]), row


def test_the_same_percentiles_as_locusts_own(tables):
    """To its two digits: it rounds once, we round to milliseconds first."""
    for row, expected in tables["locusts"].items():
        assert tables["ours"][row]["percentiles"] == pytest.approx(expected["percentiles"], rel=0.1, abs=1), row


def test_connections_are_no_requests_of_their_own(tables):
    assert tables["ours"]["Aggregated"]["num_requests"] == tables["uploads"]


def test_responses_come_before_transactions(tables):
    """Where uploads have both, in the open model."""
    assert tables["open"]["UPLOAD long ≤4 KiB"]["max_response_time"] == 50


def test_who_fires_events_fills_the_uploads_rows_by_them(tables):
    assert set(tables["fired"]) == {"CONNECT short", "CLOSE short", "CONNECT long", "Aggregated"}
    assert tables["fired"]["Aggregated"]["num_requests"] == 0


def test_a_row_that_only_failed(tables):
    """Failures come by events."""
    assert set(tables["failed"]) == {"Aggregated"}
