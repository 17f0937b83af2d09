"""The catalogue: a SQLite file that holds the items and says how much of the vector file is committed.

Captions are searched in full text later, by a table beside `items`; that will be schema version 2.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from twinspire.errors import IndexStoreError
from twinspire.index.failures import RESTORE
from twinspire.index.items import Hit, Item, ItemKind, metadata_as_json
from twinspire.index.vectors import CHECKSUM_OF_NOTHING

CATALOGUE_NAME = "catalogue.sqlite"
SCHEMA_VERSION = 1
_APPLICATION_ID = 0x74777370  # "twsp": tells a catalogue from any other SQLite file
_BUSY_TIMEOUT_S = 10.0
_VARIABLES = 500  # SQLite before 3.32 takes 999 in one statement

_SCHEMA = """
CREATE TABLE catalogue (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    schema_version INTEGER NOT NULL,
    space          TEXT    NOT NULL,
    dim            INTEGER NOT NULL,
    dtype          TEXT    NOT NULL,
    generation     INTEGER NOT NULL, -- counts the adds
    committed      INTEGER NOT NULL, -- vectors of the vector file that count; the rest is a torn tail
    checksum       INTEGER NOT NULL, -- running CRC-32 of their bytes
    writers        INTEGER NOT NULL  -- how often the index was opened for writing, see `Catalogue.settle`
);
CREATE TABLE items (
    id           INTEGER PRIMARY KEY, -- the place of its vector in the vector file, from 0
    kind         TEXT NOT NULL CHECK (kind IN ('image', 'text')),
    uri          TEXT NOT NULL,
    caption      TEXT,
    metadata     TEXT NOT NULL,       -- a JSON object
    content_hash TEXT,                -- NULL: never taken for a duplicate
    UNIQUE (kind, content_hash)
);
"""


@dataclass(frozen=True, slots=True)
class Commit:
    """How far the index is committed: the number of adds, of vectors, and the checksum over these."""

    generation: int
    vectors: int
    checksum: int


class Catalogue:
    """One connection to a catalogue, usable from any thread.

    A reader that cannot write to the folder has to open the file as immutable while no writer is at work, for
    SQLite could not make its shared memory file there; it opens it anew when the file has changed.
    Raises `sqlite3.Error`, and `IndexStoreError` for a file that is no catalogue or a damaged one.
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self._path = folder / CATALOGUE_NAME
        if not self._path.is_file():
            raise IndexStoreError(f"{folder} is no index: it has no {CATALOGUE_NAME}")
        self._lock = threading.RLock()
        self._writable = writable
        self._seen: tuple[int, int, int] | None = None  # of the file, where it was opened as immutable
        self._connection = self._connect()
        try:
            self.space, self.dim = self._identity()
        except BaseException:
            self._connection.close()
            raise

    @staticmethod
    def create(folder: Path, *, space: str, dim: int, dtype: str) -> None:
        """Write the catalogue of an empty index into `folder`."""
        with closing(sqlite3.connect(folder / CATALOGUE_NAME, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise IndexStoreError(f"{folder}: this file system cannot hold SQLite's write-ahead log")
            connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
            connection.execute(
                "INSERT INTO catalogue VALUES (1, ?, ?, ?, ?, 0, 0, ?, 0)",
                (SCHEMA_VERSION, space, dim, dtype, CHECKSUM_OF_NOTHING),
            )

    def last_commit(self) -> Commit:
        """Return how far the index is committed now, as seen by every process."""
        with self._reading() as connection:
            return _last_commit(connection)

    def settle(self) -> Commit:
        """Commit a change that says nothing, and return how far the index is committed.

        After a commit that failed while it was written out, its pages may still lie behind the end of
        SQLite's log, and a crash could bring it back to life, by then over other vectors. Any later commit
        takes their place, so one is made before the vector file is touched.
        """
        with self._writing() as connection:
            connection.execute("UPDATE catalogue SET writers = writers + 1")
            return _last_commit(connection)

    def commit(self, first: int, items: Sequence[Item], checksum: int) -> Commit:
        """Insert `items`, ids from `first` up, and move the committed length behind them: all or nothing."""
        rows = (
            (
                number,
                item.kind.value,
                item.uri,
                item.caption,
                metadata_as_json(item.metadata),
                item.content_hash,
            )
            for number, item in enumerate(items, start=first)
        )
        with self._writing() as connection:
            connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", rows)
            connection.execute(
                "UPDATE catalogue SET generation = generation + 1, committed = ?, checksum = ?",
                (first + len(items), checksum),
            )
            return _last_commit(connection)

    def known_hashes(self, hashes: Iterable[str], kind: ItemKind) -> set[str]:
        """Return those of `hashes` that an item of this kind has as its content hash."""
        query = "SELECT content_hash FROM items WHERE kind = ? AND content_hash IN ({})"
        with self._reading() as connection:
            return {found for (found,) in _select_in(connection, query, hashes, kind.value)}

    def hits(self, scores: Iterable[tuple[int, float]]) -> list[Hit]:
        """Return the items of these ids and scores, in this order."""
        pairs = list(scores)
        query = "SELECT id, uri, kind, caption, metadata FROM items WHERE id IN ({})"
        with self._reading() as connection:
            rows = {row[0]: row[1:] for row in _select_in(connection, query, {number for number, _ in pairs})}
        missing = next((number for number, _ in pairs if number not in rows), None)
        if missing is not None:
            raise IndexStoreError(f"{self._path} has lost the item of vector {missing}. {RESTORE}")
        return [_hit(number, score, *rows[number]) for number, score in pairs]

    def count_by_kind(self) -> dict[ItemKind, int]:
        """Return how many items there are of each kind."""
        with self._reading() as connection:
            counts = dict(connection.execute("SELECT kind, count(*) FROM items GROUP BY kind").fetchall())
        return {kind: counts.get(kind.value, 0) for kind in ItemKind}

    def size_bytes(self) -> int:
        """Return the size of the catalogue with SQLite's log."""
        files = (self._path, self._log)
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Close the connection; waits for a statement that is under way."""
        with self._lock:
            self._connection.close()

    @property
    def _log(self) -> Path:
        return self._path.with_name(CATALOGUE_NAME + "-wal")

    def _connect(self) -> sqlite3.Connection:
        if self._writable:
            connection = self._open("mode=rw")
            connection.execute("PRAGMA synchronous = FULL")  # of this connection; the file is not touched
            return connection
        if not self._log.exists() and not os.access(self._path.parent, os.W_OK):
            self._seen = self._signature()
            return self._open("mode=ro&immutable=1")
        self._seen = None
        return self._open("mode=ro")

    def _open(self, options: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self._path.absolute().as_uri()}?{options}",
            uri=True,
            isolation_level=None,  # transactions are begun and ended here, in plain sight
            check_same_thread=False,
            timeout=_BUSY_TIMEOUT_S,
        )

    def _identity(self) -> tuple[str, int]:
        application_id = self._connection.execute("PRAGMA application_id").fetchone()[0]
        if application_id != _APPLICATION_ID:
            raise IndexStoreError(f"{self._path} is no catalogue of an index but some other SQLite file")
        # The version alone first: other versions may have other columns.
        (version,) = _only_row(self._connection, "SELECT schema_version FROM catalogue")
        if version != SCHEMA_VERSION:
            raise IndexStoreError(
                f"{self._path} has schema version {version}, this twinspire reads version {SCHEMA_VERSION}: "
                "open it with the twinspire that wrote it, or make the index anew"
            )
        space, dim = _only_row(self._connection, "SELECT space, dim FROM catalogue")
        return str(space), int(dim)

    def _signature(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._seen is not None and (self._log.exists() or self._signature() != self._seen):
                self._connection.close()
                self._connection = self._connect()
            yield self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _last_commit(connection: sqlite3.Connection) -> Commit:
    return Commit(*_only_row(connection, "SELECT generation, committed, checksum FROM catalogue"))


def _only_row(connection: sqlite3.Connection, query: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(query).fetchone()
    if row is None:
        raise IndexStoreError(f"the catalogue has lost its first row. {RESTORE}")
    return row


def _select_in(connection: sqlite3.Connection, query: str, values: Iterable[Any], *first: str) -> Iterator[Any]:
    remaining = iter(values)
    while some := list(islice(remaining, _VARIABLES)):
        marks = ",".join("?" * len(some))
        yield from connection.execute(query.format(marks), (*first, *some)).fetchall()


def _hit(number: int, score: float, uri: str, kind: str, caption: str | None, metadata: str) -> Hit:
    try:
        return Hit(number, uri, score, ItemKind(kind), caption, json.loads(metadata))
    except ValueError as error:
        raise IndexStoreError(f"the catalogue's item {number} is damaged: {error}. {RESTORE}") from error
