"""Changes of an index: vectors are appended and synced first, then committed with their items in one transaction.

The transaction begins before the vector file is touched and compares the committed state with the one that this writer
left: if they differ, another process has written, and nothing is changed. So two writers cannot undo each other's
changes, not even if the lock fails.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import IndexStoreError, InputError
from twinspire.index import disk
from twinspire.index.ann.files import snapshot_name, snapshot_number
from twinspire.index.catalogue import Catalogue
from twinspire.index.change import Change, NewVectors
from twinspire.index.commit_record import CommitRecord
from twinspire.index.error_mapping import UncertainCommit
from twinspire.index.lock import WriterLock
from twinspire.index.reports import CompactReport
from twinspire.index.state import DEAD, States
from twinspire.index.vectors import (
    CHECKSUM_OF_NOTHING,
    VectorFile,
    as_stored,
    checksum_of,
    create_vector_file,
    vectors_name,
    vectors_number,
)
from twinspire.index.view import Commit, SnapshotRow
from twinspire.stores.items import AddReport, BundleReference, Item, StoredItem

if TYPE_CHECKING:
    from twinspire.stores.filters.filter import Filter

_log = logging.getLogger("twinspire.index")
_BLOCK_VECTORS = 4096
_LOG_BYTES = 8 << 20
"""SQLite's log is truncated after a change that left more, twice the size at which SQLite copies it."""


