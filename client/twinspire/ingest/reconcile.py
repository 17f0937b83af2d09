"""Bringing an index in step with files: what is on the disk is compared with what the index holds, and put right.

The one place that decides, for adding, following and syncing, what becomes of a file: it is known, new, a copy, moved,
or holds other content than its item. The index and the disk say all, so that a run goes on where the last one ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index import Item, StoredItem
from twinspire.ingest.contents import Contents
from twinspire.ingest.files import (
    WRITTEN_TO,
    ReadFile,
    cause_of,
    images_of,
    is_gone,
    is_text,
    looks_the_same,
    read_file,
)
from twinspire.ingest.metadata import image_metadata, refreshed, replaced, with_told
from twinspire.ingest.reports import FolderEvent, Happened, ItemIndex
from twinspire.ingest.stages import Batch, ImageItems, run_pipeline, vector_key

if TYPE_CHECKING:
    from twinspire.client import Client

InFlight: TypeAlias = Callable[[Sequence[StoredItem]], set[int]]
"""Says which of some items, whose files are gone or hold something else, are about to be seen elsewhere: their ids."""

_KNOWN = 256  # files that are as they were, after which progress is told


def _ignore(_: int) -> None:
    """Take what nobody asked for."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What is told of a run: how many files are to be read, and how many more are done, of these and of the others."""

    planned: Callable[[int], None] = _ignore
    done: Callable[[int], None] = _ignore
    unchanged: Callable[[int], None] = _ignore


@dataclass(slots=True)
class _Run:
    """What is known of one run."""

    contents: Contents
    already: int = 0
    unsettled: set[Path] = field(default_factory=set)  # files that somebody writes to
    changed: dict[Path, ReadFile] = field(default_factory=dict)  # files that hold something else than their item
    own: dict[Path, StoredItem] = field(default_factory=dict)  # items that get a new vector
    recaptioned: set[Path] = field(default_factory=set)
    broken: dict[bytes, str] = field(default_factory=dict)  # by vector key


