"""The reports room's command line: `python -m reports record|build|compare`. Only options and messages live here."""

from reports import signals

if __name__ == "__main__":
    signals.hold()

import math
import sys
from pathlib import Path
from typing import Any

import click

from reports import run_folder
from reports.run_folder import RunFolderError
from reports.tolerance import tolerance_option
from server.printing import in_words, one_line, show, take_any_character

HIGHEST_PID = 1 << 22  # PID_MAX_LIMIT of include/linux/threads.h; higher numbers are an error to psutil


class _Interruptible(click.Group):
    """Ctrl-C is exit code 130, as shells have it. click's own, 1, would say that something is wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        signals.interrupt()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\nInterrupted", err=True)
            ctx.exit(signals.INTERRUPTED)


@click.group(cls=_Interruptible, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Record what a server costs, turn a run folder into a report, and compare runs."""


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
def build(run: Path) -> None:
    """Build report.html, report.md and summary.json of the run folder RUN from that folder alone."""
    from reports.pages import report_files  # numpy takes its time to import: only who builds waits for it

    show(report_files.build(run))


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--baseline", metavar="LABEL", help="what the others are compared with; the first RUN's label")
@tolerance_option
@click.option("--out", type=click.Path(path_type=Path), help="folder to write into; a new one in reports/comparisons")
def compare(runs: tuple[Path, ...], baseline: str | None, tolerance: float, out: Path | None) -> None:
    """Compare the run folders RUN: those of one label are repeats of one thing, at least 6 of each label, best
    interleaved (A B B A ...).

    Writes comparison.html, comparison.md and comparison.json. Exit codes: 0 no regression, 1 a run cannot be read, 2
    wrong options, 4 too few runs to tell, 5 something is worse beyond the tolerance.
    """
    from reports.comparison import judgement as comparing  # scipy takes its time to import
    from reports.pages import comparison_files

    try:
        compared = comparing.compare(runs, baseline, tolerance)
    except comparing.LabelError as error:
        raise click.UsageError(one_line(str(error))) from None
    labels = "-".join([compared.baseline, *(one.label for one in compared.against)])
    try:
        folder = out or run_folder.create(Path("reports/comparisons") / run_folder.new_run_id(labels))
    except OSError as error:
        raise RunFolderError(f"the comparison's folder cannot be made: {in_words(error)}") from None
    show(comparison_files.write(compared, folder))
    sys.exit(compared.exit_code)


@cli.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="run folder to write into")
@click.option("--host", default="127.0.0.1", show_default=True, help="address the server listens on")
@click.option("--port", type=click.IntRange(1, 65535), help="port the server listens on")
@click.option("--pid", type=click.IntRange(1), help="the server's topmost process, instead of who listens on --port")
@click.option("--load-pid", type=click.IntRange(1), help="process that makes the load; its children count too")
@click.option(
    "--interval", default=0.5, show_default=True, type=click.FloatRange(0.05, 60), help="seconds between ticks"
)
@click.option("--until-stdin-closes", is_flag=True, help="for a program that takes part: orders come from its pipe")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def record(
    out: Path,
    host: str,
    port: int | None,
    pid: int | None,
    load_pid: int | None,
    interval: float,
    until_stdin_closes: bool,
    command: tuple[str, ...],
) -> None:
    """Sample CPU, memory and TCP of every process of a server until TERM or Ctrl-C: of who listens on --port, of
    --pid, or of COMMAND (after --), which is started and ends the recording when it ends. Any server will do."""
    import psutil

    from reports.recording import recorder, standalone

    if port is None and pid is None and not command and not until_stdin_closes:
        raise click.UsageError("name the server: --port PORT, --pid PID, or -- COMMAND")
    if set(host) & set("@/?#"):  # it may have a password, and the run folder would show it
        raise click.UsageError("--host is an address or a name alone, such as 127.0.0.1: no scheme, user or path")
    if pid is not None and command:
        raise click.UsageError("--pid and a COMMAND both name the server: give one of them")
    if until_stdin_closes and command:
        raise click.UsageError("--until-stdin-closes is for a program that takes part: it starts no COMMAND")
    for option, process in (("--pid", pid), ("--load-pid", load_pid)):
        if process is not None and not (process <= HIGHEST_PID and psutil.pid_exists(process)):
            raise click.UsageError(f"there is no process {process} ({option})")
    if math.isnan(interval):  # which is in every range
        raise click.BadParameter("nan is no number of seconds", param_hint="--interval")
    subject = recorder.Subject(host, port, pid)
    if not until_stdin_closes:
        sys.exit(standalone.record(out, subject, command, interval, load_pid))
    control = sys.stdin.fileno()
    recorder.record(out, subject, load_pid=load_pid, interval_s=interval, control=control, started=recorder.announce)


def main() -> None:
    take_any_character()
    try:
        cli(prog_name="python -m reports")
    except RunFolderError as error:
        sys.exit(f"Error: {one_line(str(error))}")


if __name__ == "__main__":
    main()
