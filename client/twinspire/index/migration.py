"""Migration of an index to another space: the vectors are staged in a folder of the index, then taken in one step.

The folder `migration` of an index is an index itself, of the new space: an item in it is a vector for the item of the
old one whose id is its uri. So what was encoded is durable, and an interrupted migration goes on there. The step is one
SQLite transaction, as that of `compact`: the catalogue then names the new vector file, space and bundle. Ids, captions,
metadata and full text stay where they are. The index gets another identity: who has it open meets
`IndexReplacedError` at the next call and opens it again, so that nobody compares vectors of two spaces.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index import disk
from twinspire.index.change import NewVectors
from twinspire.index.commit_record import RECORD_NAME, packed
from twinspire.index.connections import CATALOGUE_NAME
from twinspire.index.error_mapping import store_errors
from twinspire.index.lock import LOCK_NAME, WriterLock
from twinspire.index.state import DEAD
from twinspire.index.store import Index
from twinspire.stores.items import BundleReference, Item, ItemKind

FOLDER_NAME = "migration"
_DISCARDED = ".migration-discarded"
_OLD = "old"


class StagedVector(NamedTuple):
    """One vector to stage: of which item, of which content (see `Staging.has`), and what was read of its file."""

    item_id: int
    kind: ItemKind
    key: str
    read: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Entry:
    id: int  # in the index of staged vectors
    key: str
    is_changed: bool


class Staging:
    """The vectors of the new space that were encoded so far. Takes about 300 bytes of memory an item."""

    def __init__(self, folder: Path, index: Index) -> None:
        self._folder = folder
        self.index = index
        self._entries = {
            int(item.uri): _Entry(item.id, item.content_hash or "", bool(item.metadata)) for item in index.items()
        }

    @classmethod
    def open(
        cls, index: Index, *, space: str, dim: int, vectors_per_item: int, bundle: BundleReference | None
    ) -> Staging:
        """Go on with the migration of `index`, or begin one.

        Raises `InputError` if one to another space was begun, `IndexLockedError` beside another process that migrates.
        """
        folder = index.path / FOLDER_NAME
        # Not for writing: after a switch that was killed the index shares its vector file with this folder.
        if begun(index.path) and begun_to(index.path)[0] == index.space:
            discard(index.path)
        if not begun(index.path):
            staged = Index.create(
                folder, space=space, dim=dim, dtype=index.dtype, bundle=bundle, vectors_per_item=vectors_per_item
            )
        else:
            other, made_by = begun_to(index.path)
            if other != space:
                raise InputError(
                    f"a migration of {index.path} to {made_by or f'the space {other[:12]}'} was begun: finish it with "
                    "that bundle, or pass --restart to discard what it has encoded and begin anew",
                    option="--restart",
                )
            staged = Index.open(folder, mode="write")
            if bundle is not None and staged.bundle != bundle:
                staged.set_bundle(bundle)
        return cls(folder, staged)

    def __len__(self) -> int:
        return len(self._entries)

    def has(self, item_id: int, key: str) -> bool:
        """Whether there is a vector of an item whose content has this key."""
        entry = self._entries.get(item_id)
        return entry is not None and entry.key == key

    def keep_only(self, ids: set[int]) -> None:
        """Remove the vectors of items that are not among `ids`: the index has lost them meanwhile."""
        gone = self._entries.keys() - ids
        if gone:
            self.index.remove([self._entries[number].id for number in gone])
            for number in gone:
                del self._entries[number]

    @property
    def changed(self) -> int:
        """How many files have other content than their items."""
        return sum(entry.is_changed for entry in self._entries.values())

    def build(self, spec: str) -> None:
        """Build what searches use after the switch, as `Index.build` does; an earlier one of this spec stays."""
        snapshot = self.index.stats().snapshot
        if ("flat" if snapshot is None else snapshot.spec) != spec and len(self):
            self.index.build(spec)

    def put(self, vectors: Sequence[StagedVector], embeddings: NDArray[np.float32]) -> None:
        """Store vectors, (N, D) or (N, Q, D), in place of those that these items had; durable when it returns."""
        if old := [self._entries.pop(new.item_id).id for new in vectors if new.item_id in self._entries]:
            self.index.remove(old)
        items = [
            Item(str(new.item_id), new.kind, None, {} if new.read is None else {"read": new.read}, new.key)
            for new in vectors
        ]
        report = self.index.add(embeddings, items, space=self.index.space)
        for new, staged_id in zip(vectors, report.added, strict=True):
            self._entries[new.item_id] = _Entry(staged_id, new.key, new.read is not None)

    def changes(self) -> dict[int, Mapping[str, Any]]:
        """Return what was read of the files that have other content than their items, by the items' ids."""
        changed = {number: entry.id for number, entry in self._entries.items() if entry.is_changed}
        stored = self.index.get(changed.values())
        return {number: item.metadata["read"] for number, item in zip(changed, stored, strict=True)}

    def switch(
        self, index: Index, changed: Mapping[int, Item], dropped: Iterable[int], *, keep_old: bool = False
    ) -> int:
        """Let `index`, open for writing, take the vectors in one step; both are closed then. Return how many it took.

        Every item of the index must have a vector, but those of `dropped`, which are removed. The items of `changed`
        get these fields. With `keep_old` the index as it was lies in the folder then: see `kept_old`.
        """
        staged, dropped = self.index, set(dropped)
        with staged._handle.reading("migrate") as (view, state):
            rows = {staged_id: row for row, staged_id in enumerate(state.ids.tolist()) if staged_id != DEAD}
            entries = sorted((number, entry.id) for number, entry in self._entries.items() if number not in dropped)
            places = {number: rows[staged_id] for number, staged_id in entries}
            new = NewVectors(
                vectors_file=view.commit.vectors_file,
                count=view.commit.rows,
                checksum=view.commit.checksum,
                ids=list(places),
                rows=list(places.values()),
                space=staged.space,
                dim=staged.dim,
                vectors_per_item=staged.vectors_per_item,
                bundle=view.bundle(),
                snapshot=view.snapshot(),
            )
        staged.close()  # Nothing may write to a file that two folders share.
        with index._handle.changing("migrate") as (writer, _):
            shutil.rmtree(self._folder / _OLD, ignore_errors=True)
            if keep_old:
                _copy(index, self._folder / _OLD)
            writer.migrate(self._folder, new, changed, dropped)
        index.close()
        return len(places)

    def close(self) -> None:
        """Close it; what was encoded stays."""
        self.index.close()


