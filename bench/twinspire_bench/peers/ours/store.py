"""twinspire's own index, not built: exact search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twinspire import Index
from twinspire.index import Item, ItemKind

_SPACE = "peers"


class TwinspireIndex:
    """An item's uri is its number."""

    durability = "commits vectors and items (fsync, and a transaction of SQLite with synchronous=FULL)"
    can_filter = True
    filtering = "before it compares vectors, by metadata"

    def __init__(self, task: dict[str, Any]) -> None:
        self._dim = task["dim"]

    def create(self, folder: str) -> None:
        """Make an empty index."""
        self._index = Index.create(Path(folder), space=_SPACE, dim=self._dim)

    def add(self, ids: list[int], vectors: NDArray[np.float32], marks: list[int]) -> None:
        """Add items in one change."""
        items = [
            Item(kind=ItemKind.IMAGE, uri=str(number), metadata={"mark": mark})
            for number, mark in zip(ids, marks, strict=True)
        ]
        self._index.add(vectors, items, space=_SPACE)

    def search(self, query: NDArray[np.float32], k: int, mark: int | None) -> list[int]:
        """Search all vectors."""
        where = None if mark is None else f"mark = {mark}"
        hits = self._index.search(query[None], k=k, space=_SPACE, where=where)[0]
        return [int(hit.uri) for hit in hits]

    def close(self) -> None:
        """Close the index."""
        self._index.close()


def open_peer(task: dict[str, Any]) -> TwinspireIndex:
    """Return the index."""
    return TwinspireIndex(task)
