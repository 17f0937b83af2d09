"""LanceDB: a table in a folder, searched without an index, which its documentation recommends up to 100,000 vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lancedb
import pyarrow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class LancedbTable:
    """Its synchronous interface."""

    durability = "commits a version of the table, without fsync"
    can_filter = True
    filtering = "before it compares vectors (prefilter), by a column"

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task

    def create(self, folder: str) -> None:
        """Make a database with an empty table."""
        vector = pyarrow.list_(pyarrow.float32(), self._task["dim"])
        self._schema = pyarrow.schema([("id", pyarrow.int64()), ("mark", pyarrow.int64()), ("vector", vector)])
        self._table = lancedb.connect(folder).create_table("items", schema=self._schema)

    def add(self, ids: list[int], vectors: NDArray[np.float32], marks: list[int]) -> None:
        """Add items in one version."""
        flat = pyarrow.array(vectors.reshape(-1))
        column = pyarrow.FixedSizeListArray.from_arrays(flat, self._task["dim"])
        self._table.add(
            pyarrow.Table.from_arrays([pyarrow.array(ids), pyarrow.array(marks), column], self._schema.names)
        )

    def search(self, query: NDArray[np.float32], k: int, mark: int | None) -> list[int]:
        """Search all vectors."""
        search = self._table.search(query).distance_type("dot").select(["id", "_distance"]).limit(k)
        if mark is not None:
            search = search.where(f"mark = {int(mark)}", prefilter=True)
        numbers: list[int] = search.to_arrow()["id"].to_pylist()
        return numbers

    def close(self) -> None:
        """Nothing has to be closed."""


def open_peer(task: dict[str, Any]) -> LancedbTable:
    """Return the store."""
    return LancedbTable(task)
