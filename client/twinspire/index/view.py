"""The catalogue read: one committed state of it, seen through one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import IndexStoreError, InputError
from twinspire.index.failures import RESTORE
from twinspire.index.items import Hit, ItemKind, StoredItem

if TYPE_CHECKING:
    from twinspire.index.where import Where

_VARIABLES = 500  # SQLite before 3.32 takes 999 in one statement
_COLUMNS = "id, uri, kind, caption, metadata, content_hash, added_at, changed_at"


@dataclass(frozen=True, slots=True)
class Commit:
    """How far the index is committed."""

    generation: int
    vectors_file: str
    rows: int
    checksum: int
    next_id: int


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """What the catalogue says of the snapshot: its file (empty: to be built anew), kind, rows covered, and settings."""

    name: str
    kind: str
    rows: int
    checksum: int
    effort: int | None = None
    reach: int | None = None


class View:
    """Reads one state. Valid within the block that gave it; raises `sqlite3.Error`, `IndexStoreError` for damage."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        query = "SELECT generation, vectors_file, committed, checksum, next_id FROM catalogue"
        self.commit = Commit(*only_row(connection, query))

    def placed(self, start: int = 0) -> NDArray[np.int64]:
        """Return row and id of the items whose row is `start` or above, (n, 2)."""
        pairs = self._connection.execute("SELECT row, id FROM items WHERE row >= ? ORDER BY row", (start,)).fetchall()
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def dead_rows(self, since: int = -1) -> NDArray[np.int64]:
        """Return the rows without an item that died after generation `since`, (n,)."""
        rows = self._connection.execute("SELECT row FROM dead WHERE generation > ? ORDER BY row", (since,)).fetchall()
        return np.array(rows, dtype=np.int64).reshape(-1)

    def kept_rows(self, kind: ItemKind | None, where: Where | None) -> NDArray[np.int64]:
        """Return the rows of the items of this kind that `where` keeps, (n,)."""
        condition, parameters = _condition(kind, where)
        rows = self._connection.execute(f"SELECT row FROM items WHERE {condition}", parameters).fetchall()  # noqa: S608
        return np.array(rows, dtype=np.int64).reshape(-1)

    def ids(self, kind: ItemKind | None, where: Where | None) -> list[int]:
        """Return the ids of the items of this kind that `where` keeps, in order."""
        condition, parameters = _condition(kind, where)
        query = f"SELECT id FROM items WHERE {condition} ORDER BY id"  # noqa: S608
        return [number for (number,) in self._connection.execute(query, parameters)]

    def matching(self, ids: Iterable[int], where: Where) -> set[int]:
        """Return those of `ids` whose items `where` keeps."""
        query = f"SELECT id FROM items WHERE id IN ({{}}) AND ({where.sql.replace('{', '{{').replace('}', '}}')})"  # noqa: S608
        return {number for (number,) in self._select_in(query, ids, last=where.parameters)}

    def value_types(self, path: str) -> dict[str, int]:
        """Return of how many items the metadata has a value of each type, named by SQLite's `json_type`, at a path."""
        query = "SELECT json_type(metadata, ?), count(*) FROM items GROUP BY 1"
        return {kind: count for kind, count in self._connection.execute(query, (path,)) if kind is not None}

    def items(self, ids: Iterable[int]) -> dict[int, StoredItem]:
        """Return the items of these ids by id; an id that no item has is left out."""
        query = f"SELECT {_COLUMNS} FROM items WHERE id IN ({{}})"  # noqa: S608
        return {row[0]: _stored(row) for row in self._select_in(query, ids)}

    def items_after(self, last: int, kind: ItemKind | None, where: Where | None, count: int) -> list[StoredItem]:
        """Return the first `count` items of this kind that `where` keeps with an id above `last`, in order."""
        condition, parameters = _condition(kind, where)
        query = f"SELECT {_COLUMNS} FROM items WHERE id > ? AND {condition} ORDER BY id LIMIT ?"  # noqa: S608
        return [_stored(row) for row in self._connection.execute(query, (last, *parameters, count))]

    def rows(self, ids: Iterable[int]) -> dict[int, int]:
        """Return the rows of these ids by id; an id that no item has is left out."""
        return dict(self._select_in("SELECT id, row FROM items WHERE id IN ({})", ids))

    def find(self, column: str, value: str) -> list[StoredItem]:
        """Return the items whose `column`, uri or content_hash, is `value`, in the order of ids."""
        assert column in ("uri", "content_hash")
        # Both kinds are named so that the index over kind and content_hash serves.
        condition = f"kind IN ('image', 'text') AND {column} = ?" if column == "content_hash" else f"{column} = ?"
        query = f"SELECT {_COLUMNS} FROM items WHERE {condition} ORDER BY id"  # noqa: S608
        return [_stored(row) for row in self._connection.execute(query, (value,))]

    def under(self, folder: str) -> list[StoredItem]:
        """Return the items whose uri starts with `folder` and a slash, in the order of ids."""
        start = folder.rstrip("/")
        query = f"SELECT {_COLUMNS} FROM items WHERE uri >= ? AND uri < ? ORDER BY id"  # noqa: S608
        return [_stored(row) for row in self._connection.execute(query, (start + "/", start + "0"))]  # "0" follows "/"

    def known_hashes(self, hashes: Iterable[str], kind: ItemKind) -> set[str]:
        """Return those of `hashes` that an item of this kind has as its content hash."""
        query = "SELECT content_hash FROM items WHERE kind = ? AND content_hash IN ({})"
        return {found for (found,) in self._select_in(query, hashes, first=(kind.value,))}

    def hits(self, scores: Sequence[tuple[int, float]]) -> list[Hit]:
        """Return the items of these ids with these scores, in this order."""
        items = self.items({number for number, _ in scores})
        missing = next((number for number, _ in scores if number not in items), None)
        if missing is not None:
            raise IndexStoreError(f"the catalogue has lost the item {missing}. {RESTORE}")
        return [_hit(items[number], score) for number, score in scores]

    def search_words(self, match: str, k: int, kind: ItemKind | None, where: Where | None) -> list[Hit]:
        """Return the k best items for the FTS5 expression `match`, best first, equal scores in the order of ids."""
        condition, parameters = _condition(kind, where)
        kept = f"AND EXISTS (SELECT 1 FROM items WHERE id = words.rowid AND {condition})" if parameters else ""  # noqa: S608
        query = f"SELECT rowid, -bm25(words) FROM words WHERE words MATCH ? {kept} ORDER BY 2 DESC, 1 LIMIT ?"  # noqa: S608
        return self.hits(self._matched(query, match, *parameters, k))

    def count_words(self, match: str, at_most: int) -> int:
        """Return how many items the FTS5 expression `match` finds, counted up to `at_most`."""
        query = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
        return int(self._matched(query, match, at_most)[0][0])

    def snapshot(self) -> SnapshotRow | None:
        """Return what is said of the snapshot; None: the index is searched exactly."""
        query = "SELECT name, kind, rows, checksum, effort, reach FROM snapshots"
        row = self._connection.execute(query).fetchone()
        return SnapshotRow(*row) if row is not None else None

    def count_items(self) -> int:
        """Return how many items there are."""
        return int(only_row(self._connection, "SELECT count(*) FROM items")[0])

    def every_item(self) -> Iterator[tuple[int, StoredItem | IndexStoreError, str | None]]:
        """Yield id, item and indexed words of every item, in the order of ids; for a damaged item what is wrong."""
        # The words are read beside the items, for a join would look each of them up.
        words = self._connection.execute("SELECT rowid, text FROM words ORDER BY rowid")
        number, text = next(words, (None, None))
        for row in self._connection.execute(f"SELECT {_COLUMNS} FROM items ORDER BY id"):  # noqa: S608
            while number is not None and number < row[0]:
                number, text = next(words, (None, None))
            item: StoredItem | IndexStoreError
            try:
                item = _stored(row)
            except IndexStoreError as error:
                item = error
            yield row[0], item, text if number == row[0] else None

    def words_without_item(self) -> list[int]:
        """Return the ids whose words are indexed though no item has them."""
        query = "SELECT rowid FROM words WHERE rowid NOT IN (SELECT id FROM items)"
        return [number for (number,) in self._connection.execute(query)]

    def integrity_problems(self) -> list[str]:
        """Read all pages of SQLite's file, its indexes and the full text, and return what SQLite says of them."""
        found = [text for (text,) in self._connection.execute("PRAGMA integrity_check")]
        # SQLite before 3.44 leaves the full text out; listing all its words reads it.
        self._connection.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS temp.every_word USING fts5vocab (main, words, row)"
        )
        self._connection.execute("SELECT sum(cnt) FROM temp.every_word").fetchone()
        return [] if found == ["ok"] else found

    def count_by_kind(self) -> dict[ItemKind, int]:
        """Return how many items there are of each kind."""
        counts = dict(self._connection.execute("SELECT kind, count(*) FROM items GROUP BY kind").fetchall())
        return {kind: counts.get(kind.value, 0) for kind in ItemKind}

    def _matched(self, query: str, match: str, *parameters: Any) -> list[Any]:  # noqa: ANN401 - what SQLite binds
        try:
            return self._connection.execute(query, (match, *parameters)).fetchall()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                raise
            raise InputError(f"{match!r} is no expression that SQLite's full text understands: {error}") from error

    def _select_in(
        self, query: str, values: Iterable[Any], *, first: Sequence[Any] = (), last: Sequence[Any] = ()
    ) -> Iterator[Any]:
        remaining = iter(values)
        while some := list(islice(remaining, _VARIABLES)):
            marks = ",".join("?" * len(some))
            yield from self._connection.execute(query.format(marks), (*first, *some, *last)).fetchall()


