"""`twinspire index`: pictures into an index, and what it holds."""

from __future__ import annotations

import typer

from twinspire.cli import index_add
from twinspire.cli.index_add import IndexArgument
from twinspire.cli.shared import JsonOption, print_json, printable

app = typer.Typer(help="Make and extend indexes of pictures.", no_args_is_help=True)

app.command("add")(index_add.add)


@app.command("stats")
def stats(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Tell what an index holds."""
    from twinspire.index import Index, ItemKind

    with Index.open(index) as opened:
        found = opened.stats()
    document = {
        "path": printable(found.path),
        "items": found.items,
        "images": found.items_by_kind[ItemKind.IMAGE],
        "texts": found.items_by_kind[ItemKind.TEXT],
        "dim": found.dim,
        "space": found.space,
        "adds": found.generation,
        "vectors_bytes": found.vectors_bytes,
        "catalogue_bytes": found.catalogue_bytes,
        "schema_version": found.schema_version,
    }
    if as_json:
        print_json(document)
        return
    document["vectors"] = _size(document.pop("vectors_bytes"))
    document["catalogue"] = _size(document.pop("catalogue_bytes"))
    document["schema version"] = document.pop("schema_version")
    for name, value in document.items():
        typer.echo(f"{name:<16}{value:,}" if isinstance(value, int) else f"{name:<16}{value}")


def _size(size_bytes: object) -> str:
    assert isinstance(size_bytes, int)
    return f"{size_bytes / 2**20:.1f} MiB" if size_bytes >= 2**20 else f"{size_bytes / 2**10:.1f} KiB"
