"""`twinspire index`: pictures into an index, and what it holds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.shared import BundleOption, JsonOption, open_client, print_json, printable, shortened
from twinspire.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.progress import Progress

    from twinspire.index import AddReport, Index, Item
    from twinspire.ingest import IngestReport

app = typer.Typer(help="Make and extend indexes of pictures.", no_args_is_help=True)

IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.", show_default=False)]
PathsArgument = Annotated[
    list[Path], typer.Argument(metavar="PATH...", help="Pictures, and folders of pictures.", show_default=False)
]


@app.command("add")
def add(index: IndexArgument, paths: PathsArgument, bundle: BundleOption = None) -> None:
    """Add pictures to an index, which is made if it is not there.

    Content that the index has already is passed over, so an interrupted run is finished by running it again.
    """
    from twinspire.ingest import add_pictures, find_pictures

    pictures = find_pictures(paths)
    with _Target(index) as target, open_client(bundle) as client, _progress() as progress:
        task = progress.add_task("", total=len(pictures))
        target.dim = client.dim
        start_s = time.perf_counter()
        report = add_pictures(target, client, pictures, on_progress=lambda done: progress.advance(task, done))
        elapsed_s = time.perf_counter() - start_s
        items = len(target)
    _print_report(report, index=index, items=items, elapsed_s=elapsed_s)
    if len(report.failed) == len(pictures):
        raise InputError(f"none of the {len(pictures)} files could be added")


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


class _Target:
    """The index to add to. One that is not there yet is made with the first pictures: where all fail, none appears."""

    def __init__(self, path: Path) -> None:
        from twinspire.index import Index

        self.dim = 0
        self._path = path
        self._index: Index | None = Index.open(path, mode="write") if os.path.lexists(path) else None
        if self._index is None and not path.absolute().parent.is_dir():
            raise InputError(f"the index cannot be made at {path}: there is no folder {path.absolute().parent}")

    def check_space(self, space: str) -> None:
        if self._index is not None:
            self._index.check_space(space)

    def known_hashes(self, hashes: Iterable[str]) -> set[str]:
        index = self._index  # another thread makes it
        return index.known_hashes(hashes) if index is not None else set()

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:
        from twinspire.index import Index

        if self._index is None:
            self._index = Index.create(self._path, space=space, dim=self.dim)
        return self._index.add(embeddings, items, space=space)

    def __len__(self) -> int:
        return len(self._index) if self._index is not None else 0

    def __enter__(self) -> _Target:
        return self

    def __exit__(self, *_: object) -> None:
        if self._index is not None:
            self._index.close()


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:.1f} images/s" if speed else "", style="cyan")

    console = Console(stderr=True)
    return Progress(
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,  # the report takes its place
        expand=True,
    )


def _print_report(report: IngestReport, *, index: Path, items: int, elapsed_s: float) -> None:
    from rich.console import Console
    from rich.text import Text

    counts = [f"{report.added:,} added"]
    if report.added:
        counts[0] += f" in {elapsed_s:.1f} s ({report.added / elapsed_s:.1f} images/s)"
    if report.already:
        counts.append(f"{report.already:,} there already")
    if report.failed:
        counts.append(f"{len(report.failed):,} failed")
    typer.echo(", ".join(counts))
    if items:
        typer.echo(f"{printable(index)} holds {items:,} item{'s' if items != 1 else ''}")
    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    for path, cause in report.failed:
        stderr.print(Text.assemble(("failed ", "red"), shortened(str(path)), (f": {printable(cause)}", "dim")))


def _size(size_bytes: object) -> str:
    assert isinstance(size_bytes, int)
    return f"{size_bytes / 2**20:.1f} MiB" if size_bytes >= 2**20 else f"{size_bytes / 2**10:.1f} KiB"
