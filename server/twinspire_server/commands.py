"""The commands that this package adds to `twinspire`."""

from __future__ import annotations

import typer

from twinspire_server.demo import commands as demo
from twinspire_server.repository import commands as repository
from twinspire_server.triton import commands as triton


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
    demo.register(app)
    repository.register(app)
    triton.register(app)
