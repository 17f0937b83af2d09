"""Committed states as searches need them: the vectors, and which row belongs to which item."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinspire._lru_cache import LruCache
from twinspire.errors import IndexStoreError
from twinspire.index.catalogue import Catalogue
from twinspire.index.digests import SUM_MODULUS, pair_sum
from twinspire.index.error_mapping import RESTORE
from twinspire.index.vectors import CHECKSUM_OF_NOTHING, LostVectorFileError, VectorFile, VectorMapping, Vectors
from twinspire.index.view import Commit, View
from twinspire.stores.items import ItemKind

if TYPE_CHECKING:
    from twinspire.stores.filters.filter import Filter

DEAD = -1
"""In place of an id: the row has no item any more."""
_UNKNOWN = -2
_MASKS = 8  # cached filters, a byte a row each


@dataclass(frozen=True, slots=True)
class State:
    """One committed state. Never changes, so a search needs no lock."""

    commit: Commit
    mapping: VectorMapping  # of the vector file
    ids: NDArray[np.int64]  # (N,), the item of each row, or `DEAD`
    items: int  # number of rows with an item
    placed: int  # sum over these of row and id, as in the catalogue

    @property
    def vectors(self) -> Vectors:
        """(N, D), or (N, Q, D) of Q vectors an item: a mapping of the vector file."""
        return self.mapping.vectors

    def check_rows(self, rows: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        """Raise `IndexStoreError` unless `rows`, (n,), read from the table of items, are those of the items `ids`.

        The ids of a state come from an index of the table and were checked; the table itself may be damaged.
        """
        if rows.size and not (0 <= rows.min() <= rows.max() < len(self.ids) and (self.ids[rows] == ids).all()):
            raise IndexStoreError(f"the catalogue is damaged: it assigns a vector to two items. {RESTORE}")


class States:
    """The latest state of an open index, updated by reading only what is new."""

    def __init__(self, folder: Path, catalogue: Catalogue) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self.trusting = False
        """Whether only this process writes, so that what it wrote needs no check."""
        self._lock = threading.Lock()
        self._file: VectorFile | None = None
        self._state: State | None = None
        self._ids = np.empty(0, np.int64)  # shared by states, with room for further rows
        self._masks = LruCache[NDArray[np.bool_]](_MASKS)

    @contextmanager
    def current(self) -> Iterator[tuple[View, State]]:
        """Give the last commit of any process: within the block, view and state are of one generation.

        Checks new vectors against the checksum, and before and after the block the length of the vector file. Raises
        `IndexStoreError` for damage.
        """
        lost, stale = "", -1
        while True:
            with self._catalogue.view() as view:
                try:
                    state = self._at(view)
                except LostVectorFileError:
                    # `compact` may have put another file in its place since the view began.
                    if view.commit.vectors_file == lost:
                        raise
                    lost = view.commit.vectors_file
                    continue
                if state is None:
                    # Another thread has read a later state: read again.
                    if view.commit.generation <= stale:
                        raise IndexStoreError(
                            f"the index {self._folder} is at an earlier generation than before: the folder was "
                            "replaced. Open it again"
                        )
                    stale = view.commit.generation
                    continue
                state.mapping.check()
                yield view, state
                state.mapping.check()
                return

    def allowed(
        self, view: View, state: State, kind: ItemKind | None, where: Filter | None
    ) -> NDArray[np.bool_] | None:
        """Return which rows a search may find, (N,) bool; None: all. Masks are cached for one generation."""
        if kind is None and where is None and state.items == state.commit.rows:
            return None
        key = (state.commit.generation, kind, where)
        mask = self._masks.get(key)
        if mask is not None:
            return mask
        if kind is None and where is None:
            mask = state.ids != DEAD
        else:
            mask = np.zeros(state.commit.rows, np.bool_)
            kept = view.kept(kind, where)
            state.check_rows(kept[:, 0], kept[:, 1])
            mask[kept[:, 0]] = True
        mask.setflags(write=False)
        self._masks.put(key, mask)
        return mask

    def close(self) -> None:
        """Close the file; states stay valid."""
        with self._lock:
            self._state = None
            if self._file is not None:
                self._file.close()
                self._file = None

    def _at(self, view: View) -> State | None:
        """Return the state of this view; None if a later one is known already."""
        with self._lock:
            now, old = view.commit, self._state
            if old is not None and old.commit.generation > now.generation:
                return None
            if old is None or old.commit.generation != now.generation:
                self._state = self._advanced(view, old)
            return self._state

    def _advanced(self, view: View, old: State | None) -> State:
        now = view.commit
        if old is not None and old.commit.vectors_file != now.vectors_file:
            old = None
        file = self._file
        if old is None or file is None:
            catalogue = self._catalogue
            path = self._folder / now.vectors_file
            file = VectorFile(path, catalogue.dim, catalogue.dtype, catalogue.vectors_per_item)
        try:
            rows, checksum = (old.commit.rows, old.commit.checksum) if old is not None else (0, CHECKSUM_OF_NOTHING)
            if not self.trusting:
                file.verify(rows, checksum, now.rows, now.checksum)
            ids, items, placed = self._placed(view, old)
            state = State(now, file.mapped(now.rows), ids, items, placed)
        except BaseException:
            if file is not self._file:
                file.close()
            raise
        if file is not self._file:
            if self._file is not None:
                self._file.close()
            self._file = file
        return state

    def _placed(self, view: View, old: State | None) -> tuple[NDArray[np.int64], int, int]:
        """Return the id of each row, the number of rows with one, and the sum over these, after checking it."""
        rows = view.commit.rows
        before, generation, items = (old.commit.rows, old.commit.generation, old.items) if old else (0, -1, 0)
        dead = view.dead_rows(generation)
        placed = view.placed(before)
        for found in (dead, placed[:, 0]):
            if found.size and not 0 <= found.min() <= found.max() < rows:
                raise IndexStoreError(
                    f"the catalogue is damaged: it has a row {found.min()} or {found.max()} of {rows}. {RESTORE}"
                )
        newly_dead = dead[dead < before]
        gone = pair_sum(newly_dead, self._ids[newly_dead])  # before they are marked
        if old is None or newly_dead.size or len(self._ids) < rows:
            room = np.empty(rows + rows // 2 if old else rows, np.int64)
            room[:before] = self._ids[:before]  # a copy: older states keep the old array
            self._ids = room
        self._ids[before:rows] = _UNKNOWN
        self._ids[placed[:, 0]] = placed[:, 1]
        self._ids[dead] = DEAD
        ids = self._ids[:rows]
        unknown = np.flatnonzero(ids[before:] == _UNKNOWN)
        if unknown.size:
            raise IndexStoreError(f"the catalogue has lost the item of vector {before + unknown[0]}. {RESTORE}")
        ids = ids.view()
        ids.setflags(write=False)
        sum_placed = ((old.placed if old else 0) - gone + pair_sum(placed[:, 0], placed[:, 1])) % SUM_MODULUS
        if sum_placed != view.commit.placed:
            raise IndexStoreError(f"the catalogue is damaged: its items are not those of the vectors. {RESTORE}")
        return ids, items + len(placed) - len(newly_dead), sum_placed
