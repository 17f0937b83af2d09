"""`twinspire index add`: add images and lines of text to an index."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from twinspire.cli.client_options import ClientOptions, with_client_options
from twinspire.cli.index.shared import (
    CaptionOptions,
    ProgressBar,
    StoreArgument,
    open_store_and_client,
    print_ingest,
    with_caption_options,
)
from twinspire.cli.shared import JsonOption
from twinspire.errors import InputError


@with_client_options
@with_caption_options
def add(
    index: StoreArgument,
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH...", help="Images, and folders of images.", show_default=False)
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
    from twinspire.ingest import Captions, IngestReport, add_images, add_texts, find_images
    from twinspire.ingest.upsert import count_lines

    if not paths and not texts:
        raise InputError("no input: pass images or folders of images (PATH...), or --texts FILE")
    ingest = captions.read()
    images = find_images(paths, on_error="skip") if paths else []
    lines = count_lines(texts) if texts else 0
    if isinstance(ingest.captions, Captions) and not any(ingest.captions.mentions(path) for path in images):
        raise InputError(
            f"{captions.captions} has no row for any of the {len(images):,} images, such as {images[0].name}: expected "
            "file names, or paths relative to the folder of the captions file"
            if images
            else "--captions needs images: pass images or folders of images (PATH...)"
        )
    reports: list[IngestReport] = []
    unit = "images" if not texts else "items" if images else "texts"
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
    report = IngestReport(
        added=sum(report.added for report in reports),
        already=sum(report.already for report in reports),
        failed=[failed for report in reports for failed in report.failed],
        captioned=sum(report.captioned for report in reports),
        changed=sum(report.changed for report in reports),
        skipped={suffix: count for report in reports for suffix, count in report.skipped.items()},
    )
    counts = {name: getattr(report, name) for name in ("added", "already", "changed", "captioned")}
    rate = f" in {elapsed_s:.1f} s ({report.added / elapsed_s:,.1f} {unit}/s)" if report.added else ""
    others = {
        "changed": report.changed,
        "with a caption": report.captioned,
        "already indexed": report.already,
        "failed": len(report.failed),
    }
    parts = [f"{report.added:,} added{rate}", *(f"{count:,} {name}" for name, count in others.items() if count)]
    print_ingest(index, report, counts, ", ".join(parts), items=items, elapsed_s=elapsed_s, as_json=as_json)
