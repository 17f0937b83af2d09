"""Keeping a store in step with folders while they change, as long as `watch` runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twinspire.errors import InputError, ServerUnavailableError
from twinspire.ingest.captions import SIDECAR_SUFFIX, Sidecars, sidecars_of
from twinspire.ingest.changes import ChangeSource, Signature, change_source, signature_of
from twinspire.ingest.discovery import files_below
from twinspire.ingest.files import WRITTEN_TO, files_of, has_vanished, is_folder, is_gone, is_text, looks_the_same
from twinspire.ingest.kinds import FILE_KINDS, FileKinds, is_of_kind
from twinspire.ingest.options import IngestOptions
from twinspire.ingest.reconciler import InFlight, OnDone, Reconciler
from twinspire.ingest.reports import FailedImage, FolderEvent, Happened
from twinspire.ingest.sync import FoldersState, checked_folders, folder_progress
from twinspire.stores import StoredItem, VectorStore

if TYPE_CHECKING:
    from twinspire.client import Client

_POLL_S = 0.1
_RESCAN_SHARE = 20  # a rescan that took a second is not repeated for 20
_HOLD_AGAIN = 4  # times gone_s without a look-up after which an item in flight starts a new hold
_HOLD = 20  # times gone_s that an item without its file is kept while files are being renamed
_RETRY_S, _MAX_RETRY_S = 1.0, 30.0  # between two attempts to reach a server, doubled each time


def _ignore(*_: object) -> None:
    """Do nothing."""


def watch(
    store: VectorStore,
    client: Client,
    folders: Iterable[str | os.PathLike[str]],
    options: IngestOptions | None = None,
    *,
    settle_s: float = 0.5,
    gone_s: float = 1.5,
    rescan_s: float = 300.0,
    poll: bool | None = None,
    on_progress: Callable[[int, int], None] = _ignore,
    on_caught_up: Callable[[], None] = _ignore,
    on_server: Callable[[ServerUnavailableError | None], None] = _ignore,
    stop: threading.Event | None = None,
) -> None:
    """Keep `store`, open for writing, in step with the images and sounds in `folders` and below, until `stop` is set.

    First it catches up with what changed before, as `sync` does, then it follows: new images are added, changed ones
    encoded again under their ids, moved ones keep their ids and vectors, deleted ones are removed. Items of images
    elsewhere and of texts stay as they are; links to folders are not followed. A file is taken once it has not changed
    for `settle_s`, and one that could not be decoded is tried again when it changes. An item whose file is gone is kept
    for `gone_s`, in case the file turns up elsewhere, and longer while its file is being renamed. Captions and metadata
    follow their source: a changed sidecar at once, a captions file at the next start.

    The system may lose events when its queue overflows. Where it reports that, and every `rescan_s` seconds (infinity:
    never; less often where it takes long), the folders are compared with the store as a whole. A folder that cannot be
    read or watched is reported as failed, and the others are followed.

    It is an error, and removes nothing, when a folder disappears, and when a folder is empty though the store has
    images of it: a disk that is not mounted looks the same. `poll` compares the files' times instead of asking the
    system, for network drives; by default only where the system has no inotify.

    Where the server of `client` cannot be reached before its deadline, the watch tries again, after one second at first
    and 30 at last, and collects changes meanwhile. `on_server` is called with the error when that begins and with None
    when the server answers again.

    Callbacks come from the calling thread: `on_progress` with how many of the files to read are done, and how many
    these are, while it catches up, and `on_caught_up` once. Ctrl-C in the main thread raises KeyboardInterrupt after
    the current change; every change whose event was emitted is durable.

    Raises `InputError` for what is not a folder, and what `add_images` raises but for `ServerUnavailableError`.
    """
    options = options or IngestOptions()
    roots = checked_folders(folders)
    if not rescan_s > 0:
        raise InputError(
            f"rescan_s, the seconds between two comparisons of everything: expected above 0, got {rescan_s!r}"
        )
    store.check_space(client.space)
    watcher = _Watcher(
        store, client, roots, options, settle_s=settle_s, gone_s=gone_s, rescan_s=rescan_s, on_server=on_server
    )
    with change_source(roots, poll=poll) as source:  # from here on nothing is missed
        while not watcher.catch_up(source, folder_progress(on_progress)):
            while watcher.is_waiting_for_server():
                watcher.look(source, _POLL_S)
                if stop is not None and stop.is_set():
                    return
        on_caught_up()
        while stop is None or not stop.is_set():
            watcher.look(source, _POLL_S)
            _require_folders(roots)
            if watcher.is_rescan_due(source):
                watcher.rescan()
            if not watcher.is_waiting_for_server():
                watcher.follow(source)


class _Watcher:
    """The state of a watch: paths that wait, files that failed, items in flight, times of rescans and retries."""

    def __init__(
        self,
        store: VectorStore,
        client: Client,
        roots: Sequence[Path],
        options: IngestOptions,
        *,
        settle_s: float,
        gone_s: float,
        rescan_s: float,
        on_server: Callable[[ServerUnavailableError | None], None],
    ) -> None:
        self._store, self._roots, self._options, self._on_server = store, roots, options, on_server
        self._gone_s, self._rescan_s = gone_s, rescan_s
        self._reconciler = Reconciler(store, client, options, self._emit)
        self._kinds = tuple(FileKinds.of(client).limits)
        self._waiting = _Waiting(settle_s=settle_s, gone_s=gone_s, sidecars=isinstance(options.captions, Sidecars))
        self._failed: dict[Path, Signature] = {}  # files that failed, as they were then
        self._failed_folders: set[Path] = set()
        self._held: dict[int, tuple[float, float]] = {}  # by id of items in flight: since when, and the last look-up
        self._lost, self._vanished = False, False
        self._rescan_at_s = time.monotonic() + rescan_s
        self._retry_s, self._retry_at_s = 0.0, 0.0  # the pause after the last attempt, 0 while the server answers

    def catch_up(self, source: ChangeSource, on_done: OnDone) -> bool:
        """Compare the folders with the store and reconcile them; False where the server is unavailable."""
        state = FoldersState.of(self._store, self._roots, self._kinds)
        state.require_images()
        self._emit_folders(source.failed)
        self._emit_folders(state.found.failed)
        return self._reconcile(state.found, state.items, on_done=on_done)

    def follow(self, source: ChangeSource) -> None:
        """Reconcile the paths that have settled."""
        files, items = self._due()
        if not files and not items:
            return
        if not self._reconcile(files, items, in_flight=lambda loose: self._in_flight(source, loose)):
            self._waiting.note([*files, *(Path(item.uri) for item in items)])

    def is_waiting_for_server(self) -> bool:
        """Whether the server was unavailable and it is not yet time for the next attempt."""
        return time.monotonic() < self._retry_at_s

    def _reconcile(
        self,
        files: Sequence[Path],
        items: Sequence[StoredItem],
        *,
        in_flight: InFlight = lambda _: set(),
        on_done: OnDone = lambda _, __: None,
    ) -> bool:
        try:
            _, unsettled = self._reconciler.run(files, items, in_flight=in_flight, on_done=on_done)
        except ServerUnavailableError as error:
            if not self._retry_s:
                self._on_server(error)
            self._retry_s = min(2 * self._retry_s or _RETRY_S, _MAX_RETRY_S)
            self._retry_at_s = time.monotonic() + self._retry_s
            return False
        if self._retry_s:
            self._retry_s = 0.0
            self._on_server(None)
        self._waiting.note(unsettled)
        return True

    def _emit(self, event: FolderEvent) -> None:
        """Emit an event, except for files that failed and will be tried again."""
        if event.id is not None:
            self._held.pop(event.id, None)
        if event.happened is not Happened.FAILED:
            self._failed.pop(event.path, None)
        elif has_vanished(event.path) or event.cause == WRITTEN_TO:
            return
        else:
            self._failed[event.path] = signature_of(event.path)
        self._on_event(event)

    def _emit_folders(self, failed: list[FailedImage]) -> None:
        """Emit an event for each folder that failed, once; empty the list."""
        for path, cause in failed:
            if path not in self._failed_folders:
                self._failed_folders.add(path)
                self._on_event(FolderEvent(Happened.FAILED, path, cause=cause))
        failed.clear()

    def _on_event(self, event: FolderEvent) -> None:
        if self._options.on_event is not None:
            self._options.on_event(event)

    def look(self, source: ChangeSource, timeout_s: float) -> None:
        """Note what happened since the last look, or happens within `timeout_s`."""
        changes = source.wait(timeout_s)
        self._waiting.note(changes.paths)
        self._lost |= changes.lost
        self._emit_folders(source.failed)

    def is_rescan_due(self, source: ChangeSource) -> bool:
        """Whether to compare everything: events were lost, or may have been for longer than `rescan_s`."""
        return self._lost or (not source.complete and time.monotonic() >= self._rescan_at_s)

    def rescan(self) -> None:
        """Compare the folders with the store and note the paths that differ.

        Raises `InputError` where a folder lost all its images without an event, twice in a row.
        """
        start_s = time.monotonic()
        self._lost = False
        state = FoldersState.of(self._store, self._roots, self._kinds, explained=self._waiting.concerns)
        if state.vanished is not None and not self._vanished:  # the events may be late
            self._vanished, self._rescan_at_s = True, start_s + max(self._gone_s, 1.0)
            return
        state.require_images()
        self._vanished = False
        self._emit_folders(state.found.failed)
        self._waiting.note(self._differing(state), again=False)
        end_s = time.monotonic()
        self._rescan_at_s = end_s + max(self._rescan_s, _RESCAN_SHARE * (end_s - start_s))

    def _due(self) -> tuple[list[Path], list[StoredItem]]:
        """Return the images at and below the paths that have settled, and the items of these paths."""
        files: dict[Path, None] = {}
        items: dict[int, StoredItem] = {}
        for path in self._waiting.due():
            unread: list[Path] = []
            if is_folder(path):
                if not path.is_symlink():  # as in `find_images`
                    below = files_below(path, self._kinds)
                    unread = [failed.path for failed in below.failed]
                    self._emit_folders(below.failed)
                    files.update(dict.fromkeys(below))
            elif is_of_kind(path, *self._kinds) and not is_gone(path):
                files[path] = None
            for item in self._items_at(path):
                if not any(folder in Path(item.uri).parents for folder in unread):
                    items[item.id] = item
        return list(files), list(items.values())

    def _in_flight(self, source: ChangeSource, items: Sequence[StoredItem]) -> set[int]:
        """Return the ids of items whose files may be being renamed, each for at most 20 times `gone_s`."""
        self.look(source, 0)
        now_s = time.monotonic()
        held: dict[int, tuple[float, float]] = {}
        for number in self._waiting.moving(items, is_known=lambda path: bool(self._items_at(path))):
            since_s, asked_s = self._held.get(number, (now_s, now_s))
            held[number] = (since_s if now_s - asked_s < _HOLD_AGAIN * self._gone_s else now_s, now_s)
        self._held = {number: times for number, times in self._held.items() if now_s - times[1] < _HOLD * self._gone_s}
        self._held |= held
        return {number for number, (since_s, _) in held.items() if now_s - since_s < _HOLD * self._gone_s}

    def _differing(self, state: FoldersState) -> Iterator[Path]:
        """Give the paths where folders and store differ, except files that failed and have not changed since."""
        known = {item.uri for item in state.items}
        suspicious = [path for path in state.found if str(path) not in known]
        suspicious += [
            Path(item.uri)
            for item in state.items
            if not looks_the_same(item) or _has_other_sidecar(self._options, item)
        ]
        for path in suspicious:
            if path not in self._failed or self._failed[path] != signature_of(path):
                yield path

    def _items_at(self, path: Path) -> list[StoredItem]:
        if not is_text(path):
            return []
        return files_of([*self._store.find(uri=str(path)), *self._store.find(under=str(path))])


class _Waiting:
    """Paths at which something happened, until they have settled."""

    def __init__(self, *, settle_s: float, gone_s: float, sidecars: bool) -> None:
        self._settle_s, self._gone_s, self._sidecars = settle_s, gone_s, sidecars
        self._since: dict[Path, tuple[Signature, float]] = {}

    def note(self, paths: Iterable[Path], *, again: bool = True) -> None:
        """Note that something happened at `paths`; with `again` those that wait already start over."""
        for path in paths:
            for concerned in [path, *(_captioned_by(path) if self._sidecars else ())]:
                if again or concerned not in self._since:
                    self._since[concerned] = (signature_of(concerned), time.monotonic())

    def due(self) -> list[Path]:
        """Remove and return the paths that have settled."""
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
        are renamed faster than they are looked at: then it may be any of the items.
        """
        existing = {path: signature[0] for path, (signature, _) in self._since.items() if signature is not None}
        anything = any(is_folder(path) for path in existing) or any(
            path not in existing and not is_known(path) for path in self._since
        )
        inodes = set(existing.values())
        return {item.id for item in items if anything or item.metadata.get("inode") in inodes}

    def concerns(self, path: Path) -> bool:
        """Whether a path waits, or a folder above it."""
        return path in self._since or any(parent in self._since for parent in path.parents)


def _has_other_sidecar(options: IngestOptions, item: StoredItem) -> bool:
    """Whether a sidecar has another caption than the item of its image; captions files are read at the start only."""
    if not isinstance(options.captions, Sidecars):
        return False
    try:
        caption = "\n".join(options.captions.of(Path(item.uri)))
    except InputError:
        return True
    return bool(caption) and caption != item.caption


def _require_folders(roots: Sequence[Path]) -> None:
    for root in roots:
        if not is_folder(root):
            raise InputError(
                f"the folder {root} is gone, its disk may not be mounted: no items were removed from the index. Start "
                "the watch again when the folder is back"
            )


def _captioned_by(path: Path) -> list[Path]:
    """Return the images whose sidecar a text file may be."""
    if path.suffix != SIDECAR_SUFFIX:
        return []
    try:
        beside = [entry for entry in path.parent.iterdir() if is_of_kind(entry, *FILE_KINDS)]
    except OSError:
        return []
    return [entry for entry in beside if path in sidecars_of(entry)]
