"""Following folders: an index that holds what they hold, as long as `watch` runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from twinspire.errors import InputError
from twinspire.index import Index, ItemKind, StoredItem
from twinspire.ingest.captions import CaptionSource, Sidecars
from twinspire.ingest.finding import absolute, is_picture, pictures_below, require_list
from twinspire.ingest.follow import FolderEvent, Follower, Happened
from twinspire.ingest.placing import is_gone

if TYPE_CHECKING:
    from twinspire.client import Client


def _ignore(*_: object) -> None:
    """Take what nobody asked for."""


Signature = tuple[int, int, int] | None

_LOOK_EVERY_MS = 100
_GATHER_MS = 50  # changes that come this close are taken together


def watch(
    index: Index,
    client: Client,
    folders: Iterable[str | os.PathLike[str]],
    *,
    batch: int = 32,
    captions: CaptionSource | None = None,
    fuse_captions: float | None = None,
    settle_s: float = 0.5,
    gone_s: float = 1.5,
    poll: bool | None = None,
    on_event: Callable[[FolderEvent], None] = _ignore,
    on_progress: Callable[[int, int], None] = _ignore,
    on_caught_up: Callable[[], None] = _ignore,
    stop: threading.Event | None = None,
) -> None:
    """Keep `index`, open for writing, in step with the pictures in `folders` and below, until `stop` is set.

    First it catches up with what changed while nobody watched, then it follows: a new picture is added, a changed one
    encoded again under its id, a moved one keeps its id and vector, a deleted one is removed. Pictures that the index
    holds from elsewhere are left alone, so are texts. A file is taken once it has not changed for `settle_s`: one that
    is half written waits, and one that could not be decoded is tried again when it changes. An item whose file is gone
    is kept for `gone_s`, in case it turns up elsewhere. Captions are taken as `add_pictures` does; where the source
    says something new about a picture its caption and metadata follow (a changed sidecar is seen at once, a file of
    captions at the next start).

    The folders' own disappearance is an error and removes nothing, and so is a folder that is found empty at the start
    though the index holds pictures of it: a disk that is not mounted looks the same. `poll` looks at the files' times
    instead of asking the system, for network drives; by default only where there is nothing else.

    Callbacks come from the calling thread: `on_progress` with how many of the new pictures are done while it catches
    up, `on_caught_up` once. Ctrl-C in the main thread raises KeyboardInterrupt after the change in hand; whatever was
    told is durable.

    Raises `InputError` for what is no folder, and what `add_pictures` raises.
    """
    roots = _roots(folders)
    index.check_space(client.space)
    follower = Follower(index, client, batch=batch, captions=captions, fuse_captions=fuse_captions, on_event=on_event)
    waiting = _Waiting(settle_s=settle_s, gone_s=gone_s, sidecars=isinstance(captions, Sidecars))
    with closing(_changes(roots, stop=stop, poll=poll)) as stream:
        next(stream, None)  # from here on nothing is missed
        for root in roots:
            follower.catch_up(root, on_progress=on_progress)
        on_caught_up()
        for changes in stream:
            waiting.note(changes)
            due = waiting.due()
            _require_there(roots)
            for root in set(roots).intersection(due):
                follower.catch_up(root)
            rest = [path for path in due if path not in roots]
            if files_and_items := _concerned(index, rest, on_event):
                waiting.note(follower.put_right(*files_and_items))


def _changes(
    roots: Sequence[Path], *, stop: threading.Event | None, poll: bool | None
) -> Generator[list[Path], None, None]:
    """Yield the paths at which something happened, several times a second, until `stop` is set; often none."""
    from watchfiles import watch as changes_below

    try:
        for changes in changes_below(
            *roots,
            watch_filter=None,
            debounce=2 * _GATHER_MS,
            step=_GATHER_MS,
            rust_timeout=_LOOK_EVERY_MS,
            yield_on_timeout=True,
            stop_event=stop,
            force_polling=poll,
        ):
            yield [Path(path) for _, path in changes]
    except OSError as error:
        advice = "" if poll else ". Where the system's limit of watches is reached, raise it or poll"
        raise InputError(f"{', '.join(map(str, roots))} cannot be watched: {error}{advice}") from error


class _Waiting:
    """Paths at which something happened, until they have been at rest for long enough."""

    def __init__(self, *, settle_s: float, gone_s: float, sidecars: bool) -> None:
        self._settle_s, self._gone_s, self._sidecars = settle_s, gone_s, sidecars
        self._since: dict[Path, tuple[Signature, float]] = {}

    def note(self, paths: Iterable[Path]) -> None:
        """Take in that something happened at `paths`."""
        for path in paths:
            for concerned in [path, *(_captioned_by(path) if self._sidecars else ())]:
                self._since[concerned] = (_signature(concerned), time.monotonic())

    def due(self) -> list[Path]:
        """Return, and forget, the paths that have not changed for long enough."""
        now, due = time.monotonic(), []
        for path, (before, since) in list(self._since.items()):
            signature = _signature(path)
            if signature != before:
                self._since[path] = (signature, now)
            elif now - since >= (self._settle_s if signature is not None else self._gone_s):
                del self._since[path]
                due.append(path)
        return due


def _concerned(
    index: Index, paths: Sequence[Path], on_event: Callable[[FolderEvent], None]
) -> tuple[list[Path], list[StoredItem]] | None:
    """Return the pictures at and below `paths`, and the items that are said to be there; None for neither."""
    files: dict[Path, None] = {}
    items: dict[int, StoredItem] = {}
    for path in paths:
        if path.is_dir():
            try:
                files.update(dict.fromkeys(pictures_below(path)))
            except InputError as error:
                on_event(FolderEvent(Happened.FAILED, path, cause=str(error)))
        elif is_picture(path) and not is_gone(path):
            files[path] = None
        if _is_text(path):
            found = [*index.find(uri=str(path)), *index.find(under=str(path))]
            items |= {item.id: item for item in found if item.kind is ItemKind.IMAGE}
    return (list(files), list(items.values())) if files or items else None


def _roots(folders: Iterable[str | os.PathLike[str]]) -> list[Path]:
    require_list(folders)
    roots = list(dict.fromkeys(absolute(folder) for folder in folders))
    if not roots:
        raise InputError("no folder was given: expected folders of pictures")
    for root in roots:
        if not root.is_dir():
            found = "is no folder" if os.path.lexists(root) else "is not there"
            raise InputError(f"{root} {found}: expected a folder of pictures to watch")
        if any(other in root.parents for other in roots):
            raise InputError(f"{root} is part of another folder that was given: leave it out")
    return roots


def _require_there(roots: Sequence[Path]) -> None:
    for root in roots:
        if not root.is_dir():
            raise InputError(
                f"the folder {root} is gone: nothing of it was removed from the index, its disk may just be away. "
                "Start again when it is back"
            )


def _signature(path: Path) -> Signature:
    """Return what changes when a file is written to; None where there is nothing."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _captioned_by(path: Path) -> list[Path]:
    """Return the pictures that a text file beside them may be about."""
    if path.suffix != ".txt":
        return []
    try:
        beside = [entry for entry in path.parent.iterdir() if is_picture(entry)]
    except OSError:
        return []
    return [entry for entry in beside if path in (entry.with_name(entry.name + ".txt"), entry.with_suffix(".txt"))]


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
