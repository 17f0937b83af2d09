"""Shared parts of the `twinspire index` commands: arguments, the index to change, progress, reports of failures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from twinspire.cli.bundles import reference_to, remember_bundle
from twinspire.cli.client_options import ClientOptions, open_client, with_options
from twinspire.cli.shared import EXIT_SOME_FAILED, completing, print_json, printable, shortened
from twinspire.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.progress import Progress, TaskID

    from twinspire.client import Client
    from twinspire.ingest import IngestOptions, IngestReport
    from twinspire.stores import AddReport, Item, ItemKind, StoredItem, VectorStore

EXIT_DAMAGED = 1
IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of the index.", show_default=False)]
StoreArgument = Annotated[
    str,
    typer.Argument(
        metavar="INDEX", help="The folder of the index, or the URI of another store, scheme://...", show_default=False
    ),
]
FoldersArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="DIR...", help="Folders of images or sounds.", show_default=False)
]


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Captions and metadata of the images. Raises `InputError` for options that exclude or need each other."""

    captions: Annotated[
        Path | None,
        typer.Option(
            "--captions",
            help="A captions file: COCO's, Karpathy's or Flickr30k's, or CSV, TSV, JSONL or a JSON list with columns "
            "for image and caption; other columns become metadata for filters.",
        ),
    ] = None
    sidecars: Annotated[
        bool, typer.Option("--sidecars", help="Read captions from text files beside the images (cat.jpg: cat.txt).")
    ] = False
    fuse_captions: Annotated[
        float | None,
        typer.Option(
            "--fuse-captions",
            metavar="WEIGHT",
            help="Mix the captions' vectors into the images' vectors with this weight, between 0 and 1, such as 0.3.",
        ),
    ] = None
    on_conflict: Annotated[
        str,
        typer.Option(
            "--on-conflict",
            help="What to store where a column and the image file have the same key (name, width, year, ...): table "
            "(the column), file (the file's value) or prefix (both, the column as table_KEY).",
            autocompletion=completing("table", "file", "prefix"),
        ),
    ] = "table"

    def __post_init__(self) -> None:
        from twinspire.ingest import OnConflict
        from twinspire.ingest.caption_fusion import check_weight

        OnConflict.parse(self.on_conflict)
        if self.captions is not None and self.sidecars:
            raise InputError("--captions and --sidecars exclude each other: expected one source of captions")
        if self.fuse_captions is not None:
            check_weight(self.fuse_captions)
            if self.captions is None and not self.sidecars:
                raise InputError("--fuse-captions needs captions: pass --captions FILE or --sidecars")

    def read(self) -> IngestOptions:
        """Read the captions file. Raises `InputError`, also where there are captions to fuse and the file has none."""
        from twinspire.ingest import Captions, CaptionSource, IngestOptions, Sidecars

        source: CaptionSource | None = Sidecars() if self.sidecars else None
        if self.captions is not None:
            source = read = Captions.read(self.captions, on_conflict=self.on_conflict)
            if self.fuse_captions is not None and not read.has_captions:
                raise InputError(f"--fuse-captions needs captions: {self.captions} has metadata alone")
        return IngestOptions(captions=source, caption_weight=self.fuse_captions)


with_caption_options = with_options(CaptionOptions)


def check_target(index: str) -> None:
    """Refuse a path that is neither an index nor free for a new one. Raises `InputError`."""
    if exists(index):
        return
    path = Path(index)
    if path.is_dir() and any(path.iterdir()):
        full = path.absolute()
        free = (path if path.name else full).with_name(f"{full.name or 'images'}.index")
        raise InputError(
            f"{printable(path)} is a folder with other files and not an index: an index needs a folder of its own. "
            f"Name one that does not exist yet, such as {printable(free)}"
        )
    if path.exists() and not path.is_dir():
        raise InputError(f"{printable(path)} is a file: expected the folder of an index, or a name for a new one")
    if not path.absolute().parent.is_dir():
        raise InputError(
            f"the index {printable(path)} cannot be created: its parent folder does not exist. Create "
            f"{printable(path.absolute().parent)} first"
        )


def exists(index: str) -> bool:
    """Whether a path has an index, intact or not; a URI always counts as one."""
    from twinspire.index.connections import CATALOGUE_NAME

    return "://" in index or os.path.lexists(Path(index, CATALOGUE_NAME))


