"""`twinspire index add`: add images, sounds and lines of text to an index."""

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
        list[Path] | None,
        typer.Argument(metavar="PATH...", help="Images or sounds, and folders of them.", show_default=False),
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
    """Add images, sounds and lines of text to an index, which is created if it does not exist.

    Images are added where the bundle has an image tower, sounds (WAV, FLAC, OGG, MP3, ...) where it has an audio tower.

    Files that the index has already are skipped, so an interrupted run is finished by running it again; a file that was
    moved or changed keeps its item. Ends with status 3 where some files failed and the others were added.
    """
    from twinspire.ingest import Captions, FoundImages, IngestReport, add_images, add_texts, find_files
    from twinspire.ingest.discovery import no_files
    from twinspire.ingest.kinds import FILE_KINDS, FileKinds
    from twinspire.ingest.upsert import count_lines

    if not paths and not texts:
        raise InputError("no input: pass images or sounds or folders of them (PATH...), or --texts FILE")
    ingest = captions.read()
    found = find_files(paths, kinds=FILE_KINDS, on_error="skip") if paths else FoundImages()
    lines = count_lines(texts) if texts else 0
    if isinstance(ingest.captions, Captions) and not any(ingest.captions.mentions(path) for path in found):
        raise InputError(
            f"{captions.captions} has no row for any of the {len(found):,} files, such as {found[0].name}: expected "
            "file names, or paths relative to the folder of the captions file"
            if found
            else "--captions needs files: pass images or sounds or folders of them (PATH...)"
        )
    reports: list[IngestReport] = []
    with ExitStack() as stack:
        store, client = open_store_and_client(stack, index, options, lazy=True)
        start_s = time.perf_counter()
        unit = "items" if paths and texts else "texts"
        if paths:
            kinds = FileKinds.of(client)
            files = found.only(kinds.limits)
            if not files and not files.failed:
                raise no_files(None, kinds.limits, files.skipped)
            unit = "items" if texts or len(kinds.limits) > 1 else kinds.nouns
            with ProgressBar(unit) as bar:
                reports.append(add_images(store, client, files, ingest, on_progress=bar.adding(len(files))))
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
