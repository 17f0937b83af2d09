"""USearch: an HNSW graph in memory, of float32 vectors, with its default parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from usearch.index import Index

from ..saved_files import DURABILITY, save

if TYPE_CHECKING:
    from numpy.typing import NDArray


class UsearchGraph:
    """Its filters are functions of C++ (predicates), which its Python package does not offer."""

    durability = DURABILITY
    can_filter = False
    filtering = "none: not part of its Python package"

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task

    def create(self, folder: str) -> None:
        """Make an empty graph."""
        self._file = Path(folder, "index")
        self._index = Index(ndim=self._task["dim"], metric="ip", dtype="f32")

    def add(self, ids: list[int], vectors: NDArray[np.float32], marks: list[int]) -> None:
        """Add items and save the graph; marks are not kept."""
        del marks
        self._index.add(np.array(ids, np.uint64), vectors, threads=self._task["threads"])
        save(self._file, self._index.save)

    def search(self, query: NDArray[np.float32], k: int, mark: int | None) -> list[int]:
        """Search without a filter."""
        assert mark is None
        return [int(key) for key in self._index.search(query, k).keys]

    def close(self) -> None:
        """Free the memory."""
        self._index.reset()


def open_peer(task: dict[str, Any]) -> UsearchGraph:
    """Return the store."""
    return UsearchGraph(task)
