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
from twinspire.ingest.captions import SIDECAR_SUFFIX, CaptionSource, Sidecars, sidecars_of
from twinspire.ingest.changes import ChangeSource, Signature, signature_of, watched
from twinspire.ingest.discovery import images_below, is_image
from twinspire.ingest.files import WRITTEN_TO, has_vanished, images_of, is_folder, is_gone, is_text, looks_the_same
from twinspire.ingest.reconcile import Reconciler
from twinspire.ingest.reports import FailedImage, FolderEvent, Happened
from twinspire.ingest.stages import ImageItems
from twinspire.ingest.sync import FoldersState, checked_folders, folder_progress

if TYPE_CHECKING:
    from twinspire.client import Client

_LOOK_EVERY_S = 0.1
_RESCAN_SHARE = 20  # a rescan that took a second is not repeated for 20
_HOLD_AGAIN = 4  # times gone_s after which an item that is on the move again is held anew
_HOLD = 20  # times gone_s that an item without its file is kept while others are renamed


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
    """Keep `index`, open for writing, in step with the images in `folders` and below, until `stop` is set.

    First it catches up with what changed while nobody watched, as `sync` does, then it follows: a new image is added,
    a changed one encoded again under its id, a moved one keeps its id and vector, a deleted one is removed. Images
    that the index holds from elsewhere are left alone, so are texts; links to folders are not followed. A file is taken
    once it has not changed for `settle_s`: one that is half written waits, and one that could not be decoded is tried
    again when it changes. An item whose file is gone is kept for `gone_s`, in case it turns up elsewhere, and as long
    as its file is being renamed. Captions are taken as `add_pictures` does; where the source says something new about a
    image its caption and metadata follow (a changed sidecar is seen at once, a file of captions at the next start).

    What the system reports may be incomplete: its queue overflows when too much happens at once. Where it says so,
    and every `rescan_s` seconds (infinity: never; less often where that takes long), the folders are compared with the
    index as a whole. A folder that cannot be read or watched is told as failed, and the rest is followed.

    The folders' own disappearance is an error and removes nothing, and so is a folder that is found empty as a whole
    though the index holds images of it: a disk that is not mounted looks the same. `poll` looks at the files' times
    instead of asking the system, for network drives; by default only where there is nothing else.

    Callbacks come from the calling thread: `on_progress` with how many of the images that are read are done while it
    catches up, `on_caught_up` once. Ctrl-C in the main thread raises KeyboardInterrupt after the change in hand;
    whatever was told is durable.

    Raises `InputError` for what is no folder, and what `add_pictures` raises.
    """
    roots = checked_folders(folders)
    if not rescan_s > 0:
        raise InputError(f"rescan_s, the seconds between two looks at everything, must be above 0, got {rescan_s!r}")
    index.check_space(client.space)
    watcher = _Watcher(
        index, roots, captions=captions, on_event=on_event, settle_s=settle_s, gone_s=gone_s, rescan_s=rescan_s
    )
    reconciler = Reconciler(index, client, ImageItems(captions, fuse_captions), batch=batch, on_event=watcher.tell)
    with watched(roots, poll=poll) as source:  # from here on nothing is missed
        state = FoldersState.of(index, roots)
        state.require_images()
        watcher.tell_folders(source.failed)
        watcher.tell_folders(state.found.failed)
        _, unsettled = reconciler.run(state.found, state.items, progress=folder_progress(on_progress))
        watcher.waiting.note(unsettled)
        on_caught_up()
        while stop is None or not stop.is_set():
            watcher.look(source, _LOOK_EVERY_S)
            _require_there(roots)
            if watcher.is_rescan_due(source):
                watcher.rescan()
            files, items = watcher.due()
            if files or items:
                _, unsettled = reconciler.run(files, items, in_flight=lambda loose: watcher.in_flight(source, loose))
                watcher.waiting.note(unsettled)


