"""Commands on an existing index: `twinspire index remove`, `compact`, `verify`, `recover`, `stats` and `export`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinspire.cli.index.shared import (
    EXIT_DAMAGED,
    IndexArgument,
    ProgressBar,
    StoreArgument,
    counted,
    print_index_json,
)
from twinspire.cli.shared import JsonOption, print_json, printable, size_of
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.stores import Filter, VectorStore


def remove(
    index: StoreArgument,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH...", help="Files, and folders with all files below.", show_default=False),
    ] = None,
    ids: Annotated[list[int] | None, typer.Option("--id", help="The id of an item; may be repeated.")] = None,
    where: Annotated[
        str | None, typer.Option("--where", help="Items that match this filter: \"year < 2010 and camera = 'X'\".")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only report how many items would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove items by PATH, --id or --where. The files themselves are not touched.

    A PATH is where the item's file is or was: the file need not exist any more.
    """
    from twinspire.stores import open_index

    if sum(1 for given in (paths, ids, where) if given) != 1:
        raise InputError("expected exactly one of PATH..., --id and --where, to say what to remove")
    with open_index(index, mode="read" if dry_run else "write") as opened:
        removed = sum(
            _remove(opened, chosen, dry_run=dry_run) for chosen in _chosen(opened, paths or [], ids or [], where)
        )
        items = len(opened)
        notes = opened.explain_filter(where) if where is not None and not removed else []
    for note in notes:
        typer.echo(f"note: the filter keeps no item: {printable(note)}", err=True)
    if as_json:
        print_index_json(index, {"removed": removed, "dry_run": dry_run, "items": items})
    elif dry_run:
        typer.echo(f"{removed:,} of {counted(items)} would be removed")
    else:
        typer.echo(f"{removed:,} removed\n{printable(index)} holds {counted(items)}")


