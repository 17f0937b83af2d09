"""What changes an index: in one transaction, vectors are appended and synced first, then committed with their items.

The transaction is begun before the vector file is touched and compares what is committed with what this writer left:
where both differ somebody else has written, and nothing is changed. So two writers cannot undo each other's changes,
not even where something defeats the lock.
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
from twinspire.index.catalogue import Catalogue
from twinspire.index.change import Change
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
_BLOCK_ROWS = 4096
_LOG_BYTES = 8 << 20
"""SQLite's log is cut after a change that left more; twice what SQLite lets gather before it copies."""


class Writer:
    """Makes changes one after the other, each durable when its method returns.

    Raises `OSError` and `sqlite3.Error` where nothing is changed, `UncertainCommit` where that is not known, and
    `IndexStoreError` where the lock is lost or somebody else has written. It is usable after that: the next change
    recovers first. That commits an empty change, truncates the vector file to the committed length and removes
    files that are left over.
    """

    def __init__(self, folder: Path, catalogue: Catalogue, states: States, writer_lock: WriterLock) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._states = states
        self._writer_lock = writer_lock
        self._lock = threading.RLock()
        self._file: VectorFile | None = None
        self._commit: Commit | None = None  # None: to be settled
        self._record = CommitRecord(folder)
        self._writers = 0  # how often the index was settled, by this writer last
        try:
            self._settled()
        except BaseException:
            self.close()
            raise

    def add(self, vectors: NDArray[np.float32], items: Sequence[Item]) -> AddReport:
        """Add `items` with `vectors`, (N, D), but for those that are there."""
        with self._lock:
            self._settled()
            new = self._new_positions(items)
            skipped = sorted(set(range(len(items))) - set(new))
            if not new:
                return AddReport([], skipped)
            with self._changing() as change:
                checksum = self._append(change, vectors[new] if skipped else vectors)
                ids = change.insert([items[position] for position in new], checksum, time.time())
            return AddReport(ids, skipped)

    def remove(self, ids: Iterable[int]) -> int:
        """Remove the items of these ids, of which some may be gone already."""
        with self._lock:
            self._settled()
            with self._changing() as change:
                return change.remove(ids, even_damaged=True)

    def remove_where(self, where: Filter) -> int:
        """Remove the items that `where` keeps."""
        with self._lock:
            self._settled()
            with self._changing() as change:
                return change.remove(change.ids(None, where))

    def update(self, number: int, vectors: NDArray[np.float32] | None, fields: Mapping[str, Any]) -> StoredItem:
        """Change `fields` of the item `number` and, where `vectors` (1, D) is given, its vector."""
        with self._lock:
            self._settled()
            item = self._updated(number, fields)
            with self._changing() as change:
                checksum = self._append(change, vectors) if vectors is not None else None
                change.update(number, item, checksum, time.time())
                return change.items([number])[number]

    def compact(self) -> CompactReport:
        """Write the vectors of the items into a new file, in the order of ids, go over to it, shrink the catalogue."""
        with self._lock:
            self._settled()
            self._catalogue.checkpoint()
            catalogue_before = self._catalogue.size_bytes()
            dropped, before, after = self._drop_rows()
            try:
                if dropped:
                    with self._changing() as change:
                        change.merge_words()
                self._catalogue.shrink()
            except (sqlite3.Error, OSError, UncertainCommit) as error:
                if not dropped:
                    raise
                _log.warning("the catalogue of the index %s keeps its size: %s", self._folder, error)
            return CompactReport(dropped, before, after, catalogue_before, self._catalogue.size_bytes())

    def _drop_rows(self) -> tuple[int, int, int]:
        """Rewrite the vector file; return how many rows it dropped and its sizes before and after."""
        file, before = self._settled()
        with self._states.current() as (_, state):
            pass  # it stays as it is: nobody else writes
        size = file.size_bytes()
        rows = np.flatnonzero(state.ids != DEAD)
        rows = rows[np.argsort(state.ids[rows])]
        if np.array_equal(rows, np.arange(before.rows)):
            return 0, size, size
        number = vectors_number(before.vectors_file)
        assert number is not None
        self._commit = None  # so that a file that is left over is removed
        new = self._open(vectors_name(number + 1, self._catalogue.dtype), create=True)
        try:
            checksum = CHECKSUM_OF_NOTHING
            for start in range(0, len(rows), _BLOCK_ROWS):
                state.mapping.check()
                data = as_stored(state.vectors[rows[start : start + _BLOCK_ROWS]], self._catalogue.dtype)
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
        with suppress(OSError):  # it does not count any more; the next writer tries again
            file.close()
            disk.remove(self._folder / file.name)
        return before.rows - len(rows), size, new.size_bytes()

    @contextmanager
    def exclusive(self) -> Iterator[Commit]:
        """Give how far the index is committed; nothing else changes it until the block ends."""
        with self._lock:
            yield self._settled()[1]

    def put_snapshot(self, row: SnapshotRow | None) -> None:
        """Make `row` what the catalogue says of the snapshot, None: that there is none."""
        with self._lock:
            self._settled()
            with self._changing() as change:
                change.put_snapshot(row)

    def put_bundle(self, bundle: BundleReference) -> None:
        """Make `bundle` the one that the catalogue remembers."""
        with self._lock:
            self._settled()
            with self._changing() as change:
                change.put_bundle(bundle)

    def close(self) -> None:
        """Close the file; waits for a change that is under way."""
        with self._lock:
            self._record.close()
            if self._file is not None:
                self._file.close()
                self._file = None

    def _settled(self) -> tuple[VectorFile, Commit]:
        """Return the vector file and how far it is committed, for good."""
        self._writer_lock.check()
        if self._commit is None:
            commit, self._writers = self._catalogue.recover()
            with self._transaction(commit):  # keeps whoever else writes away from the files
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
        """Give a change, durable when the block has ended; where it or the block raises, it is undone for good.

        `expected` is what must be committed before, by default what the last change left.
        """
        before = expected or self._commit
        assert before is not None
        self._commit = None  # until it has worked
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
        try:  # The change is made: what fails from here on is made up for by the next one.
            self._record.write(change.commit.generation, change.commit.rows)
            self._catalogue.checkpoint(larger_than_bytes=_LOG_BYTES)
        except (sqlite3.Error, OSError) as error:
            _log.warning("the index %s is not tidied up after a change: %s", self._folder, error)

    @contextmanager
    def _transaction(self, expected: Commit) -> Iterator[Change]:
        """Give a change. Raises `IndexStoreError` where something else than `expected` is committed."""
        with self._catalogue.change() as change:
            self._writer_lock.check()
            if change.commit != expected or change.header.writers != self._writers:
                raise IndexStoreError(
                    f"somebody else has written to the index {self._folder} while it was open for writing (it is at "
                    f"generation {change.commit.generation}, this writer left it at {expected.generation}), though "
                    "only one may. Nothing was changed. Close the index, see that one process writes, open it again"
                )
            yield change

    def _undo(self, error: Exception) -> None:
        """Make sure that a commit that failed does not come back: see `Catalogue.recover`."""
        try:
            _, self._writers = self._catalogue.recover()
        except (sqlite3.Error, OSError) as second:
            _log.warning("a failed change of the index %s could not be undone: %s", self._folder, second)
            raise UncertainCommit(str(error)) from error

    def _append(self, change: Change, vectors: NDArray[np.float32]) -> int:
        """Append vectors, (N, D), and wait until the disk has them; return the checksum with them."""
        assert self._file is not None
        data = as_stored(vectors, self._catalogue.dtype)
        self._file.append(change.commit.rows, data)
        return checksum_of(data, change.commit.checksum)

    def _open(self, name: str, *, create: bool = False) -> VectorFile:
        path, dim, dtype = self._folder / name, self._catalogue.dim, self._catalogue.dtype
        if create:
            create_vector_file(path, dim, dtype)
        return VectorFile(path, dim, dtype, writable=True)

    def _updated(self, number: int, fields: Mapping[str, Any]) -> Item:
        """Return the item `number` with other `fields`."""
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
        """Return the positions of items whose kind, uri and content hash no other item has, nor an earlier of these."""
        with self._catalogue.view() as view:
            seen = view.known(items)
        new = []
        for position, item in enumerate(items):
            identity = (item.kind.value, item.uri, item.content_hash)
            if item.content_hash is None or identity not in seen:
                new.append(position)
                seen.add(identity)
        return new