def _copy(index: Index, folder: Path) -> None:
    """Write the index, of which nothing may change meanwhile, to a folder that shares its vector file."""
    folder.mkdir()
    parts = index._handle.parts()
    parts.catalogue.connections.copy(folder / CATALOGUE_NAME)
    with closing(sqlite3.connect(folder / CATALOGUE_NAME)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    with parts.catalogue.view() as view:
        commit, snapshot = view.commit, view.snapshot()
    for name in (commit.vectors_file, *([snapshot.name] if snapshot is not None and snapshot.name else [])):
        disk.link(index.path / name, folder / name)
    (folder / LOCK_NAME).touch()
    (folder / RECORD_NAME).write_bytes(packed(commit.generation, commit.rows))
    for name in (CATALOGUE_NAME, LOCK_NAME, RECORD_NAME):
        disk.sync_file(folder / name)
    disk.sync_folder(folder)


def kept_old(path: Path, target: Path) -> None:
    """Move the old index, which `switch` kept, to `target`; does nothing where it was moved already."""
    old = path / FOLDER_NAME / _OLD
    if old.is_dir():
        with store_errors(path, "keep the old state of"):
            shutil.move(old, target)
            disk.sync_folder(target.parent)


def discard(path: Path) -> None:
    """Remove the staged vectors of the index at `path`. Raises `IndexLockedError` beside a process that migrates."""
    folder = path / FOLDER_NAME
    with store_errors(path, "clean up"):
        if folder.is_dir():
            lock = WriterLock(folder)
            try:
                remove_discarded(path)
                disk.rename(folder, path / _DISCARDED)
            finally:
                lock.release()
        remove_discarded(path)


def remove_discarded(path: Path) -> None:
    """Remove what an interrupted `discard` or beginning left."""
    for left in path.glob(f".{FOLDER_NAME}*"):
        with suppress(OSError):  # stale files do no harm
            shutil.rmtree(left)


def begun(path: Path) -> bool:
    """Whether the index at `path` has staged vectors."""
    return (path / FOLDER_NAME / CATALOGUE_NAME).is_file()


def begun_to(path: Path) -> tuple[str, BundleReference | None]:
    """Return the space and the bundle of the staged vectors of the index at `path`."""
    with Index.open(path / FOLDER_NAME) as staged:
        return staged.space, staged.bundle


def staged_keys(path: Path, space: str) -> dict[int, str]:
    """Return the keys of the contents with staged vectors of this space, by the ids of their items."""
    if not begun(path) or begun_to(path)[0] != space:
        return {}
    with Index.open(path / FOLDER_NAME) as staged:
        return {int(item.uri): item.content_hash or "" for item in staged.items()}
