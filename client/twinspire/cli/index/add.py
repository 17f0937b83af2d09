"""`twinspire index add`: images and texts into an index."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from twinspire.cli.client_options import ClientOptions, open_client, with_client_options
from twinspire.cli.index.bundle import reference_to, remember_bundle
from twinspire.cli.shared import EXIT_SOME_FAILED, JsonOption, print_json, printable, shortened
from twinspire.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from twinspire.client import Client
    from twinspire.index import AddReport, BundleReference, Index, Item, ItemKind, StoredItem
    from twinspire.ingest import CaptionSource, FailedImage, IngestReport

IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.", show_default=False)]
PathsArgument = Annotated[
    list[Path] | None,
    typer.Argument(metavar="PATH...", help="Pictures, and folders of pictures.", show_default=False),
]
TextsOption = Annotated[
    list[Path] | None, typer.Option("--texts", help="A text file, each line of which becomes an item; may be repeated.")
]
CaptionsOption = Annotated[
    Path | None,
    typer.Option(
        "--captions",
        help="What is said about the pictures: COCO's JSON, or CSV, TSV, JSONL or a JSON list of picture and caption; "
        "other columns are metadata for filters.",
    ),
]
SidecarsOption = Annotated[
    bool, typer.Option("--sidecars", help="Take captions from text files beside the pictures (cat.jpg: cat.txt).")
]
OnConflictOption = Annotated[
    str,
    typer.Option(
        "--on-conflict",
        help="Which counts where a column and the file have the same key (name, width, year, ...): table, file, or "
        "prefix, which stores the column as table_name.",
    ),
]
FuseOption = Annotated[
    float | None,
    typer.Option(
        "--fuse-captions",
        metavar="WEIGHT",
        help="Mix captions into the pictures' vectors: above 0, below 1, such as 0.3.",
    ),
]


@with_client_options
def add(
    index: IndexArgument,
    paths: PathsArgument = None,
    texts: TextsOption = None,
    captions: CaptionsOption = None,
    sidecars: SidecarsOption = False,
    fuse_captions: FuseOption = None,
    on_conflict: OnConflictOption = "table",
    *,
    options: ClientOptions,
    as_json: JsonOption = False,
) -> None:
    """Add images and texts to an index, which is made if it is not there.

    A file that the index has already is passed over, so an interrupted run is finished by running it again. Ends with
    status 3 where some files failed and the others were added.
    """
    from twinspire.ingest import Captions, add_images, add_texts, find_images
    from twinspire.ingest.texts import count_lines

    if not paths and not texts:
        raise InputError("nothing to add came: expected PATH..., pictures or folders of them, or --texts FILE")
    source = caption_source(captions, sidecars=sidecars, fuse_captions=fuse_captions, on_conflict=on_conflict)
    pictures = find_images(paths, on_error="skip") if paths else []
    lines = count_lines(texts) if texts else 0
    if isinstance(source, Captions) and not any(source.mentions(path) for path in pictures):
        raise InputError(
            f"{captions} says nothing about the {len(pictures):,} pictures, such as {pictures[0].name}: expected their "
            "names, or their paths seen from its folder"
            if pictures
            else "--captions came without pictures: expected PATH..., pictures or folders of them"
        )
    reports: list[IngestReport] = []
    with Target(index) as target, open_client(options, target.index) as client:
        target.encoded_by(client)
        start_s = time.perf_counter()
        if paths:
            with progress("images", len(pictures)) as done:
                reports.append(
                    add_images(target, client, pictures, captions=source, fuse_captions=fuse_captions, on_progress=done)
                )
        if texts:
            with progress("texts", lines) as done:
                reports.append(add_texts(target, client, texts, on_progress=done))
        items, elapsed_s = len(target), time.perf_counter() - start_s
    summary = _Summary.of(reports, unit="images" if not texts else "items" if pictures else "texts")
    summary.show(index=index, items=items, elapsed_s=elapsed_s, as_json=as_json)
    end_with_failures(len(summary.failed), len(summary.failed) + summary.added + summary.already + summary.changed)


def end_with_failures(failed: int, files: int) -> None:
    """End with status 3 where some of the files failed. Raises `InputError`, status 2, where all did."""
    if failed and failed >= files:
        raise InputError(f"none of the {files:,} files could be added")
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def caption_source(
    captions: Path | None, *, sidecars: bool, fuse_captions: float | None, on_conflict: str = "table"
) -> CaptionSource | None:
    """Return what the options name as the source of captions. Raises `InputError` for options that do not fit."""
    from twinspire.ingest import Captions, OnConflict, Sidecars
    from twinspire.ingest.caption_fusion import check_weight

    OnConflict.parse(on_conflict)

    if captions is not None and sidecars:
        raise InputError("--captions and --sidecars both came: expected one source of captions")
    if fuse_captions is not None:
        check_weight(fuse_captions)
        if captions is None and not sidecars:
            raise InputError("--fuse-captions needs captions: name them with --captions FILE or --sidecars")
    if captions is not None:
        read = Captions.read(captions, on_conflict=on_conflict)
        if fuse_captions is not None and not read.has_captions:
            raise InputError(f"--fuse-captions needs captions: {captions} has metadata alone")
        return read
    return Sidecars() if sidecars else None


class Target:
    """The index to add to. One that is not there yet is made with the first items: where all fail, none appears."""

    def __init__(self, path: Path) -> None:
        from twinspire.index import Index

        check_target(path)
        self.index: Index | None = Index.open(path, mode="write") if is_index(path) else None
        """The index, None where it is not there yet."""
        self._path = path
        self._dim = 0
        self._bundle: BundleReference | None = None

    def encoded_by(self, client: Client) -> None:
        """Take the dimension and the bundle of what is added; an index that is there remembers where its bundle is."""
        self._dim = client.dim
        self._bundle = reference_to(client.bundle)
        if self.index is not None:
            remember_bundle(self.index, client.bundle)

    def check_space(self, space: str) -> None:
        """Raise `SpaceMismatchError` for embeddings that the index cannot take."""
        if self.index is not None:
            self.index.check_space(space)

    def known_hashes(self, hashes: Iterable[str], *, kind: ItemKind | None = None) -> set[str]:
        """Return those of `hashes` that the index has; none where there is no index yet."""
        from twinspire.index import ItemKind

        index = self.index  # another thread makes it
        return index.known_hashes(hashes, kind=kind or ItemKind.IMAGE) if index is not None else set()

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:
        """Add to the index, made now if it is not there."""
        from twinspire.index import Index

        if self.index is None:
            self.index = Index.create(self._path, space=space, dim=self._dim, bundle=self._bundle)
        return self.index.add(embeddings, items, space=space)

    def find(self, *, uri: str | None = None, content_hash: str | None = None) -> list[StoredItem]:
        """Return the items of this uri or content; none where there is no index yet."""
        return self.index.find(uri=uri, content_hash=content_hash) if self.index is not None else []

    def vectors(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Return the vectors of items that were found, (N, D) float32."""
        assert self.index is not None
        return self.index.vectors(ids)

    def update(self, id: int, **changes: Any) -> StoredItem:  # noqa: A002, ANN401 - as of `Index.update`
        """Change an item that was found."""
        assert self.index is not None
        return self.index.update(id, **changes)

    def remove(self, ids: Iterable[int]) -> int:
        """Remove items that were found."""
        assert self.index is not None
        return self.index.remove(ids)

    def __len__(self) -> int:
        return len(self.index) if self.index is not None else 0

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        if self.index is not None:
            self.index.close()


