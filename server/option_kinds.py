"""What an option of the server is: one row of a table, from which all else about it is made.

Flag, variable and key, how a text is read, which values can work, what --help, status and reports show: all of it comes
from the row. The rows are the fields of `options.ServerConfig`.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Any

from server.printing import quoted
from server.units import DURATION, Kind, parse_size, write_size

PREFIX = "SOCKETSWARM_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One row. `name` is the key in a file; the flag and the variable are spelled after it."""

    field: str
    """Its name in ServerConfig."""
    default: Any
    kind: Kind
    help: str
    bounds: tuple[float, float] | None = None
    """The least and the most that can work."""
    because: str = ""
    """Why these, where that is not plain to see."""
    zero: str = ""
    """What a 0 means, where it is no limit of 0."""
    reloads: bool = False
    """Whether a running server can take a new value when it is told to reload."""
    is_shown: bool = True
    """Whether status and reports show it; of a secret's file they show only that there is one."""

    @property
    def name(self) -> str:
        return self.field.removesuffix("_s") if self.kind is DURATION else self.field

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    def broken_rule(self, value: Any) -> str | None:
        """What the value alone has against it: "not 1 to 512"; None when it can work."""
        if choices := self.kind.choices:
            return None if value in choices else f"not {', '.join(choices[:-1])} or {choices[-1]}"
        if value is None or self.bounds is None or self.bounds[0] <= value <= self.bounds[1]:
            return None
        least, most = map(self.kind.write, self.bounds)
        return f"not {least} to {most}" + (f": {self.because}" if self.because else "")

    def shown(self, value: Any) -> str:
        """The value as status and reports show it."""
        return self.zero if self.zero and value == 0 else self.kind.write(value)


def option(default: Any, kind: Kind, help: str, **more: Any) -> Any:
    """A field of a dataclass that is an option; `more` is what else Option can say of it."""
    return field(default=default, metadata={"kind": kind, "help": help, **more})


def options_of(table: type) -> tuple[Option, ...]:
    """The rows of a dataclass, in its order."""
    rows = [each for each in fields(table) if each.metadata]
    return tuple(Option(field=each.name, default=each.default, **each.metadata) for each in rows)


# ── Kinds ──


def _number(text: str) -> int:
    if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text) is None:
        raise ValueError(f"{quoted(text)} is not a whole number")
    return int(text)


def _port_or_off(text: str) -> int | None:
    try:
        return None if text.strip().lower() == "off" else _number(text)
    except ValueError:
        raise ValueError(f"{quoted(text)} is neither a port nor off") from None


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


HOST = Kind("ADDRESS", str, is_text=True)
PORT_OR_OFF = Kind("N|off", _port_or_off, lambda value: "off" if value is None else str(value))
NUMBER = Kind("N", _number)
RATE = Kind("SIZE", lambda text: parse_size(text.removesuffix("/s")), lambda value: f"{write_size(value)}/s")
OCTAL = Kind("OCTAL", _octal, lambda value: f"{value:03o}", is_text=True)
SWITCH = Kind("", _switch, lambda value: str(value).lower())
