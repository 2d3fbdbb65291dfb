"""Where the configuration comes from: a flag wins over the environment, that over the file, and that over the default.

All options stand in one table, from which the flags (`--drain-timeout`), the environment variables
(`SOCKETSWARM_DRAIN_TIMEOUT`) and the keys of the TOML file (`drain_timeout`) are made, so that none can be missing in
one of them. Every value is read from text by the same function wherever it stands, and remembers where that was: a
mistake is told with its place. What values mean and which can work is the business of `config`.

Only values that win are read: a wrong variable that a flag overrides stops nobody. A variable that is set to nothing
counts as not set, because that is how compose files and shells leave one out.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from server import certificates
from server.addresses import parse_addresses, write_addresses
from server.certificates import CertificateError, Tls
from server.config import (
    AcceptMode,
    Collision,
    ConfigError,
    Durability,
    LogFormat,
    ServerConfig,
    find_problems,
    one_line,
    printable,
)
from server.protocol import MAX_TOKEN, is_token
from server.units import parse_duration, parse_size, write_duration, write_size

PREFIX = "SOCKETSWARM_"

Source = Literal["flag", "environment", "file", "default"]


# ── The options ──


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is read from text (ValueError when it is none) and written for people."""

    metavar: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str
    is_text: bool = False
    """Whether a file must put it in quotes; sizes, numbers and times may stand there bare."""


