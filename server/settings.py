"""Where the configuration comes from: a flag wins over the environment, that over the file, and that over the default.

Flags, variables (`SOCKETSWARM_DRAIN_TIMEOUT`) and keys of the TOML file (`drain_timeout`) are made from the options of
`options`, so that none can be missing in one of them. Every value is read from text by the same function wherever it
stands, and remembers where that was: a mistake is told with its place. Which can work is the business of `options`.

Only values that win are read: a wrong variable that a flag overrides stops nobody. A variable that is set to nothing
counts as not set, because that is how compose files and shells leave one out.

click, which reads the flags, could read variables (`auto_envvar_prefix`) and a file (`default_map`), too. But it ends
at the first mistake, names the flag wherever the value came from, and reads nothing without a command line, which a
reload has not. So it gives us texts, and all sources are read here.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from server import certificates
from server.certificates import CertificateError, Tls
from server.option_kinds import OCTAL, PREFIX, Option
from server.options import ADDRESSES, OPTIONS, ConfigError, Problem, ServerConfig
from server.printing import one_line, quoted
from server.protocol import MAX_TOKEN, is_token
from server.units import Kind

Source = Literal["flag", "environment", "file", "default"]

_BY_NAME = {option.name: option for option in OPTIONS}
_IN_FILE = _BY_NAME.keys() - {"config"}


def needs_restart(old: ServerConfig, new: ServerConfig) -> list[str]:
    """Names of the options that differ and that a running server cannot change."""
    changed = [
        option.name
        for option in OPTIONS
        if not option.reloads and getattr(old, option.field) != getattr(new, option.field)
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

    def problem(self, rule: str) -> Problem:
        """What is wrong with it, told with its place."""
        return Problem(self.option.name, self.written(), rule, self.origin)


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


def _environment_layer(environment: Mapping[str, str]) -> _Layer:
    values = {option.name: text for option in OPTIONS if (text := environment.get(option.variable))}
    return _Layer("environment", values, lambda option: option.variable)


def _file_layer(setting: Setting) -> _Layer:
    import tomllib  # 8 ms that a server without a file does not wait for

    name = setting.written()
    try:
        values = tomllib.loads(setting.value.read_bytes().decode("utf-8-sig"))  # Windows begins a text with a mark
    except OSError as error:
        raise ConfigError(setting.problem(f"which cannot be read: {error.strerror}")) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: is not UTF-8: byte {error.start + 1} of it is no text") from None
    except (ValueError, RecursionError) as error:  # such as TOMLDecodeError, or a number of 5,000 digits
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
        if kind is not ADDRESSES:
            raise ValueError(f"{quoted(raw)} is a {'list' if isinstance(raw, list) else 'table'}: write one value")
        if not raw or isinstance(raw, dict) or not all(isinstance(each, str) for each in raw):
            raise ValueError(f"{quoted(raw)} is no list of addresses: put each in quotes, with commas between them")
        return kind.read(",".join(raw))
    if kind is OCTAL:  # TOML has made another number of it: 0o22 is 18 here, and 22 was perhaps meant as octal
        raise ValueError(f'{raw!r} is not text: write it in quotes and as octal, such as "022"')
    if kind.is_text:
        raise ValueError(f"{raw!r} is not text: put it in quotes")
    return kind.read(str(raw))  # TOML's numbers and truths as a person would have typed them


def _destination(store: Setting, discard: Setting) -> dict[str, Setting]:
    """Uploads go to one place."""
    if store.value is None or not discard.value:
        return {}
    weaker = _weaker(store, discard, "say where uploads go: either --store DIR or --discard")
    return {weaker.option.name: weaker}


def _where_to_listen(found: Mapping[str, Setting]) -> dict[str, Setting]:
    """On a list of addresses, or on host and port."""
    listen = found["listen"]
    given = [found[name] for name in ("host", "port") if found[name].source != "default"]
    if not listen.value or not given:
        return {}
    weaker = _weaker(listen, min(given, key=_rank), "say where to listen: either by listen or by host and port")
    return {"listen": weaker} if weaker.option is listen.option else {}


def _weaker(one: Setting, other: Setting, say: str) -> Setting:
    """Which of two options that contradict each other is left out: the one of the weaker source."""
    if one.source == other.source:
        both = one.origin if one.origin == other.origin else f"{one.origin} and {other.origin}"
        raise ConfigError(f"{say}, not both (from {both})")
    stronger, weaker = sorted((one, other), key=_rank)
    return Setting(weaker.option, weaker.option.default, stronger.source, stronger.origin)


def _rank(setting: Setting) -> int:
    return get_args(Source).index(setting.source)


def _configured(found: Mapping[str, Setting]) -> ServerConfig:
    values = {setting.option.field: setting.value for setting in found.values()}
    token, tls = _token(found["token_file"]), _tls(found)
    try:
        return ServerConfig(**values, token=token, tls=tls)
    except ConfigError as error:
        raise ConfigError(*(_placed(problem, found) for problem in error.found)) from None


def _placed(problem: str | Problem, found: Mapping[str, Setting]) -> str | Problem:
    return problem if isinstance(problem, str) else problem._replace(origin=found[problem.option].origin)


def _token(setting: Setting) -> str | None:
    """What is in the token file, without the line's end."""
    if setting.value is None:
        return None
    try:
        token = str(setting.value.read_bytes()[: 4 * MAX_TOKEN + 2], "utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigError(setting.problem(f"which cannot be read: {error.strerror}")) from None
    except UnicodeDecodeError:
        raise ConfigError(setting.problem("which is not UTF-8: write the token as text")) from None
    if not is_token(token):
        rule = f"whose content is no token: write 1 to {MAX_TOKEN} characters on one line"
        raise ConfigError(setting.problem(rule))
    return token


def _tls(found: Mapping[str, Setting]) -> Tls | None:
    """What is in the files of the certificate, its key and its clients' authority."""
    cert, key, client_ca = (found[name] for name in ("tls_cert", "tls_key", "tls_client_ca"))
    if cert.value is None:
        for setting in (key, client_ca):
            if setting.value is not None:
                raise ConfigError(setting.problem("but there is no tls_cert"))
        return None
    try:
        return certificates.load(cert.value, key.value, client_ca.value)
    except CertificateError as error:
        raise ConfigError(found[error.option].problem(str(error))) from None


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
