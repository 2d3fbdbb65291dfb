"""Every code that an upload can fail with is told in words."""

import pytest

from loadtest.wires import CLIENT_FAILURES
from reports.failure_codes import meaning
from reports.run_folder import NEVER_SENT
from server.protocol import FAILURE_CODES

UNKNOWN = meaning("no such code")


@pytest.mark.parametrize("code", [*FAILURE_CODES, *CLIENT_FAILURES, "http_503"])
def test_every_code_has_a_meaning(code):
    assert meaning(code).text != UNKNOWN.text


@pytest.mark.parametrize(
    ("code", "stored"),
    [
        ("too_large", "no"),
        ("internal", "perhaps"),
        ("connection_lost", "perhaps"),
        ("timeout", "perhaps"),
        ("digest_differs", "yes"),
        ("http_503", "perhaps"),
        ("of another server", "perhaps"),
        *((code, "no") for code in NEVER_SENT),
    ],
)
def test_whether_the_file_may_be_there(code, stored):
    assert meaning(code).stored == stored
