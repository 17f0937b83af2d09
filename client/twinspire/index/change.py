"""Changes of the catalogue in one transaction."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from twinspire.errors import IndexStoreError
from twinspire.index.digests import (
    MOVED_CHECKSUM,
    SUM_MODULUS,
    content_sum,
    item_checksum,
    pair_sum,
    row_checksum,
    tables_checksum,
)
from twinspire.index.error_mapping import RESTORE
from twinspire.index.schema import (
    ITEM_COLUMNS,
    SCHEMA_VERSION,
    SEVERAL_VECTORS_VERSION,
    SNAPSHOT_COLUMNS,
    catalogue_table,
)
from twinspire.index.view import Commit, Header, SnapshotRow, View, catalogue_row, check_item, is_whole, only_row
from twinspire.stores.items import BundleReference, Item, ItemKind, encoded_metadata
from twinspire.stores.text_query import indexed_text


def _assignments(columns: str) -> str:
    return ", ".join(f"{column} = ?" for column in columns.split(", "))


_ROW = ITEM_COLUMNS.split(", ").index("row")
_INSERT_ITEM = f"INSERT INTO items ({ITEM_COLUMNS}) VALUES ({', '.join('?' * len(ITEM_COLUMNS.split(', ')))})"  # noqa: S608
_UPDATE_ITEM = f"UPDATE items SET {_assignments(ITEM_COLUMNS)} WHERE id = ?"  # noqa: S608


@dataclass(frozen=True, slots=True)
class NewVectors:
    """A vector file of `count` rows that takes the place of an index's own, and which row each item has in it."""

    vectors_file: str
    count: int
    checksum: int
    ids: Sequence[int]  # of all items
    rows: Sequence[int]  # in the order of `ids`
    space: str
    dim: int
    vectors_per_item: int
    bundle: BundleReference | None
    snapshot: SnapshotRow | None


