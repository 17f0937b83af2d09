"""`twinspire index watch`: an index that follows its folders."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
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
    open_index_and_client,
    print_failed,
    progress,
)
from twinspire.cli.shared import printable, shortened
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.ingest import FolderEvent

FoldersArgument = Annotated[
    list[Path] | None, typer.Argument(metavar="DIR...", help="Folders of pictures.", show_default=False)
]


@with_client_options
def watch(
    index: IndexArgument,
    folders: FoldersArgument = None,
    captions: CaptionsOption = None,
    sidecars: SidecarsOption = False,
    fuse_captions: FuseOption = None,
    on_conflict: OnConflictOption = "table",
    *,
    options: ClientOptions,
    poll: Annotated[bool, typer.Option("--poll", help="Look at the files' times: for network drives.")] = False,
    rescan: Annotated[
        float, typer.Option("--rescan", metavar="SECONDS", help="How often to compare everything, for lost events.")
    ] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print every change as a line of JSON.")] = False,
) -> None:
    """Keep an index in step with folders of images until Ctrl-C; it is made if it is not there.

    First it catches up with what changed while nobody watched. New images are added, changed ones encoded again,
    moved ones keep their ids, deleted ones are removed.
    """
    from twinspire.ingest import watch as follow

    if not folders:
        raise InputError("nothing to watch came: expected DIR..., folders of pictures")
    if not rescan > 0:
        raise InputError(f"--rescan is a number of seconds above 0, got {rescan:g}")
    check_folders(folders)
    source = caption_source(captions, sidecars=sidecars, fuse_captions=fuse_captions, on_conflict=on_conflict)
    check_target(index)
    with ExitStack() as stack:
        opened, client = open_index_and_client(stack, index, options)
        teller = stack.enter_context(_Teller(folders, as_json=as_json))
        try:
            follow(
                opened,
                client,
                folders,
                captions=source,
                fuse_captions=fuse_captions,
                poll=poll or None,
                rescan_s=rescan,
                on_event=teller.event,
                on_progress=teller.progress,
                on_caught_up=teller.caught_up,
            )
        except KeyboardInterrupt:  # the way in which this is ended
            teller.end(index, len(opened))


def check_folders(folders: Sequence[Path]) -> None:
    """Refuse what is no folder, before anything is loaded. Raises `InputError`."""
    for folder in folders:
        if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
            found = "is no folder" if os.path.lexists(folder) else "is not there"
            raise InputError(f"{printable(folder)} {found}: expected a folder of pictures")


class _Teller:
    """Says what happens: while the index catches up how far it is and what failed, then every change."""

    def __init__(self, folders: Sequence[Path], *, as_json: bool) -> None:
        self._folders = ", ".join(printable(folder) for folder in folders)
        self._as_json = as_json
        self._bar = ExitStack()
        self._advance: Callable[[int], None] | None = None
        self._done, self._total = 0, 0
        self._start_s = time.perf_counter()
        self._following = False
        self._counts: Counter[str] = Counter()

    def event(self, event: FolderEvent) -> None:
        """Take in one change."""
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

    def progress(self, done: int, total: int) -> None:
        """Take in how many of the new images are done."""
        if (done, total) < (self._done, self._total) or total != self._total:  # the next folder
            self._bar.close()
            self._advance, self._done, self._total = None, 0, total
        if self._advance is None:
            self._advance = self._bar.enter_context(progress("images", total))
        self._advance(done - self._done)
        self._done = done

    def caught_up(self) -> None:
        """Say what catching up came to."""
        self._bar.close()
        elapsed_s = time.perf_counter() - self._start_s
        if self._as_json:
            self._print_json({"event": "caught_up", **self._counts, "elapsed_s": round(elapsed_s, 3)})
        else:
            typer.echo(f"caught up in {elapsed_s:.1f} s: {self._counted() or 'nothing had changed'}")
            typer.echo(f"watching {self._folders}; Ctrl-C ends it", err=True)
        self._following = True
        self._counts.clear()

    def end(self, index: Path, items: int) -> None:
        """Say what has been done since, after Ctrl-C."""
        self._bar.close()
        if self._as_json:
            self._print_json({"event": "ended", **self._counts, "items": items})
            return
        if sys.stdout.isatty():
            typer.echo()  # behind the terminal's ^C
        if self._following:
            typer.echo(f"{self._counted() or 'nothing changed'} while watching")
        else:
            typer.echo("interrupted while catching up: the next start goes on from here")
        typer.echo(f"{printable(index)} holds {items:,} item{'' if items == 1 else 's'}")

    def __enter__(self) -> _Teller:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _counted(self) -> str:
        return ", ".join(f"{count:,} {happened}" for happened, count in self._counts.items())

    def _print_json(self, document: dict[str, object]) -> None:
        line = json.dumps({"schema_version": 1, "time": time.time(), **document}, ensure_ascii=False)
        sys.stdout.flush()
        typer.echo(f"{line}\n".encode(), nl=False)


def _now() -> str:
    return time.strftime("%H:%M:%S")
