"""The catalogue changed: what one transaction does to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace

from twinspire.index.items import Item, metadata_as_json
from twinspire.index.view import Commit, SnapshotRow, View, only_row
from twinspire.index.words import indexed_text


class Change(View):
    """Reads and changes the catalogue; takes effect when the block that gave it ends, or not at all.

    `commit` tells how far the index will be committed. Each method counts as one change of the generation.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__(connection)
        self._generation = self.commit.generation + 1  # of what is changed here

    def insert(self, items: Sequence[Item], checksum: int, now: float) -> list[int]:
        """Add `items` at the rows that follow; `checksum` is that of the vector file with them. Return their ids."""
        row, first = self.commit.rows, self.commit.next_id
        ids = list(range(first, first + len(items)))
        self._connection.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (number, row + place, *_fields(item), now, now)
                for place, (number, item) in enumerate(zip(ids, items, strict=True))
            ),
        )
        self._connection.executemany(
            "INSERT INTO words (rowid, text) VALUES (?, ?)",
            ((number, indexed_text(item.caption, item.uri)) for number, item in zip(ids, items, strict=True)),
        )
        self._move(replace(self.commit, rows=row + len(items), checksum=checksum, next_id=first + len(items)))
        return ids

    def remove(self, ids: Iterable[int]) -> int:
        """Remove the items of these ids; their rows are dead. Return how many there were; none: nothing changes."""
        ids = list(ids)
        rows = [row for (row,) in self._select_in("SELECT row FROM items WHERE id IN ({})", ids)]
        if not rows:
            return 0
        self._bury(rows)
        for table, column in (("words", "rowid"), ("items", "id")):
            self._connection.executemany(
                f"DELETE FROM {table} WHERE {column} = ?",  # noqa: S608
                ((number,) for number in ids),
            )
        self._move(self.commit)
        return len(rows)

    def update(self, number: int, item: Item, checksum: int | None, now: float) -> None:
        """Give the item `number` the fields of `item` and, with a checksum, the row that follows; the old one is dead.

        `checksum` is that of the vector file with the new row.
        """
        after = self.commit
        if checksum is not None:
            self._bury([row for (row,) in self._select_in("SELECT row FROM items WHERE id IN ({})", [number])])
            self._connection.execute("UPDATE items SET row = ? WHERE id = ?", (after.rows, number))
            after = replace(after, rows=after.rows + 1, checksum=checksum)
        self._connection.execute(
            "UPDATE items SET kind = ?, uri = ?, caption = ?, metadata = ?, content_hash = ?, changed_at = ? "
            "WHERE id = ?",
            (*_fields(item), now, number),
        )
        self._connection.execute(
            "UPDATE words SET text = ? WHERE rowid = ?", (indexed_text(item.caption, item.uri), number)
        )
        self._move(after)

    def compact(self, ids: Sequence[int], vectors_file: str, checksum: int) -> None:
        """Give the items of `ids`, all there are, the rows from 0 up of another vector file; no row is dead then.

        The snapshot is to be built anew: it counts rows of the old file.
        """
        # In two steps, for in between no two items may have the same row.
        self._connection.execute("UPDATE items SET row = -1 - id")
        self._connection.executemany("UPDATE items SET row = ? WHERE id = ?", enumerate(ids))
        self._connection.execute("DELETE FROM dead")
        self._connection.execute("UPDATE snapshots SET name = ''")
        self._move(replace(self.commit, vectors_file=vectors_file, rows=len(ids), checksum=checksum))

    def put_snapshot(self, row: SnapshotRow | None) -> None:
        """Make `row` what is said of the snapshot. Does not count as a change: searches find the same items."""
        self._connection.execute("DELETE FROM snapshots")
        if row is not None:
            self._connection.execute(
                "INSERT INTO snapshots (one, name, kind, rows, checksum, effort, reach) VALUES (1, ?, ?, ?, ?, ?, ?)",
                (row.name, row.kind, row.rows, row.checksum, row.effort, row.reach),
            )

    def merge_words(self) -> None:
        """Merge the segments of the full text into one, which drops what is kept of removed items."""
        self._connection.execute("INSERT INTO words (words) VALUES ('optimize')")

    @property
    def writers(self) -> int:
        """How often the index was opened for writing, or settled, before."""
        return int(only_row(self._connection, "SELECT writers FROM catalogue")[0])

    def touch(self) -> None:
        """Change what says nothing, so that there is something to commit."""
        self._connection.execute("UPDATE catalogue SET writers = writers + 1")

    def _bury(self, rows: Iterable[int]) -> None:
        self._connection.executemany("INSERT INTO dead VALUES (?, ?)", ((row, self._generation) for row in rows))

    def _move(self, after: Commit) -> None:
        after = replace(after, generation=self._generation)
        self._connection.execute(
            "UPDATE catalogue SET generation = ?, vectors_file = ?, committed = ?, checksum = ?, next_id = ?",
            (after.generation, after.vectors_file, after.rows, after.checksum, after.next_id),
        )
        self.commit = after


def _fields(item: Item) -> tuple[str, str, str | None, str, str | None]:
    return item.kind.value, item.uri, item.caption, metadata_as_json(item.metadata), item.content_hash
