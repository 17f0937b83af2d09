"""ScaNN, as its documentation recommends by the number of vectors (docs/algorithms.md in its repository).

It compares all vectors below 20,000, their anisotropic codes below 100,000, and those of a tenth of the leaves of a
tree above; codes are rescored. Its index cannot be changed: each add trains and builds it anew.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scann

from ..saved_files import sync

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BRUTE_FORCE_BELOW = 20_000
_CODES_ALONE_BELOW = 100_000
_CODES_PER_RESULT = 10


class ScannTree:
    """Holds all vectors, of which an add makes a new index."""

    durability = "builds and saves the whole index, with fsync"
    can_filter = False
    filtering = "none: not part of its Python package"

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task

    def create(self, folder: str) -> None:
        """Forget all vectors."""
        self._folder = Path(folder)
        self._vectors = np.empty((0, self._task["dim"]), np.float32)

    def add(self, ids: list[int], vectors: NDArray[np.float32], marks: list[int]) -> None:
        """Build the index of all vectors, save it and sync its files; marks are not kept."""
        del marks
        assert ids[0] == len(self._vectors)
        self._vectors = np.concatenate([self._vectors, vectors])
        count, k = len(self._vectors), min(self._task["k"], len(self._vectors))
        builder = scann.scann_ops_pybind.builder(self._vectors, k, "dot_product")
        builder = builder.set_n_training_threads(self._task["threads"])
        if count < _BRUTE_FORCE_BELOW:
            builder = builder.score_brute_force()
        else:
            if count >= _CODES_ALONE_BELOW:
                leaves = round(math.sqrt(count))
                builder = builder.tree(leaves, max(1, leaves // 10), training_sample_size=count)
            builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(_CODES_PER_RESULT * k)
        self._index = builder.build()
        target = self._folder / str(count)
        target.mkdir()
        self._index.serialize(str(target))
        for path in (*target.iterdir(), target, self._folder):
            sync(path)

    def search(self, query: NDArray[np.float32], k: int, mark: int | None) -> list[int]:
        """Search without a filter."""
        assert mark is None
        rows, _ = self._index.search(query, final_num_neighbors=min(k, len(self._vectors)))
        return [int(row) for row in rows]

    def close(self) -> None:
        """Nothing is open."""


def open_peer(task: dict[str, Any]) -> ScannTree:
    """Return the store."""
    return ScannTree(task)
