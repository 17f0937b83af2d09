"""`twinspire index export`: items and embeddings for other tools."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from twinspire.cli.index.add import IndexArgument, progress
from twinspire.cli.shared import JsonOption, print_json, printable


def export(
    index: IndexArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A file named .parquet or .npy; replaced if it is there.")],
    where: Annotated[str | None, typer.Option("--where", help='Only what this keeps: "year >= 2020".')] = None,
    as_json: JsonOption = False,
) -> None:
    """Write items and embeddings to a file that other tools read. It appears whole or not at all.

    .parquet: id, uri, kind, caption, a column for each metadata key (JSON where its values differ in type; metadata.KEY
    where the name is taken), content_hash, times in UTC, embedding as float32 list. Needs the extra parquet.

    .npy: the (N, D) float32 matrix, and beside it OUT.items.jsonl with the items in the same order, one per line.
    """
    from twinspire.index import Index
    from twinspire.index.export import export_index
    from twinspire.stores.filters.filter import Filter

    kept = Filter.parse(where) if where is not None else None
    with Index.open(index) as opened, ExitStack() as stack:
        before = 0
        advance = None

        def tell(done: int, total: int) -> None:
            nonlocal advance, before
            if advance is None:
                advance = stack.enter_context(progress("items", total))
            advance(done - before)
            before = done

        report = export_index(opened, out, where=kept, on_progress=tell)
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "index": printable(index.absolute()),
                "items": report.items,
                "dim": report.dim,
                "files": [printable(file) for file in report.files],
            }
        )
        return
    count = f"{report.items:,} item{'' if report.items == 1 else 's'}"
    typer.echo(f"{count} of {report.dim} dimensions written to {printable(out)}")
    for beside in report.files[1:]:
        typer.echo(f"what they are, a line each: {printable(out.with_name(beside.name))}")