class Writer:
    """Makes changes one after the other, each durable when its method returns.

    Raises `OSError` and `sqlite3.Error` if nothing is changed, `UncertainCommit` if the change may be committed, and
    `IndexStoreError` if the lock is lost or somebody else has written. After an error the next change recovers first:
    it commits an empty transaction, truncates the vector file to the committed length and removes stale files.
    """

    def __init__(self, folder: Path, catalogue: Catalogue, states: States, writer_lock: WriterLock) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._states = states
        self._writer_lock = writer_lock
        self._lock = threading.RLock()
        self._file: VectorFile | None = None
        self._commit: Commit | None = None  # None: to be recovered
        self._record = CommitRecord(folder)
        self._writers = 0  # count of recoveries of the index, this writer's last one included
        try:
            self._recovered()
        except BaseException:
            self.close()
            raise

    def add(self, vectors: NDArray[np.float32], items: Sequence[Item]) -> AddReport:
        """Add `items` with `vectors`, a row of the vector file each, except those that the index has."""
        with self._lock:
            self._recovered()
            new = self._new_positions(items)
            skipped = sorted(set(range(len(items))) - set(new))
            if not new:
                return AddReport([], skipped)
            with self._changing() as change:
                checksum = self._append(change, vectors[new] if skipped else vectors)
                ids = change.insert([items[position] for position in new], checksum, time.time())
            return AddReport(ids, skipped)

    def remove(self, ids: Iterable[int]) -> int:
        """Remove the items of these ids, damaged ones too, and return how many there were."""
        with self._next_change() as change:
            return change.remove(ids, even_damaged=True)

    def remove_where(self, where: Filter) -> int:
        """Remove the items that `where` keeps and return how many there were."""
        with self._next_change() as change:
            return change.remove(change.ids(None, where))

    def update(self, number: int, vectors: NDArray[np.float32] | None, fields: Mapping[str, Any]) -> StoredItem:
        """Change `fields` of the item `number` and, where `vectors` is given, its row (1, ...)."""
        with self._lock:
            self._recovered()
            item = self._updated(number, fields)
            with self._changing() as change:
                checksum = self._append(change, vectors) if vectors is not None else None
                change.update(number, item, checksum, time.time())
                return change.items([number])[number]

    def compact(self) -> CompactReport:
        """Rewrite the vector file, in the order of ids, without dead rows, and shrink the catalogue."""
        with self._lock:
            self._recovered()
            self._catalogue.connections.checkpoint()
            catalogue_before = self._catalogue.connections.size_bytes()
            dropped, before, after = self._drop_rows()
            try:
                if dropped:
                    with self._changing() as change:
                        change.optimize_full_text()
                self._catalogue.shrink()
            except (sqlite3.Error, OSError, UncertainCommit) as error:
                if not dropped:
                    raise
                _log.warning("cannot shrink the catalogue of the index %s: %s", self._folder, error)
            return CompactReport(dropped, before, after, catalogue_before, self._catalogue.connections.size_bytes())

    def _drop_rows(self) -> tuple[int, int, int]:
        """Rewrite the vector file; return how many rows it dropped and its sizes before and after."""
        file, before = self._recovered()
        with self._states.current() as (_, state):
            pass  # valid after the block: nobody else writes
        size = file.size_bytes()
        rows = np.flatnonzero(state.ids != DEAD)
        rows = rows[np.argsort(state.ids[rows])]
        if np.array_equal(rows, np.arange(before.rows)):
            return 0, size, size
        number = vectors_number(before.vectors_file)
        assert number is not None
        self._commit = None  # so that the next change recovers, which removes a stale file
        new = self._open(vectors_name(number + 1, self._catalogue.dtype), create=True)
        try:
            checksum = CHECKSUM_OF_NOTHING
            step = max(1, _BLOCK_VECTORS // self._catalogue.vectors_per_item)
            for start in range(0, len(rows), step):
                state.mapping.check()
                data = as_stored(state.vectors[rows[start : start + step]], self._catalogue.dtype)
                new.write(start, data)
                checksum = checksum_of(data, checksum)
            new.sync()
            disk.sync_folder(self._folder)
            with self._changing(before) as change:
                change.compact(state.ids[rows].tolist(), new.name, checksum)
        except BaseException:
            new.close()
            raise
        self._file = new
        with suppress(OSError):  # it is stale; the next writer tries again
            file.close()
            disk.remove(self._folder / file.name)
        return before.rows - len(rows), size, new.size_bytes()

    def migrate(self, source: Path, new: NewVectors, changed: Mapping[int, Item], dropped: Iterable[int]) -> None:
        """Take the vectors of another space, from files in the folder `source`, in place of the own ones.

        In the same transaction the items of `changed` get these fields, and those of `dropped` are removed. The writer
        cannot be used any more then.
        """
        with self._lock:
            file, before = self._recovered()
            number = vectors_number(before.vectors_file)
            assert number is not None
            self._commit = None  # so that the next change recovers, which removes stale files
            name = vectors_name(number + 1, self._catalogue.dtype)
            disk.remove(self._folder / name)
            disk.link(source / new.vectors_file, self._folder / name)
            new = replace(new, vectors_file=name)
            if new.snapshot is not None and new.snapshot.name:
                taken = max((snapshot_number(path.name) or 0 for path in self._folder.iterdir()), default=0)
                row = replace(new.snapshot, name=snapshot_name(taken + 1))
                disk.link(source / new.snapshot.name, self._folder / row.name)
                new = replace(new, snapshot=row)
            disk.sync_folder(self._folder)
            with self._changing(before) as change:
                change.remove(dropped)
                for item_id, item in changed.items():
                    change.update(item_id, item, None, time.time())
                change.migrate(new)
            with suppress(OSError):  # it is stale; the next writer tries again
                file.close()
                disk.remove(self._folder / file.name)

    @contextmanager
    def exclusive(self) -> Iterator[Commit]:
        """Give the last commit; nothing else changes the index until the block ends."""
        with self._lock:
            yield self._recovered()[1]

    def put_snapshot(self, row: SnapshotRow | None) -> None:
        """Record `row` as the snapshot; None: there is none."""
        with self._next_change() as change:
            change.put_snapshot(row)

    def put_bundle(self, bundle: BundleReference) -> None:
        """Record `bundle` as the origin of the embeddings."""
        with self._next_change() as change:
            change.put_bundle(bundle)

    def close(self) -> None:
        """Close the files; waits for a change in progress."""
        with self._lock:
            self._record.close()
            if self._file is not None:
                self._file.close()
                self._file = None

    @contextmanager
    def _next_change(self) -> Iterator[Change]:
        """Give a change, as `_changing` does, after recovering from one that failed."""
        with self._lock:
            self._recovered()
            with self._changing() as change:
                yield change

    def _recovered(self) -> tuple[VectorFile, Commit]:
        """Return the vector file and the last commit, after recovering from a change that failed or was interrupted."""
        self._writer_lock.check()
        if self._commit is None:
            commit, self._writers = self._catalogue.recover()
            with self._transaction(commit):  # keeps other writers away from the files
                if self._file is None or self._file.name != commit.vectors_file:
                    file = self._open(commit.vectors_file)
                    if self._file is not None:
                        self._file.close()
                    self._file = file
                self._file.truncate(commit.rows)
                for path in self._folder.iterdir():
                    if vectors_number(path.name) is not None and path.name != commit.vectors_file:
                        disk.remove(path)
            self._record.write(commit.generation, commit.rows)
            self._commit = commit
        assert self._file is not None
        return self._file, self._commit

    @contextmanager
    def _changing(self, expected: Commit | None = None) -> Iterator[Change]:
        """Give a change, durable when the block has ended; if it or the block raises, it is undone for good.

        `expected` is the commit that it must follow, by default that of the last change.
        """
        before = expected or self._commit
        assert before is not None
        self._commit = None  # until the change has succeeded
        committing = False
        try:
            with self._transaction(before) as change:
                yield change
                committing = True
        except Exception as error:
            if committing:
                self._undo(error)
            raise
        self._commit = change.commit
        try:  # The change is committed: the next one repeats what fails from here on.
            self._record.write(change.commit.generation, change.commit.rows)
            self._catalogue.connections.checkpoint(larger_than_bytes=_LOG_BYTES)
        except (sqlite3.Error, OSError) as error:
            _log.warning("cannot clean up the index %s after a change: %s", self._folder, error)

    @contextmanager
    def _transaction(self, expected: Commit) -> Iterator[Change]:
        """Give a change. Raises `IndexStoreError` if another commit than `expected` is the last."""
        with self._catalogue.change() as change:
            self._writer_lock.check()
            if change.commit != expected or change.header.writers != self._writers:
                raise IndexStoreError(
                    f"another process has written to the index {self._folder} while it was open for writing: it is at "
                    f"generation {change.commit.generation}, this writer left it at {expected.generation}. Nothing was "
                    "changed. Close the index, make sure that only one process writes, and open it again"
                )
            yield change

    def _undo(self, error: Exception) -> None:
        """Make sure that a failed commit does not come back: see `Catalogue.recover`."""
        try:
            _, self._writers = self._catalogue.recover()
        except (sqlite3.Error, OSError) as second:
            _log.warning("cannot undo a failed change of the index %s: %s", self._folder, second)
            raise UncertainCommit(str(error)) from error

    def _append(self, change: Change, vectors: NDArray[np.float32]) -> int:
        """Append and sync rows; return the checksum of the vector file with them."""
        assert self._file is not None
        data = as_stored(vectors, self._catalogue.dtype)
        self._file.append(change.commit.rows, data)
        return checksum_of(data, change.commit.checksum)

    def _open(self, name: str, *, create: bool = False) -> VectorFile:
        catalogue, path = self._catalogue, self._folder / name
        form = catalogue.dim, catalogue.dtype, catalogue.vectors_per_item
        if create:
            create_vector_file(path, *form)
        return VectorFile(path, *form, writable=True)

    def _updated(self, number: int, fields: Mapping[str, Any]) -> Item:
        """Return the item `number` with new `fields`. Raises `InputError` if there is none, or another is the same."""
        with self._catalogue.view() as view:
            stored = view.items([number]).get(number)
            if stored is None:
                raise InputError(f"the index {self._folder} has no item {number}")
            before = Item(stored.uri, stored.kind, stored.caption, stored.metadata, stored.content_hash)
            after = replace(before, **fields)
            same = [other for other in view.find("uri", after.uri) if other.id != number]
            if after.content_hash is not None:
                for other in same:
                    if (other.kind, other.content_hash) == (after.kind, after.content_hash):
                        raise InputError(
                            f"the item {number} cannot have the uri {after.uri!r} and the content hash "
                            f"{after.content_hash!r}: the item {other.id} has both. Remove one of the two"
                        )
        return after

    def _new_positions(self, items: Sequence[Item]) -> list[int]:
        """Return the positions of items whose kind, uri and content hash neither the index nor an earlier one has."""
        with self._catalogue.view() as view:
            seen = view.known(items)
        new = []
        for position, item in enumerate(items):
            identity = (item.kind.value, item.uri, item.content_hash)
            if item.content_hash is None or identity not in seen:
                new.append(position)
                seen.add(identity)
        return new
