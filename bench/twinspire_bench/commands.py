"""The commands that this package adds to `twinspire`."""

from __future__ import annotations

import typer

from twinspire_bench.scenes.commands import app as scenes


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
    app.add_typer(scenes, name="scenes")
