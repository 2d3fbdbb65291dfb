"""What a person types: sizes, durations, options, and one clear line for each mistake."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from servers import AS_NOBODY, needs_nobody

from server import config as config_module
from server.__main__ import main
from server.config import MAX_WORKERS, ConfigError, ServerConfig
from server.supervisor import MAX_BACKOFF_S, respawn_delay_s
from server.units import format_size, parse_duration, parse_size

ROOT = Path(__file__).parents[2]

# ── Sizes and durations ──


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("0", 0), ("1", 1), ("4096", 4096), ("7B", 7), ("1k", 1024), ("1K", 1024), ("1KiB", 1024), ("1kib", 1024)),
        *(("64KiB", 65536), ("1M", 1 << 20), ("1MiB", 1 << 20), ("16GiB", 16 << 30), ("2g", 2 << 30)),
        *(("1kB", 1000), ("1KB", 1000), ("1MB", 10**6), ("1.5GB", 1_500_000_000), ("1.5MiB", 3 << 19), ("0.5K", 512)),
        *((" 4 KiB ", 4096), ("4 KiB", 4096)),
    ],
)
def test_a_size(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert type(parse_size(text)) is int


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "KiB", "4KX", "4X", "-1", "+1", "1e3", "1,5M", "0x10", "1.", ".5", "4 K iB", "1.5", "0.3K", "inf"),
        *("nan", "4KiB5", "１", "4TiB", "4s", "K4", "1 2"),
    ],
)
def test_what_is_no_size_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)
    assert "such as 64KiB" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("0", 0.0), ("30", 30.0), ("30s", 30.0), ("500ms", 0.5), ("250us", 0.00025), ("250µs", 0.00025)),
        *(("2min", 120.0), ("1.5h", 5400.0), ("1 s", 1.0), ("2S", 2.0)),
    ],
)
def test_a_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)
    assert type(parse_duration(text)) is float


@pytest.mark.parametrize("text", ["", "s", "-1s", "5x", "5 minutes", "1e3", "inf", "nan", "1:30", "4KiB", "2m", "20M"])
def test_what_is_no_duration_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)
    assert "such as 30s" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1 << 20, "1 MiB"), (3 << 30, "3 GiB")),
        (1 << 40, "1.02e+03 GiB"),
    ],
)
def test_a_size_as_people_read_it(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 1 << 50))
def test_a_plain_number_of_bytes_is_exact(size: int) -> None:
    assert parse_size(str(size)) == size


# ── The configuration ──

VALID = ServerConfig(host="127.0.0.1", port=0, workers=1, store=None)


@pytest.mark.parametrize("workers", [1, MAX_WORKERS])
def test_a_number_of_workers_that_works(workers: int) -> None:
    assert dataclasses.replace(VALID, workers=workers).workers == workers


@pytest.mark.parametrize("workers", [0, -1, MAX_WORKERS + 1])
def test_a_number_of_workers_that_does_not(workers: int) -> None:
    with pytest.raises(ConfigError, match=f"workers is {workers}, not 1 to {MAX_WORKERS}"):
        dataclasses.replace(VALID, workers=workers)


def test_another_system_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module.sys, "platform", "darwin")
    with pytest.raises(ConfigError, match=r"needs Linux, this is darwin.*container"):
        dataclasses.replace(VALID)


def test_the_defaults_are_those_of_the_protocol() -> None:
    assert (VALID.max_header_size, VALID.max_file_size, VALID.drain_timeout_s) == (64 << 10, 16 << 30, 30.0)


def test_the_shown_options_can_be_written_down(tmp_path: Path) -> None:
    shown = dataclasses.replace(VALID, store=tmp_path).shown_options()
    assert shown["store"] == str(tmp_path)
    assert VALID.shown_options()["store"] is None
    assert all(type(value) in (str, int, float, bool, type(None)) for value in shown.values())


# ── Back-off ──


def test_a_worker_that_keeps_dying_is_replaced_ever_later() -> None:
    delays = [respawn_delay_s(deaths) for deaths in range(10)]
    assert delays == pytest.approx([0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10])
    assert respawn_delay_s(10**9) == MAX_BACKOFF_S  # no overflow after a month


# ── The command line ──


def server(*arguments: object, **keywords: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        **keywords,  # type: ignore[call-overload]
    )


def usage_error(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same for what click finds wrong, in this process: nothing has been set up or forked by then."""
    result = CliRunner().invoke(main, arguments, prog_name="python -m server")
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--port", "abc", "--discard"], 2, ["--port", "'abc'", "integer"]),
        (["--port", "65536", "--discard"], 2, ["--port", "65536"]),
        (["--port", "-1", "--discard"], 2, ["--port", "-1"]),
        (["--port", "", "--discard"], 2, ["--port"]),
        (["--workers", "two", "--discard"], 2, ["--workers", "'two'"]),
        (["--workers", "0", "--discard"], 1, ["workers is 0, not 1 to 512"]),
        (["--workers", "513", "--discard"], 1, ["workers is 513, not 1 to 512"]),
        (["--max-file-size", "4KX", "--discard"], 2, ["--max-file-size", "'4KX'", "64KiB"]),
        (["--drain-timeout", "soon", "--discard"], 2, ["--drain-timeout", "'soon'", "30s"]),
        (["--unknown", "--discard"], 2, ["--unknown"]),
        (["--discard", "argument"], 2, ["argument"]),
        ([], 2, ["--store DIR", "--discard"]),
        (["--store", "x", "--discard"], 2, ["--store DIR", "--discard"]),
        (["--host", "no.such.host.invalid", "--port", "0", "--discard"], 1, ["no.such.host.invalid", "address"]),
        (["--host", "192.0.2.1", "--port", "0", "--discard"], 1, ["192.0.2.1", "cannot listen"]),
        (["--host", "a" * 70, "--port", "0", "--discard"], 1, ["aaaa", "address"]),
        (["--host", "", "--port", "0", "--discard"], 1, ["'' is not an address"]),
    ],
)
def test_a_mistake_is_one_clear_line_and_an_exit_code(arguments: list[str], code: int, words: list[str]) -> None:
    done = usage_error(*arguments) if code == 2 else server(*arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert done.stderr.rstrip().endswith(line)
    for word in words:
        assert word in line


def test_help_names_every_option_and_its_default() -> None:
    done = server("--help")
    assert done.returncode == 0
    for word in ("--host", "127.0.0.1", "--port", "12345", "--workers", "4", "--store", "--discard", "16GiB", "30s"):
        assert word in done.stdout


def test_a_store_that_is_a_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    for store in (tmp_path / "file", tmp_path / "file" / "below"):
        done = server("--port", "0", "--store", store)
        assert done.returncode == 1
        assert done.stderr.startswith(f"Error: {tmp_path}/file")
        assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_a_store_whose_incoming_folder_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".incoming").symlink_to(tmp_path)
    done = server("--port", "0", "--store", tmp_path / "store")
    assert done.returncode == 1
    assert done.stderr == f"Error: {tmp_path}/store/.incoming: is a symbolic link, not a folder\n"


@needs_nobody
def test_a_store_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    done = subprocess.run(
        [*AS_NOBODY, sys.executable, "-m", "server", "--port", "0", "--store", str(store)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "Permission denied" in done.stderr
    assert str(store) in done.stderr