def check_target(path: Path) -> None:
    """Refuse a place that is neither an index nor free for one, as an empty folder is. Raises `InputError`."""
    if path.is_dir() and not is_index(path) and any(path.iterdir()):
        full = path.absolute()
        free = (path if path.name else full).with_name(f"{full.name or 'pictures'}.index")
        raise InputError(
            f"{printable(path)} is a folder of other things and no index: an index has a folder of its own. Name one "
            f"that is not there yet, such as {printable(free)}"
        )
    if path.exists() and not path.is_dir():
        raise InputError(f"{printable(path)} is a file: expected the folder of an index, or a name that is free")
    if not path.absolute().parent.is_dir():
        raise InputError(
            f"the index cannot be made at {printable(path)}: its folder is missing, make "
            f"{printable(path.absolute().parent)} first"
        )


def is_index(path: Path) -> bool:
    """Whether there is an index, whole or not, at a path."""
    from twinspire.index.connections import CATALOGUE_NAME

    return os.path.lexists(path / CATALOGUE_NAME)


def open_index_and_client(
    stack: ExitStack, path: Path, options: ClientOptions, *, mode: Literal["read", "write"] = "write"
) -> tuple[Index, Client]:
    """Open an index and the client that encodes for it, both closed with `stack`; one that is not there is made.

    An index that is opened for writing remembers the bundle.
    """
    from twinspire.index import Index

    index = stack.enter_context(Index.open(path, mode=mode)) if is_index(path) else None
    client = stack.enter_context(open_client(options, index))
    if index is None:
        made = Index.create(path, space=client.space, dim=client.dim, bundle=reference_to(client.bundle))
        return stack.enter_context(made), client
    if mode == "write":
        remember_bundle(index, client.bundle)
    return index, client


