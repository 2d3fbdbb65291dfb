"""Who holds a port or a unix socket, and how to free it: `python -m server.ports show|release PORT...`.

This is the command and what it prints; `holders` looks, `release` frees.

`show` has to keep up with lsof, Python's start included, and most of that time is imports. So none of the three files
takes anything that is slow to load: here the command line is argparse (click takes half of lsof's time before it does
anything).
"""

import argparse
import gc
import re
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from server import printing
from server.ports import sockets
from server.ports.holders import ROLES, Holding, Place, is_free, look_closely, notes_on, user_name
from server.ports.release import FREE, HELD, NOTHING, ONLY_CLIENTS, REFUSED, USAGE, Orders, Result, release
from server.units import format_age, parse_duration

_OUTCOMES = {FREE: "free", NOTHING: "free", ONLY_CLIENTS: "client", HELD: "held", REFUSED: "refused"}
_BY_WEIGHT = list(_OUTCOMES)  # of several ports the worst one counts, as ordered there


# --- Tell ---


def _headline(holding: Holding) -> str:
    places = sorted({listener.place for listener in holding.listening})
    what = f"listening on {', '.join(places)}" if places else "nobody listens"
    if isinstance(holding.port, str):
        return f"unix://{printing.one_line(holding.port)}: {'listened on' if places else what}"
    return f"port {holding.port}/{'udp' if holding.udp else 'tcp'}: {what}"


def _table(holding: Holding) -> list[str]:
    """One line a process: listeners first, parents before their workers."""
    processes = sorted(holding.processes, key=lambda p: (ROLES.index(p.role), p.start_ticks, p.pid))
    if not processes:
        return []
    head = f"  {'PID':>8}  {'USER':<10} {'AGE':>7}  {'ROLE':<13}  {'STATE':<9}  COMMAND"
    return [head] + [
        f"  {p.pid:>8}  {user_name(p.uid):<10} {format_age(p.age_s):>7}  {p.role:<13}  {p.state:<9}  {p.command}"
        for p in processes
    ]


def _as_json(result: Result) -> dict[str, Any]:
    holding = result.holding
    return {
        "port": holding.port,
        "protocol": "unix" if isinstance(holding.port, str) else "udp" if holding.udp else "tcp",
        "outcome": _OUTCOMES[result.code],
        "listening": sorted({listener.place for listener in holding.listening}),
        "time_wait": holding.time_wait,
        "processes": [
            {
                "pid": process.pid,
                "parent": process.parent,
                "user": user_name(process.uid),
                "age_s": round(process.age_s, 2),
                "role": process.role,
                "state": process.state,
                "command": process.argv,
            }
            for process in holding.processes
        ],
        "lines": result.lines,
    }


def _written(results: list[Result], as_json: bool) -> str:
    if as_json:
        import json

        return json.dumps([_as_json(result) for result in results], indent=2)
    return "\n".join(
        line
        for result in results
        for line in (_headline(result.holding), *_table(result.holding), *(f"  {line}" for line in result.lines))
    )


# --- The command line ---


def _ports(text: str) -> Sequence[Place]:
    """`12345`, `5557-5560` or `unix:///PATH`."""
    if text.startswith("unix:"):
        return [_path(text)]
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    ports = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise argparse.ArgumentTypeError(
            f"{printing.quoted(text)} is neither a port (1 to 65535), nor a range such as 5557-5560, nor unix:///PATH"
        )
    return ports


def _path(text: str) -> str:
    """Of a socket, or of nothing. A server that lost its path to another file is still found by it."""
    path = text.removeprefix("unix://")
    if not path.startswith("/"):
        raise argparse.ArgumentTypeError(
            f"{printing.quoted(text)} is not the path of a socket: write unix:///PATH, from the root on (SOCKET=/PATH "
            "of make)"
        )
    with suppress(OSError):  # nothing there, or closed to us
        mode = Path(path).stat().st_mode
        if not stat.S_ISSOCK(mode) and not sockets.listening_at(path):
            what = "a folder" if stat.S_ISDIR(mode) else "a file"
            raise argparse.ArgumentTypeError(f"{path!r} is {what}, not a socket: name the one that is listened on")
    return path


def _duration_s(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong, as all our commands do; how it is called, --help tells."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"Error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m server.ports",
        description="Who holds a port, and how to free it.",
        epilog="Exit codes: 0 free, or a client's (release), 1 held, 2 wrong usage, 3 refused or no permission, "
        "4 nothing was there (release --strict only).",
        allow_abbrev=False,
    )
    common = _Parser(add_help=False)
    common.add_argument(
        "ports", metavar="PORT", nargs="+", type=_ports, help="a port, a range such as 5557-5560, or unix:///PATH"
    )
    common.add_argument("--udp", action="store_true", help="UDP ports instead of TCP")
    common.add_argument("--json", action="store_true", help="print JSON for scripts")
    commands = parser.add_subparsers(dest="command", metavar="show | release", required=True)
    what = "Say who holds each port and why it is stuck. Touches nothing."
    commands.add_parser("show", parents=[common], help=what, description=what, allow_abbrev=False)
    what = "Free each port: TERM to its server, KILL after the grace. Clients are never touched."
    freeing = commands.add_parser("release", parents=[common], help=what, description=what, allow_abbrev=False)
    freeing.add_argument("--grace", type=_duration_s, default=5.0, help="time between TERM and KILL (default: 5s)")
    for flag, meaning in {
        "--include-accepted": "also end who is on the port without listening, but no client",
        "--any-user": "also end other users' processes",
        "--force": "also end what is neither a socketswarm server nor Locust",
        "--dry-run": "say what would be done, and do nothing",
        "--strict": "exit with 4 if nothing was there",
    }.items():
        freeing.add_argument(flag, action="store_true", help=meaning)
    return parser


def _show(holding: Holding) -> Result:
    held = bool(holding.listening) or not is_free(holding)
    return Result(holding, HELD if held else FREE, ["held" if held else "free", *notes_on(holding)])


def _confirm(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    asked = _parser().parse_args(arguments)
    ports = list(dict.fromkeys(port for some in asked.ports for port in some))
    if asked.command == "show":
        results = [_show(holding) for holding in look_closely(ports, asked.udp)]
    else:
        orders = Orders(asked.grace, asked.udp, asked.include_accepted, asked.any_user, asked.force, asked.dry_run)
        at_terminal = sys.stdin.isatty() and sys.stderr.isatty()
        results = release(
            ports,
            orders,
            say=lambda line: print(line, file=sys.stderr, flush=True),
            ask=_confirm if at_terminal and not orders.dry_run else None,
        )
    printing.show(_written(results, asked.json))
    code = max((result.code for result in results), key=_BY_WEIGHT.index)
    if code in (NOTHING, ONLY_CLIENTS):
        return NOTHING if asked.strict else FREE
    return code


if __name__ == "__main__":
    printing.take_any_character()
    gc.disable()  # a short life with thousands of small tuples: collecting took a tenth of it and found nothing
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
