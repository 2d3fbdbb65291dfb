"""What a person types: sizes, durations, options, and one clear line for each mistake."""

import dataclasses
import errno
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import AS_NOBODY, needs_nobody
from servers_of_others import public_folder
from small_disks import small_disk

from server import options as config_module
from server.addresses import parse_addresses
from server.options import MAX_WORKERS, OPTIONS, ConfigError, ServerConfig, find_store_problem
from server.pid_file import find_problem as find_pid_file_problem
from server.storage.folders import prepare_store
from server.units import format_age, format_size, parse_duration, parse_size, write_duration, write_size

ROOT = Path(__file__).parents[3]

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


@given(st.integers(0, 1 << 50))
def test_a_written_size_reads_back(size: int) -> None:
    assert parse_size(write_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1500, "1500B"), (1536, "1536B"), (64 << 10, "64KiB"), (3 << 20, "3MiB"), (16 << 30, "16GiB")],
)
def test_a_size_is_written_in_the_largest_unit_that_is_exact(size: int, text: str) -> None:
    assert write_size(size) == text


@given(st.integers(0, 10**14))
def test_a_written_duration_reads_back_to_the_nanosecond(duration_ns: int) -> None:
    assert round(parse_duration(write_duration(duration_ns / 1e9)) * 1e9) == round(duration_ns / 1e9 * 1e9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (30, "30s"), (100, "100s"), (0.5, "0.5s"), (0.00025, "0.00025s"), (86400, "86400s")],
)
def test_a_duration_is_written_in_seconds(seconds: float, text: str) -> None:
    assert write_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (60, "1m00s"), (187, "3m07s"), (7500, "2h05m"), (3 * 86400 + 4 * 3600, "3d04h")],
)
def test_an_age_as_people_read_it(seconds: float, text: str) -> None:
    assert format_age(seconds) == text


# ── The configuration ──

VALID = ServerConfig(port=0, workers=1, discard=True, status_port=0)


@pytest.mark.parametrize("workers", [1, MAX_WORKERS])
def test_a_number_of_workers_that_works(workers: int) -> None:
    assert dataclasses.replace(VALID, workers=workers).workers == workers


@pytest.mark.parametrize("workers", [0, -1, MAX_WORKERS + 1])
def test_a_number_of_workers_that_does_not(workers: int) -> None:
    with pytest.raises(ConfigError, match=f"workers is {workers}, not 1 to {MAX_WORKERS}"):
        dataclasses.replace(VALID, workers=workers)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("host", "", "host is '', not an address: name one of this machine, such as 127.0.0.1"),
        ("host", "a\0b", "host is 'a\\x00b', not an address: name one of this machine, such as 127.0.0.1"),
        ("port", -1, "port is -1, not 0 to 65535"),
        ("port", 65536, "port is 65536, not 0 to 65535"),
        ("max_header_size", 1023, "max_header_size is 1023B, not 1KiB to 1MiB"),
        ("max_header_size", (1 << 20) + 1, "max_header_size is 1048577B, not 1KiB to 1MiB"),
        ("max_file_size", 0, "max_file_size is 0B, not 1B to 1048576GiB"),
        ("max_connections", -1, "max_connections is -1, not 0 to 1000000"),
        ("header_timeout_s", 0.9, "header_timeout is 0.9s, not 1s to 86400s"),
        ("idle_timeout_s", 0.0, "idle_timeout is 0s, not 1s to 86400s"),
        ("min_rate", -1, "min_rate is -1B/s, not 0B/s to 1GiB/s"),
        ("min_rate_grace_s", 0.5, "min_rate_grace is 0.5s, not 1s to 86400s"),
        ("umask", 0o700, "umask is 700, not 000 to 077: the server itself must read and write its files"),
        ("drain_timeout_s", 86401.0, "drain_timeout is 86401s, not 0s to 86400s"),
        ("backlog", 0, "backlog is 0, not 1 to 65535"),
        ("hang_timeout_s", 1.9, "hang_timeout is 1.9s, not 2s to 86400s"),
        ("max_deaths", 0, "max_deaths is 0, not 1 to 1000000"),
        ("death_window_s", 0.5, "death_window is 0.5s, not 1s to 86400s"),
        ("accept", "both", "accept is 'both', not per-worker or shared"),
        ("collision", "fail", "collision is 'fail', not replace, unique or reject"),
        ("durability", "", "durability is '', not process or power"),
        ("log_format", "xml", "log_format is 'xml', not text or json"),
    ],
)
def test_a_value_that_cannot_work_is_told_with_what_can(field: str, value: object, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(VALID, **{field: value})  # type: ignore[arg-type]
    assert caught.value.problems == (problem,)


@pytest.mark.parametrize(
    ("listen", "host", "is_taken"),
    [
        ("127.0.0.1:9101", "127.0.0.1", True),
        ("unix:///x,127.0.0.1:1,127.0.0.1:9101", "127.0.0.1", True),
        ("0.0.0.0:9101", "127.0.0.1", True),
        ("127.0.0.2:9101", "0.0.0.0", True),
        ("localhost:9101", "127.0.0.1", True),
        ("[::1]:9101", "localhost", True),
        ("[0:0::1]:9101", "::1", True),
        ("upload.example:9101", "upload.example", True),
        ("[::]:9101", "127.0.0.1", False),  # each of our sockets has one family
        ("127.0.0.2:9101", "127.0.0.1", False),
        ("upload.example:9101", "127.0.0.1", False),
        ("127.0.0.1:9102", "127.0.0.1", False),
        ("unix:///x", "127.0.0.1", False),
    ],
)
def test_the_status_page_has_no_port_of_the_uploads(listen: str, host: str, is_taken: bool) -> None:
    values = {"port": 9101, "listen": parse_addresses(listen), "status_host": host, "status_port": 9101}
    try:
        dataclasses.replace(VALID, **values)  # type: ignore[arg-type]
        problems: tuple[str, ...] = ()
    except ConfigError as error:
        problems = error.problems
    assert problems == (("status_port is 9101, the port of the uploads: choose another",) if is_taken else ())


def test_port_0_is_nobodys() -> None:
    assert dataclasses.replace(VALID, port=0, status_port=0).status_port == 0


def test_the_least_and_the_most_work(tmp_path: Path) -> None:
    stored = dataclasses.replace(VALID, discard=False, store=tmp_path)
    for option in OPTIONS:
        for value in option.bounds or ():
            changed = dataclasses.replace(stored, **{option.field: type(getattr(VALID, option.field))(value)})
            assert getattr(changed, option.field) == value


def test_uploads_go_to_one_place(tmp_path: Path) -> None:
    for both in ({"store": tmp_path}, {"discard": False}):
        with pytest.raises(ConfigError, match=r"^say where uploads go: either --store DIR or --discard$"):
            dataclasses.replace(VALID, **both)  # type: ignore[arg-type]


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(VALID, workers=0, port=-1)
    assert caught.value.problems == ("port is -1, not 0 to 65535", "workers is 0, not 1 to 512")
    assert str(caught.value) == "port is -1, not 0 to 65535; workers is 0, not 1 to 512"


@pytest.mark.parametrize(
    ("field", "value"), [("durability", "power"), ("collision", "unique"), ("collision", "reject"), ("max_store", 5)]
)
def test_what_only_a_store_can_keep_is_no_promise_of_discard(field: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}B?, but discard keeps no"):
        dataclasses.replace(VALID, **{field: value})  # type: ignore[arg-type]
    dataclasses.replace(VALID, discard=False, store=tmp_path, **{field: value})  # type: ignore[arg-type]


def test_another_system_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_module.sys, "platform", "darwin")
    with pytest.raises(ConfigError, match=r"needs Linux, this is darwin.*container"):
        dataclasses.replace(VALID)


