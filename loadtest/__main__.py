"""The load room's command line: `python -m loadtest run|compare|upload`. Options and messages, nothing else."""

from reports import signals

if __name__ == "__main__":
    signals.hold()

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from loadtest import credentials
from loadtest import run as main_job
from loadtest import upload as plain_client
from loadtest.compare import Side, compare_sides
from loadtest.option_error import OptionError
from loadtest.options import DEFAULTS, OPTIONS, Option, is_open
from reports.run_folder import new_run_id
from reports.tolerance import tolerance_option
from server.printing import one_line, take_any_character

DEFAULT_USERS = 20

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _with_options(options: Sequence[Option]) -> Callable[[_Command], _Command]:
    """Decorates a command that has these, as Locust has them."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = _click_option(option)(command)
        return command

    return decorate


def _click_option(option: Option) -> Callable[[_Command], _Command]:
    if isinstance(option.default, bool):
        no = option.flag.replace("--", "--no-", 1)
        flags = f"{option.flag}/{no}" if option.default else option.flag
        return click.option(flags, option.field, is_flag=True, default=option.default, help=option.help)
    if option.field == "fail_if":
        return click.option(option.flag, option.field, multiple=True, metavar="CONDITION", help=option.help)
    more = {"type": click.Choice(option.kind.choices)} if option.kind.choices else {"metavar": option.kind.metavar}
    shown = bool(option.default)
    return click.option(option.flag, option.field, default=option.default, show_default=shown, help=option.help, **more)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Load an upload server, or upload files to it."""


@cli.command()
@click.option(
    "--host",
    help="server under test: tcp://, tls:// or http://HOST:PORT, or unix:///PATH; without it one is started on a free "
    "port",
)
@click.option(
    "--users",
    type=click.IntRange(0, 100_000),
    show_default=f"{DEFAULT_USERS}; with an arrival rate 0",
    help="closed model: users at a time",
)
@click.option(
    "--workers",
    show_default="cores, at most 4",
    type=click.IntRange(1, 512),
    help="worker processes of the server that is started",
)
@click.option(
    "--store",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="where that server stores for the time of the run; in memory if there is room",
)
@_with_options(OPTIONS)
def run(**options: Any) -> None:
    """Load a server and report what it held and what it cost.

    Exit codes: 0 all uploads acknowledged, 1 some failed or the run broke, 2 wrong options, or the first uploads showed
    that none can succeed, 3 a --fail-if condition came true, 4 the numbers cannot be trusted (INVALID or NOISY), 130
    interrupted.
    """
    interrupts = main_job.Interrupts()
    _exit(lambda: main_job.run(_job(options, sys.argv[2:]), interrupts)[0])


def _job(options: dict[str, Any], arguments: Sequence[str], *, brief: bool = False) -> main_job.Job:
    """What `run` does with these options, which came from these arguments."""
    if options["host"] is not None:
        for name in ("workers", "store"):
            if options[name] is not None:
                raise OptionError(f"{name} is for a server that the run starts, but the one of --host runs already")
    own = ("host", "users", "workers", "store", "fail_if")
    fields = DEFAULTS | {name: value for name, value in options.items() if name not in own}
    fields["fail_if"] = "; ".join(options["fail_if"])
    users = options["users"]
    if users is None:
        users = 0 if is_open(fields) else DEFAULT_USERS
    return main_job.Job(
        host=options["host"],
        users=users,
        workers=options["workers"] or min(4, os.cpu_count() or 1),
        store=options["store"],
        fields=fields,
        folder=Path("reports/runs") / new_run_id(str(fields["label"])),
        command=["python", "-m", "loadtest", "run", *arguments],
        brief=brief,
    )


def _exit(job: Callable[[], int]) -> NoReturn:
    """End with the job's exit code, or with an error in one line."""
    try:
        sys.exit(job())
    except (OptionError, main_job.RunError) as error:
        click.echo(f"Error: {one_line(str(error))}", err=True)
        sys.exit(main_job.USAGE if isinstance(error, OptionError) else main_job.FAILED)


# Between two runs a machine changes by more than within one: many short runs tell more than few long ones.
COMPARED_RUN = ("--phase-seconds", "5")


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option("--a", "first", default="", metavar="OPTIONS", help="the baseline: options of `run`, in one argument")
@click.option("--b", "second", default="", metavar="OPTIONS", help="what is compared with it, likewise")
@click.option(
    "--pairs", default=20, show_default=True, type=click.IntRange(1, 1000), help="runs of each: under 6 tell nothing"
)
@tolerance_option
@click.argument("common", nargs=-1, type=click.UNPROCESSED, metavar="[RUN OPTIONS]...")
def compare(first: str, second: str, pairs: int, tolerance: float, common: tuple[str, ...]) -> None:
    """Run two sets of options in turn (A B B A ...) and compare them: is B better or worse?

    All other options are those of `run`, for both; phases last 5 s unless you say otherwise. Each set is labelled by
    its options, or by a --label in it. Exit codes: 0 no regression, 1 a run broke, 2 wrong options, 4 too few runs to
    tell, 5 B is worse, 130 interrupted.
    """
    if not first.strip() and not second.strip():
        raise click.UsageError("say what differs: --a and --b have options of `run`, such as --a '--workers 1'")
    sides = [_side(name, common, options) for name, options in (("A", first), ("B", second))]
    _exit(lambda: compare_sides(sides, pairs, tolerance))


def _side(name: str, common: Sequence[str], options: str) -> Side:
    """One of two sets of options. Its label tells what is particular about it, unless there is a --label in it."""
    try:
        arguments = [*common, *shlex.split(options)]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=f"--{name.lower()}") from None
    if not any(argument.startswith(COMPARED_RUN[0]) for argument in arguments):
        arguments = [*COMPARED_RUN, *arguments]
    if not any(argument.startswith("--label") for argument in arguments):
        arguments += ["--label", " ".join([name, *options.replace("--", "").split()])]
    with run.make_context("python -m loadtest run", list(arguments)) as context:
        parsed = dict(context.params)
    return Side(parsed["label"], lambda: _job(parsed, arguments, brief=True))


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--host", default="tcp://127.0.0.1:12345", show_default=True, help="server to upload to, as for `run`")
@click.option("--close", is_flag=True, help="a connection for each file instead of one for all")
@_with_options([option for option in OPTIONS if option.field in credentials.FIELDS])
def upload(files: tuple[Path, ...], host: str, close: bool, **identity: str) -> None:
    """Upload FILES, check each reply's digest, and show the progress in bytes.

    Says under which name a file is stored where that is not its own. Stops at the first file that is refused or cannot
    be read any more, with exit code 1, the reason, and how many are stored; after Ctrl-C with 130. Exit code 2: nothing
    was sent, the options are wrong or the files are: two have one name, a name is not UTF-8, or a size is not known
    beforehand, as of a pipe.
    """
    signals.interrupt()
    sys.exit(plain_client.upload(files, host, identity, close=close))


if __name__ == "__main__":
    take_any_character()
    cli(prog_name="python -m loadtest")
