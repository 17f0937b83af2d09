"""sqlite-vec: a virtual table of SQLite that compares all vectors.

SQLite is that of the package apsw: the one of many Pythons cannot load extensions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import numpy as np
import sqlite_vec

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SqliteVecTable:
    """Vectors of length 1 are ordered by cosine distance as by inner product."""

    durability = "commits a transaction of SQLite (WAL, synchronous=FULL: fsync)"
    can_filter = True
    filtering = "while it compares vectors, by a metadata column"

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task

    def create(self, folder: str) -> None:
        """Make a database with an empty table."""
        self._connection = apsw.Connection(str(Path(folder, "vectors.db")))
        self._connection.enable_load_extension(True)
        self._connection.load_extension(sqlite_vec.loadable_path())
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(
            "CREATE VIRTUAL TABLE items USING vec0(id INTEGER PRIMARY KEY, mark INTEGER, "
            f"vector FLOAT[{int(self._task['dim'])}] distance_metric=cosine)"
        )

    def add(self, ids: list[int], vectors: NDArray[np.float32], marks: list[int]) -> None:
        """Insert items in one transaction."""
        rows = zip(ids, marks, (vector.tobytes() for vector in vectors), strict=True)
        with self._connection:
            self._connection.executemany("INSERT INTO items (id, mark, vector) VALUES (?, ?, ?)", rows)

    def search(self, query: NDArray[np.float32], k: int, mark: int | None) -> list[int]:
        """Search all vectors."""
        only, values = ("", ()) if mark is None else ("AND mark = ?", (mark,))
        rows = self._connection.execute(
            f"SELECT id FROM items WHERE vector MATCH ? AND k = ? {only} ORDER BY distance",  # noqa: S608 - constants
            (query.tobytes(), k, *values),
        )
        return [int(number) for (number,) in rows]

    def close(self) -> None:
        """Close the database."""
        self._connection.close()


def open_peer(task: dict[str, Any]) -> SqliteVecTable:
    """Return the store."""
    return SqliteVecTable(task)
