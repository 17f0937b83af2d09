"""`twinspire index`: images and texts into an index and out of it, what it holds, and whether it is whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinspire.cli.index import add, build, export, recover, sync, watch
from twinspire.cli.index.add import IndexArgument
from twinspire.cli.shared import JsonOption, print_json, printable, size_of
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.index import Index
    from twinspire.stores.filters.filter import Filter

EXIT_DAMAGED = 1

app = typer.Typer(help="Make, follow and look after indexes of pictures and texts.", no_args_is_help=True)
app.command("add")(add.add)
app.command("sync")(sync.sync)
app.command("watch")(watch.watch)
app.command("build")(build.build)
app.command("tune")(build.tune)
app.command("export")(export.export)
app.command("recover")(recover.recover)


@app.command("remove")
def remove(
    index: IndexArgument,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH...", help="Files, and folders with all below.", show_default=False),
    ] = None,
    ids: Annotated[list[int] | None, typer.Option("--id", help="The id of an item; may be repeated.")] = None,
    where: Annotated[str | None, typer.Option("--where", help="A filter: \"year < 2010 and camera = 'X'\".")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many items would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove items by PATH, --id or --where. The files themselves are not touched.

    A PATH is where the item's file is or was: it need not be there any more.
    """
    from twinspire.index import Index

    if sum(1 for given in (paths, ids, where) if given) != 1:
        raise InputError("what to remove is given in one way: expected PATH..., or --id, or --where")
    with Index.open(index, mode="read" if dry_run else "write") as opened:
        removed = sum(
            _take_out(opened, each, dry_run=dry_run) for each in _chosen(opened, paths or [], ids or [], where)
        )
        items = len(opened)
        notes = opened.explain_filter(where) if where is not None and not removed else []
    for note in notes:
        typer.echo(f"note: the filter keeps nothing: {printable(note)}", err=True)
    if as_json:
        path = printable(index.absolute())
        print_json({"schema_version": 1, "index": path, "removed": removed, "dry_run": dry_run, "items": items})
    elif dry_run:
        typer.echo(f"{removed:,} of {_items(items)} would be removed")
    else:
        typer.echo(f"{removed:,} removed\n{printable(index)} holds {_items(items)}")


@app.command("compact")
def compact(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Free the space of removed and replaced items. Searches go on meanwhile."""
    from twinspire.index import Index

    with Index.open(index, mode="write") as opened:
        report = opened.compact()
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "index": printable(index.absolute()),
                "dropped_rows": report.dropped_rows,
                "bytes_before": report.bytes_before,
                "bytes_after": report.bytes_after,
                "catalogue_bytes_before": report.catalogue_bytes_before,
                "catalogue_bytes_after": report.catalogue_bytes_after,
            }
        )
        return
    if report.dropped_rows:
        sizes = f"{size_of(report.bytes_before)} became {size_of(report.bytes_after)}"
        typer.echo(f"{report.dropped_rows:,} vectors dropped, {sizes}")
    if report.catalogue_bytes_after < report.catalogue_bytes_before:
        sizes = f"{size_of(report.catalogue_bytes_before)} became {size_of(report.catalogue_bytes_after)}"
        typer.echo(f"the catalogue's {sizes}")
    elif not report.dropped_rows:
        typer.echo("nothing to free: every vector is an item's")


@app.command("verify")
def verify(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Read all of an index and name what is wrong with it; changes nothing. Status 1 where something is."""
    from twinspire.index import verify_index
    from twinspire.index.connections import CATALOGUE_NAME

    if not os.path.lexists(index / CATALOGUE_NAME):
        raise InputError(f"there is no index at {printable(index)}: it has no {CATALOGUE_NAME}")
    report = verify_index(index)
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "index": printable(report.path),
                "ok": report.ok,
                "items": report.items,
                "rows": report.rows,
                "problems": report.problems,
            }
        )
    elif report.ok:
        typer.echo(f"{printable(index)} is whole: {_items(report.items)}, every vector and word of them read")
    else:
        for problem in report.problems:
            typer.echo(printable(problem))
    if not report.ok:
        raise typer.Exit(EXIT_DAMAGED)


@app.command("stats")
def stats(index: IndexArgument, as_json: JsonOption = False) -> None:
    """Tell what an index holds."""
    import dataclasses

    from twinspire.index import Index, ItemKind

    with Index.open(index) as opened:
        found, bundle = opened.stats(), opened.bundle
    document: dict[str, Any] = {
        "path": printable(found.path),
        "items": found.items,
        "images": found.items_by_kind[ItemKind.IMAGE],
        "texts": found.items_by_kind[ItemKind.TEXT],
        "dim": found.dim,
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


def _chosen(index: Index, paths: list[Path], ids: list[int], where: str | None) -> list[set[int] | Filter]:
    """Return what is to be removed, as ids and filters. Raises `InputError` where one of the given names nothing."""
    from twinspire.stores.filters.filter import Filter

    if where is not None:
        return [Filter.parse(where)]
    chosen: set[int] = {item.id for item in index.get(ids)}
    filters: list[set[int] | Filter] = []
    for path in paths:
        uri = os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps "..", resolve follows links
        if found := {item.id for item in (*index.find(uri=uri), *index.find(under=uri))}:
            chosen |= found
            continue
        folder, name = (part.replace("'", "''") for part in os.path.split(uri))
        lines = Filter.parse(f"kind = 'text' and name = '{name}' and folder = '{folder}'")
        if not _take_out(index, lines, dry_run=True):
            raise InputError(f"the index has nothing of {printable(path)}: no item is there or below")
        filters.append(lines)
    return [chosen, *filters]


def _take_out(index: Index, chosen: set[int] | Filter, *, dry_run: bool) -> int:
    """Remove items, or count them."""
    if isinstance(chosen, set):
        return len(chosen) if dry_run else index.remove(chosen)
    if not dry_run:
        return index.remove_where(chosen)
    return index.count(where=chosen)


def _items(count: int) -> str:
    return f"{count:,} item{'' if count == 1 else 's'}"
