"""The server's command line: `python -m server [status]`. Options and messages, nothing else.

What serving does not need is imported where it is used: a server is ready within half a second of its command.
"""

import signal

if __name__ == "__main__":  # before the other imports, which take most of that time
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    from server.processes import hold_signals

    hold_signals()

import gc
import os
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from server import printing
from server.addresses import Address
from server.option_kinds import SWITCH, Option
from server.options import ADDRESSES, OPTIONS, ConfigError, ServerConfig, find_store_problem, printable
from server.settings import Settings, Sources


def _flag(option: Option) -> click.Option:
    """The option as click has it. Its text is read by `settings`, as that of the other sources is."""
    if option.kind is SWITCH:
        return click.Option([option.flag], is_flag=True, help=option.help)
    more: dict[str, Any] = {"metavar": option.kind.metavar, "help": option.help}
    if option.kind is ADDRESSES:
        more |= {"multiple": True, "callback": _with_commas}
    elif option.default is not None:
        more |= {"default": option.kind.write(option.default), "show_default": True}
    return click.Option([option.flag], **more)


def _with_commas(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> str:
    """A flag that is repeated adds to itself, as anywhere where one can be."""
    return ",".join(given)


@click.group(
    params=[_flag(option) for option in OPTIONS],
    invoke_without_command=True,
    subcommand_metavar="[status ...]",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each option can also be an environment variable, such as SOCKETSWARM_MAX_FILE_SIZE, or a key of the file, "
    "such as max_file_size. A flag wins over the environment, that over the file. "
    "Exit codes: 0 drained, 1 could not start or had to kill, 2 wrong options, 3 gave up on workers that kept dying.",
)
@click.option("--check-config", is_flag=True, help="say whether the configuration can work, and end")
@click.option("--print-config", is_flag=True, help="show each value and where it came from, and end")
@click.pass_context
def main(context: click.Context, /, check_config: bool, print_config: bool, **flags: Any) -> None:
    """Receive framed file uploads with several worker processes.

    TERM or Ctrl-C drains: every upload that has begun is served; a second one ends at once.
    """
    given = {
        name: text for name, text in flags.items() if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if context.invoked_subcommand is not None:
        if given or check_config or print_config:
            raise click.UsageError(f"these options start a server; those of {context.invoked_subcommand} follow it")
        return
    sources = Sources(given, os.environ)
    try:
        settings = sources.read()
    except ConfigError as error:
        _refuse(*error.problems)
    if print_config or check_config:
        _tell(settings, print_config, check_config)
    else:
        sys.exit(_serve(settings, sources))


def _tell(settings: Settings, print_config: bool, check_config: bool) -> None:
    for warning in settings.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if print_config:
        rows = [(each.option.name, each.written(), f"{each.source} {each.origin}".rstrip()) for each in settings.each]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        printing.show("\n".join(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}" for name, value, source in rows))
    if check_config:
        if problems := list(_find_problems(settings.config)):
            _refuse(*problems)
        printing.show("configuration is fine")


def _find_problems(config: ServerConfig) -> Iterator[str]:
    """What this machine has against the configuration. A running server's has none: no port or lock is tried."""
    from server import pid_file
    from server.listening import listener

    if config.store is not None and (problem := find_store_problem(config.store)):
        yield f"store {printable(config.store)} cannot be used: {problem}"
    for address in config.addresses:
        if problem := listener.find_problem(address):
            yield problem
    if config.status_port is not None and (
        problem := listener.find_problem(Address("tcp", config.status_host, config.status_port))
    ):
        yield f"status page: {problem}"
    if config.pid_file is not None and (problem := pid_file.find_problem(config.pid_file)):
        yield problem


def _serve(settings: Settings, sources: Sources) -> int:
    from server import logs
    from server.listening.listener import AddressError, PortInUseError
    from server.pid_file import PidFileError
    from server.start import StartError, serve  # after the check of the platform: uvloop has none for others

    def warned(settings: Settings) -> ServerConfig:
        for warning in settings.warnings:
            logs.log.warning(warning)
        return settings.config

    logs.set_up(settings.config.log_format)
    gc.disable()  # nothing here makes garbage before the fork; the workers switch it on again
    try:
        return serve(warned(settings), lambda: warned(sources.read()))
    except PortInUseError as error:
        from server.ports.holders import describe_holder

        sys.exit(f"Error: {describe_holder(error.port)}")
    except (StartError, AddressError, PidFileError) as error:
        sys.exit(f"Error: {printing.one_line(str(error))}")


def _refuse(*problems: str) -> NoReturn:
    for problem in problems:
        click.echo(f"Error: {printing.one_line(problem)}", err=True)
    sys.exit(2)


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), help="only the server that listens on this port")
@click.option("--pid", type=click.IntRange(1), help="only the server with this pid")
@click.option("--json", "as_json", is_flag=True, help="print JSON for scripts")
def status(port: int | None, pid: int | None, as_json: bool) -> None:
    """Show what the running servers of this user do.

    For each worker: its state, connections, uploads, failures and restarts, with the last events. Exit codes: 0 found,
    1 no such server, 2 wrong options.
    """
    if port is not None and pid is not None:
        raise click.UsageError("give --port or --pid, not both")
    from server.status import reader

    servers = reader.read_servers(pid=pid, port=port)
    if not servers:
        sys.exit(f"Error: {_none_found(port, pid)}")
    printing.show(reader.as_json(servers) if as_json else reader.as_text(servers))


def _none_found(port: int | None, pid: int | None) -> str:
    if pid is not None:
        return f"pid {pid} is no running server; its workers have other pids than it has"
    if port is not None:
        return f"no server of this user listens on port {port}; who does, says: python -m server.ports show {port}"
    return "no server of this user is running; start one with: python -m server --store DIR"


if __name__ == "__main__":
    printing.take_any_character()
    main(prog_name="python -m server")
