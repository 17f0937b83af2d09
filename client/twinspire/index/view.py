"""Reading the catalogue: one committed state, seen through one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from functools import lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import IndexStoreError
from twinspire.index.digests import content_sum, item_checksum, pair_sum, row_checksum
from twinspire.index.error_mapping import RESTORE
from twinspire.index.filter_sql import compiled, fts5_expression, json_path
from twinspire.index.schema import COMMIT_COLUMNS, HEADER_COLUMNS, ITEM_COLUMNS, SNAPSHOT_COLUMNS
from twinspire.index.vectors import CHECKSUM_OF_NOTHING
from twinspire.stores.items import BundleReference, Hit, Item, ItemKind, StoredItem
from twinspire.stores.text_query import TextQuery

if TYPE_CHECKING:
    from twinspire.stores.filters.filter import Filter

_JSON_TYPES = {"integer": "number", "real": "number", "true": "boolean", "false": "boolean", "array": "list"}
_VARIABLES = 500  # SQLite before 3.32 takes 999 in one statement


@dataclass(frozen=True, slots=True)
class Header:
    """Properties of the index as a whole; `schema` explains the fields."""

    schema_version: int
    identity: int
    tables: int
    space: str
    dim: int
    dtype: str
    bundle_name: str | None
    bundle_path: str | None
    writers: int
    vectors_per_item: int = 1


@dataclass(frozen=True, slots=True)
class Commit:
    """The last commit, by default that of an empty index; `schema` explains the fields."""

    generation: int
    vectors_file: str
    rows: int = 0
    checksum: int = CHECKSUM_OF_NOTHING
    next_id: int = 0
    placed: int = 0
    contents: int = 0
    dead: int = 0
    items: int = 0
    images: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """The catalogue's row of the snapshot, in the order of its columns; an empty name: it has to be rebuilt.

    `spec` and `rescore_factor` are the columns `kind` and `reach`.
    """

    name: str
    spec: str
    rows: int
    checksum: int
    effort: int | None = None
    rescore_factor: int | None = None


_CATALOGUE_ROW = "SELECT * FROM catalogue"
_HEADER_SIZE, _ROW_SIZE = len(fields(Header)) - 1, len(fields(Header)) - 1 + len(fields(Commit))
_ROW, _URI = ITEM_COLUMNS.split(", ").index("row"), ITEM_COLUMNS.split(", ").index("uri")


@lru_cache(maxsize=16)  # most reads see the same row as the one before
def _checked(values: tuple[Any, ...]) -> tuple[Header, Commit]:
    """Return header and commit of the row of `catalogue`. Raises `IndexStoreError` if it is damaged."""
    _, *row, checksum = values
    if row_checksum(tuple(row)) != checksum:
        raise IndexStoreError(f"the catalogue's first row is damaged. {RESTORE}")
    return Header(*row[:_HEADER_SIZE], *row[_ROW_SIZE:]), Commit(*row[_HEADER_SIZE:_ROW_SIZE])


def catalogue_row(header: Header, commit: Commit) -> dict[str, Any]:
    """Return the row of `catalogue` by column, without its key and its checksum."""
    columns = f"{HEADER_COLUMNS}, {COMMIT_COLUMNS}".split(", ")
    *first, vectors_per_item = astuple(header)
    row = dict(zip(columns, (*first, *astuple(commit)), strict=True))
    return row if vectors_per_item == 1 else row | {"vectors_per_item": vectors_per_item}


class View:
    """One committed state, valid within its block. Raises `sqlite3.Error`, and `IndexStoreError` for damage."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.header, self.commit = _checked(only_row(connection, _CATALOGUE_ROW))

    def placed(self, start: int = 0) -> NDArray[np.int64]:
        """Return row and id of the items whose row is `start` or above, (n, 2)."""
        return self._integers("SELECT row, id FROM items WHERE row >= ? ORDER BY row", (start,))

    def dead_rows(self, since: int = -1) -> NDArray[np.int64]:
        """Return the rows that lost their item after generation `since`, (n,)."""
        return self._integers("SELECT row FROM dead WHERE generation > ? ORDER BY row", (since,), columns=1)[:, 0]

    def dead_sum(self) -> int:
        """Return the sum over the table of dead rows, as `Commit.dead` has it."""
        pairs = self._integers("SELECT row, generation FROM dead")
        return pair_sum(pairs[:, 0], pairs[:, 1])

    def kept(self, kind: ItemKind | None, where: Filter | None) -> NDArray[np.int64]:
        """Return row and id of the items of this kind that `where` keeps, (n, 2)."""
        condition, parameters = _condition(kind, where)
        return self._integers(f"SELECT row, id FROM items WHERE {condition}", parameters)  # noqa: S608

    def ids(self, kind: ItemKind | None, where: Filter | None) -> list[int]:
        """Return the ids of the items of this kind that `where` keeps, in order."""
        condition, parameters = _condition(kind, where)
        query = f"SELECT id FROM items WHERE {condition} ORDER BY id"  # noqa: S608
        return [number for (number,) in self._connection.execute(query, parameters)]

    def matching(self, ids: Iterable[int], where: Filter) -> set[int]:
        """Return those of `ids` whose items `where` keeps."""
        sql, parameters = compiled(where)
        condition = sql.replace("{", "{{").replace("}", "}}")
        query = f"SELECT {ITEM_COLUMNS}, ({condition}) FROM items WHERE id IN ({{}})"  # noqa: S608
        found = set()
        for *row, is_kept in self._select_in(query, ids, first=parameters):
            check_item(tuple(row))
            if is_kept:
                found.add(row[0])
        return found

    def value_types(self, keys: tuple[str, ...]) -> dict[str, int]:
        """Return how many items have a value of each JSON type, as `explain` names them, at a path of keys."""
        query = "SELECT json_type(metadata, ?), count(*) FROM items GROUP BY 1"
        counts: dict[str, int] = {}
        for name, count in self._connection.execute(query, (json_path(keys),)):
            if name is not None:
                name = _JSON_TYPES.get(name, name)
                counts[name] = counts.get(name, 0) + count
        return counts

    def items(self, ids: Iterable[int]) -> dict[int, StoredItem]:
        """Return the items of these ids by id; ids without an item are left out."""
        return {row[0]: _stored(row) for row in self._item_rows(ids)}

    def items_after(self, last: int, kind: ItemKind | None, where: Filter | None, count: int) -> list[StoredItem]:
        """Return the first `count` items of this kind that `where` keeps with an id above `last`, in order."""
        condition, parameters = _condition(kind, where)
        query = f"SELECT {ITEM_COLUMNS} FROM items WHERE id > ? AND {condition} ORDER BY id LIMIT ?"  # noqa: S608
        return [_stored(row) for row in self._connection.execute(query, (last, *parameters, count))]

    def rows(self, ids: Iterable[int]) -> dict[int, int]:
        """Return the rows of these ids by id; ids without an item are left out."""
        pairs = _whole_numbers(self._select_in("SELECT id, row FROM items WHERE id IN ({})", ids), 2)
        return dict(pairs.tolist())

    def find(self, column: str, value: str) -> list[StoredItem]:
        """Return the items whose `column`, uri or content_hash, is `value`, in the order of ids."""
        place = ITEM_COLUMNS.split(", ").index(column)
        query = f"SELECT {ITEM_COLUMNS} FROM items WHERE {column} = ? ORDER BY id"  # noqa: S608
        return self._stored_where(query, (value,), lambda row: row[place] == value)

    def under(self, folder: str) -> list[StoredItem]:
        """Return the items whose uri starts with `folder` and a slash, in the order of ids."""
        start = folder.rstrip("/")
        query = f"SELECT {ITEM_COLUMNS} FROM items WHERE uri >= ? AND uri < ? ORDER BY id"  # noqa: S608
        bounds = (start + "/", start + "0")  # "0" follows "/"
        return self._stored_where(query, bounds, lambda row: row[_URI].startswith(bounds[0]))

    def known(self, items: Iterable[Item]) -> set[tuple[str, str, str | None]]:
        """Return kind, uri and content hash of all items that have the uri of one of `items`."""
        # By uri, which few items share; thousands of items may have the same content.
        query = "SELECT kind, uri, content_hash FROM items WHERE uri IN ({})"
        return set(self._select_in(query, {item.uri for item in items}))

    def known_hashes(self, hashes: Iterable[str], kind: ItemKind) -> set[str]:
        """Return those of `hashes` that an item of this kind has as its content hash."""
        query = "SELECT content_hash FROM items WHERE kind = ? AND content_hash IN ({})"
        return {found for (found,) in self._select_in(query, hashes, first=(kind.value,))}

    def hits(self, ids: Sequence[int], scores: Sequence[float], rows: Sequence[int] | None = None) -> list[Hit]:
        """Return the items of these ids as hits, in this order; `rows` are the rows that they must have."""
        found = {row[0]: row for row in self._item_rows(dict.fromkeys(ids))}
        items = {number: _stored(row) for number, row in found.items()}
        hits = []
        for number, score, row in zip(ids, scores, rows if rows is not None else [None] * len(ids), strict=True):
            if number not in found:
                raise IndexStoreError(f"the catalogue has lost the item {number}. {RESTORE}")
            if row is not None and found[number][_ROW] != row:
                raise IndexStoreError(
                    f"the catalogue's item {number} is damaged: it has the vector {found[number][_ROW]}, a search "
                    f"found it at {row}. {RESTORE}"
                )
            item = items[number]
            hits.append(Hit(number, item.uri, score, item.kind, item.caption, item.metadata))
        return hits

    def search_text(self, text: TextQuery, k: int, kind: ItemKind | None, where: Filter | None) -> list[Hit]:
        """Return the k best items for a keyword query, best first, equal scores in the order of ids."""
        condition, parameters = _condition(kind, where)
        kept = f"AND EXISTS (SELECT 1 FROM items WHERE id = words.rowid AND {condition})" if parameters else ""  # noqa: S608
        query = f"SELECT rowid, -bm25(words) FROM words WHERE words MATCH ? {kept} ORDER BY 2 DESC, 1 LIMIT ?"  # noqa: S608
        found = self._connection.execute(query, (fts5_expression(text), *parameters, k)).fetchall()
        return self.hits([number for number, _ in found], [score for _, score in found])

    def count_text(self, text: TextQuery, at_most: int) -> int:
        """Return how many items match a keyword query, counted up to `at_most`."""
        query = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
        (count,) = self._connection.execute(query, (fts5_expression(text), at_most)).fetchone()
        return int(count)

    def bundle(self) -> BundleReference | None:
        """Return the bundle that made the embeddings, None if it is unknown."""
        name, path = self.header.bundle_name, self.header.bundle_path
        return BundleReference(name, path) if name is not None else None

    def snapshot(self) -> SnapshotRow | None:
        """Return the row of the snapshot, None if the index is searched exactly."""
        query = f"SELECT {SNAPSHOT_COLUMNS}, row_checksum FROM snapshots"  # noqa: S608
        row = self._connection.execute(query).fetchone()
        if row is None:
            return None
        if row_checksum(row[:-1]) != row[-1]:
            raise IndexStoreError(f"the catalogue's row of the snapshot is damaged. {RESTORE}")
        return SnapshotRow(*row[:-1])

    def every_item(self) -> Iterator[tuple[int, StoredItem | IndexStoreError, str | None]]:
        """Yield id, item and indexed words of every item, in the order of ids; for a damaged item its error."""
        # Two cursors in parallel: a join would look up the words of each item.
        words = self._connection.execute("SELECT rowid, text FROM words ORDER BY rowid")
        number, text = next(words, (None, None))
        for row in self._connection.execute(f"SELECT {ITEM_COLUMNS} FROM items ORDER BY id"):  # noqa: S608
            while number is not None and number < row[0]:
                number, text = next(words, (None, None))
            item: StoredItem | IndexStoreError
            try:
                item = _stored(row)
            except IndexStoreError as error:
                item = error
            yield row[0], item, text if number == row[0] else None

    def words_without_item(self) -> list[int]:
        """Return the ids of indexed words without an item."""
        query = "SELECT rowid FROM words WHERE rowid NOT IN (SELECT id FROM items)"
        return [number for (number,) in self._connection.execute(query)]

    def integrity_problems(self) -> list[str]:
        """Read all pages of SQLite's file, its indexes and the full text, and return the problems that it reports."""
        found = [text for (text,) in self._connection.execute("PRAGMA integrity_check")]
        # SQLite before 3.44 leaves the full text out; listing all its words reads it.
        self._connection.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS temp.every_word USING fts5vocab (main, words, row)"
        )
        self._connection.execute("SELECT sum(cnt) FROM temp.every_word").fetchone()
        return [] if found == ["ok"] else found

    def full_text_problems(self) -> list[str]:
        """Compare the full-text index with the indexed texts, and return the problems that SQLite reports.

        FTS5 does that only in a catalogue that it may write to, so the catalogue is copied to a temporary file.
        """
        with closing(sqlite3.connect("", isolation_level=None)) as copy:
            try:
                self._connection.backup(copy)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode not in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN):
                    raise
                return [
                    "the full text was not checked: SQLite cannot copy the catalogue to its temporary folder: "
                    f"{error}. Set the environment variable SQLITE_TMPDIR to one with room"
                ]
            try:
                copy.execute("INSERT INTO words (words) VALUES ('integrity-check')")
            except sqlite3.DatabaseError as error:
                return [f"the full text is not that of the items: {error}"]
        return []

    def contents_sum(self) -> int:
        """Return the sum over the items' checksums, as `Commit.contents` has it."""
        pairs = self._integers("SELECT row, checksum FROM items")
        return content_sum(pairs[:, 0], pairs[:, 1])

    def count_by_kind(self) -> dict[ItemKind, int]:
        """Return the number of items of each kind."""
        images, others = self.commit.images, self.commit.items - self.commit.images
        (sounds,) = only_row(self._connection, "SELECT count(*) FROM items WHERE kind = 'audio'") if others else (0,)
        return {ItemKind.IMAGE: images, ItemKind.TEXT: others - sounds, ItemKind.AUDIO: sounds}

    def _integers(self, query: str, parameters: Sequence[Any] = (), *, columns: int = 2) -> NDArray[np.int64]:
        return _whole_numbers(self._connection.execute(query, parameters), columns)

    def _item_rows(self, ids: Iterable[int]) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of `ITEM_COLUMNS` of these ids; ids without an item are left out."""
        return self._select_in(f"SELECT {ITEM_COLUMNS} FROM items WHERE id IN ({{}})", ids)  # noqa: S608

    def _stored_where(
        self, query: str, parameters: Sequence[Any], holds: Callable[[tuple[Any, ...]], bool]
    ) -> list[StoredItem]:
        """Return the items that an index of SQLite found, after checking that `holds` is true of their rows."""
        found = []
        for row in self._connection.execute(query, parameters):
            item = _stored(row)
            if not holds(row):
                raise IndexStoreError(f"the catalogue is damaged: an index names the wrong item {item.id}. {RESTORE}")
            found.append(item)
        return found

    def _select_in(self, query: str, values: Iterable[Any], *, first: Sequence[Any] = ()) -> Iterator[Any]:
        """Yield the rows of a query with `IN ({})`, run for some `values` at a time; `first` is bound before them."""
        remaining = iter(values)
        while some := list(islice(remaining, _VARIABLES)):
            marks = ",".join("?" * len(some))
            yield from self._connection.execute(query.format(marks), (*first, *some)).fetchall()


def _whole_numbers(rows: Iterable[tuple[Any, ...]], columns: int) -> NDArray[np.int64]:
    """Return rows of integers as an array, (n, columns). Raises `IndexStoreError` for anything else.

    Rows are read one at a time: a list of ten million would take more than a GiB for a moment.
    """
    try:
        found = np.fromiter(chain.from_iterable(rows), dtype=np.int64).reshape(-1, columns)
    except (TypeError, ValueError, OverflowError) as error:
        raise IndexStoreError(f"the catalogue is damaged: a row or an id is not an integer. {RESTORE}") from error
    return found


def only_row(connection: sqlite3.Connection, query: str) -> tuple[Any, ...]:
    """Return the first row of `query`. Raises `IndexStoreError` if there is none."""
    row: tuple[Any, ...] | None = connection.execute(query).fetchone()
    if row is None:
        raise IndexStoreError(f"the catalogue has lost its first row. {RESTORE}")
    return row


def _condition(kind: ItemKind | None, where: Filter | None) -> tuple[str, list[Any]]:
    parts, parameters = list[str](), list[Any]()
    if kind is not None:
        parts.append("+kind = ?")  # the plus disables an index that would fetch half of all items one by one
        parameters.append(kind.value)
    if where is not None:
        sql, bound = compiled(where)
        parts.append(f"({sql})")
        parameters += bound
    return " AND ".join(parts) or "1", parameters


def is_whole(row: tuple[Any, ...]) -> bool:
    """Return whether the checksum of a row of `ITEM_COLUMNS` is right."""
    return bool(item_checksum(row[:-1]) == row[-1])


def check_item(row: tuple[Any, ...]) -> None:
    """Raise `IndexStoreError` if the checksum of a row of `ITEM_COLUMNS` is wrong."""
    if not is_whole(row):
        raise IndexStoreError(
            f"the catalogue's item {row[0]} is damaged: its checksum is wrong. Remove it by its id "
            f"(`twinspire index remove INDEX --id {row[0]}`) and add it again, or restore the folder from a copy"
        )


def _stored(row: tuple[Any, ...]) -> StoredItem:
    """Return the item of a row of `ITEM_COLUMNS`. Raises `IndexStoreError` if it is damaged."""
    check_item(row)
    number, _, kind, uri, caption, metadata, content_hash, added_at, changed_at, _ = row
    try:
        fields = json.loads(metadata)
        return StoredItem(number, uri, ItemKind(kind), caption, fields, content_hash, added_at, changed_at)
    except (ValueError, RecursionError) as error:
        raise IndexStoreError(f"the catalogue's item {number} is damaged: {error}. {RESTORE}") from error
