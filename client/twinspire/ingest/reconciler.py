"""The reconciler of `add_images`, `sync` and `watch`: makes a store match image and sound files.

For each file it decides whether it is known, new, a copy, moved, or has other content than its item. All state is in
the store and the file system, so a run continues where an interrupted one ended.
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
from twinspire.ingest.contents import Contents
from twinspire.ingest.files import (
    WRITTEN_TO,
    ReadFile,
    cause_of,
    files_of,
    is_gone,
    is_text,
    looks_the_same,
    read_file,
)
from twinspire.ingest.kinds import FileKinds
from twinspire.ingest.metadata import file_metadata, refreshed, replaced, with_given
from twinspire.ingest.options import IngestOptions
from twinspire.ingest.pipeline import Batch, Candidate, run_pipeline, vector_key
from twinspire.ingest.reports import FolderEvent, Happened
from twinspire.stores import Item, StoredItem, VectorStore

if TYPE_CHECKING:
    from twinspire.client import Client

InFlight: TypeAlias = Callable[[Sequence[StoredItem]], set[int]]
"""Returns the ids of those items, whose files are gone or changed, that may turn up at another path soon."""

OnDone: TypeAlias = Callable[[int, int], None]
"""Is called with how many more files are done, and how many the run reads in all: 0 for files that are unchanged."""

_UNCHANGED_STEP = 256  # unchanged files after which progress is reported


@dataclass(slots=True)
class _RunState:
    """The state of one run."""

    contents: Contents
    already: int = 0
    unsettled: set[Path] = field(default_factory=set)  # files that are being written to
    changed: dict[Path, ReadFile] = field(default_factory=dict)  # files with other content than their item
    own: dict[Path, StoredItem] = field(default_factory=dict)  # items that get a new vector
    recaptioned: set[Path] = field(default_factory=set)
    broken: dict[bytes, str] = field(default_factory=dict)  # by vector key


class Reconciler:
    """Makes a store match image and sound files. Raises `BundleError` as `FileKinds.of` does.

    `on_event` is called from the calling thread for every change, once it is durable.
    """

    def __init__(
        self, store: VectorStore, client: Client, options: IngestOptions, on_event: Callable[[FolderEvent], None]
    ) -> None:
        self._store, self._client, self._options, self._on_event = store, client, options, on_event
        self._kinds = FileKinds.of(client)
        self._deciding = threading.Lock()  # the reading and the writing thread both change items after a look-up
        self._state = self._new_state()

    def run(
        self,
        files: Sequence[Path],
        items: Iterable[StoredItem],
        *,
        in_flight: InFlight = lambda _: set(),
        on_done: OnDone = lambda _, __: None,
    ) -> tuple[int, set[Path]]:
        """Make the store match `files` and the files of `items`, which may have changed or be gone.

        Files without an item are added, or take over the item of their content whose file is gone; items that no file
        takes over are removed, except those that are `in_flight`. Returns how many files matched their item, and those
        to try again: they are being written to, or their item is in flight.
        """
        state = self._state = self._new_state()
        known: set[Path] = set()
        reported = 0
        for item in items:
            known.add(Path(item.uri))
            self._check(item)
            if state.already >= reported + _UNCHANGED_STEP:
                on_done(state.already - reported, 0)
                reported = state.already
        new = [path for path in files if path not in known]
        for path, file in list(state.changed.items()):
            if (mover := state.contents.take_loose(file)) is not None:
                self._move(mover, file, self._on_event)
                del state.changed[path]
        recaptioned = list(state.recaptioned)
        planned = len(new) + len(state.changed) + len(recaptioned)
        if (rest := len(files) - planned - reported) > 0:
            on_done(rest, 0)
        self._encode(new, lambda done: on_done(done, planned))
        self._hold_back(in_flight)
        self._encode([*state.changed, *recaptioned], lambda done: on_done(done, planned))
        self._remove_loose()
        return state.already, state.unsettled

    def _new_state(self) -> _RunState:
        return _RunState(Contents(self._store, self._kinds))

    def _check(self, item: StoredItem) -> None:
        """Determine whether an item's file is unchanged, gone, or has other content."""
        state, path = self._state, Path(item.uri)
        if is_gone(path):
            state.contents.loosen(item)
            return
        try:
            if not looks_the_same(item):
                file = read_file(path, self._kinds)
                if file.content_hash != item.content_hash:
                    state.contents.loosen(item)
                    if not any(other.content_hash == file.content_hash for other in self._files_at(path)):
                        # Not kept in memory, since thousands of files may have changed.
                        state.changed[path] = replace(file, content=path)
                        state.own[path] = item
                    return
                item = self._store.update(item.id, metadata=refreshed(item.metadata, file_metadata(file)))
            changed = self._update_from_source(item)
        except (OSError, UnicodeEncodeError, InputError) as error:
            self._emit(FolderEvent(Happened.FAILED, path, item.id, cause=cause_of(error)))
            return
        if changed is not None:
            self._on_event(changed)
        elif path not in state.recaptioned:
            state.already += 1

    def _update_from_source(self, item: StoredItem) -> FolderEvent | None:
        """Update caption and metadata of an item from the source; mark it where its vector has to change with them."""
        if (source := self._options.captions) is None:
            return None
        path = Path(item.uri)
        caption = "\n".join(source.of(path))
        captioned = bool(caption) and caption != item.caption
        if captioned and self._options.caption_weight is not None:
            self._state.own[path] = item
            self._state.recaptioned.add(path)
            return None
        changes: dict[str, Any] = {"caption": caption} if captioned else {}
        if (metadata := with_given(item.metadata, source.metadata_of(path))) is not None:
            changes["metadata"] = metadata
        if not changes:
            return None
        self._store.update(item.id, **changes)
        return FolderEvent(Happened.CAPTIONED if captioned else Happened.CHANGED, path, item.id, captioned=captioned)

    def _encode(self, files: Sequence[Path], on_done: Callable[[int], None]) -> None:
        """Run files through the pipeline."""

        def report(step: Batch) -> None:
            self._state.already += step.already
            for event in step.events:
                self._emit(event)
            on_done(step.files)

        if files:
            run_pipeline(self, self._client, self._kinds, files, self._options, on_batch=report)

    def decide(self, file: ReadFile, step: Batch) -> None:
        """Let a file take over the item of its content whose file is gone; else mark it to be decoded or copied."""
        state = self._state
        if file.path not in state.recaptioned and state.contents.is_known(file):
            with self._deciding:
                if any(item.content_hash == file.content_hash for item in self._files_at(file.path)):
                    step.already += 1
                    return
                if (mover := state.contents.take(file)) is not None:
                    self._move(mover, file, step.events.append)
                    if file.path not in state.recaptioned:
                        return
        candidate = Candidate.of(file, self._options, self._client.decode)
        key = vector_key(candidate.item)
        if state.contents.has(key):
            step.copies.append(candidate.item)
        else:
            state.contents.expect(key)
            step.read.append(candidate)

    def write(self, step: Batch) -> Batch:
        """Write the items that were encoded, then those that copy the vector of another item."""
        state = self._state
        state.broken |= step.broken
        if step.embeddings is not None:
            self._save(step, step.items, step.embeddings)
        copies: dict[int, list[Item]] = {}
        for item in step.copies:
            if (number := state.contents.twin(key := vector_key(item))) is not None:
                copies.setdefault(number, []).append(item)
            else:
                step.fail(
                    Path(item.uri), state.broken.get(key, "the file it is a copy of changed meanwhile: add it again")
                )
        if copies:
            vectors = np.repeat(self._store.vectors(copies), [len(items) for items in copies.values()], axis=0)
            self._save(step, [item for items in copies.values() for item in items], vectors)  # (n, D)
        step.items, step.copies, step.embeddings = [], [], None
        return step

    def _save(self, step: Batch, items: Sequence[Item], embeddings: NDArray[np.float32]) -> None:
        """Add items with their vectors, (N, D), or replace the items whose files have other content now."""
        new: list[int] = []
        with self._deciding:
            for place, item in enumerate(items):
                path = Path(item.uri)
                own = self._state.own.get(path)
                if own is None or (path not in self._state.recaptioned and own.id not in self._state.contents.loose):
                    new.append(place)  # or its item has moved to another file
                else:
                    self._replace(step, own, item, embeddings[place])
        if not new:
            return
        report = self._store.add(embeddings[new], [items[place] for place in new], space=self._client.space)
        step.already += len(report.skipped)
        skipped = set(report.skipped)
        added = [items[place] for position, place in enumerate(new) if position not in skipped]
        for item, number in zip(added, report.added, strict=True):
            self._state.contents.note(item, number)
            captioned = item.caption is not None
            step.events.append(FolderEvent(Happened.ADDED, Path(item.uri), number, captioned=captioned))

    def _replace(self, step: Batch, own: StoredItem, item: Item, embedding: NDArray[np.float32]) -> None:
        """Replace an item's content, (D,) vector and caption by those of its file."""
        state, path = self._state, Path(item.uri)
        state.contents.forget(own)
        self._store.update(
            own.id,
            embedding=embedding,
            space=self._client.space,
            caption=item.caption or own.caption,
            metadata=replaced(own.metadata, item.metadata),
            content_hash=item.content_hash,
        )
        state.contents.keep(own)
        state.contents.note(item, own.id)
        happened = Happened.CAPTIONED if path in state.recaptioned else Happened.CHANGED
        step.events.append(FolderEvent(happened, path, own.id, captioned=item.caption is not None))

    def _move(self, item: StoredItem, file: ReadFile, emit: Callable[[FolderEvent], None]) -> None:
        """Give an item its file's new path, and the caption and metadata of that path."""
        metadata = refreshed(item.metadata, file_metadata(file))
        moved = self._store.update(item.id, uri=str(file.path), metadata=metadata)
        try:
            event = self._update_from_source(moved)
        except InputError as error:
            emit(FolderEvent(Happened.FAILED, file.path, item.id, cause=str(error)))
            event = None
        captioned = event is not None and event.captioned
        emit(FolderEvent(Happened.MOVED, file.path, item.id, before=Path(item.uri), captioned=captioned))

    def _hold_back(self, in_flight: InFlight) -> None:
        """Keep the items that are in flight, and leave their files for a later run."""
        state = self._state
        if not state.contents.loose:
            return
        held = in_flight(list(state.contents.loose.values()))
        for item in [item for number, item in state.contents.loose.items() if number in held]:
            state.contents.keep(item)
            state.changed.pop(Path(item.uri), None)
            state.unsettled.add(Path(item.uri))

    def _emit(self, event: FolderEvent) -> None:
        """Emit an event. Keep the item of a file that failed; mark a file that is being written to for a later run."""
        if event.happened is Happened.FAILED:
            with self._deciding:
                if (own := self._state.own.get(event.path)) is not None:
                    self._state.contents.keep(own)
                    event = replace(event, id=own.id)
            if event.cause == WRITTEN_TO:
                self._state.unsettled.add(event.path)
        self._on_event(event)

    def _remove_loose(self) -> None:
        """Remove the items that no file has taken over."""
        loose = self._state.contents.loose
        if loose:
            self._store.remove(list(loose))
        for item in loose.values():
            self._on_event(FolderEvent(Happened.REMOVED, Path(item.uri), item.id))

    def _files_at(self, path: Path) -> list[StoredItem]:
        return files_of(self._store.find(uri=str(path))) if is_text(path) else []