@contextmanager
def progress(unit: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal; gives what is called with the number of things done since the last call."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.1f} {unit}/s" if speed else "", style="cyan")

    console = Console(stderr=True)
    columns = (BarColumn(bar_width=None), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    # Transient: the report takes its place.
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True, expand=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.advance(task, done)


@dataclass(frozen=True)
class _Summary:
    """What all of a command added."""

    added: int
    already: int
    changed: int
    captioned: int
    failed: list[FailedImage]
    skipped: Mapping[str, int]
    unit: str

    @classmethod
    def of(cls, reports: Sequence[IngestReport], *, unit: str) -> _Summary:
        return cls(
            sum(report.added for report in reports),
            sum(report.already for report in reports),
            sum(report.changed for report in reports),
            sum(report.captioned for report in reports),
            [failed for report in reports for failed in report.failed],
            {suffix: count for report in reports for suffix, count in report.skipped.items()},
            unit,
        )

    def show(self, *, index: Path, items: int, elapsed_s: float, as_json: bool) -> None:
        if as_json:
            print_json(self._document(index, items, elapsed_s))
            return
        counts = [f"{self.added:,} added"]
        if self.added:
            counts[0] += f" in {elapsed_s:.1f} s ({self.added / elapsed_s:,.1f} {self.unit}/s)"
        if self.changed:
            counts.append(f"{self.changed:,} changed")
        if self.captioned:
            counts.append(f"{self.captioned:,} with a caption")
        if self.already:
            counts.append(f"{self.already:,} there already")
        if self.failed:
            counts.append(f"{len(self.failed):,} failed")
        typer.echo(", ".join(counts))
        if items:
            typer.echo(f"{printable(index)} holds {items:,} item{'s' if items != 1 else ''}")
        print_skipped(self.skipped)
        for path, cause in self.failed:
            print_failed(path, cause)

    def _document(self, index: Path, items: int, elapsed_s: float) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "index": printable(index.absolute()),
            "added": self.added,
            "already": self.already,
            "changed": self.changed,
            "captioned": self.captioned,
            "failed": [{"path": printable(path), "cause": cause} for path, cause in self.failed],
            "skipped": {printable(suffix): count for suffix, count in self.skipped.items()},
            "items": items,
            "elapsed_s": round(elapsed_s, 3),
        }


def print_skipped(skipped: Mapping[str, int]) -> None:
    """Say on standard error, in a line, which files were not looked at for their suffixes; nothing for none."""
    from twinspire.ingest.discovery import described

    if skipped:
        typer.echo(printable(described(skipped)), err=True)


def print_failed(path: Path, cause: str) -> None:
    """Say on standard error, in a line, which file failed and why."""
    from rich.console import Console
    from rich.text import Text

    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    stderr.print(Text.assemble(("failed ", "red"), shortened(str(path)), (f": {printable(cause)}", "dim")))
