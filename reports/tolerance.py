"""How much worse something may be found: `compare` of `python -m reports` and of `python -m loadtest` both ask it."""

import click

from server.units import parse_share

TOLERANCE = 0.02
"""What a finding may be worse by without being a regression, unless somebody says otherwise."""


def _share(context: click.Context, parameter: click.Parameter, text: str) -> float:
    try:
        return parse_share(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


tolerance_option = click.option(
    "--tolerance",
    default=f"{TOLERANCE:.0%}",
    show_default=True,
    metavar="SHARE",
    callback=_share,
    help="how much worse something may be found, such as 5%, before the exit code is 5",
)