def compact(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Free the disk space of removed and replaced items. Searches continue meanwhile."""
    from twinspire.index import Index

    with Index.open(index, mode="write") as opened:
        report = opened.compact()
    if as_json:
        print_index_json(index, dataclasses.asdict(report))
        return
    if report.dropped_rows:
        sizes = f"{size_of(report.bytes_before)} became {size_of(report.bytes_after)}"
        typer.echo(f"{report.dropped_rows:,} vectors dropped, {sizes}")
    if report.catalogue_bytes_after < report.catalogue_bytes_before:
        sizes = f"{size_of(report.catalogue_bytes_before)} became {size_of(report.catalogue_bytes_after)}"
        typer.echo(f"the catalogue's {sizes}")
    elif not report.dropped_rows:
        typer.echo("nothing to free: every vector belongs to an item")


def verify(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Read all of an index and report damage, without changing it. Ends with status 1 where it is damaged."""
    from twinspire.index import verify_index
    from twinspire.index.connections import CATALOGUE_NAME

    if not os.path.lexists(index / CATALOGUE_NAME):
        raise InputError(f"no index at {printable(index)}: it has no {CATALOGUE_NAME}")
    report = verify_index(index)
    if as_json:
        print_index_json(
            report.path, {"ok": report.ok, "items": report.items, "rows": report.rows, "problems": report.problems}
        )
    elif report.ok:
        typer.echo(f"{printable(index)} is intact: {counted(report.items)}, all vectors and full-text entries read")
    else:
        for problem in report.problems:
            typer.echo(printable(problem))
    if not report.ok:
        raise typer.Exit(EXIT_DAMAGED)


def stats(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Show what an index contains: items, space, bundle, sizes and how it is searched."""
    from twinspire.index import Index, ItemKind

    with Index.open(index) as opened:
        found, bundle = opened.stats(), opened.bundle
    document: dict[str, Any] = {
        "path": printable(found.path),
        "items": found.items,
        "images": found.items_by_kind[ItemKind.IMAGE],
        "texts": found.items_by_kind[ItemKind.TEXT],
        "sounds": found.items_by_kind[ItemKind.AUDIO],
        "dim": found.dim,
        "vectors_per_item": found.vectors_per_item,
        "dtype": found.dtype.value,
        "space": found.space,
        "bundle": dataclasses.asdict(bundle) if bundle is not None else None,
        "generation": found.generation,
        "rows": found.rows,
        "dead_rows": found.dead_rows,
        "vectors_bytes": found.vectors_bytes,
        "catalogue_bytes": found.catalogue_bytes,
        "schema_version": found.schema_version,
        "snapshot": dataclasses.asdict(found.snapshot) if found.snapshot is not None else None,
    }
    if as_json:
        print_json(document)
        return
    snapshot = document.pop("snapshot")
    document["bundle"] = printable(str(bundle).removeprefix("the bundle ")) if bundle is not None else None
    document["search"] = "exact (flat)" if snapshot is None else str(snapshot.pop("spec"))
    for name, value in (snapshot or {}).items():
        document[f"  {name}"] = value
    for name, value in document.items():
        if value is None:
            continue
        shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        if name.endswith("_bytes"):
            name, shown = name.removesuffix("_bytes"), size_of(value)
        elif name == "dead_rows" and value:
            shown += f" (`twinspire index compact {printable(index)}` frees them)"
        typer.echo(f"{name.replace('_', ' '):<16}{shown}")


def recover(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Restore committed changes that are missing after a crash; without any, change nothing.

    What cannot be restored is saved in a folder of the index, which can be opened for writing afterwards.
    """
    from twinspire.index import recover_index

    report = recover_index(index)
    saved_in = printable(report.saved_in) if report.saved_in is not None else None
    if as_json:
        document = dataclasses.asdict(report) | {"path": printable(report.path), "saved_in": saved_in}
        print_json({"schema_version": 1, **document, "complete": report.complete})
    elif saved_in is None:
        typer.echo("nothing is missing")
    else:
        typer.echo(
            f"generation {report.generation_before:,} with {report.items_before:,} items became "
            f"{report.generation_after:,} with {report.items_after:,}; the files found are kept in {saved_in}"
        )
        if not report.complete:
            typer.echo(
                f"not restored: changes up to generation {report.acknowledged or 'unknown'}; "
                f"{report.vectors_saved:,} vectors without their items are saved there"
            )
    if not report.complete:
        raise typer.Exit(EXIT_DAMAGED)


def export(
    index: IndexArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A file that ends in .parquet or .npy; replaced if it exists.")
    ],
    where: Annotated[
        str | None, typer.Option("--where", help='Only items that match this filter: "year >= 2020".')
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write items and embeddings to a file for other tools. The file is written completely or not at all.

    .parquet: id, uri, kind, caption, a column for each metadata key (JSON where its values differ in type; metadata.KEY
    where the name is taken), content_hash, times in UTC, embedding as float32 list. Needs the extra parquet.

    .npy: the (N, D) float32 matrix, and beside it OUT.items.jsonl with the items in the same order, one per line.
    """
    from twinspire.index import Index
    from twinspire.index.export import export_index
    from twinspire.stores import Filter

    kept = Filter.parse(where) if where is not None else None
    with Index.open(index) as opened, ProgressBar("items") as bar:
        report = export_index(opened, out, where=kept, on_progress=bar.update)
    if as_json:
        files = [printable(file) for file in report.files]
        print_index_json(index, {"items": report.items, "dim": report.dim, "files": files})
        return
    typer.echo(f"{counted(report.items)} of {report.dim} dimensions written to {printable(out)}")
    for beside in report.files[1:]:
        typer.echo(f"the items, one on each line: {printable(out.with_name(beside.name))}")


def _chosen(store: VectorStore, paths: list[Path], ids: list[int], where: str | None) -> list[set[int] | Filter]:
    """Return the items to remove as ids and filters. Raises `InputError` where an id or path has no item."""
    from twinspire.stores import Filter

    if where is not None:
        return [Filter.parse(where)]
    chosen: set[int] = {item.id for item in store.get(ids)}
    filters: list[set[int] | Filter] = []
    for path in paths:
        uri = os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps "..", resolve follows links
        if found := {item.id for item in (*store.find(uri=uri), *store.find(under=uri))}:
            chosen |= found
            continue
        folder, name = (part.replace("'", "''") for part in os.path.split(uri))
        lines = Filter.parse(f"kind = 'text' and name = '{name}' and folder = '{folder}'")
        if not _remove(store, lines, dry_run=True):
            raise InputError(f"the index has no item at {printable(path)} or below: expected the path of an item")
        filters.append(lines)
    return [chosen, *filters]


def _remove(store: VectorStore, chosen: set[int] | Filter, *, dry_run: bool) -> int:
    """Remove items and return their number, or only count them."""
    if isinstance(chosen, set):
        return len(chosen) if dry_run else store.remove(chosen)
    return store.count(where=chosen) if dry_run else store.remove_where(chosen)
