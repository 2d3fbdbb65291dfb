"""Which first failures end a run, and which are of a moment or of one file."""

import pytest
from certificates import Authority
from fake_load import fake_load
from headless import serving
from servers import free_port, running

from loadtest.client import UploadError
from loadtest.hopeless import why_none_can
from loadtest.load import RunningPhase
from loadtest.tls_link import WITHOUT_A_WORD
from loadtest.uploader import Uploader
from loadtest.wires import Target, parse_target
from server.failure_codes import FAILURES

UNIX = Target("unix", "", 0, "/run/s")
OF_ALL = {"unauthorized", "bad_length", "bad_header", "bad_reply", "tls_failed", "client_failed"}


def failed(*codes):
    return {code: UploadError(code).message for code in codes}


@pytest.mark.parametrize("code", [failure.code for failure in FAILURES])
def test_each_code(code):
    assert (why_none_can(failed(code), UNIX) is not None) is (code in OF_ALL)


@pytest.mark.parametrize("code", [301, 400, 401, 403, 404, 405, 501])
def test_a_status_of_every_request(code):
    assert f"http_{code}: " in why_none_can({f"http_{code}": "the server answered"}, UNIX)


@pytest.mark.parametrize("code", [408, 409, 413, 429, 500, 502, 503, 507])
def test_a_status_of_a_moment_or_a_file(code):
    assert why_none_can(failed(f"http_{code}"), UNIX) is None


@pytest.mark.parametrize("other", ["busy", "too_large", "timeout", "shutting_down", "no_space", "http_503"])
def test_where_one_may_still_succeed_a_run_goes_on(other):
    assert why_none_can(failed("unauthorized", other), UNIX) is None


def test_nothing_has_failed_yet():
    assert why_none_can({}, UNIX) is None


def test_what_the_server_says_cannot_move_the_cursor():
    said = why_none_can({"unauthorized": "no\x1b[2J\r\n" + "x" * 500}, UNIX)
    assert said == r"unauthorized: no\x1b[2J\r\n" + "x" * 187


def test_a_handshake_that_ended_without_a_word_may_be_a_busy_server_s():
    assert why_none_can({"tls_failed": WITHOUT_A_WORD}, UNIX) is None
    assert "certificate required" in why_none_can({"tls_failed": "the server refused: certificate required"}, UNIX)


@pytest.mark.parametrize(("scheme", "instead"), [("tcp", "does not: write tls://HOST:PORT"), ("http", "does not")])
def test_a_server_that_speaks_tls(tmp_path, scheme, instead):
    with (
        running("--tls-cert", Authority(tmp_path).server()) as server,
        fake_load(f"{scheme}://127.0.0.1:{server.port}") as load,
    ):
        uploader = Uploader(load)
        uploader.upload(RunningPhase("p", 0), *load.payloads.pick(0, 0))
        uploader.close()
        assert load.codes() == ["connection_lost"]
        why = why_none_can(load.failed_first, load.options.target)
    assert why.startswith("the server speaks TLS, which ") and why.endswith(instead)


def test_a_server_that_only_closes():
    with serving(lambda sock: None) as host:
        assert why_none_can(failed("connection_lost"), parse_target(host)) is None
        assert "bad_reply: " in why_none_can(failed("bad_reply", "connection_lost"), parse_target(host))
    assert why_none_can(failed("connection_lost"), Target("tcp", "127.0.0.1", free_port())) is None


def test_a_wire_that_raises_is_named_by_what_it_raised():
    def broken(target):
        raise ZeroDivisionError("on purpose")

    with serving(lambda sock: None) as host, fake_load(host) as load:
        uploader = Uploader(load)
        uploader._client._new_wire = broken
        uploader.upload(RunningPhase("p", 0), *load.payloads.pick(0, 0))
        uploader.close()
    assert why_none_can(load.failed_first, UNIX) == "client_failed: ZeroDivisionError: on purpose"
