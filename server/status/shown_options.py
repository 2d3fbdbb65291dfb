"""Options as people read them, on the status page and in reports. A leaf.

`ServerConfig.shown_options` names each with its unit at the end (`_bytes`, `_s`, `_bytes_per_s`); here the unit goes to
the value, and a limit of 0 says what limits instead.
"""

import re

from server.units import format_size, write_duration

Value = str | int | float | bool | None

_NO_LIMIT = {
    "max_store_bytes": "the disk's room",
    "max_connections": "as descriptors allow",
    "min_rate_bytes_per_s": "none",
}


def show_option(name: str, value: Value) -> tuple[str, str]:
    """Its name in words, and its value."""
    words = re.sub("(_bytes)?(_per)?(_s)?$", "", name).replace("_", " ")
    return words, _NO_LIMIT[name] if value == 0 and name in _NO_LIMIT else _written(name, value)


def _written(name: str, value: Value) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int() if name.endswith("_bytes"):
            return format_size(value)
        case int() if name.endswith("_bytes_per_s"):
            return f"{format_size(value)}/s"
        case int() | float() if name.endswith("_s"):
            return write_duration(value)
        case _:
            return str(value)
