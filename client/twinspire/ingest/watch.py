"""Following folders: an index that holds what they hold, as long as `watch` runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twinspire.errors import InputError
from twinspire.index import Index, StoredItem
from twinspire.ingest.captions import CaptionSource, Sidecars, sidecars_of
from twinspire.ingest.changes import Signature, signature_of, watched
from twinspire.ingest.finding import is_picture, pictures_below
from twinspire.ingest.pictures import checked_folders, folder_progress, folders_state
from twinspire.ingest.reading import WRITTEN_TO, is_gone, is_text, looks_the_same, pictures_of
from twinspire.ingest.reconcile import Reconciler
from twinspire.ingest.reports import FailedPicture, FolderEvent, Happened
from twinspire.ingest.stages import PictureItems

if TYPE_CHECKING:
    from twinspire.client import Client

_LOOK_EVERY_S = 0.1
_RESCAN_SHARE = 20  # a rescan that took a second is not repeated for 20


def _ignore(*_: object) -> None:
    """Take what nobody asked for."""


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
    rescan_s: float = 300.0,
    poll: bool | None = None,
    on_event: Callable[[FolderEvent], None] = _ignore,
    on_progress: Callable[[int, int], None] = _ignore,
    on_caught_up: Callable[[], None] = _ignore,
    stop: threading.Event | None = None,
) -> None:
    """Keep `index`, open for writing, in step with the pictures in `folders` and below, until `stop` is set.

    First it catches up with what changed while nobody watched, as `sync` does, then it follows: a new picture is added,
    a changed one encoded again under its id, a moved one keeps its id and vector, a deleted one is removed. Pictures
    that the index holds from elsewhere are left alone, so are texts; links to folders are not followed. A file is taken
    once it has not changed for `settle_s`: one that is half written waits, and one that could not be decoded is tried
    again when it changes. An item whose file is gone is kept for `gone_s`, in case it turns up elsewhere, and as long
    as its file is being renamed. Captions are taken as `add_pictures` does; where the source says something new about a
    picture its caption and metadata follow (a changed sidecar is seen at once, a file of captions at the next start).

    What the system reports may be incomplete: its queue overflows when too much happens at once. Where it says so,
    and every `rescan_s` seconds (infinity: never; less often where that takes long), the folders are compared with the
    index as a whole. A folder that cannot be read or watched is told as failed, and the rest is followed.

    The folders' own disappearance is an error and removes nothing, and so is a folder that is found empty as a whole
    though the index holds pictures of it: a disk that is not mounted looks the same. `poll` looks at the files' times
    instead of asking the system, for network drives; by default only where there is nothing else.

    Callbacks come from the calling thread: `on_progress` with how many of the pictures that are read are done while it
    catches up, `on_caught_up` once. Ctrl-C in the main thread raises KeyboardInterrupt after the change in hand;
    whatever was told is durable.

    Raises `InputError` for what is no folder, and what `add_pictures` raises.
    """
    roots = checked_folders(folders)
    if not rescan_s > 0:
        raise InputError(f"rescan_s, the seconds between two looks at everything, must be above 0, got {rescan_s!r}")
    index.check_space(client.space)
    refused: dict[Path, Signature] = {}  # files that failed, as they were then

    def tell(event: FolderEvent) -> None:
        if event.happened is not Happened.FAILED:
            refused.pop(event.path, None)
        elif (is_gone(event.path) and not event.path.is_dir()) or event.cause == WRITTEN_TO:
            return  # by now; it will be seen again
        else:
            refused[event.path] = signature_of(event.path)
        on_event(event)

    told: set[FailedPicture] = set()

    def tell_folders(failed: list[FailedPicture]) -> None:
        for path, cause in failed:
            if FailedPicture(path, cause) not in told:
                told.add(FailedPicture(path, cause))
                on_event(FolderEvent(Happened.FAILED, path, cause=cause))
        failed.clear()

    reconciler = Reconciler(index, client, PictureItems(captions, fuse_captions), batch=batch, on_event=tell)
    waiting = _Waiting(settle_s=settle_s, gone_s=gone_s, sidecars=isinstance(captions, Sidecars))
    with watched(roots, poll=poll) as source:  # from here on nothing is missed
        found, items = folders_state(index, roots)
        tell_folders(source.failed)
        tell_folders(found.failed)
        _, unsettled = reconciler.run(found, items, progress=folder_progress(on_progress))
        waiting.note(unsettled)
        on_caught_up()
        rescan_at_s = time.monotonic() + rescan_s
        while stop is None or not stop.is_set():
            changes = source.wait(_LOOK_EVERY_S)
            waiting.note(changes.paths)
            _require_there(roots)
            tell_folders(source.failed)
            if changes.lost or time.monotonic() >= rescan_at_s:
                start_s = time.monotonic()
                found, items = folders_state(index, roots, explained=waiting.concerns)
                tell_folders(found.failed)
                waiting.note(_differing(found, items, captions, refused), again=False)
                end_s = time.monotonic()
                rescan_at_s = end_s + max(rescan_s, _RESCAN_SHARE * (end_s - start_s))
            files, concerned = _concerned(index, waiting.due(), tell_folders)
            if files or concerned:
                _, unsettled = reconciler.run(files, concerned, in_flight=waiting.may_hold)
                waiting.note(unsettled)


class _Waiting:
    """Paths at which something happened, until they have been at rest for long enough."""

    def __init__(self, *, settle_s: float, gone_s: float, sidecars: bool) -> None:
        self._settle_s, self._gone_s, self._sidecars = settle_s, gone_s, sidecars
        self._since: dict[Path, tuple[Signature, float]] = {}

    def note(self, paths: Iterable[Path], *, again: bool = True) -> None:
        """Take in that something happened at `paths`; with `again` those that wait already start over."""
        for path in paths:
            for concerned in [path, *(_captioned_by(path) if self._sidecars else ())]:
                if again or concerned not in self._since:
                    self._since[concerned] = (signature_of(concerned), time.monotonic())

    def due(self) -> list[Path]:
        """Return, and forget, the paths that have not changed for long enough."""
        now, due = time.monotonic(), []
        for path, (before, since) in list(self._since.items()):
            signature = signature_of(path)
            if signature != before:
                self._since[path] = (signature, now)
            elif now - since >= (self._settle_s if signature is not None else self._gone_s):
                del self._since[path]
                due.append(path)
        return due

    def may_hold(self, item: StoredItem) -> bool:
        """Whether a path that waits may be where an item's file is now: a file of its inode, or any folder."""
        inode = item.metadata.get("inode")
        return any(
            signature is not None and (signature[0] == inode or (signature[1:] == (0, 0) and path.is_dir()))
            for path, (signature, _) in self._since.items()
        )

    def concerns(self, path: Path) -> bool:
        """Whether a path waits, or a folder above it."""
        return path in self._since or any(parent in self._since for parent in path.parents)


