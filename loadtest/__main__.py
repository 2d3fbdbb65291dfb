"""The load room's command line: `python -m loadtest run|upload`. Options and messages, nothing else."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

# Ctrl-C while Python still imports: end at once. A KeyboardInterrupt can be lost there, in a destructor for one. `run`
# sets handlers of its own before it starts anything.
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import click

from loadtest.options import DEFAULTS, OPTIONS, Option, OptionError, is_open
from reports.run_folder import new_run_id

DEFAULT_USERS = 20

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _load_options(command: _Command) -> _Command:
    """All of `options.OPTIONS`, as Locust has them."""
    for option in reversed(OPTIONS):
        command = _click_option(option)(command)
    return command


def _click_option(option: Option) -> Callable[[_Command], _Command]:
    if isinstance(option.default, bool):
        no = option.flag.replace("--", "--no-", 1)
        flags = f"{option.flag}/{no}" if option.default else option.flag
        return click.option(flags, option.field, is_flag=True, default=option.default, help=option.help)
    if option.field == "fail_if":
        return click.option(option.flag, option.field, multiple=True, metavar="CONDITION", help=option.help)
    kind = click.Choice(option.choices) if option.choices else None
    shown = bool(option.default)
    return click.option(
        option.flag, option.field, default=option.default, show_default=shown, type=kind, help=option.help
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Load an upload server, or upload files to it."""


@cli.command()
@click.option("--host", help="server under test, tcp:// or http://HOST:PORT; without it one is started on a free port")
@click.option(
    "--users",
    type=click.IntRange(0, 100_000),
    show_default=f"{DEFAULT_USERS}; with an arrival rate 0",
    help="closed model: users at a time",
)
@click.option(
    "--workers",
    default=min(4, os.cpu_count() or 1),
    show_default="cores, at most 4",
    type=click.IntRange(1, 512),
    help="worker processes of the server that is started",
)
@click.option(
    "--store",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="where that server stores for the time of the run; in memory if there is room",
)
@_load_options
def run(
    host: str | None,
    users: int | None,
    workers: int,
    store: Path | None,
    fail_if: tuple[str, ...],
    **options: str | bool,
) -> None:
    """Load a server and report what it held and what it cost.

    Exit codes: 0 all uploads acknowledged, 1 some failed or the run broke, 2 wrong options, 3 a --fail-if condition
    came true, 4 the numbers cannot be trusted (INVALID or NOISY), 130 interrupted.
    """
    from loadtest import run as main_job

    fields = DEFAULTS | options | {"fail_if": "; ".join(fail_if)}
    if users is None:
        users = 0 if is_open(fields) else DEFAULT_USERS
    folder = Path("reports/runs") / new_run_id(str(fields["label"]))
    job = main_job.Job(host=host, users=users, workers=workers, store=store, fields=fields, folder=folder)
    try:
        sys.exit(main_job.run(job))
    except OptionError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(main_job.USAGE)
    except main_job.RunError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(main_job.FAILED)


@cli.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--host", default="tcp://127.0.0.1:12345", show_default=True, help="server to upload to")
@click.option("--close", is_flag=True, help="a connection for each file instead of one for all")
def upload(files: tuple[Path, ...], host: str, close: bool) -> None:
    """Upload FILES, check each reply's digest, and show the progress in bytes.

    Stops at the first file that is refused, with exit code 1 and the server's reason.
    """
    from loadtest import upload_files

    signal.signal(signal.SIGINT, signal.default_int_handler)  # from here on it ends in one line
    sys.exit(upload_files.upload(files, host, close=close))


if __name__ == "__main__":
    cli(prog_name="python -m loadtest")