class _Watcher:
    """What a watch remembers beside the index: what waits, what failed, and when everything was compared last."""

    def __init__(
        self,
        index: Index,
        roots: Sequence[Path],
        *,
        captions: CaptionSource | None,
        on_event: Callable[[FolderEvent], None],
        settle_s: float,
        gone_s: float,
        rescan_s: float,
    ) -> None:
        self._index, self._roots, self._captions, self._on_event = index, roots, captions, on_event
        self._gone_s, self._rescan_s = gone_s, rescan_s
        self.waiting = _Waiting(settle_s=settle_s, gone_s=gone_s, sidecars=isinstance(captions, Sidecars))
        self._refused: dict[Path, Signature] = {}  # files that failed, as they were then
        self._told: set[Path] = set()  # folders that failed
        self._held: dict[int, tuple[float, float]] = {}  # by id of items on the move: since when, and when asked last
        self._lost, self._vanished = False, False
        self._rescan_at_s = time.monotonic() + rescan_s

    def tell(self, event: FolderEvent) -> None:
        """Tell what happened, but for files that failed and will be seen again."""
        if event.id is not None:
            self._held.pop(event.id, None)
        if event.happened is not Happened.FAILED:
            self._refused.pop(event.path, None)
        elif has_vanished(event.path) or event.cause == WRITTEN_TO:
            return
        else:
            self._refused[event.path] = signature_of(event.path)
        self._on_event(event)

    def tell_folders(self, failed: list[FailedImage]) -> None:
        """Tell which folders failed, each once; empties the list."""
        for path, cause in failed:
            if path not in self._told:
                self._told.add(path)
                self._on_event(FolderEvent(Happened.FAILED, path, cause=cause))
        failed.clear()

    def look(self, source: ChangeSource, timeout_s: float) -> None:
        """Take in what happened since the last look, or does within some time."""
        changes = source.wait(timeout_s)
        self.waiting.note(changes.paths)
        self._lost |= changes.lost
        self.tell_folders(source.failed)

    def is_rescan_due(self, source: ChangeSource) -> bool:
        """Whether everything is to be compared: something was lost, or it is time where something can be."""
        return self._lost or (not source.complete and time.monotonic() >= self._rescan_at_s)

    def rescan(self) -> None:
        """Compare the folders with the index and let wait what differs.

        Raises `InputError` where all images of a folder are gone, nobody told, and it is so for longer than a moment.
        """
        start_s = time.monotonic()
        self._lost = False
        state = FoldersState.of(self._index, self._roots, explained=self.waiting.concerns)
        if state.vanished is not None and not self._vanished:  # what tells why may be on its way
            self._vanished, self._rescan_at_s = True, start_s + max(self._gone_s, 1.0)
            return
        state.require_images()
        self._vanished = False
        self.tell_folders(state.found.failed)
        self.waiting.note(self._differing(state), again=False)
        end_s = time.monotonic()
        self._rescan_at_s = end_s + max(self._rescan_s, _RESCAN_SHARE * (end_s - start_s))

    def due(self) -> tuple[list[Path], list[StoredItem]]:
        """Return the images at and below the paths that are at rest, and the items that are said to be there."""
        files: dict[Path, None] = {}
        items: dict[int, StoredItem] = {}
        for path in self.waiting.due():
            unread: list[Path] = []
            if is_folder(path):
                if not path.is_symlink():  # as `find_pictures` has it
                    below = images_below(path)
                    unread = [failed.path for failed in below.failed]
                    self.tell_folders(below.failed)
                    files.update(dict.fromkeys(below))
            elif is_image(path) and not is_gone(path):
                files[path] = None
            for item in self._items_at(path):
                if not any(folder in Path(item.uri).parents for folder in unread):
                    items[item.id] = item
        return list(files), list(items.values())

    def in_flight(self, source: ChangeSource, items: Sequence[StoredItem]) -> set[int]:
        """Return the ids of items whose files are, or may be, on the move: not longer than 20 times `gone_s`."""
        self.look(source, 0)
        now_s = time.monotonic()
        held: dict[int, tuple[float, float]] = {}
        for number in self.waiting.moving(items, is_known=lambda path: bool(self._items_at(path))):
            since_s, asked_s = self._held.get(number, (now_s, now_s))
            held[number] = (since_s if now_s - asked_s < _HOLD_AGAIN * self._gone_s else now_s, now_s)
        self._held = {number: times for number, times in self._held.items() if now_s - times[1] < _HOLD * self._gone_s}
        self._held |= held
        return {number for number, (since_s, _) in held.items() if now_s - since_s < _HOLD * self._gone_s}

    def _differing(self, state: FoldersState) -> Iterator[Path]:
        """Give the paths where folders and index differ, but for files that failed and have not changed since."""
        held = {item.uri for item in state.items}
        suspicious = [path for path in state.found if str(path) not in held]
        suspicious += [
            Path(item.uri)
            for item in state.items
            if not looks_the_same(item) or _says_something_else(self._captions, item)
        ]
        for path in suspicious:
            if path not in self._refused or self._refused[path] != signature_of(path):
                yield path

    def _items_at(self, path: Path) -> list[StoredItem]:
        if not is_text(path):
            return []
        return images_of([*self._index.find(uri=str(path)), *self._index.find(under=str(path))])


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

    def moving(self, items: Iterable[StoredItem], *, is_known: Callable[[Path], bool]) -> set[int]:
        """Return the ids of items whose files may be at a path that waits.

        That is a file of the item's inode, or any folder. Where a path came and went that no item was known at, files
        are being renamed faster than they are looked at: then it may be any of the items.
        """
        there = {path: signature[0] for path, (signature, _) in self._since.items() if signature is not None}
        anything = any(is_folder(path) for path in there) or any(
            path not in there and not is_known(path) for path in self._since
        )
        inodes = set(there.values())
        return {item.id for item in items if anything or item.metadata.get("inode") in inodes}

    def concerns(self, path: Path) -> bool:
        """Whether a path waits, or a folder above it."""
        return path in self._since or any(parent in self._since for parent in path.parents)


def _says_something_else(captions: CaptionSource | None, item: StoredItem) -> bool:
    """Whether a sidecar has another caption than the item of its image; a file of captions is read at the start."""
    if not isinstance(captions, Sidecars):
        return False
    try:
        said = "\n".join(captions.of(Path(item.uri)))
    except InputError:
        return True
    return bool(said) and said != item.caption


def _require_there(roots: Sequence[Path]) -> None:
    for root in roots:
        if not is_folder(root):
            raise InputError(
                f"the folder {root} is gone: nothing of it was removed from the index, its disk may just be away. "
                "Start again when it is back"
            )


def _captioned_by(path: Path) -> list[Path]:
    """Return the images that a text file beside them may be about."""
    if path.suffix != SIDECAR_SUFFIX:
        return []
    try:
        beside = [entry for entry in path.parent.iterdir() if is_image(entry)]
    except OSError:
        return []
    return [entry for entry in beside if path in sidecars_of(entry)]
