"""The reports room's command line: `python -m reports record|build`. Only options and messages live here."""

import sys
from pathlib import Path

import click

from reports.run_folder import RunFolderError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Record what a server costs, and turn a run folder into a report."""


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
def build(run: Path) -> None:
    """Build report.html, report.md and summary.json of the run folder RUN from that folder alone."""
    from reports import render  # bokeh takes its time to import: only who builds waits for it

    print(render.build(run))


@cli.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="run folder to write into")
@click.option("--host", default="127.0.0.1", show_default=True, help="address the server listens on")
@click.option("--port", required=True, type=click.IntRange(1, 65535), help="port the server listens on")
@click.option("--load-pid", type=click.IntRange(1), help="process that makes the load; its children count too")
@click.option(
    "--interval", default=0.5, show_default=True, type=click.FloatRange(0.05, 60), help="seconds between ticks"
)
@click.option("--until-stdin-closes", is_flag=True, help="end when standard input closes, and take orders from it")
def record(out: Path, host: str, port: int, load_pid: int | None, interval: float, until_stdin_closes: bool) -> None:
    """Sample CPU and memory of every process of the server on PORT, until TERM or Ctrl-C."""
    from reports import recorder

    recorder.record(
        out,
        host=host,
        port=port,
        load_pid=load_pid,
        interval_s=interval,
        control=sys.stdin.fileno() if until_stdin_closes else None,
    )


def main() -> None:
    try:
        cli(prog_name="python -m reports")
    except RunFolderError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
