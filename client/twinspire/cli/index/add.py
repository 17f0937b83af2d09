"""`twinspire index add`: add images and lines of text to an index."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.client_options import ClientOptions, with_client_options
from twinspire.cli.index.shared import (
    CaptionOptions,
    ProgressBar,
    StoreArgument,
    counted,
    end_with_failures,
    open_store_and_client,
    print_failed,
    print_skipped,
    shown_uri,
    with_caption_options,
)
from twinspire.cli.shared import JsonOption, print_json, printable
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.ingest import IngestReport


@with_client_options
@with_caption_options
def add(
    index: StoreArgument,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH...", help="Images, and folders of images.", show_default=False),
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option("--texts", help="A text file, each line of which becomes an item; may be repeated."),
    ] = None,
    *,
    captions: CaptionOptions,
    options: ClientOptions,
    as_json: JsonOption = False,
) -> None:
    """Add images and lines of text to an index, which is created if it does not exist.

    Files that the index has already are skipped, so an interrupted run is finished by running it again; a file that was
    moved or changed keeps its item. Ends with status 3 where some files failed and the others were added.
    """
    from twinspire.ingest import Captions, add_images, add_texts, find_images
    from twinspire.ingest.upsert import count_lines

    if not paths and not texts:
        raise InputError("no input: pass images or folders of images (PATH...), or --texts FILE")
    ingest = captions.read()
    images = find_images(paths, on_error="skip") if paths else []
    lines = count_lines(texts) if texts else 0
    if isinstance(ingest.captions, Captions) and not any(ingest.captions.mentions(path) for path in images):
        raise InputError(
            f"{captions.captions} has no row for any of the {len(images):,} images, such as {images[0].name}: expected "
            "the names of their files, or their paths from its folder"
            if images
            else "--captions needs images: pass images or folders of images (PATH...)"
        )
    reports: list[IngestReport] = []
    with ExitStack() as stack:
        store, client = open_store_and_client(stack, index, options, lazy=True)
        start_s = time.perf_counter()
        if paths:
            with ProgressBar("images") as bar:
                reports.append(add_images(store, client, images, ingest, on_progress=bar.adding(len(images))))
        if texts:
            with ProgressBar("texts") as bar:
                reports.append(add_texts(store, client, texts, on_progress=bar.adding(lines)))
        items, elapsed_s = len(store), time.perf_counter() - start_s
    counts = {
        name: sum(getattr(report, name) for report in reports) for name in ("added", "already", "changed", "captioned")
    }
    failed = [failure for report in reports for failure in report.failed]
    skipped = {suffix: count for report in reports for suffix, count in report.skipped.items()}
    if as_json:
        print_json(
            {
                "schema_version": 1,
                "index": shown_uri(index),
                **counts,
                "failed": [{"path": printable(path), "cause": cause} for path, cause in failed],
                "skipped": {printable(suffix): count for suffix, count in skipped.items()},
                "items": items,
                "elapsed_s": round(elapsed_s, 3),
            }
        )
    else:
        unit = "images" if not texts else "items" if images else "texts"
        typer.echo(_summary(counts, len(failed), elapsed_s, unit))
        if items:
            typer.echo(f"{printable(index)} holds {counted(items)}")
        print_skipped(skipped)
        for path, cause in failed:
            print_failed(path, cause)
    end_with_failures(len(failed), len(failed) + counts["added"] + counts["already"] + counts["changed"])


def _summary(counts: dict[str, int], failed: int, elapsed_s: float, unit: str) -> str:
    added = counts["added"]
    rate = f" in {elapsed_s:.1f} s ({added / elapsed_s:,.1f} {unit}/s)" if added else ""
    others = {
        "changed": counts["changed"],
        "with a caption": counts["captioned"],
        "there already": counts["already"],
        "failed": failed,
    }
    return ", ".join([f"{added:,} added{rate}", *(f"{count:,} {name}" for name, count in others.items() if count)])
