"""Milvus Lite: a collection in a local file, through Milvus's client, with an exact index (FLAT)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pymilvus import DataType, MilvusClient

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NAME = "items"
_BATCH = 1_000


class MilvusLiteCollection:
    """Searches ask for the consistency that shows what was just added."""

    durability = "inserts into its local file and flushes the collection"
    can_filter = True
    filtering = "before it compares vectors, by a field"

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task

    def create(self, folder: str) -> None:
        """Make a file with an empty collection."""
        self._client = MilvusClient(str(Path(folder, "milvus.db")))
        schema = self._client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("mark", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._task["dim"])
        index = self._client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="IP")
        self._client.create_collection(_NAME, schema=schema, index_params=index, consistency_level="Strong")

    def add(self, ids: list[int], vectors: NDArray[np.float32], marks: list[int]) -> None:
        """Insert items, a thousand at a time, and flush."""
        rows = [
            {"id": number, "mark": mark, "vector": vector}
            for number, mark, vector in zip(ids, marks, vectors, strict=True)
        ]
        for start in range(0, len(rows), _BATCH):
            self._client.insert(_NAME, rows[start : start + _BATCH])
        self._client.flush(_NAME)

    def search(self, query: NDArray[np.float32], k: int, mark: int | None) -> list[int]:
        """Search all vectors."""
        only = "" if mark is None else f"mark == {int(mark)}"
        found = self._client.search(_NAME, [query], limit=k, filter=only, anns_field="vector")
        return [int(hit["id"]) for hit in found[0]]

    def close(self) -> None:
        """Close the file."""
        self._client.close()


def open_peer(task: dict[str, Any]) -> MilvusLiteCollection:
    """Return the store."""
    return MilvusLiteCollection(task)
