"""The server's command line: `python -m server`. Options and messages, nothing else."""

import gc
import io
import logging
import sys
from pathlib import Path

import click

from server import ports
from server.config import ConfigError, ServerConfig
from server.listener import AddressError, PortInUseError
from server.units import parse_duration, parse_size


class _Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return value if isinstance(value, float) else parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on; loopback unless you say so")
@click.option("--port", default=12345, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one")
@click.option("--workers", default=4, show_default=True, type=int, help="worker processes")
@click.option("--store", type=click.Path(path_type=Path), help="folder that uploads go to; made if it is missing")
@click.option("--discard", is_flag=True, help="receive, check and count uploads, but keep none")
@click.option("--max-file-size", default="16GiB", show_default=True, type=_Size(), help="larger files are refused")
@click.option(
    "--drain-timeout",
    default="30s",
    show_default=True,
    type=_Duration(),
    help="how long TERM waits for open connections",
)
def main(
    host: str, port: int, workers: int, store: Path | None, discard: bool, max_file_size: int, drain_timeout: float
) -> None:
    """Receive framed file uploads with several worker processes.

    TERM or Ctrl-C drains: every upload that has begun is served; a second one ends at once.
    """
    if (store is None) == (not discard):
        raise click.UsageError("say where uploads go: either --store DIR or --discard")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: no store's name shall end the server
    gc.disable()  # nothing here makes garbage before the fork; the workers switch it on again
    try:
        config = ServerConfig(
            host=host,
            port=port,
            workers=workers,
            store=store,
            max_file_size=max_file_size,
            drain_timeout_s=drain_timeout,
        )
    except ConfigError as error:
        sys.exit(f"Error: {error}")

    from server.supervisor import StartError, serve  # after the check of the platform: uvloop has none for others

    try:
        sys.exit(serve(config))
    except PortInUseError as error:
        sys.exit(f"Error: {ports.describe_holder(error.port)}")
    except (StartError, AddressError) as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main(prog_name="python -m server")
