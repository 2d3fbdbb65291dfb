"""Where values come from: the strongest source wins and is named, and a mistake is told with its place."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.option_kinds import Option
from server.options import OPTIONS, ConfigError, ServerConfig
from server.settings import Setting, Settings, Sources, needs_restart

SOURCES = ("flag", "environment", "file")  # the strongest first
# Two values for each option, neither of them the default, as text.
VALUES = {
    "host": ("127.0.0.2", "::1"),
    "port": ("0", "65535"),
    "workers": ("1", "512"),
    "store": ("some/folder", "/other"),
    "max_file_size": ("1B", "3GiB"),
    "max_header_size": ("1KiB", "5000B"),
    "max_store": ("1GiB", "5000B"),
    "max_connections": ("1", "1000000"),
    "header_timeout": ("1s", "2.5s"),
    "idle_timeout": ("1s", "300s"),
    "min_rate": ("0B/s", "1MiB/s"),
    "min_rate_grace": ("1s", "60s"),
    "token_file": ("/proc/sys/kernel/ostype", "/proc/sys/kernel/osrelease"),  # a word each, on every machine
    "umask": ("027", "000"),
    "collision": ("unique", "reject"),
    "durability": ("power", "power"),
    "drain_timeout": ("0s", "0.5s"),
    "hang_timeout": ("2s", "100s"),
    "max_deaths": ("1", "99"),
    "death_window": ("1s", "2.5s"),
    "accept": ("shared", "shared"),
    "listen": ("127.0.0.1:1,[::1]:0,unix:///run/a", "localhost:0"),
    "pid_file": ("some/file", "/other"),
    "backlog": ("1", "128"),
    "log_format": ("json", "json"),
    "status_port": ("0", "9101"),
    "status_host": ("127.0.0.2", "::1"),
}
STORE = {"SOCKETSWARM_STORE": "store"}


def read(flags: dict[str, Any] | None = None, environment: dict[str, str] | None = None) -> Settings:
    return Sources(flags or {}, environment or {}).read()


def setting(settings: Settings, name: str) -> Setting:
    [found] = [each for each in settings.each if each.option.name == name]
    return found


def problems(flags: dict[str, Any] | None = None, environment: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read(flags, environment)
    assert all(problem.isprintable() for problem in caught.value.problems)
    return caught.value.problems


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


# ── The table ──


def test_every_field_of_the_configuration_is_an_option_or_what_was_read_from_its_file() -> None:
    fields = {field.name for field in dataclasses.fields(ServerConfig)}
    assert {option.field for option in OPTIONS} == fields - {"token", "tls"}
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)


def test_with_no_source_all_is_as_the_table_has_it() -> None:
    assert read({"discard": True}).config == ServerConfig(discard=True)


def test_an_option_is_spelled_after_its_name() -> None:
    [option] = [option for option in OPTIONS if option.name == "max_file_size"]
    assert (option.flag, option.variable) == ("--max-file-size", "SOCKETSWARM_MAX_FILE_SIZE")


def test_the_values_of_these_tests_are_of_all_options() -> None:
    assert VALUES.keys() == {option.name for option in OPTIONS} - {
        "config",
        "discard",
        "tls_cert",
        "tls_key",
        "tls_client_ca",
    }


# ── Precedence ──


def as_toml(option: Option, text: str) -> str:
    bare = option.name in ("port", "workers", "max_deaths", "max_connections", "backlog")
    return f"{option.name} = {text}" if bare else f'{option.name} = "{text}"'


@given(
    option=st.sampled_from([option for option in OPTIONS if option.name in VALUES]),
    present=st.sets(st.sampled_from(SOURCES)),
    swap=st.booleans(),
)
def test_the_strongest_source_wins_and_is_named(folder: Path, option: Option, present: set[str], swap: bool) -> None:
    strong, weak = reversed(VALUES[option.name]) if swap else VALUES[option.name]
    ranked = [source for source in SOURCES if source in present]
    text = dict.fromkeys(present, weak) | ({ranked[0]: strong} if ranked else {})
    config_file = folder / "server.toml"
    config_file.write_text(as_toml(option, text["file"]) if "file" in text else "")
    flags = {"config": str(config_file)} | ({option.name: text["flag"]} if "flag" in text else {})
    environment = {option.variable: text["environment"]} if "environment" in text else {}
    if option.name != "store":
        flags["store"] = "store"

    if option.name == "store" and not ranked:
        assert problems(flags, environment) == ("say where uploads go: either --store DIR or --discard",)
        return
    settings = read(flags, environment)
    found = setting(settings, option.name)
    origins = {"flag": option.flag, "environment": option.variable, "file": str(config_file)}
    if ranked:
        assert (found.written(), found.source, found.origin) == (strong, ranked[0], origins[ranked[0]])
    else:
        assert (found.value, found.source, found.origin) == (option.default, "default", "")
    if option.name == "token_file":
        assert settings.config.token == (found.value and found.value.read_text().strip())
    else:
        assert getattr(settings.config, option.field) == found.value


@given(st.sampled_from([option for option in OPTIONS if option.name in VALUES]), st.integers(0, 1))
def test_a_written_value_reads_back(option: Option, which: int) -> None:
    text = VALUES[option.name][which]
    assert option.kind.write(option.kind.read(text)) == text


def test_the_file_may_be_named_by_a_variable_and_a_flag_names_another(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text("workers = 1\ndiscard = true")
    (tmp_path / "two.toml").write_text("workers = 2\ndiscard = true")
    environment = {"SOCKETSWARM_CONFIG": str(tmp_path / "one.toml")}
    assert read({}, environment).config.workers == 1
    assert read({"config": str(tmp_path / "two.toml")}, environment).config.workers == 2
    assert setting(read({}, environment), "config").written() == str(tmp_path / "one.toml")


def test_a_variable_set_to_nothing_is_not_set() -> None:
    assert setting(read({}, STORE | {"SOCKETSWARM_WORKERS": ""}), "workers").source == "default"


def test_a_wrong_value_that_is_overridden_stops_nobody() -> None:
    assert read({"workers": "2"}, STORE | {"SOCKETSWARM_WORKERS": "two"}).config.workers == 2


def test_a_file_may_have_numbers_and_times_bare(tmp_path: Path) -> None:
    lines = ("workers = 3", "max_file_size = 1_000_000", "drain_timeout = 1.5", "hang_timeout = 5", "discard = true")
    (tmp_path / "server.toml").write_text("\n".join(lines))
    config = read({"config": str(tmp_path / "server.toml")}).config
    assert (config.workers, config.max_file_size, config.drain_timeout_s, config.hang_timeout_s) == (3, 10**6, 1.5, 5.0)
    assert type(config.hang_timeout_s) is float


# ── A store or discard ──


def where(file: str, flags: dict[str, Any], environment: dict[str, str], folder: Path) -> tuple[Any, Setting, Setting]:
    (folder / "where.toml").write_text(file)
    settings = read({"config": str(folder / "where.toml")} | flags, environment)
    store, discard = setting(settings, "store"), setting(settings, "discard")
    assert discard.value == (settings.config.store is None)
    return settings.config.store, store, discard


def test_of_a_store_and_discard_the_stronger_source_wins(folder: Path) -> None:
    store, *both = where('store = "kept"', {"discard": True}, {}, folder)
    assert store is None
    assert [(each.source, each.origin) for each in both] == [("flag", "--discard")] * 2
    store, *both = where("discard = true", {"store": "kept"}, {}, folder)
    assert store == Path("kept")
    assert [(each.source, each.origin) for each in both] == [("flag", "--store")] * 2
    store, *both = where("discard = true", {}, STORE, folder)
    assert store == Path("store")
    assert [(each.source, each.origin) for each in both] == [("environment", "SOCKETSWARM_STORE")] * 2


def test_discard_can_be_switched_off_again(folder: Path) -> None:
    store, _, discard = where('store = "kept"', {}, {"SOCKETSWARM_DISCARD": "no"}, folder)
    assert store == Path("kept")
    assert discard.source == "environment"


def test_a_store_and_discard_from_one_source_contradict_each_other(folder: Path) -> None:
    said = "say where uploads go: either --store DIR or --discard, not both (from "
    assert problems({"store": "x", "discard": True}) == (said + "--store and --discard)",)
    assert problems({}, STORE | {"SOCKETSWARM_DISCARD": "1"}) == (said + "SOCKETSWARM_STORE and SOCKETSWARM_DISCARD)",)
    both = folder / "both.toml"
    both.write_text('store = "x"\ndiscard = true')
    assert problems({"config": str(both)}) == (f"{said}{both})",)


# ── Mistakes ──


@pytest.mark.parametrize("source", SOURCES)
def test_a_mistake_is_told_with_its_place(source: str, tmp_path: Path) -> None:
    config_file = tmp_path / "server.toml"
    config_file.write_text('workers = 0\ndrain_timeout = "soon"' if source == "file" else "")
    flags: dict[str, Any] = {"discard": True, "config": str(config_file)}
    flags |= {"workers": "0", "drain_timeout": "soon"} if source == "flag" else {}
    environment = {"SOCKETSWARM_WORKERS": "0", "SOCKETSWARM_DRAIN_TIMEOUT": "soon"} if source == "environment" else {}
    workers = {"flag": "--workers", "environment": "SOCKETSWARM_WORKERS", "file": str(config_file)}[source]
    drain = {"flag": "--drain-timeout", "environment": "SOCKETSWARM_DRAIN_TIMEOUT", "file": str(config_file)}[source]
    [problem] = problems(flags, environment)
    assert problem.startswith(f"drain_timeout (from {drain}): 'soon' is not a duration: write seconds")
    flags["drain_timeout"] = "1s"
    assert problems(flags, environment) == (f"workers is 0 (from {workers}), not 1 to 512",)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["host", "port", "listen", "status_port", "status_host"])
def test_what_may_be_a_password_is_not_repeated(name: str, source: str, tmp_path: Path) -> None:
    secret = "user:hunter2@127.0.0.1"
    config_file = tmp_path / "server.toml"
    config_file.write_text(f'{name} = "{secret}"' if source == "file" else "")
    flags = {"discard": True, "config": str(config_file)} | ({name: secret} if source == "flag" else {})
    [problem] = problems(flags, {f"SOCKETSWARM_{name.upper()}": secret} if source == "environment" else {})
    assert "what was given" in problem and "hunter2" not in problem
    if source == "file":
        config_file.write_text(f'{name} = ["{secret}", 2]')
        [problem] = problems(flags)
        assert "what was given is " in problem and "hunter2" not in problem


def test_a_file_from_windows_may_begin_with_its_mark(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text("workers = 3\ndiscard = true", encoding="utf-8-sig")
    assert read({"config": str(tmp_path / "server.toml")}).config.workers == 3


def test_all_mistakes_of_a_kind_are_told_at_once() -> None:
    told = problems({"discard": True, "workers": "two", "port": "x"}, {"SOCKETSWARM_BACKLOG": "1.5"})
    assert told == (
        "port (from --port): 'x' is not a whole number",
        "workers (from --workers): 'two' is not a whole number",
        "backlog (from SOCKETSWARM_BACKLOG): '1.5' is not a whole number",
    )
    told = problems({"discard": True, "workers": "0", "hang_timeout": "1s", "durability": "power"})
    assert [problem.split()[0] for problem in told] == ["workers", "hang_timeout", "durability"]


@pytest.mark.parametrize("text", ["", "1.0", "1e3", "0x10", "1_000", "１", "two", "9" * 19, "9" * 5000, "--1", "+"])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    [problem] = problems({"discard": True, "workers": text})
    assert problem == f"workers (from --workers): {text!r} is not a whole number"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("workers = true", "workers (from {}): 'True' is not a whole number"),
        ("workers = [1]", "workers (from {}): [1] is a list: write one value"),
        ("[workers]\nnumber = 1", "workers (from {}): {{'number': 1}} is a table: write one value"),
        ("workers = 2.0", "workers (from {}): '2.0' is not a whole number"),
        ("host = 1", "host (from {}): 1 is not text: put it in quotes"),
        ('store = ["a"]', "store (from {}): ['a'] is a list: write one value"),
        ("umask = 0o22", 'umask (from {}): 18 is not text: write it in quotes and as octal, such as "022"'),
        ("status_port = false", "status_port (from {}): 'False' is neither a port nor off"),
        ("listen = []", "listen (from {}): [] is no list of addresses: put each in quotes, with commas between them"),
        ("listen = ['h:1', 2]", "listen (from {}): ['h:1', 2] is no list of addresses: put each in quotes, with"),
        ("listen = ['h:1', 'h']", "listen (from {}): 'h' is not an address: write HOST:PORT or"),
        ("accept = true", "accept (from {}): True is not text: put it in quotes"),
        ('store = ""', "store (from {}): '' is not a path"),
        (r'store = "a\u0000b"', r"store (from {}): 'a\x00b' is not a path"),
        (r'host = "a\nb"', r"host is 'a\nb' (from {}), not an address: name one of this machine, such as 127.0.0.1"),
        ('discard = "perhaps"', "discard (from {}): 'perhaps' is neither true nor false"),
        ("wrokers = 1", "{}: unknown key 'wrokers'; did you mean workers?"),
        ("max-file-size = 1", "{}: unknown key 'max-file-size'; did you mean max_file_size?"),
        ("config = 'x'", "{}: unknown key 'config'"),
        ("[server]\nworkers = 1", "{}: unknown key 'server'"),
        (r'"a\nb" = 1', r"{}: unknown key 'a\nb'"),
        ("workers", "{}: is not TOML: Expected '=' after a key in a key/value pair (at end of document)"),
        ("workers = 1\nworkers = 2", "{}: is not TOML: Cannot overwrite a value (at end of document)"),
        ("x = " + "[" * 100_000, "{}: is not TOML: "),
    ],
)
def test_a_mistake_in_a_file_is_one_line(line: str, problem: str, tmp_path: Path) -> None:
    config_file = tmp_path / "server.toml"
    config_file.write_text(line)
    [told] = problems(
        {"config": str(config_file)} | ({} if "discard" in line or "store" in line else {"discard": True})
    )
    assert told.startswith(problem.format(config_file))


def test_in_a_file_addresses_may_be_a_list(tmp_path: Path) -> None:
    config_file = tmp_path / "server.toml"
    config_file.write_text('discard = true\nlisten = ["127.0.0.1:0", "unix:///x"]')
    assert setting(read({"config": str(config_file)}), "listen").written() == "127.0.0.1:0,unix:///x"


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes("# ä".encode("latin-1"))
    assert problems({"config": str(tmp_path / "latin.toml")}) == (
        f"{tmp_path}/latin.toml: is not UTF-8: byte 3 of it is no text",
    )
    assert problems({"config": str(tmp_path)}) == (
        f"config is {tmp_path} (from --config), which cannot be read: Is a directory",
    )
    assert problems({}, {"SOCKETSWARM_CONFIG": "/no/where\n"}) == (
        r"config is /no/where\n (from SOCKETSWARM_CONFIG), which cannot be read: No such file or directory",
    )


def test_a_slip_in_a_variable_is_warned_of() -> None:
    environment = STORE | {"SOCKETSWARM_WROKERS": "2", "SOCKETSWARM_\n": "", "OTHER": "x", "socketswarm_port": "1"}
    assert read({}, environment).warnings == (
        r"SOCKETSWARM_\n in the environment is not known",
        "SOCKETSWARM_WROKERS in the environment is not known; did you mean SOCKETSWARM_WORKERS?",
    )


# ── Reloads ──


def test_a_reload_reads_file_and_environment_anew_with_the_same_flags(tmp_path: Path) -> None:
    config_file = tmp_path / "server.toml"
    config_file.write_text("workers = 1\nmax_deaths = 1")
    environment = dict(STORE)
    sources = Sources({"config": str(config_file), "max_deaths": "7"}, environment)
    config_file.write_text("workers = 2\nmax_deaths = 2")
    environment["SOCKETSWARM_BACKLOG"] = "5"
    reread = sources.read().config
    assert (reread.workers, reread.max_deaths, reread.backlog) == (2, 7, 5)
    config_file.write_text("workers = 0")
    with pytest.raises(ConfigError, match=r"workers is 0 \(from .*server.toml\), not 1 to 512"):
        sources.read()


def test_what_needs_a_restart_is_named() -> None:
    old = read({"store": "store"}).config
    assert needs_restart(old, old) == []
    changed = {}
    for name, (text, _) in VALUES.items():
        new = read({"store": "store", name: text}).config
        assert new != old, name
        changed[name] = needs_restart(old, new)
    fixed = {"host", "port", "listen", "pid_file", "store", "max_store", "accept", "backlog", "log_format"}
    fixed |= {"status_port", "status_host"}
    assert changed == {name: [name] if name in fixed else [] for name in VALUES}
    assert needs_restart(old, read({"discard": True, "port": "1", "workers": "9"}).config) == [
        "port",
        "store",
        "discard",
    ]


# ── The token ──


@pytest.mark.parametrize(
    ("content", "token"),
    [
        (b"a", "a"),
        (b"two words\n", "two words"),
        ("ö\r\n".encode(), "ö"),
        (b"x" * 1024, "x" * 1024),
        ("é".encode() * 600, "é" * 600),
        ("😀".encode() * 1024 + b"\r\n", "😀" * 1024),
    ],
)
def test_a_token_is_what_is_in_its_file(content: bytes, token: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    (tmp_path / "token").chmod(0o600)
    settings = read({"discard": True, "token_file": str(tmp_path / "token")})
    assert settings.config.token == token
    assert settings.warnings == ()
    assert token == "a" or token not in repr(settings)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"two\nlines", b"x" * 1025, b"tab\t", b"\xff", b"\0", "é".encode() * 1025, "😀".encode() * 1025],
)
def test_what_is_no_token_is_refused_without_showing_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    [problem] = problems({"discard": True, "token_file": str(tmp_path / "token")})
    assert problem.startswith(f"token_file is {tmp_path}/token (from --token-file), wh")


def test_a_token_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    [problem] = problems({"discard": True, "token_file": str(tmp_path / "none")})
    assert problem.endswith("none (from --token-file), which cannot be read: No such file or directory")


def test_a_token_file_that_is_open_to_others_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t")
    for mode, warnings in ((0o640, 1), (0o604, 1), (0o600, 0), (0o400, 0)):
        (tmp_path / "token").chmod(mode)
        assert len(read({"discard": True, "token_file": str(tmp_path / "token")}).warnings) == warnings