def open_store_and_client(
    stack: ExitStack,
    index: str,
    options: ClientOptions,
    *,
    mode: Literal["read", "write"] = "write",
    lazy: bool = False,
) -> tuple[VectorStore, Client]:
    """Open an index and the client that encodes for it, both closed with `stack`; create one that does not exist.

    With `lazy` a new index is created with its first items, so that none appears where all fail. An index that is
    opened for writing remembers the bundle.
    """
    from twinspire.index import Index
    from twinspire.stores import open_index

    check_target(index)
    store = stack.enter_context(open_index(index, mode=mode)) if exists(index) else None
    client = stack.enter_context(open_client(options, store))
    if store is not None:
        if mode == "write":
            remember_bundle(store, client.bundle)
        return store, client

    def create() -> VectorStore:
        bundle = reference_to(client.bundle)
        several = client.vectors_per_item
        return stack.enter_context(
            Index.create(index, space=client.space, dim=client.dim, bundle=bundle, vectors_per_item=several)
        )

    return (cast("VectorStore", _NewStore(create)) if lazy else create()), client


class _NewStore:
    """A store that does not exist yet and is created with its first items; has what adding items needs."""

    def __init__(self, create: Callable[[], VectorStore]) -> None:
        self._create = create
        self._store: VectorStore | None = None

    def check_space(self, space: str) -> None:
        """Accept any space: the store is created with that of the client."""

    def known_hashes(self, hashes: Iterable[str], *, kind: ItemKind | str = "image") -> set[str]:
        store = self._store  # another thread creates it
        return store.known_hashes(hashes, kind=kind) if store is not None else set()

    def find(self, **by: Any) -> list[StoredItem]:  # noqa: ANN401 - as of `VectorStore.find`
        store = self._store
        return store.find(**by) if store is not None else []

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:
        if self._store is None:
            self._store = self._create()
        return self._store.add(embeddings, items, space=space)

    def __len__(self) -> int:
        return len(self._store) if self._store is not None else 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of the store, whose items were found or added
        return getattr(self._store, name)


class ProgressBar:
    """A progress bar on a terminal, from the first update until `close`, when the report takes its place."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def update(self, done: int, total: int) -> None:
        """Show that so many of all are done."""
        if self._bar is None or self._task is None:
            self._bar = self._start()
            self._task = self._bar.add_task("", total=total)
        self._bar.update(self._task, completed=done, total=total)

    def adding(self, total: int) -> Callable[[int], None]:
        """Return a callback that takes how many more of a known total are done."""
        done = 0

        def more(count: int) -> None:
            nonlocal done
            done += count
            self.update(done, total)

        return more

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _start(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
        from rich.text import Text

        unit = self._unit

        class RateColumn(ProgressColumn):
            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:,.1f} {unit}/s" if speed else "", style="cyan")

        console = Console(stderr=True)
        columns = (BarColumn(bar_width=None), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
        bar = Progress(*columns, console=console, disable=not console.is_terminal, transient=True, expand=True)
        bar.start()
        return bar

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def counted(count: int) -> str:
    """Return "1 item", "2 items"."""
    return f"{count:,} item{'' if count == 1 else 's'}"


def print_index_json(index: str | Path, document: Mapping[str, Any]) -> None:
    """Print a JSON document about an index."""
    uri = os.fspath(index)
    print_json({"schema_version": 1, "index": printable(uri if "://" in uri else Path(uri).absolute()), **document})


def print_ingest(
    index: str,
    report: IngestReport,
    counts: Mapping[str, Any],
    summary: str,
    *,
    items: int,
    elapsed_s: float,
    as_json: bool,
) -> None:
    """Print what was added to an index and what failed, then end with the status of that; see `end_with_failures`."""
    if as_json:
        failed = [{"path": printable(path), "cause": cause} for path, cause in report.failed]
        skipped = {printable(suffix): count for suffix, count in report.skipped.items()}
        rest = {"failed": failed, "skipped": skipped, "items": items, "elapsed_s": round(elapsed_s, 3)}
        print_index_json(index, {**counts, **rest})
    else:
        typer.echo(summary)
        if items or exists(index):
            typer.echo(f"{printable(index)} holds {counted(items)}")
        print_skipped(report.skipped)
        for path, cause in report.failed:
            print_failed(path, cause)
    done = report.added + report.changed + report.removed + report.already
    end_with_failures(len(report.failed), len(report.failed) + done)


def print_skipped(skipped: Mapping[str, int]) -> None:
    """Print to standard error how many files were skipped for their suffixes; nothing for none."""
    from twinspire.ingest.discovery import describe_skipped

    if skipped:
        typer.echo(printable(describe_skipped(skipped)), err=True)


def print_failed(path: Path, cause: str) -> None:
    """Print to standard error which file failed and why."""
    from rich.console import Console
    from rich.text import Text

    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    stderr.print(Text.assemble(("failed ", "red"), shortened(str(path)), (f": {printable(cause)}", "dim")))


def end_with_failures(failed: int, files: int) -> None:
    """End with status 3 where some of the files failed. Raises `InputError`, status 2, where all did."""
    if failed and failed >= files:
        raise InputError(f"none of the {files:,} files could be added")
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)
