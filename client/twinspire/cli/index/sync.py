"""`twinspire index sync`: an index brought in step with its folders, once."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.client_options import ClientOptions, with_client_options
from twinspire.cli.index.add import (
    CaptionsOption,
    FuseOption,
    IndexArgument,
    OnConflictOption,
    SidecarsOption,
    caption_source,
    check_target,
    end_with_failures,
    is_index,
    open_index_and_client,
    print_failed,
    print_skipped,
    progress,
)
from twinspire.cli.index.watch import FoldersArgument, check_folders
from twinspire.cli.shared import JsonOption, print_json, printable
from twinspire.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from twinspire.ingest import IngestReport


@with_client_options
def sync(
    index: IndexArgument,
    folders: FoldersArgument = None,
    captions: CaptionsOption = None,
    sidecars: SidecarsOption = False,
    fuse_captions: FuseOption = None,
    on_conflict: OnConflictOption = "table",
    *,
    options: ClientOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done: nothing is decoded or changed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring an index in step with folders of images, once; it is made if it is not there. For cron.

    New images are added, changed ones encoded again, moved ones keep their ids, and deleted ones are removed. A
    folder all of whose images are gone at once is refused: its disk may just be away. Ends with status 3 where some
    files failed and the others are in step.
    """
    from twinspire.ingest import sync as bring_in_step

    if not folders:
        raise InputError("nothing to bring in step came: expected DIR..., folders of pictures")
    check_folders(folders)
    source = caption_source(captions, sidecars=sidecars, fuse_captions=fuse_captions, on_conflict=on_conflict)
    check_target(index)
    if dry_run and not is_index(index):
        raise InputError(f"there is no index at {printable(index)}: --dry-run needs one to compare with")
    start_s = time.perf_counter()
    with ExitStack() as stack:
        opened, client = open_index_and_client(stack, index, options, mode="read" if dry_run else "write")
        bar = stack.enter_context(ExitStack())
        report = bring_in_step(
            opened,
            client,
            folders,
            captions=source,
            fuse_captions=fuse_captions,
            dry_run=dry_run,
            on_progress=_shown(bar),
        )
        bar.close()
        items = len(opened)
    counts = {
        "added": report.added,
        "changed": report.changed - report.moved,
        "moved": report.moved,
        "captioned": report.captioned,
        "removed": report.removed,
        "unchanged": report.already,
    }
    if as_json:
        failed = [{"path": printable(path), "cause": cause} for path, cause in report.failed]
        print_json(
            {
                "schema_version": 1,
                "index": printable(index.absolute()),
                "dry_run": dry_run,
                **counts,
                "failed": failed,
                "skipped": {printable(suffix): count for suffix, count in report.skipped.items()},
                "items": items,
                "elapsed_s": round(time.perf_counter() - start_s, 3),
            }
        )
    else:
        _print(index, counts, report, items, dry_run=dry_run)
    done = report.added + report.changed + report.removed + report.already
    end_with_failures(len(report.failed), len(report.failed) + done)


def _print(index: Path, counts: dict[str, int], report: IngestReport, items: int, *, dry_run: bool) -> None:
    shown = {name: count for name, count in {**counts, "failed": len(report.failed)}.items() if count}
    words = ", ".join(f"{count:,} {'with a caption' if name == 'captioned' else name}" for name, count in shown.items())
    would = "would be: " if dry_run else ""
    typer.echo(f"{would}{words or 'no pictures'}")
    typer.echo(f"{printable(index)} holds {items:,} item{'' if items == 1 else 's'}")
    print_skipped(report.skipped)
    for path, cause in report.failed:
        print_failed(path, cause)


def _shown(bar: ExitStack) -> Callable[[int, int], None]:
    """Return what shows how many of the files are done."""
    advance: Callable[[int], None] | None = None
    shown = 0

    def show(done: int, total: int) -> None:
        nonlocal advance, shown
        if advance is None:
            advance = bar.enter_context(progress("images", total))
        advance(done - shown)
        shown = done

    return show
