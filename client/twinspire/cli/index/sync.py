"""`twinspire index sync`: make an index match folders of images, once."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Annotated

import typer

from twinspire.cli.client_options import ClientOptions, with_client_options
from twinspire.cli.index.shared import (
    CaptionOptions,
    FoldersArgument,
    ProgressBar,
    StoreArgument,
    check_target,
    exists,
    open_store_and_client,
    print_ingest,
    with_caption_options,
)
from twinspire.cli.shared import JsonOption, printable
from twinspire.errors import InputError


@with_client_options
@with_caption_options
def sync(
    index: StoreArgument,
    folders: FoldersArgument = None,
    *,
    captions: CaptionOptions,
    options: ClientOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report what would be done; nothing is decoded or changed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make an index match folders of images, once, as from cron; the index is created if it does not exist.

    New images are added, changed ones encoded again, moved ones keep their ids, and deleted ones are removed. A folder
    whose images are all gone at once is refused: its disk may not be mounted. Ends with status 3 where some files
    failed and the others were brought up to date.
    """
    from twinspire.ingest import sync as sync_folders
    from twinspire.ingest.sync import checked_folders

    if not folders:
        raise InputError("no input: pass folders of images (DIR...)")
    checked_folders(folders)  # before anything is loaded
    ingest = captions.read()
    check_target(index)
    if dry_run and not exists(index):
        raise InputError(f"no index at {printable(index)}: --dry-run needs an existing index to compare with")
    start_s = time.perf_counter()
    with ExitStack() as stack:
        store, client = open_store_and_client(stack, index, options, mode="read" if dry_run else "write")
        with ProgressBar("images") as bar:
            report = sync_folders(store, client, folders, ingest, dry_run=dry_run, on_progress=bar.update)
        items = len(store)
    counts = {
        "added": report.added,
        "changed": report.changed - report.moved,
        "moved": report.moved,
        "captioned": report.captioned,
        "removed": report.removed,
        "unchanged": report.already,
    }
    names = {"captioned": "with a caption"}
    shown = {**counts, "failed": len(report.failed)}
    summary = ", ".join(f"{count:,} {names.get(name, name)}" for name, count in shown.items() if count) or "no images"
    print_ingest(
        index,
        report,
        {"dry_run": dry_run, **counts},
        f"would be: {summary}" if dry_run else summary,
        items=items,
        elapsed_s=time.perf_counter() - start_s,
        as_json=as_json,
    )