def _number(text: str) -> int:
    if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text) is None:
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def _port_or_off(text: str) -> int | None:
    try:
        return None if text.strip().lower() == "off" else _number(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a port nor off") from None


def _octal(text: str) -> int:
    if re.fullmatch(r"\s*(0o)?[0-7]{1,4}\s*", text) is None:
        raise ValueError(f"{text!r} is not an octal number, such as 027")
    return int(text, 8)


def _switch(text: str) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    try:
        return words[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{text!r} is neither true nor false") from None


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not a path")
    return Path(text)


def _write_path(path: Path | None) -> str:
    return "none" if path is None else one_line(printable(path))


def _choice(choices: object) -> Kind:
    return Kind("|".join(get_args(choices)), str, is_text=True)


TEXT = Kind("ADDRESS", str, is_text=True)
NUMBER = Kind("N", _number)
PORT_OR_OFF = Kind("N|off", _port_or_off, lambda value: "off" if value is None else str(value))
OCTAL = Kind("OCTAL", _octal, lambda value: f"{value:03o}", is_text=True)
SIZE = Kind("SIZE", parse_size, write_size)
DURATION = Kind("TIME", parse_duration, write_duration)
SWITCH = Kind("", _switch, lambda value: str(value).lower())
FOLDER = Kind("DIR", _path, _write_path, is_text=True)
FILE = Kind("FILE", _path, _write_path, is_text=True)
ADDRESSES = Kind("ADDRESS,...", parse_addresses, write_addresses, is_text=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One row of the table. `name` is the key in a file; the flag and the variable are spelled after it."""

    name: str
    kind: Kind
    default: Any
    help: str
    reloads: bool = False
    """Whether a running server can take a new value when it is told to reload."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def field(self) -> str:
        """Its name in ServerConfig, if it has one there."""
        return self.name + "_s" if self.kind is DURATION else self.name


OPTIONS = (
    Option(name="config", kind=FILE, default=None, help="TOML file with any of these options, such as: workers = 8"),
    Option(name="host", kind=TEXT, default="127.0.0.1", help="address to listen on; loopback unless you say so"),
    Option(name="port", kind=NUMBER, default=12345, help="0 takes a free one"),
    Option(
        name="listen",
        kind=ADDRESSES,
        default=(),
        help="in place of host and port, one or more of HOST:PORT, [IPV6]:PORT, tls://HOST:PORT and unix:///PATH, with "
        "commas between them or each with a flag of its own",
    ),
    Option(
        name="tls_cert",
        kind=FILE,
        default=None,
        help="certificate with its chain (PEM): host and port, or the tls:// addresses of listen, speak TLS",
        reloads=True,
    ),
    Option(name="tls_key", kind=FILE, default=None, help="its key, unless that is in the same file", reloads=True),
    Option(
        name="tls_client_ca",
        kind=FILE,
        default=None,
        help="clients must show a certificate that one of these has signed (PEM)",
        reloads=True,
    ),
    Option(name="workers", kind=NUMBER, default=4, help="worker processes", reloads=True),
    Option(
        name="store",
        kind=FOLDER,
        default=None,
        help="folder that uploads go to; made if it is missing; if relative, then to the working directory",
    ),
    Option(name="discard", kind=SWITCH, default=False, help="receive, check and count uploads, but keep none"),
    Option(name="max_file_size", kind=SIZE, default=16 << 30, help="larger files are refused", reloads=True),
    Option(name="max_header_size", kind=SIZE, default=64 << 10, help="larger headers are refused", reloads=True),
    Option(name="max_store", kind=SIZE, default=0, help="bytes that the store may hold; 0 for as many as the disk can"),
    Option(
        name="max_connections",
        kind=NUMBER,
        default=0,
        help="of each worker, which tells others that it is busy; 0 for as many as it has descriptors for",
        reloads=True,
    ),
    Option(
        name="header_timeout",
        kind=DURATION,
        default=10.0,
        help="from a header's first byte to its last",
        reloads=True,
    ),
    Option(
        name="idle_timeout",
        kind=DURATION,
        default=75.0,
        help="that a client may be silent, within an upload or between two",
        reloads=True,
    ),
    Option(
        name="min_rate",
        kind=SIZE,
        default=1 << 10,
        help="a second, that an upload must keep on average once the grace is over; 0 for none",
        reloads=True,
    ),
    Option(name="min_rate_grace", kind=DURATION, default=10.0, help="see --min-rate", reloads=True),
    Option(
        name="token_file",
        kind=FILE,
        default=None,
        help="file with the token that every upload must carry; readable by its owner only",
        reloads=True,
    ),
    Option(
        name="umask",
        kind=OCTAL,
        default=0o077,
        help="permissions that the store's files and folders do not get; by default all but the owner's",
        reloads=True,
    ),
    Option(
        name="collision",
        kind=_choice(Collision),
        default="replace",
        help="an upload whose name is taken replaces the file, gets a name of its own, or is refused",
        reloads=True,
    ),
    Option(
        name="durability",
        kind=_choice(Durability),
        default="process",
        help="what an acknowledged upload survives: the death of any process, or of the machine's power",
        reloads=True,
    ),
    Option(
        name="drain_timeout",
        kind=DURATION,
        default=30.0,
        help="how long TERM waits for open connections",
        reloads=True,
    ),
    Option(
        name="hang_timeout",
        kind=DURATION,
        default=30.0,
        help="a worker whose event loop stands still for so long is killed and replaced",
        reloads=True,
    ),
    Option(
        name="max_deaths",
        kind=NUMBER,
        default=10,
        help="so many workers that died by themselves within the death window end the server",
        reloads=True,
    ),
    Option(name="death_window", kind=DURATION, default=60.0, help="see --max-deaths", reloads=True),
    Option(
        name="accept",
        kind=_choice(AcceptMode),
        default="per-worker",
        help="a listening socket for each worker, or one that all accept from",
    ),
    Option(name="backlog", kind=NUMBER, default=4096, help="connections that may wait to be accepted, a socket"),
    Option(name="pid_file", kind=FILE, default=None, help="has the server's pid from when it is ready to its end"),
    Option(name="log_format", kind=_choice(LogFormat), default="text", help="of what stderr says, a line an incident"),
    Option(
        name="status_port",
        kind=PORT_OR_OFF,
        default=None,
        help="of a page of what the workers do, with /metrics and /healthz; 0 takes a free one; off by default",
    ),
    Option(
        name="status_host",
        kind=TEXT,
        default="127.0.0.1",
        help="address of that page, which whoever reaches it may read",
    ),
)
_BY_NAME = {option.name: option for option in OPTIONS}
_IN_FILE = {name for name in _BY_NAME if name != "config"}


def needs_restart(old: ServerConfig, new: ServerConfig) -> list[str]:
    """Names of the options that differ and that a running server cannot change."""
    changed = [
        option.name
        for option in OPTIONS
        if not option.reloads and getattr(old, option.field, None) != getattr(new, option.field, None)
    ]
    if (old.tls is None) != (new.tls is None):
        changed.append("tls")  # a socket speaks it or does not
    return changed


# ── Reading them ──


@dataclass(frozen=True, slots=True)
class Setting:
    """An option's value, and where it came from. `origin` is the flag's, the variable's or the file's name."""

    option: Option
    value: Any
    source: Source = "default"
    origin: str = ""

    def written(self) -> str:
        """The value as a person would write it."""
        return one_line(self.option.kind.write(self.value))


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration that can work, each option's setting in the table's order, and what a person should be told."""

    config: ServerConfig
    each: tuple[Setting, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Layer:
    """What one source says: raw values by option, text or what TOML made of it."""

    source: Source
    values: Mapping[str, Any]
    origin_of: Callable[[Option], str]


@dataclass(frozen=True, slots=True)
class Sources:
    """The flags, and the environment as it is at each reading: enough to read the configuration again."""

    flags: Mapping[str, Any]
    environment: Mapping[str, str]

    def read(self) -> Settings:
        """Ask all sources. ConfigError names every mistake of the kind that was found first: in a file, in reading a
        value, in what values mean."""
        layers = [_Layer("flag", self.flags, lambda option: option.flag), _environment_layer(self.environment)]
        config_file = _settle(_BY_NAME["config"], layers)
        if config_file.value is not None:
            layers.append(_file_layer(config_file))
        found = _settle_all(layers)
        found |= _destination(found["store"], found["discard"])
        found |= _where_to_listen(found)
        config = _configured(found)
        warnings = (
            *_unknown_variables(self.environment),
            *_open_secrets(found),
            *_expired(found["tls_cert"], config.tls),
        )
        return Settings(config, tuple(found.values()), warnings)

    def reread(self) -> ServerConfig:
        """The configuration as it is now, for a reload. ConfigError as from `read`."""
        return self.read().config


def _environment_layer(environment: Mapping[str, str]) -> _Layer:
    values = {option.name: text for option in OPTIONS if (text := environment.get(option.variable))}
    return _Layer("environment", values, lambda option: option.variable)


def _file_layer(setting: Setting) -> _Layer:
    import tomllib  # 8 ms that a server without a file does not wait for

    name = setting.written()
    try:
        values = tomllib.loads(setting.value.read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"config is {name} (from {setting.origin}), which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: is not UTF-8: byte {error.start + 1} of it is no text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{name}: is not TOML: {one_line(str(error))}") from None
    if unknown := values.keys() - _IN_FILE:
        raise ConfigError(*(f"{name}: unknown key {key!r}{_did_you_mean(key, _IN_FILE)}" for key in sorted(unknown)))
    return _Layer("file", values, lambda option: name)


def _settle_all(layers: list[_Layer]) -> dict[str, Setting]:
    found: dict[str, Setting] = {}
    problems: list[str] = []
    for option in OPTIONS:
        try:
            found[option.name] = _settle(option, layers)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return found


def _settle(option: Option, layers: list[_Layer]) -> Setting:
    for layer in layers:
        if option.name in layer.values:
            origin = layer.origin_of(option)
            try:
                return Setting(option, _read(option.kind, layer.values[option.name]), layer.source, origin)
            except ValueError as error:
                raise ConfigError(f"{option.name} (from {origin}): {error}") from None
    return Setting(option, option.default)


def _read(kind: Kind, raw: object) -> Any:
    if isinstance(raw, str):
        return kind.read(raw)
    if isinstance(raw, list | dict):
        return _read_several(kind, raw)
    if kind is OCTAL:  # TOML has made another number of it: 0o22 is 18 here, and 22 was perhaps meant as octal
        raise ValueError(f'{raw!r} is not text: write it in quotes and as octal, such as "022"')
    if kind.is_text:
        raise ValueError(f"{raw!r} is not text: put it in quotes")
    return kind.read(str(raw))  # TOML's numbers and truths as a person would have typed them


def _read_several(kind: Kind, raw: list[object] | dict[str, object]) -> Any:
    """TOML's lists are for addresses only."""
    if kind is not ADDRESSES:
        raise ValueError(f"{raw!r} is a {'list' if isinstance(raw, list) else 'table'}: write one value")
    texts = [each for each in raw if isinstance(each, str)]
    if isinstance(raw, dict) or not texts or len(texts) < len(raw):
        raise ValueError(f"{raw!r} is no list of addresses: put each in quotes, with commas between them")
    return kind.read(",".join(texts))


def _destination(store: Setting, discard: Setting) -> dict[str, Setting]:
    """Uploads go to one place: of a store and discard, the one from the stronger source replaces the other."""
    if store.value is None and not discard.value:
        raise ConfigError("say where uploads go: either --store DIR or --discard")
    if store.value is None or not discard.value:
        return {}
    if store.source == discard.source:
        both = store.origin if store.origin == discard.origin else f"{store.origin} and {discard.origin}"
        raise ConfigError(f"say where uploads go: either --store DIR or --discard, not both (from {both})")
    stronger, weaker = sorted((store, discard), key=_rank)
    return {weaker.option.name: Setting(weaker.option, weaker.option.default, stronger.source, stronger.origin)}


def _where_to_listen(found: Mapping[str, Setting]) -> dict[str, Setting]:
    """Of a list of addresses, and of host and port, the one from the stronger source counts."""
    listen = found["listen"]
    given = [found[name] for name in ("host", "port") if found[name].source != "default"]
    if not listen.value or not given:
        return {}
    strongest = min(given, key=_rank)
    if strongest.source == listen.source:
        both = listen.origin if listen.origin == strongest.origin else f"{listen.origin} and {strongest.origin}"
        raise ConfigError(f"say where to listen: either by listen or by host and port, not both (from {both})")
    if _rank(listen) < _rank(strongest):
        return {}
    return {"listen": Setting(listen.option, (), strongest.source, strongest.origin)}


def _rank(setting: Setting) -> int:
    return get_args(Source).index(setting.source)


def _configured(found: Mapping[str, Setting]) -> ServerConfig:
    values = {setting.option.field: setting.value for setting in found.values()}
    for name in ("config", "discard", "token_file", "tls_cert", "tls_key", "tls_client_ca"):
        del values[name]
    values["token"] = _token(found["token_file"])
    values["tls"] = _tls(found)
    if problems := list(find_problems(values)):
        raise ConfigError(*(problem.told(found[problem.option].origin) for problem in problems))
    return ServerConfig(**values)


def _token(setting: Setting) -> str | None:
    """What is in the token file, without the line's end."""
    if setting.value is None:
        return None
    where = f"token_file is {setting.written()} (from {setting.origin})"
    try:
        token = str(setting.value.read_bytes()[: 4 * MAX_TOKEN + 2], "utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(f"{where}, which cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}, which is not UTF-8: write the token as text") from None
    if not is_token(token):
        raise ConfigError(f"{where}, whose content is no token: write 1 to {MAX_TOKEN} characters on one line")
    return token


def _tls(found: Mapping[str, Setting]) -> Tls | None:
    """What is in the files of the certificate, its key and its clients' authority."""
    cert, key, client_ca = (found[name] for name in ("tls_cert", "tls_key", "tls_client_ca"))
    if cert.value is None:
        for setting in (key, client_ca):
            if setting.value is not None:
                name = setting.option.name
                raise ConfigError(f"{name} is {setting.written()} (from {setting.origin}), but there is no tls_cert")
        return None
    try:
        return certificates.load(cert.value, key.value, client_ca.value)
    except CertificateError as error:
        setting = found[error.option]
        raise ConfigError(f"{error.option} is {setting.written()} (from {setting.origin}), {error}") from None


# ── Slips of the pen ──


def _unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    variables = {option.variable for option in OPTIONS}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in variables:
            # Compared without the prefix: with it, any two names are alike.
            meant = _did_you_mean(name.removeprefix(PREFIX), {option.name.upper() for option in OPTIONS}, PREFIX)
            yield f"{one_line(name)} in the environment is not known{meant}"


def _open_secrets(found: Mapping[str, Setting]) -> Iterator[str]:
    """Files with a token or a key that others may read."""
    key = found["tls_cert" if found["tls_key"].value is None else "tls_key"]
    for setting in (found["token_file"], key):
        try:
            mode = 0 if setting.value is None else setting.value.stat().st_mode
        except OSError:
            continue  # reading it says why
        if mode & 0o077:
            yield f"{setting.written()} (from {setting.origin}) is open to other users: chmod 600 it"


def _expired(cert: Setting, tls: Tls | None) -> Iterator[str]:
    if tls is not None and (since := tls.expired()):
        yield f"the certificate in {cert.written()} (from {cert.origin}) expired on {since}: clients will refuse it"


def _did_you_mean(name: str, known: set[str], prefix: str = "") -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""
