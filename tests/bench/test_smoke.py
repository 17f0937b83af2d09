"""`--smoke`, the option that makes a benchmark small."""

from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from twinspire_eval.smoke import smoke_option


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "1000 [] full"),
        (["--smoke"], "10 ['a', 'b'] full"),
        (["--size", "7", "--smoke", "--name", "c"], "7 ['c'] full"),
        (["--smoke", "--other", "x"], "10 ['a', 'b'] x"),
    ],
)
def test_smoke_replaces_defaults_only(arguments: list[str], expected: str) -> None:
    """Options that are given hold, in any order; those without a smoke size keep their defaults."""
    app = typer.Typer()

    @app.command()
    def command(
        size: Annotated[int, typer.Option()] = 1000,
        name: Annotated[list[str] | None, typer.Option()] = None,
        other: Annotated[str, typer.Option()] = "full",
        _smoke: Annotated[bool, smoke_option(size=10, name=["a", "b"])] = False,
    ) -> None:
        typer.echo(f"{size} {name or []} {other}")

    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == expected
    assert ("smoke" in result.stderr) is ("--smoke" in arguments)
