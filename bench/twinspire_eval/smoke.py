"""The option `--smoke` of every benchmark: run it at the smallest sizes, to see that it works."""

from __future__ import annotations

from typing import Any

import typer

_HELP = "Try the command with the smallest sizes; its results mean nothing. Other options keep their values."


def smoke_option(**defaults: object) -> Any:  # noqa: ANN401 - what typer makes
    """Return the option, which replaces `defaults` of the command's other parameters, by name."""

    def use(context: typer.Context, wanted: bool) -> bool:
        if wanted:
            context.default_map = {**(context.default_map or {}), **defaults}
            typer.echo("smoke: the smallest sizes; the results mean nothing", err=True)
        return wanted

    return typer.Option("--smoke", help=_HELP, is_eager=True, callback=use)
