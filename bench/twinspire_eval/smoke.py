"""`--smoke`, an option of every benchmark: run all of it at the smallest size, to see that it works."""

from __future__ import annotations

from typing import Any

import typer

_HELP = "Only try whether it runs: the smallest sizes, whose figures mean nothing. Options given beside it hold."


def smoke_option(**defaults: object) -> Any:  # noqa: ANN401 - what typer makes
    """Return the option: it replaces the defaults of the command's other parameters, given by name."""

    def use(context: typer.Context, wanted: bool) -> bool:
        if wanted:
            context.default_map = {**(context.default_map or {}), **defaults}
            typer.echo("smoke: the smallest sizes, whose figures mean nothing", err=True)
        return wanted

    return typer.Option("--smoke", help=_HELP, is_eager=True, callback=use)
