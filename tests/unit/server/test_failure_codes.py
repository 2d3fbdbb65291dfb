"""Every code that an upload can fail with is told in words, once, and PROTOCOL.md has the table of all."""

from pathlib import Path

import pytest

from server.failure_codes import (
    BY_CODE,
    CLIENT_CODES,
    FAILURES,
    NEVER_CONNECTED,
    NEVER_SENT,
    SERVER_CODES,
    UNANSWERED,
    failure_of,
)

PROTOCOL = Path(__file__).parents[3] / "server" / "PROTOCOL.md"
UNKNOWN = failure_of("no such code")


@pytest.mark.parametrize("code", [*SERVER_CODES, *CLIENT_CODES, "http_503"])
def test_every_code_has_a_meaning(code):
    assert failure_of(code).text
    assert failure_of(code).meaning != UNKNOWN.meaning


def test_each_code_is_there_once_the_servers_first():
    assert [failure.code for failure in FAILURES] == [*SERVER_CODES, *CLIENT_CODES]
    assert len(BY_CODE) == len(FAILURES)


def test_the_order_is_that_of_the_scoreboards_words():
    """A running server's board has it in its header; what is new goes to the end."""
    assert (
        *("bad_length", "bad_header", "unauthorized", "name_rejected", "too_large", "exists", "no_space"),
        *("digest_mismatch", "header_timeout", "idle_timeout", "too_slow", "busy", "shutting_down", "internal"),
        *("truncated", "tls_handshake"),
    ) == SERVER_CODES


def test_what_is_refused_for_what_was_asked():
    rejected = {failure.code for failure in FAILURES if failure.status == "rejected"}
    asked = {"bad_length", "bad_header", "unauthorized", "name_rejected", "too_large", "exists"}
    assert rejected == asked | {"busy", "shutting_down"}


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
    assert failure_of(code).stored == stored


def test_groups_of_codes():
    assert set(NEVER_SENT) == {"dropped", "no_local_port", "connect_refused", "connect_failed"}
    assert set(NEVER_CONNECTED) < set(NEVER_SENT)
    assert set(UNANSWERED) < set(CLIENT_CODES)


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        ("too_large", "refused: the file is larger than the server takes"),
        ("dropped", "never sent: due while the most uploads were in flight"),
        ("size_differs", "acknowledged, but the server reports another number of bytes than were sent"),
        ("timeout", "no answer in time"),
    ],
)
def test_how_far_it_came(code, meaning):
    assert failure_of(code).meaning == meaning


def test_the_protocols_document_has_the_table():
    """Where this fails, put the lines that it wants between the two comments."""
    _, _, rest = PROTOCOL.read_text().partition("<!-- failure codes -->\n")
    table, end, _ = rest.partition("<!-- /failure codes -->")
    assert end
    rows = [(f"`{f.code}`", f.said_by, f.status or "", f.text, f.fault, f.stored) for f in FAILURES]
    head, rule, *lines = table.strip().splitlines()
    assert (head, rule) == (
        "| code | said by | status | meaning | whose fault, most likely | stored |",
        "|---|---|---|---|---|---|",
    )
    assert lines == [f"| {' | '.join(row)} |" for row in rows]