def test_the_defaults_are_those_of_the_protocol() -> None:
    assert (VALID.max_header_size, VALID.max_file_size, VALID.drain_timeout_s) == (64 << 10, 16 << 30, 30.0)
    assert (VALID.header_timeout_s, VALID.idle_timeout_s) == (10.0, 75.0)
    assert (VALID.min_rate, VALID.min_rate_grace_s) == (1 << 10, 10.0)


def test_the_options_are_shown_as_people_write_them(tmp_path: Path) -> None:
    config = dataclasses.replace(VALID, discard=False, store=tmp_path, token="sesame", token_file=tmp_path / "secret")
    shown = config.shown()
    limits = {"max_file_size": "16GiB", "max_header_size": "64KiB", "drain_timeout": "30s", "min_rate": "1KiB/s"}
    no_limits = {"max_store": "the disk's room", "max_connections": "as descriptors allow"}
    others = {"store": str(tmp_path), "discard": "false", "umask": "077", "listen": "none", "pid_file": "none"}
    assert shown == shown | limits | no_limits | others | {"tls": "none", "token": "required", "status_port": "0"}
    assert dataclasses.replace(VALID, min_rate=0).shown()["min_rate"] == "none"
    assert VALID.shown()["token"] == VALID.shown()["store"] == "none"


def test_of_secrets_only_that_there_is_one_is_shown() -> None:
    hidden = {"config", "token_file", "tls_cert", "tls_key", "tls_client_ca"}
    assert VALID.shown().keys() == {option.name for option in OPTIONS} - hidden | {"tls", "token"}


# ── Texts and stores ──


def test_a_store_that_can_be_made_is_no_problem_and_is_not_made(tmp_path: Path) -> None:
    assert find_store_problem(tmp_path) is None
    assert find_store_problem(tmp_path / "new" / "below") is None
    assert list(tmp_path.iterdir()) == []


def test_a_relative_store_is_looked_for_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_store_problem(Path("new/below")) is None
    (tmp_path / "new").write_bytes(b"")
    assert find_store_problem(Path("new/below")) == f"{tmp_path}/new is not a folder"


