"""What changes an index: vectors appended and synced first, then one transaction that makes them count."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index import disk
from twinspire.index.catalogue import Catalogue
from twinspire.index.change import Change
from twinspire.index.items import Item, StoredItem
from twinspire.index.reference import BundleReference
from twinspire.index.reports import AddReport, CompactReport
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

if TYPE_CHECKING:
    from twinspire.index.where import Where

_BLOCK_ROWS = 4096


class Writer:
    """Makes changes one after the other, each durable when its method returns.

    Raises `OSError` and `sqlite3.Error`, and is usable after that: when a change has failed it is not known what
    the disk has, so the next one first settles. That commits a change that says nothing, cuts the vector file to
    the length that is committed, and removes files that are left over.
    """

    def __init__(self, folder: Path, catalogue: Catalogue, states: States) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._states = states
        self._lock = threading.RLock()
        self._file: VectorFile | None = None
        self._commit: Commit | None = None  # None: to be settled
        with self._lock:
            self._settled()

    def add(self, vectors: NDArray[np.float32], items: Sequence[Item]) -> AddReport:
        """Add `items` with `vectors`, (N, D), but for those that are there."""
        with self._lock:
            file, before = self._settled()
            new = self._new_positions(items)
            skipped = sorted(set(range(len(items))) - set(new))
            if not new:
                return AddReport([], skipped)
            checksum = self._append(file, before, vectors[new] if skipped else vectors)
            with self._changing() as change:
                ids = change.insert([items[position] for position in new], checksum, time.time())
            return AddReport(ids, skipped)

    def remove(self, ids: Iterable[int]) -> int:
        """Remove the items of these ids, of which some may be gone already."""
        with self._lock:
            self._settled()
            with self._changing() as change:
                return change.remove(ids)

    def remove_where(self, where: Where) -> int:
        """Remove the items that `where` keeps."""
        with self._lock:
            self._settled()
            with self._changing() as change:
                return change.remove(change.ids(None, where))

    def update(self, number: int, vectors: NDArray[np.float32] | None, fields: Mapping[str, Any]) -> StoredItem:
        """Change `fields` of the item `number` and, where `vectors` (1, D) is given, its vector."""
        with self._lock:
            file, before = self._settled()
            item = self._updated(number, fields)
            checksum = self._append(file, before, vectors) if vectors is not None else None
            with self._changing() as change:
                change.update(number, item, checksum, time.time())
                return change.items([number])[number]

    def compact(self) -> CompactReport:
        """Write the vectors of the items into a new file, in the order of ids, and go over to it."""
        with self._lock:
            file, before = self._settled()
            with self._states.current() as (_, state):
                pass  # it stays as it is: nobody else writes
            size = file.size_bytes()
            rows = np.flatnonzero(state.ids != DEAD)
            rows = rows[np.argsort(state.ids[rows])]
            if np.array_equal(rows, np.arange(before.rows)):
                return CompactReport(0, size, size)
            number = vectors_number(before.vectors_file)
            assert number is not None
            self._commit = None  # so that a file that is left over is removed
            new = self._open(vectors_name(number + 1, self._catalogue.dtype), create=True)
            try:
                checksum = CHECKSUM_OF_NOTHING
                for start in range(0, len(rows), _BLOCK_ROWS):
                    data = as_stored(state.vectors[rows[start : start + _BLOCK_ROWS]], self._catalogue.dtype)
                    new.write(start, data)
                    checksum = checksum_of(data, checksum)
                new.sync()
                disk.sync_folder(self._folder)
                with self._changing() as change:
                    change.compact(state.ids[rows].tolist(), new.name, checksum)
            except BaseException:
                new.close()
                raise
            self._file = new
            file.close()
            with suppress(OSError):  # it does not count any more; the next writer tries again
                disk.remove(self._folder / file.name)
            return CompactReport(before.rows - len(rows), size, new.size_bytes())

    @contextmanager
    def alone(self) -> Iterator[Commit]:
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
            if self._file is not None:
                self._file.close()
                self._file = None

    def _settled(self) -> tuple[VectorFile, Commit]:
        """Return the vector file and how far it is committed, for good."""
        if self._commit is None:
            commit = self._catalogue.settle()
            if self._file is None or self._file.name != commit.vectors_file:
                file = self._open(commit.vectors_file)
                if self._file is not None:
                    self._file.close()
                self._file = file
            self._file.truncate(commit.rows)
            for path in self._folder.iterdir():
                if vectors_number(path.name) is not None and path.name != commit.vectors_file:
                    disk.remove(path)
            self._commit = commit
        assert self._file is not None
        return self._file, self._commit

    @contextmanager
    def _changing(self) -> Iterator[Change]:
        self._commit = None  # until it has worked
        with self._catalogue.change() as change:
            yield change
        self._commit = change.commit

    def _append(self, file: VectorFile, before: Commit, vectors: NDArray[np.float32]) -> int:
        """Append vectors, (N, D), and wait until the disk has them; return the checksum with them."""
        self._commit = None
        data = as_stored(vectors, self._catalogue.dtype)
        file.append(before.rows, data)
        return checksum_of(data, before.checksum)

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