def _differing(
    found: Sequence[Path], items: Sequence[StoredItem], captions: CaptionSource | None, refused: dict[Path, Signature]
) -> Iterator[Path]:
    """Give the paths where the folders and the index differ, but for files that failed and have not changed since."""
    held = {item.uri for item in items}
    suspicious = [path for path in found if str(path) not in held]
    suspicious += [Path(item.uri) for item in items if not looks_the_same(item) or _says_more(captions, item)]
    for path in suspicious:
        if path not in refused or refused[path] != signature_of(path):
            yield path


def _says_more(captions: CaptionSource | None, item: StoredItem) -> bool:
    """Whether a sidecar has another caption than the item of its picture; a file of captions is read at the start."""
    if not isinstance(captions, Sidecars):
        return False
    try:
        said = "\n".join(captions.of(Path(item.uri)))
    except InputError:
        return True
    return bool(said) and said != item.caption


def _concerned(
    index: Index, paths: Iterable[Path], tell_folders: Callable[[list[FailedPicture]], None]
) -> tuple[list[Path], list[StoredItem]]:
    """Return the pictures at and below `paths`, and the items that are said to be there."""
    files: dict[Path, None] = {}
    items: dict[int, StoredItem] = {}
    for path in paths:
        unread: list[Path] = []
        if path.is_dir():
            if not path.is_symlink():  # as `find_pictures` has it
                below = pictures_below(path)
                unread = [failed.path for failed in below.failed]
                tell_folders(below.failed)
                files.update(dict.fromkeys(below))
        elif is_picture(path) and not is_gone(path):
            files[path] = None
        if is_text(path):
            for item in pictures_of([*index.find(uri=str(path)), *index.find(under=str(path))]):
                if not any(folder in Path(item.uri).parents for folder in unread):
                    items[item.id] = item
    return list(files), list(items.values())


def _require_there(roots: Sequence[Path]) -> None:
    for root in roots:
        if not root.is_dir():
            raise InputError(
                f"the folder {root} is gone: nothing of it was removed from the index, its disk may just be away. "
                "Start again when it is back"
            )


def _captioned_by(path: Path) -> list[Path]:
    """Return the pictures that a text file beside them may be about."""
    if path.suffix != ".txt":
        return []
    try:
        beside = [entry for entry in path.parent.iterdir() if is_picture(entry)]
    except OSError:
        return []
    return [entry for entry in beside if path in sidecars_of(entry)]
