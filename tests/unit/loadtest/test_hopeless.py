"""Which first failures end a run, and which are of a moment or of one file."""

import socket

import pytest
from certificates import Authority
from fake_load import fake_load
from headless import serving
from servers import free_port, running

from loadtest.client import UploadError
from loadtest.hopeless import FirstFailures, why_none_can
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
        why = why_none_can(load.failed_first.messages, load.options.target)
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
    assert why_none_can(load.failed_first.messages, UNIX) == "client_failed: ZeroDivisionError: on purpose"


# ── refused for what they are ─────────────────────────────────────────────────────────────────────────────────────

FILES = [(1024, ("a-0", "a-1")), (4096, ("b-0", "b-1"))]


def first_failures(*refused):
    """Each a code, a name and a size."""
    first = FirstFailures()
    for code, name, size_bytes in refused:
        first.add(name, size_bytes, code, f"{code} of {name}")
    return first


@pytest.mark.parametrize("code", ["too_large", "no_space", "http_413", "http_507"])
def test_a_size_that_is_refused_refuses_all_that_are_larger(code):
    assert first_failures((code, "b-0", 4096), (code, "b-1", 4096)).why_no_file_can(FILES) is None
    first = first_failures((code, "a-0", 1024))
    assert first.why_no_file_can(FILES) == f"every file is refused: {code}: {code} of a-0"
    assert first.why_no_file_can([*FILES, (0, ("empty",))]) is None


@pytest.mark.parametrize("code", ["exists", "name_rejected"])
def test_a_name_that_is_refused_refuses_no_other(code):
    first = first_failures(*((code, name, 1) for name in ("a-0", "b-0", "b-1")))
    assert first.why_no_file_can(FILES) is None
    first.add("a-1", 1, code, "\x1b[2Jno")
    assert first.why_no_file_can(FILES) == rf"every file is refused: {code}: \x1b[2Jno"


def test_each_file_for_a_reason_of_its_own():
    """Whatever else went wrong meanwhile."""
    first = first_failures(("too_large", "b-0", 4096), ("busy", "a-0", 1024), ("exists", "a-0", 1024))
    assert first.why_no_file_can(FILES) is None
    first.add("a-1", 1024, "exists", "")
    assert first.why_no_file_can(FILES).startswith("every file is refused: too_large: ")


@pytest.mark.parametrize("code", sorted({failure.code for failure in FAILURES} - {"too_large", "no_space"}))
def test_no_other_code_is_of_a_size(code):
    assert first_failures((code, "a-0", 0)).why_no_file_can(FILES) is None


@pytest.mark.parametrize(
    ("limit", "collision", "code"),
    [("1023", "replace", "too_large"), ("1MiB", "reject", "exists"), ("1024", "replace", None)],
)
def test_a_server_that_refuses_what_a_run_has(tmp_path, limit, collision, code):
    """Of two sizes, one of which one of these servers takes."""
    with (
        running("--max-file-size", limit, "--collision", collision, store=tmp_path / "store") as server,
        fake_load(f"tcp://127.0.0.1:{server.port}", payloads="1KiB,4KiB") as load,
    ):
        files = [(payload, name) for payload in load.payloads.payloads for name in payload.names]
        if code == "exists":  # each was stored by an earlier run
            for _, name in files:
                (server.store / name).touch()
        told = []
        uploader = Uploader(load)
        for payload, name in sorted(files, key=lambda file: -file[0].size_bytes):
            uploader.upload(RunningPhase("p", 0), payload, name)
            sent = [(size.size_bytes, size.names) for size in load.payloads.payloads]
            told.append(load.failed_first.why_no_file_can(sent))
        uploader.close()
    large = [payload for payload, _ in files if payload.size_bytes == 4096]
    assert told[: len(large)] == [None] * len(large)
    assert load.any_acknowledged is (code is None)
    assert told[-1] is None if code is None else told[-1].startswith(f"every file is refused: {code}: ")


# ── silence ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_silence():
    first = first_failures(("timeout", "a-0", 1024), ("timeout", "b-0", 4096))
    assert first.why_unheard(3, 30.0) is None
    first.add("a-1", 1024, "connect_failed", "the server's queue of connections is full")
    assert first.why_unheard(3, 30.0) == "none of the first 3 was answered within 30 s (--timeout)"
    first.add("a-1", 1024, "busy", "")
    assert first.why_unheard(3, 30.0) is None


def test_connections_that_cannot_be_made_are_no_silence():
    assert first_failures(("connect_failed", "a-0", 1024)).why_unheard(1, 30.0) is None
    assert FirstFailures().why_unheard(0, 30.0) is None


def test_a_queue_of_connections_that_nobody_empties():
    """The kernel takes one more than it is told, and says nothing to the others."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        host = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with fake_load(host, timeout="100ms") as load:
            uploaders = [Uploader(load) for _ in range(3)]
            for uploader in uploaders:
                assert load.failed_first.why_unheard(load.uploaders, 0.1) is None
                uploader.upload(RunningPhase("p", 0), *load.payloads.pick(0, 0))
            for uploader in uploaders:
                uploader.close()
            assert load.codes() == ["timeout"] * 3
            assert load.failed_first.why_unheard(load.uploaders, 0.1).startswith("none of the first 3 was answered")