def test_a_store_that_cannot_be_one_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / ".incoming").symlink_to(tmp_path)
    assert find_store_problem(tmp_path / "file") == f"{tmp_path}/file is not a folder"
    assert find_store_problem(tmp_path / "file" / "below") == f"{tmp_path}/file is not a folder"
    assert find_store_problem(tmp_path / "lost") == f"{tmp_path}/lost is not a folder"
    assert find_store_problem(tmp_path / "odd") == f"{tmp_path}/odd/.incoming is a link, not a folder"


def test_a_read_only_file_system_is_named(tmp_path: Path) -> None:
    """Also where an earlier server has made all that is needed there."""
    with small_disk(tmp_path / "disk", "1m") as disk:
        (disk / "store" / ".incoming" / "0").mkdir(parents=True)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        why = "cannot be written: Read-only file system"
        assert find_store_problem(disk / "new" / "store") == f"{disk} {why}"
        assert find_store_problem(disk / "store") == f"{disk}/store/.incoming {why}"
        assert find_pid_file_problem(disk / "pid") == f"pid_file {disk}/pid cannot be written: {disk} {why}"
        done = server("--port", "0", "--workers", "1", "--store", disk / "store")
    said = f"Error: store {disk}/store cannot be used: {disk}/store/.incoming {why}\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_an_immutable_folder_is_told_by_the_kernels_reason(tmp_path: Path) -> None:
    (tmp_path / "still").mkdir()
    if subprocess.run(["chattr", "+i", tmp_path / "still"], capture_output=True, check=False).returncode != 0:
        pytest.skip("nothing can be made immutable here")
    try:
        assert find_store_problem(tmp_path / "still") == f"{tmp_path}/still cannot be written: Operation not permitted"
    finally:
        subprocess.run(["chattr", "-i", tmp_path / "still"], check=True)


@needs_nobody
def test_what_is_closed_to_this_user_is_not_said_to_be_missing() -> None:
    with public_folder() as folder:
        (folder / "closed" / "below").mkdir(parents=True)
        (folder / "closed").chmod(0o700)
        look = "import sys; from server.options import *; [print(find_folder_problem(Path(a))) for a in sys.argv[1:]]"
        places = [folder, folder / "closed", folder / "closed" / "below"]
        asked = [*AS_NOBODY, sys.executable, "-c", look, *map(str, places)]
        done = subprocess.run(asked, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
        assert done.stdout.splitlines() == [f"{place} cannot be written: Permission denied" for place in places]


def test_a_folder_that_only_the_disk_is_against_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m,nr_inodes=2") as disk:
        (disk / "store").mkdir()
        with pytest.raises(OSError) as caught:
            prepare_store(disk / "store", 1)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, f"{disk}/store/.incoming")


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


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--port", "abc", "--discard"], 2, ["--port", "'abc'", "whole number"]),
        (["--port", "65536", "--discard"], 2, ["--port", "65536"]),
        (["--port", "", "--discard"], 2, ["--port", "''"]),
        (["--workers", "0", "--discard"], 2, ["workers is 0 (from --workers), not 1 to 512"]),
        (["--max-file-size", "4KX", "--discard"], 2, ["--max-file-size", "'4KX'", "64KiB"]),
        (["--drain-timeout", "soon", "--discard"], 2, ["--drain-timeout", "'soon'", "30s"]),
        (["--host", "", "--port", "0", "--discard"], 2, ["host is '' (from --host), not an address"]),
        (["--unknown", "--discard"], 2, ["--unknown"]),
        (["--worker", "2", "--discard"], 2, ["--worker", "--workers"]),
        (["--discard", "argument"], 2, ["argument"]),
        ([], 2, ["--store DIR", "--discard"]),
        (["--store", "x", "--discard"], 2, ["--store DIR", "--discard"]),
        (["--host", "no.such.host.invalid", "--port", "0", "--discard"], 1, ["no.such.host.invalid", "address"]),
        (["--host", "192.0.2.1", "--port", "0", "--discard"], 1, ["192.0.2.1", "cannot listen"]),
        (["--host", "a" * 70, "--port", "0", "--discard"], 1, ["aaaa", "address"]),
    ],
)
def test_a_mistake_is_one_clear_line_and_an_exit_code(arguments: list[str], code: int, words: list[str]) -> None:
    done = server(*arguments)
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
    shown = " ".join(done.stdout.split())
    for option in OPTIONS:
        assert f" {option.flag} " in shown
        if option.default:
            assert f"[default: {option.kind.write(option.default)}]" in shown
    assert " status " in shown


def test_a_store_that_is_a_file_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    for store in (tmp_path / "file", tmp_path / "file" / "below"):
        done = server("--port", "0", "--store", store)
        assert done.returncode == 1
        assert done.stderr == f"Error: store {store} cannot be used: {tmp_path}/file is not a folder\n"
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_a_store_whose_incoming_folder_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".incoming").symlink_to(tmp_path)
    store = tmp_path / "store"
    done = server("--port", "0", "--store", store)
    assert done.returncode == 1
    assert done.stderr == f"Error: store {store} cannot be used: {store}/.incoming is a link, not a folder\n"


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
