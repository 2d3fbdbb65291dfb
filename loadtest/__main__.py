"""The load room's command line: `python -m loadtest run|upload`. Options and messages, nothing else."""

import os
import signal
import sys
from pathlib import Path

# Ctrl-C while Python still imports: end at once. A KeyboardInterrupt can be lost there, in a destructor for one. `run`
# sets handlers of its own before it starts anything.
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import click

from loadtest import payloads, phases
from loadtest.options import (
    DEFAULT_PHASE_SECONDS,
    DEFAULT_SEED,
    DEFAULT_WAIT,
    OptionError,
)
from reports.run_folder import new_run_id


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Load an upload server, or upload files to it."""


@cli.command()
@click.option("--host", help="server under test, tcp://HOST:PORT; without it one is started on a free port")
@click.option("--users", default=20, show_default=True, type=click.IntRange(1, 100_000), help="users at a time")
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
@click.option(
    "--plan", default="compare", show_default=True, type=click.Choice(list(phases.PLANS)), help="phases to run"
)
@click.option("--phase-seconds", default=DEFAULT_PHASE_SECONDS, show_default=True, help="length of a measured phase")
@click.option("--payloads", "mix", default=payloads.DEFAULT_MIX, show_default=True, help="generated sizes and weights")
@click.option("--payload-dir", default="", help="upload the files of this folder instead")
@click.option(
    "--wait", default=DEFAULT_WAIT, show_default=True, help="mean pause of a user between uploads; 0 for none"
)
@click.option("--verify-digest/--no-verify-digest", default=True, show_default=True, help="compare the reply's digest")
@click.option("--seed", default=DEFAULT_SEED, show_default=True, help="the same seed gives the same run")
@click.option("--label", default="loadtest", show_default=True, help="part of the run folder's name")
def run(
    host: str | None,
    users: int,
    workers: int,
    store: Path | None,
    plan: str,
    phase_seconds: str,
    mix: str,
    payload_dir: str,
    wait: str,
    verify_digest: bool,
    seed: str,
    label: str,
) -> None:
    """Load a server and report what it held and what it cost.

    Exit codes: 0 all uploads acknowledged, 1 some failed or the run broke, 2 wrong options, 130 interrupted.
    """
    from loadtest import run as main_job

    fields: dict[str, str | bool] = {
        "plan": plan,
        "phase_seconds": phase_seconds,
        "payloads": mix,
        "payload_dir": payload_dir,
        "wait": wait,
        "verify_digest": verify_digest,
        "seed": seed,
        "label": label,
    }
    folder = Path("reports/runs") / new_run_id(label)
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