def only_row(connection: sqlite3.Connection, query: str) -> tuple[Any, ...]:
    """Return the first row of what `query` gives. Raises `IndexStoreError` where there is none."""
    row: tuple[Any, ...] | None = connection.execute(query).fetchone()
    if row is None:
        raise IndexStoreError(f"the catalogue has lost its first row. {RESTORE}")
    return row


def _condition(kind: ItemKind | None, where: Where | None) -> tuple[str, list[Any]]:
    parts, parameters = list[str](), list[Any]()
    if kind is not None:
        parts.append("+kind = ?")  # the plus keeps SQLite from an index that would fetch half of all items one by one
        parameters.append(kind.value)
    if where is not None:
        parts.append(f"({where.sql})")
        parameters += where.parameters
    return " AND ".join(parts) or "1", parameters


def _stored(row: tuple[Any, ...]) -> StoredItem:
    number, uri, kind, caption, metadata, content_hash, added_at, changed_at = row
    try:
        return StoredItem(
            number, uri, ItemKind(kind), caption, json.loads(metadata), content_hash, added_at, changed_at
        )
    except ValueError as error:
        raise IndexStoreError(f"the catalogue's item {number} is damaged: {error}. {RESTORE}") from error


def _hit(item: StoredItem, score: float) -> Hit:
    return Hit(item.id, item.uri, score, item.kind, item.caption, item.metadata)