class Reconciler:
    """Brings an index in step with files; see `add_pictures` and `watch` for the arguments.

    Events are told from the calling thread, once what they tell is durable.
    """

    def __init__(
        self,
        index: ItemIndex,
        client: Client,
        items: ImageItems,
        *,
        batch: int,
        on_event: Callable[[FolderEvent], None],
    ) -> None:
        if batch < 1:
            raise InputError(f"batch, the number of files encoded together, must be 1 or more, got {batch}")
        self._index, self._client, self._items, self._batch = index, client, items, batch
        self._on_event = on_event
        self._deciding = threading.Lock()  # the reading and the writing thread change items by what the index holds
        self._now = self._new_run()

    def run(
        self,
        files: Sequence[Path],
        items: Iterable[StoredItem],
        *,
        in_flight: InFlight = lambda _: set(),
        progress: Progress | None = None,
    ) -> tuple[int, set[Path]]:
        """Bring the index in step with `files` and with `items`, whose files may have changed or be gone.

        Files without an item are added, or take over the item of their content where its file has gone; items that
        nothing takes over are removed, but for those that are `in_flight`: their files are about to be seen elsewhere.
        Returns how many files were as they should be, and those that are to be tried again: somebody writes to them, or
        their item is in flight.
        """
        progress = progress or Progress()
        now = self._now = self._new_run()
        held: set[Path] = set()
        told = 0
        for item in items:
            held.add(Path(item.uri))
            self._look_at(item)
            if now.already >= told + _KNOWN:
                progress.unchanged(now.already - told)
                told = now.already
        new = [path for path in files if path not in held]
        for path, file in list(now.changed.items()):
            if (mover := now.contents.take_loose(file)) is not None:
                self._move(mover, file, self._on_event)
                del now.changed[path]
        recaptioned = list(now.recaptioned)
        planned = len(new) + len(now.changed) + len(recaptioned)
        if (untold := len(files) - planned - told) > 0:
            progress.unchanged(untold)
        progress.planned(planned)
        self._encode(new, progress)
        self._hold_back(in_flight)
        self._encode([*now.changed, *recaptioned], progress)
        self._remove_loose()
        return now.already, now.unsettled

    def _new_run(self) -> _Run:
        return _Run(Contents(self._index, self._client.limits))

    def _look_at(self, item: StoredItem) -> None:
        """Find out whether an item's file is as it was, is gone, or holds something else."""
        now, path = self._now, Path(item.uri)
        if is_gone(path):
            now.contents.loosen(item)
            return
        try:
            if not looks_the_same(item):
                file = read_file(path, self._client.limits)
                if file.content_hash != item.content_hash:
                    now.contents.loosen(item)
                    if not any(other.content_hash == file.content_hash for other in self._images_at(path)):
                        now.changed[path] = replace(file, content=path)  # read again: it may be one of thousands
                        now.own[path] = item
                    return
                item = self._index.update(item.id, metadata=refreshed(item.metadata, image_metadata(file)))
            changed = self._compare_told(item)
        except (OSError, UnicodeEncodeError, InputError) as error:
            self._tell(FolderEvent(Happened.FAILED, path, item.id, cause=cause_of(error)))
            return
        if changed is not None:
            self._on_event(changed)
        elif path not in now.recaptioned:
            now.already += 1

    def _compare_told(self, item: StoredItem) -> FolderEvent | None:
        """Take over what the source says about an image; where that changes its vector it is to be encoded again."""
        if self._items.source is None:
            return None
        path = Path(item.uri)
        said = "\n".join(self._items.source.of(path))
        captioned = bool(said) and said != item.caption
        if captioned and self._items.weight is not None:
            self._now.own[path] = item
            self._now.recaptioned.add(path)
            return None
        changes: dict[str, Any] = {"caption": said} if captioned else {}
        if (metadata := with_told(item.metadata, self._items.source.metadata_of(path))) is not None:
            changes["metadata"] = metadata
        if not changes:
            return None
        self._index.update(item.id, **changes)
        return FolderEvent(Happened.CAPTIONED if captioned else Happened.CHANGED, path, item.id, captioned=captioned)

    def _encode(self, files: Sequence[Path], progress: Progress) -> None:
        """Take files through the stages."""

        def tell(step: Batch) -> None:
            self._now.already += step.already
            for event in step.events:
                self._tell(event)
            progress.done(step.files)

        if files:
            run_pipeline(self, self._client, files, weight=self._items.weight, batch=self._batch, on_batch=tell)

    def decide(self, file: ReadFile, step: Batch) -> None:
        """Let a file take over the item of its content where that item's file has gone; else it needs a vector."""
        now = self._now
        if file.path not in now.recaptioned and now.contents.is_known(file.content_hash):
            with self._deciding:
                if any(item.content_hash == file.content_hash for item in self._images_at(file.path)):
                    step.already += 1
                    return
                if (mover := now.contents.take(file)) is not None:
                    self._move(mover, file, step.events.append)
                    if file.path not in now.recaptioned:
                        return
        candidate = self._items.candidate(file)
        key = vector_key(candidate.item)
        if now.contents.has(key):
            step.copies.append(candidate.item)
        else:
            now.contents.expect(key)
            step.read.append(candidate)

    def write(self, step: Batch) -> Batch:
        """Write what was encoded, then what has the vector of another item."""
        now = self._now
        now.broken |= step.broken
        if step.embeddings is not None:
            self._store(step, step.items, step.embeddings)
        copies: dict[int, list[Item]] = {}
        for item in step.copies:
            if (number := now.contents.twin(key := vector_key(item))) is not None:
                copies.setdefault(number, []).append(item)
            else:
                step.fail(Path(item.uri), now.broken.get(key, "its copy was changed meanwhile: add it again"))
        if copies:
            vectors = np.repeat(self._index.vectors(copies), [len(items) for items in copies.values()], axis=0)
            self._store(step, [item for items in copies.values() for item in items], vectors)  # (n, D)
        step.items, step.copies, step.embeddings = [], [], None
        return step

    def _store(self, step: Batch, items: Sequence[Item], embeddings: NDArray[np.float32]) -> None:
        """Add items with their vectors, (N, D), or give these to the items whose file holds something else now."""
        new: list[int] = []
        with self._deciding:
            for place, item in enumerate(items):
                path = Path(item.uri)
                own = self._now.own.get(path)
                if own is None or (path not in self._now.recaptioned and own.id not in self._now.contents.loose):
                    new.append(place)  # its item, where it had one, has moved away
                else:
                    self._replace(step, own, item, embeddings[place])
        if not new:
            return
        report = self._index.add(embeddings[new], [items[place] for place in new], space=self._client.space)
        step.already += len(report.skipped)
        skipped = set(report.skipped)
        added = [items[place] for position, place in enumerate(new) if position not in skipped]
        for item, number in zip(added, report.added, strict=True):
            self._now.contents.note(item, number)
            captioned = item.caption is not None
            step.events.append(FolderEvent(Happened.ADDED, Path(item.uri), number, captioned=captioned))

    def _replace(self, step: Batch, own: StoredItem, item: Item, embedding: NDArray[np.float32]) -> None:
        """Give an item the content, (D,) vector and caption that its file has now."""
        now, path = self._now, Path(item.uri)
        now.contents.forget(own)
        self._index.update(
            own.id,
            embedding=embedding,
            space=self._client.space,
            caption=item.caption or own.caption,
            metadata=replaced(own.metadata, item.metadata),
            content_hash=item.content_hash,
        )
        now.contents.keep(own)
        now.contents.note(item, own.id)
        happened = Happened.CAPTIONED if path in now.recaptioned else Happened.CHANGED
        step.events.append(FolderEvent(happened, path, own.id, captioned=item.caption is not None))

    def _move(self, item: StoredItem, file: ReadFile, tell: Callable[[FolderEvent], None]) -> None:
        """Give an item its file's new path, and what is said about it there."""
        metadata = refreshed(item.metadata, image_metadata(file))
        moved = self._index.update(item.id, uri=str(file.path), metadata=metadata)
        try:
            told = self._compare_told(moved)
        except InputError as error:
            tell(FolderEvent(Happened.FAILED, file.path, item.id, cause=str(error)))
            told = None
        captioned = told is not None and told.captioned
        tell(FolderEvent(Happened.MOVED, file.path, item.id, before=Path(item.uri), captioned=captioned))

    def _hold_back(self, in_flight: InFlight) -> None:
        """Leave items alone whose files are about to be seen elsewhere, and what their files hold now."""
        now = self._now
        if not now.contents.loose:
            return
        held = in_flight(list(now.contents.loose.values()))
        for item in [item for number, item in now.contents.loose.items() if number in held]:
            now.contents.keep(item)
            now.changed.pop(Path(item.uri), None)
            now.unsettled.add(Path(item.uri))

    def _tell(self, event: FolderEvent) -> None:
        """Tell what happened. The item of a file that failed stays as it was; one that is written to is tried again."""
        if event.happened is Happened.FAILED:
            with self._deciding:
                if (own := self._now.own.get(event.path)) is not None:
                    self._now.contents.keep(own)
                    event = replace(event, id=own.id)
            if event.cause == WRITTEN_TO:
                self._now.unsettled.add(event.path)
        self._on_event(event)

    def _remove_loose(self) -> None:
        """Remove the items that nothing has taken over."""
        loose = self._now.contents.loose
        if loose:
            self._index.remove(list(loose))
        for item in loose.values():
            self._on_event(FolderEvent(Happened.REMOVED, Path(item.uri), item.id))

    def _images_at(self, path: Path) -> list[StoredItem]:
        return images_of(self._index.find(uri=str(path))) if is_text(path) else []
