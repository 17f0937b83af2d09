"""What several commands share. Imports nothing heavy: `twinspire --help` is to come at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from twinspire._printable import printable as printable  # every command finds it here
from twinspire.errors import InputError

BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", "-b", help="The bundle that encodes; the sample that comes with twinspire if not given."),
]
EXIT_SOME_FAILED = 3
"""Exit status of a command that worked for some files and failed for others."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


def completing(*values: str) -> Callable[[], list[str]]:
    """Return what typer's `autocompletion` takes to complete one of `values`."""
    return lambda: list(values)


def check_destination(path: Path, what: str, *, suffix: str | None = None) -> None:
    """Refuse a file that cannot be written: a folder is there, its own folder is not, or its name ends otherwise.

    Folders are never made on the way: a slip in a path would leave them behind. Raises `InputError`.
    """
    if suffix is not None and path.suffix.lower() != suffix:
        kind = suffix.removeprefix(".").upper()
        raise InputError(f"{what} is a {kind}: expected a name that ends in {suffix}, got {printable(path)}")
    if path.is_dir():
        raise InputError(f"{what} cannot be written to {printable(path)}: it is a folder. Name a file in it")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise InputError(
            f"{what} cannot be written to {printable(path)}: its folder is missing, make {printable(parent)} first"
        )


def print_json(document: dict[str, Any]) -> None:
    """Print a JSON document to standard output, in UTF-8 whatever the terminal's encoding: JSON knows no other."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    sys.stdout.flush()
    typer.echo(text.encode(), nl=False)


def shortened(path: str) -> str:
    """Return a path below the working directory relative to it, any other as it is."""
    below = os.path.relpath(path) if path.startswith(os.path.join(Path.cwd(), "")) else path  # noqa: PTH118
    return printable(below)


def size_of(size_bytes: int) -> str:
    """Return a size for people to read."""
    unit, size = next(
        ((unit, size) for unit, size in (("GiB", 2**30), ("MiB", 2**20)) if size_bytes >= size), ("KiB", 2**10)
    )
    return f"{size_bytes / size:.1f} {unit}"