class Change(View):
    """Reads and changes the catalogue; committed when the block that gave it ends, or not at all.

    `commit` is what will be committed. All changes of a transaction have one generation.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._generation = self.commit.generation + 1  # of the changes made here

    def insert(self, items: Sequence[Item], checksum: int, now: float) -> list[int]:
        """Add `items` at the next rows; `checksum` is that of the vector file with them. Return their ids."""
        row, first = self.commit.rows, self.commit.next_id
        ids = list(range(first, first + len(items)))
        rows = range(row, row + len(items))
        added = [(*place, *_fields(item), now, now) for *place, item in zip(ids, rows, items, strict=True)]
        signed = [(*row, item_checksum(row)) for row in added]
        self._connection.executemany(_INSERT_ITEM, signed)
        self._count(signed, 1)
        self._connection.executemany(
            "INSERT INTO words (rowid, text) VALUES (?, ?)",
            ((number, indexed_text(item.caption, item.uri)) for number, item in zip(ids, items, strict=True)),
        )
        self._move(replace(self.commit, rows=row + len(items), checksum=checksum, next_id=first + len(items)))
        return ids

    def remove(self, ids: Iterable[int], *, even_damaged: bool = False) -> int:
        """Remove the items of these ids and return how many there were; their rows become dead.

        Raises `IndexStoreError` for a damaged item, unless `even_damaged`; then only if that would lose others.
        """
        ids = list(dict.fromkeys(ids))
        taken = list(self._item_rows(ids))
        if not taken:
            return 0
        damaged = [row for row in taken if not is_whole(row)]
        if damaged and not even_damaged:
            check_item(damaged[0])
        if any(not isinstance(row[_ROW], int) for row in damaged):
            raise IndexStoreError(f"the catalogue is damaged: its items are not those of the vectors. {RESTORE}")
        # What a damaged item added to the contents and the images is unknown: `_recount` computes both anew.
        self._count([row if is_whole(row) else (*row[:-1], 0) for row in taken], -1)
        self._bury([row[_ROW] for row in taken])
        for table, column in (("words", "rowid"), ("items", "id")):
            self._connection.executemany(
                f"DELETE FROM {table} WHERE {column} = ?",  # noqa: S608
                ((number,) for number in ids),
            )
        if damaged:
            self._recount()
        self._move(self.commit)
        return len(taken)

    def update(self, number: int, item: Item, checksum: int | None, now: float) -> None:
        """Give the item `number` the fields of `item` and, with a checksum, the next row; the old one becomes dead.

        `checksum` is that of the vector file with the new row.
        """
        added_at = self.items([number])[number].added_at
        (before,) = self._item_rows([number])
        check_item(before)
        self._count([before], -1)
        row = before[_ROW]
        if checksum is not None:
            self._bury([row])
            row = self.commit.rows
            self.commit = replace(self.commit, rows=row + 1, checksum=checksum)
        values = (number, row, *_fields(item), added_at, now)
        signed = (*values, item_checksum(values))
        self._connection.execute(_UPDATE_ITEM, (*signed, number))
        self._count([signed], 1)
        self._connection.execute(
            "UPDATE words SET text = ? WHERE rowid = ?", (indexed_text(item.caption, item.uri), number)
        )
        self._move(self.commit)

    def compact(self, ids: Sequence[int], vectors_file: str, checksum: int) -> None:
        """Give the items of `ids`, all of the index, the rows from 0 up of another vector file, without dead rows.

        The snapshot must be rebuilt then: its rows are those of the old file.
        """
        self._place(range(len(ids)), ids)
        snapshot = self.snapshot()
        if snapshot is not None:
            self.put_snapshot(replace(snapshot, name=""))
        self._move(replace(self.commit, vectors_file=vectors_file, rows=len(ids), checksum=checksum))

    def migrate(self, new: NewVectors) -> None:
        """Give every item its row in another vector file, which may be of another space, dim and count an item.

        The index gets another identity, so that whoever has it open has to open it again. Raises `IndexStoreError` if
        an item has no row in the file.
        """
        if self._connection.execute("SELECT count(*) FROM items").fetchone() != (len(new.ids),):
            raise IndexStoreError(f"{len(new.ids)} items have a vector of the new space, of {self.commit.items}")
        self._place(new.rows, new.ids)
        if self._connection.execute("SELECT count(*) FROM items WHERE row < 0").fetchone() != (0,):
            raise IndexStoreError("an item has no vector of the new space")
        dead = sorted(set(range(new.count)).difference(new.rows))
        self._bury(dead)
        self.put_snapshot(new.snapshot)
        header = replace(
            self.header,
            schema_version=SCHEMA_VERSION if new.vectors_per_item == 1 else SEVERAL_VECTORS_VERSION,
            identity=secrets.randbits(63),
            space=new.space,
            dim=new.dim,
            bundle_name=new.bundle.name if new.bundle is not None else None,
            bundle_path=new.bundle.path if new.bundle is not None else None,
            vectors_per_item=new.vectors_per_item,
        )
        commit = replace(
            self.commit,
            generation=self._generation,
            vectors_file=new.vectors_file,
            rows=new.count,
            checksum=new.checksum,
        )
        # Made anew: the table has another column where an item has several vectors.
        self._connection.execute("DROP TABLE catalogue")
        self._connection.execute(catalogue_table(new.vectors_per_item))
        self.header, self.commit = replace(header, tables=tables_checksum(self._connection)), commit
        insert_first_row(self._connection, self.header, self.commit)

    def put_snapshot(self, row: SnapshotRow | None) -> None:
        """Record `row` as the snapshot. Keeps the generation: searches find the same items."""
        self._connection.execute("DELETE FROM snapshots")
        if row is not None:
            values = astuple(row)
            self._connection.execute(
                f"INSERT INTO snapshots (one, {SNAPSHOT_COLUMNS}, row_checksum) VALUES (1{', ?' * len(values)}, ?)",  # noqa: S608
                (*values, row_checksum(values)),
            )

    def put_bundle(self, bundle: BundleReference) -> None:
        """Record `bundle` as the origin of the embeddings. Keeps the generation: searches find the same items."""
        self.header = replace(self.header, bundle_name=bundle.name, bundle_path=bundle.path)
        self._put_row()

    def optimize_full_text(self) -> None:
        """Merge the segments of the full text into one, which drops the words of removed items."""
        self._connection.execute("INSERT INTO words (words) VALUES ('optimize')")

    def touch(self) -> None:
        """Increase the count of recoveries, so that there is something to commit."""
        self.header = replace(self.header, writers=self.header.writers + 1)
        self._put_row()

    def _count(self, rows: Sequence[tuple[Any, ...]], sign: int) -> None:
        """Add rows of items to the sums (`sign` 1) or subtract them (-1)."""
        numbers, places = [row[0] for row in rows], [row[1] for row in rows]
        contents = content_sum(np.array(places, np.int64), np.array([row[-1] for row in rows], np.int64))
        self.commit = replace(
            self.commit,
            placed=(self.commit.placed + sign * _pairs(places, numbers)) % SUM_MODULUS,
            contents=(self.commit.contents + sign * contents) % SUM_MODULUS,
            items=self.commit.items + sign * len(rows),
            images=self.commit.images + sign * sum(row[2] == ItemKind.IMAGE for row in rows),
        )

    def _recount(self) -> None:
        """Compute the sums from the items that are left after damaged ones were removed.

        Raises `IndexStoreError` if more than these items is damaged.
        """
        placed = self.placed()
        if len(placed) != self.commit.items or pair_sum(placed[:, 0], placed[:, 1]) != self.commit.placed:
            raise IndexStoreError(f"the catalogue is damaged: its items are not those of the vectors. {RESTORE}")
        (images,) = only_row(self._connection, "SELECT count(*) FROM items WHERE kind = 'image'")
        self.commit = replace(self.commit, contents=self.contents_sum(), images=images)

    def _bury(self, rows: Sequence[int]) -> None:
        self._connection.executemany("INSERT INTO dead VALUES (?, ?)", ((row, self._generation) for row in rows))
        dead = self.commit.dead + _pairs(rows, [self._generation] * len(rows))
        self.commit = replace(self.commit, dead=dead % SUM_MODULUS)

    def _place(self, rows: Sequence[int], ids: Sequence[int]) -> None:
        """Give the items of `ids`, all of the index, these rows of another vector file, which has no dead ones."""
        # In two steps: two items must never have the same row.
        self._connection.execute(
            f"UPDATE items SET checksum = {MOVED_CHECKSUM.format(to='(-1 - id)')}, row = -1 - id"  # noqa: S608
        )
        self._connection.executemany(
            f"UPDATE items SET checksum = {MOVED_CHECKSUM.format(to='?1')}, row = ?1 WHERE id = ?2",  # noqa: S608
            zip(rows, ids, strict=True),
        )
        self._connection.execute("DELETE FROM dead")
        self.commit = replace(self.commit, placed=_pairs(rows, ids), dead=_pairs([], []))

    def _move(self, after: Commit) -> None:
        self.commit = replace(after, generation=self._generation)
        self._put_row()

    def _put_row(self) -> None:
        row = catalogue_row(self.header, self.commit)
        columns = _assignments(", ".join((*row, "row_checksum")))
        values = tuple(row.values())
        self._connection.execute(f"UPDATE catalogue SET {columns}", (*values, row_checksum(values)))  # noqa: S608


def insert_first_row(connection: sqlite3.Connection, header: Header, commit: Commit) -> None:
    """Insert the only row of the table `catalogue` of an empty index."""
    values = tuple(catalogue_row(header, commit).values())
    connection.execute(f"INSERT INTO catalogue VALUES (1{', ?' * len(values)}, ?)", (*values, row_checksum(values)))  # noqa: S608


def _pairs(first: ArrayLike, second: ArrayLike) -> int:
    return pair_sum(np.array(first, np.int64), np.array(second, np.int64))


def _fields(item: Item) -> tuple[str, str, str | None, str, str | None]:
    return item.kind.value, item.uri, item.caption, encoded_metadata(item.metadata), item.content_hash
