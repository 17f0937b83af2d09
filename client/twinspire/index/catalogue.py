"""The catalogue: a SQLite file with the items, the name of the current vector file and its committed length."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from twinspire.errors import IndexReplacedError, IndexStoreError
from twinspire.index.change import Change, insert_first_row
from twinspire.index.connections import CATALOGUE_NAME, Connections
from twinspire.index.digests import tables_checksum
from twinspire.index.error_mapping import RESTORE
from twinspire.index.schema import APPLICATION_ID, SCHEMA_VERSION, SEVERAL_VECTORS_VERSION, schema_of
from twinspire.index.vectors import VectorType
from twinspire.index.view import Commit, Header, View, only_row
from twinspire.stores.items import BundleReference

__all__ = ["CATALOGUE_NAME", "Catalogue"]


class Catalogue:
    """An open catalogue, for use from any thread: many read it at once, each one state; one changes it.

    Raises `sqlite3.Error`, and `IndexStoreError` if the file is not a catalogue or is damaged.
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self._path = folder / CATALOGUE_NAME
        if not self._path.is_file():
            raise IndexStoreError(f"{folder} is not an index: it has no {CATALOGUE_NAME}")
        self.connections = Connections(folder, writable=writable)
        try:
            with self.connections.reading() as connection:
                header = self._header(connection)
                self.identity, self.space, self.dim = header.identity, header.space, header.dim
                self.dtype, self.vectors_per_item = VectorType(header.dtype), header.vectors_per_item
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(
        folder: Path,
        *,
        space: str,
        dim: int,
        dtype: VectorType,
        vectors_file: str,
        bundle: BundleReference | None,
        vectors_per_item: int = 1,
    ) -> None:
        """Write the catalogue of an empty index into `folder`."""
        with closing(sqlite3.connect(folder / CATALOGUE_NAME, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise IndexStoreError(f"{folder}: SQLite's write-ahead log needs a local file system")
            connection.executescript(f"BEGIN; {schema_of(vectors_per_item)} COMMIT;")
            header = Header(
                schema_version=SCHEMA_VERSION if vectors_per_item == 1 else SEVERAL_VECTORS_VERSION,
                identity=secrets.randbits(63),
                tables=tables_checksum(connection),
                space=space,
                dim=dim,
                dtype=dtype.value,
                bundle_name=bundle.name if bundle is not None else None,
                bundle_path=bundle.path if bundle is not None else None,
                writers=0,
                vectors_per_item=vectors_per_item,
            )
            insert_first_row(connection, header, Commit(generation=0, vectors_file=vectors_file))

    @property
    def row_bytes(self) -> int:
        """The bytes of a row of the vector file."""
        return self.vectors_per_item * self.dim * self.dtype.numpy.itemsize

    @contextmanager
    def view(self) -> Iterator[View]:
        """Give the last committed state of any process; it stays the same within the block."""
        with self.connections.reading() as connection:
            view = View(connection)
            self._check_identity(view)
            yield view

    @contextmanager
    def change(self) -> Iterator[Change]:
        """Give a change that is durable when the block has ended, and undone if the block raises."""
        with self.connections.writing() as connection:
            self.connections.check_place()
            change = Change(connection)
            self._check_identity(change)
            yield change

    def recover(self) -> tuple[Commit, int]:
        """Commit an empty change; return the last commit and the count of such recoveries.

        If a commit fails while it is written out, its pages may remain behind the end of SQLite's log, and a crash
        could make them valid, by then over other vectors. Any later commit overwrites them, so one is made before a
        vector file is touched.
        """
        with self.change() as change:
            change.touch()
            writers = change.header.writers
        return change.commit, writers

    def shrink(self) -> None:
        """Return the space of removed items to the file system."""
        self.connections.vacuum()
        self.connections.checkpoint()

    def close(self) -> None:
        """Close the connections; waits for a change in progress."""
        self.connections.close()

    def _check_identity(self, view: View) -> None:
        if view.header.identity != self.identity:
            raise IndexReplacedError(
                f"the index {self._path.parent} was migrated to another space, or replaced by another, since it was "
                "opened: open it again, with the bundle that it names now"
            )

    def _header(self, connection: sqlite3.Connection) -> Header:
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        if application_id != APPLICATION_ID:
            raise IndexStoreError(f"{self._path} is a SQLite file, but not the catalogue of an index")
        # The version alone first: other versions may have other columns.
        (version,) = only_row(connection, "SELECT schema_version FROM catalogue")
        if version not in (SCHEMA_VERSION, SEVERAL_VECTORS_VERSION):
            raise IndexStoreError(
                f"{self._path} has schema version {version}, this twinspire reads versions {SCHEMA_VERSION} and "
                f"{SEVERAL_VECTORS_VERSION}: open it with the version of twinspire that wrote it, or build the index "
                "again"
            )
        header = View(connection).header
        if header.tables != tables_checksum(connection):
            raise IndexStoreError(f"{self._path} is damaged: the definitions of its tables changed. {RESTORE}")
        return header
