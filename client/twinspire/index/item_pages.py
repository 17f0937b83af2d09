"""The items of an index in pages, with their embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import IndexStoreError
from twinspire.index.error_mapping import RESTORE
from twinspire.index.state import State
from twinspire.index.view import View
from twinspire.stores.items import StoredItem

_PAGE_BYTES = 32 << 20  # of embeddings in memory at a time
_PAGE_ITEMS = 10_000


@dataclass(frozen=True)
class ItemPages:
    """The items to export, of one committed state; valid within the block that gave it."""

    ids: NDArray[np.int64]  # (N,), in order
    shape: tuple[int, ...]  # of an item's embedding: (D,), or (Q, D) of Q vectors an item
    space: str
    view: View
    state: State

    def items(self) -> Iterator[list[StoredItem]]:
        """Yield the items in pages."""
        step = max(1, min(_PAGE_ITEMS, _PAGE_BYTES // (4 * math.prod(self.shape))))
        for start in range(0, len(self.ids), step):
            ids = self.ids[start : start + step].tolist()
            found = self.view.items(ids)
            if lost := [number for number in ids if number not in found]:
                raise IndexStoreError(f"the catalogue has lost the item {lost[0]}. {RESTORE}")
            yield [found[number] for number in ids]

    def pages(self) -> Iterator[tuple[list[StoredItem], NDArray[np.float32]]]:
        """Yield the items with their embeddings, (n, *shape) float32, in pages."""
        for items in self.items():
            ids = np.array([item.id for item in items], np.int64)
            rows = self.view.rows(ids.tolist())
            places = np.array([rows.get(number, -1) for number in ids.tolist()], np.int64)
            self.state.check_rows(places, ids)
            yield items, np.array(self.state.vectors[places], dtype=np.float32)
