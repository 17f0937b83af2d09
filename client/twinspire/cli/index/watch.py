"""`twinspire index sync` and `twinspire index watch`: make an index match folders of images, once or until Ctrl-C."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.client_options import ClientOptions, with_client_options
from twinspire.cli.index.shared import (
    CaptionOptions,
    FoldersArgument,
    ProgressBar,
    StoreArgument,
    check_target,
    counted,
    exists,
    open_store_and_client,
    print_failed,
    print_ingest,
    with_caption_options,
)
from twinspire.cli.shared import JsonOption, printable, shortened
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.errors import ServerUnavailableError
    from twinspire.ingest import FolderEvent, IngestOptions


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

    folders, ingest = _checked(index, folders, captions)
    if dry_run and not exists(index):
        raise InputError(f"there is no index at {printable(index)}: --dry-run needs one to compare with")
    start_s = time.perf_counter()
    with ExitStack() as stack:
        store, client = open_store_and_client(stack, index, options, mode="read" if dry_run else "write")
        with ProgressBar("files") as bar:
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
    summary = ", ".join(f"{count:,} {names.get(name, name)}" for name, count in shown.items() if count) or "no files"
    print_ingest(
        index,
        report,
        {"dry_run": dry_run, **counts},
        f"would be: {summary}" if dry_run else summary,
        items=items,
        elapsed_s=time.perf_counter() - start_s,
        as_json=as_json,
    )


@with_client_options
@with_caption_options
def watch(
    index: StoreArgument,
    folders: FoldersArgument = None,
    *,
    captions: CaptionOptions,
    options: ClientOptions,
    poll: Annotated[
        bool, typer.Option("--poll", help="Compare the files' times instead of using inotify, for network drives.")
    ] = False,
    rescan: Annotated[
        float,
        typer.Option("--rescan", metavar="SECONDS", help="How often to compare everything, in case events were lost."),
    ] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print every change as a line of JSON.")] = False,
) -> None:
    """Keep an index in step with folders of images until Ctrl-C; the index is created if it does not exist.

    First it catches up with what changed since the last run. New images are added, changed ones encoded again, moved
    ones keep their ids, deleted ones are removed. With --server, a server that stops answering is waited for.
    """
    from twinspire.ingest import watch as watch_folders

    if not rescan > 0:
        raise InputError(f"--rescan must be a number of seconds above 0, got {rescan:g}")
    folders, ingest = _checked(index, folders, captions)
    with ExitStack() as stack:
        store, client = open_store_and_client(stack, index, options)
        printer = _Printer(folders, as_json=as_json)
        stack.callback(printer.bar.close)
        try:
            watch_folders(
                store,
                client,
                folders,
                replace(ingest, on_event=printer.event),
                poll=poll or None,
                rescan_s=rescan,
                on_progress=printer.bar.update,
                on_caught_up=printer.caught_up,
                on_server=printer.server,
            )
        except KeyboardInterrupt:  # the regular end
            printer.end(index, len(store))


def _checked(index: str, folders: list[Path] | None, captions: CaptionOptions) -> tuple[list[Path], IngestOptions]:
    """Return the folders and the captions, checked before anything is loaded. Raises `InputError`."""
    from twinspire.ingest.sync import checked_folders

    if not folders:
        raise InputError("no input: pass folders of images or sounds (DIR...)")
    checked_folders(folders)
    options = captions.read()
    check_target(index)
    return folders, options


class _Printer:
    """Prints progress and failures while the watch catches up, then every change."""

    def __init__(self, folders: Sequence[Path], *, as_json: bool) -> None:
        self._folders = ", ".join(printable(folder) for folder in folders)
        self._as_json = as_json
        self.bar = ProgressBar("files")
        self._start_s = time.perf_counter()
        self._following = False
        self._counts: Counter[str] = Counter()

    def event(self, event: FolderEvent) -> None:
        """Print and count one change."""
        self._counts[event.happened.value] += 1
        if self._as_json:
            self._print_json(
                {
                    "event": event.happened.value,
                    "path": printable(event.path),
                    "id": event.id,
                    "before": printable(event.before) if event.before is not None else None,
                    "cause": event.cause,
                }
            )
        elif event.cause is not None:
            print_failed(event.path, event.cause)
        elif self._following:
            before = f"  (was {shortened(str(event.before))})" if event.before is not None else ""
            typer.echo(f"{_now()}  {event.happened.value:<9}  {shortened(str(event.path))}{before}")

    def server(self, error: ServerUnavailableError | None) -> None:
        """Print that the server is unavailable, or that it answers again."""
        if self._as_json:
            self._print_json({"event": "server", "available": error is None, "cause": str(error) if error else None})
        elif error is None:
            typer.echo("the server answers again", err=True)
        else:
            typer.echo(f"waiting for the server, trying again: {printable(str(error))}", err=True)

    def caught_up(self) -> None:
        """Print a summary of catching up."""
        self.bar.close()
        elapsed_s = time.perf_counter() - self._start_s
        if self._as_json:
            self._print_json({"event": "caught_up", **self._counts, "elapsed_s": round(elapsed_s, 3)})
        else:
            typer.echo(f"caught up in {elapsed_s:.1f} s: {self._counted() or 'nothing had changed'}")
            typer.echo(f"watching {self._folders}; Ctrl-C ends it", err=True)
        self._following = True
        self._counts.clear()

    def end(self, index: str, items: int) -> None:
        """Print a summary of what was done since, after Ctrl-C."""
        self.bar.close()
        if self._as_json:
            self._print_json({"event": "ended", **self._counts, "items": items})
            return
        if sys.stdout.isatty():
            typer.echo()  # after the terminal's ^C
        if self._following:
            typer.echo(f"{self._counted() or 'nothing changed'} while watching")
        else:
            typer.echo("interrupted while catching up: the next start continues from here")
        typer.echo(f"{printable(index)} holds {counted(items)}")

    def _counted(self) -> str:
        return ", ".join(f"{count:,} {happened}" for happened, count in self._counts.items())

    def _print_json(self, document: dict[str, object]) -> None:
        line = json.dumps({"schema_version": 1, "time": time.time(), **document}, ensure_ascii=False)
        sys.stdout.flush()
        typer.echo(f"{line}\n".encode(), nl=False)


def _now() -> str:
    return time.strftime("%H:%M:%S")
