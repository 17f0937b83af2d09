"""Options, checks and formats that several commands share. Imports nothing heavy, to keep `twinspire --help` fast."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from twinspire._arguments import printable as printable  # re-exported for all commands
from twinspire.errors import InputError

BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", "-b", help="Bundle of the model; default: the sample that comes with twinspire."),
]
EXIT_SOME_FAILED = 3
"""Exit status of a command that failed for some files and succeeded for the others."""

SHEET_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Suffixes of the files that a contact sheet may be written to."""

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


def completing(*values: str) -> Callable[[], list[str]]:
    """Return a function for typer's `autocompletion` that completes one of `values`."""
    return lambda: list(values)


def check_destination(path: Path, what: str, *, suffixes: Sequence[str] = ()) -> None:
    """Raise `InputError` for a path that is a folder, is in a missing folder, or has none of `suffixes`, if any.

    Folders are never created: a slip in a path would leave them behind.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        *others, last = suffixes
        expected = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f"{what}: expected a name that ends in {expected}, got {printable(path)}", path=path)
    if path.is_dir():
        raise InputError(f"{what} cannot be written to {printable(path)}: it is a folder, name a file in it", path=path)
    parent = path.absolute().parent
    if not parent.is_dir():
        raise InputError(
            f"{what} cannot be written to {printable(path)}: its folder is missing, create {printable(parent)} first",
            path=path,
        )


def print_json(document: dict[str, Any]) -> None:
    """Print a JSON document to standard output, in UTF-8 whatever the terminal's encoding: JSON knows no other.

    Lone surrogates, as in file names that are not UTF-8, come out as JSON's own escapes.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    sys.stdout.flush()
    typer.echo(text.encode(errors="backslashreplace"), nl=False)


def shortened(path: str) -> str:
    """Return a path below the working directory as a relative one, any other unchanged."""
    below = os.path.relpath(path) if path.startswith(os.path.join(Path.cwd(), "")) else path  # noqa: PTH118
    return printable(below)


def size_of(size_bytes: int) -> str:
    """Format a size for people."""
    unit, size = next(
        ((unit, size) for unit, size in (("GiB", 2**30), ("MiB", 2**20)) if size_bytes >= size), ("KiB", 2**10)
    )
    return f"{size_bytes / size:.1f} {unit}"
