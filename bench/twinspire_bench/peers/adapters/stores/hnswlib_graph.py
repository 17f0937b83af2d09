"""hnswlib: an HNSW graph in memory. M = 16, ef_construction = 200 and ef = 64 or more, near its documented values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import hnswlib
import numpy as np

from ..saved_files import DURABILITY, save

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EF = 64
_ROOM = 1_024


class HnswlibGraph:
    """Marks are kept in a set beside the index and filter it as a function that hnswlib calls for each candidate."""

    durability = DURABILITY
    can_filter = True
    filtering = "while it searches the graph, by a Python function called for each candidate"

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task

    def create(self, folder: str) -> None:
        """Make an empty graph; it grows as items are added."""
        self._file, self._marked = Path(folder, "index"), set[int]()
        self._index = hnswlib.Index(space="ip", dim=self._task["dim"])
        self._index.init_index(_ROOM, M=16, ef_construction=200, random_seed=0)
        self._index.set_num_threads(self._task["threads"])

    def add(self, ids: list[int], vectors: NDArray[np.float32], marks: list[int]) -> None:
        """Add items and save the graph."""
        needed = self._index.get_current_count() + len(ids)
        if needed > self._index.get_max_elements():
            self._index.resize_index(2 * needed)
        self._index.add_items(vectors, ids)
        self._marked.update(number for number, mark in zip(ids, marks, strict=True) if mark)
        save(self._file, self._index.save_index)

    def search(self, query: NDArray[np.float32], k: int, mark: int | None) -> list[int]:
        """Search with one thread, as one query does anyway."""
        self._index.set_ef(max(_EF, k))
        allowed = None if mark is None else self._marked.__contains__
        at_most = self._index.get_current_count() if mark is None else len(self._marked)
        rows, _ = self._index.knn_query(query[None], min(k, at_most), num_threads=1, filter=allowed)
        return [int(row) for row in rows[0]]

    def close(self) -> None:
        """Nothing is open."""


def open_peer(task: dict[str, Any]) -> HnswlibGraph:
    """Return the store."""
    return HnswlibGraph(task)
