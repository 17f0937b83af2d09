"""FAISS: exact search of a flat index in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from ..saved_files import DURABILITY, save

if TYPE_CHECKING:
    from numpy.typing import NDArray


class FaissFlat:
    """Ids are positions. The marked ones are an array, which selects the rows that are compared."""

    durability = DURABILITY
    can_filter = True
    filtering = "before it compares vectors, by a list of ids (IDSelectorBatch) made for each query"

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task
        faiss.omp_set_num_threads(task["threads"])

    def create(self, folder: str) -> None:
        """Make an empty index."""
        self._file, self._marks = Path(folder, "index"), list[int]()
        self._index = faiss.IndexFlatIP(self._task["dim"])

    def add(self, ids: list[int], vectors: NDArray[np.float32], marks: list[int]) -> None:
        """Add items, whose ids follow those that are there, and save the index."""
        assert ids[0] == self._index.ntotal
        self._index.add(vectors)
        self._marks += marks
        save(self._file, lambda path: faiss.write_index(self._index, path))

    def search(self, query: NDArray[np.float32], k: int, mark: int | None) -> list[int]:
        """Search; fewer than k are found where fewer have the mark."""
        parameters = None
        if mark is not None:
            selector = faiss.IDSelectorBatch(np.flatnonzero(np.array(self._marks) == mark))
            parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        _, rows = self._index.search(query[None], k, params=parameters)
        return [int(row) for row in rows[0] if row >= 0]

    def close(self) -> None:
        """Free the memory."""
        self._index.reset()


def open_peer(task: dict[str, Any]) -> FaissFlat:
    """Return the store."""
    return FaissFlat(task)
