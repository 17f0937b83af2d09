"""Connections to a catalogue: one that writes, and one for each thread that reads at the same time."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from twinspire.errors import IndexReplacedError, IndexStoreError
from twinspire.index import disk
from twinspire.index.forks import GuardedConnection, guard

CATALOGUE_NAME = "catalogue.sqlite"
_BUSY_TIMEOUT_S = 10.0
_REPEATS = 5
_P = ParamSpec("_P")
_R = TypeVar("_R")


class CatalogueChangedError(IndexStoreError):
    """The catalogue was changed while it was read without SQLite's locks: discard the result and read again."""


def repeated(call: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return `call` with retries: it is called again, a few times, if the catalogue changed while it was read."""

    @wraps(call)
    def repeating(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        for _ in range(_REPEATS):
            with suppress(CatalogueChangedError):
                return call(*args, **kwargs)
        return call(*args, **kwargs)

    return repeating


class Connections:
    """The connections of one open index, for use from any thread.

    All methods raise `sqlite3.Error`, and `IndexStoreError` if the catalogue was replaced by another file.

    A reader without write access to the folder cannot make SQLite's shared memory file there. While no writer is at
    work it opens the file as immutable, and opens it again when the file has changed. SQLite takes no lock then, so a
    transaction that ran beside a writer raises `CatalogueChangedError` at its end.
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self._path = folder / CATALOGUE_NAME
        self._log = folder / (CATALOGUE_NAME + "-wal")
        self._place = self._placed()
        self._writable = writable
        self._lock = threading.Lock()  # of the fields below, held briefly
        self._idle: list[sqlite3.Connection] = []
        self._age = 0  # connections of an earlier age are closed when they are returned
        self._seen: tuple[int, int, int] | None = None  # signature of the file, if it was opened as immutable
        self._closed = False
        self._writing = threading.Lock()  # held for a transaction
        self._writer: sqlite3.Connection | None = None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a connection in a transaction that sees one committed state until the block ends."""
        with self._lock:
            if self._closed:
                raise sqlite3.ProgrammingError("the catalogue is closed")
            self.check_place()
            if self._seen is not None and self._changed(self._seen):
                self._drop_idle()
                self._seen = None
            connection = self._idle.pop() if self._idle else self._connect()
            age, seen = self._age, self._seen
        try:
            connection.execute("BEGIN")
            yield connection
            if seen is not None and self._changed(seen):
                raise self._change()
        except (sqlite3.Error, IndexStoreError) as error:
            if seen is not None and not isinstance(error, CatalogueChangedError) and self._changed(seen):
                raise self._change() from error
            raise
        finally:
            try:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")  # works in any state of the connection; it only read
            finally:
                with self._lock:
                    if self._closed or age != self._age:
                        connection.close()
                    else:
                        self._idle.append(connection)

    def copy(self, path: Path) -> None:
        """Write the committed state to a new SQLite file."""
        with self.reading() as connection, closing(sqlite3.connect(path)) as other:
            connection.backup(other)

    def replace(self, path: Path) -> None:
        """Commit the content of the SQLite file at `path` in place of the current one, in one transaction."""
        with self._writing, closing(sqlite3.connect(path)) as other:
            other.backup(self._writing_connection())

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Give the writing connection in a transaction: committed when the block ends, rolled back if it raises."""
        with self._writing:
            connection = self._writing_connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                disk.commit(connection)
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def check_place(self) -> None:
        """Raise `IndexStoreError` if the catalogue is gone or another file than the one that was opened."""
        try:
            now = self._placed()
        except FileNotFoundError:
            now = None
        if now != self._place:
            what = "is gone" if now is None else "was replaced by another"
            raise IndexReplacedError(f"the index {self._path.parent} {what} since it was opened: open it again")

    def checkpoint(self, *, larger_than_bytes: int = 0) -> None:
        """Copy SQLite's log into the catalogue and empty it if it is larger, as far as readers allow, without waiting.

        SQLite copies it too, but never shortens the file while the index is open.
        """
        with self._writing:
            if self._writer is None or _size(self._log) <= larger_than_bytes:
                return
            self._writer.execute("PRAGMA busy_timeout = 0")
            try:
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_S * 1000:.0f}")

    def vacuum(self) -> None:
        """Rewrite the catalogue without its free pages, if they are a tenth of it or more; readers go on.

        Needs room for two more copies meanwhile.
        """
        with self._writing:
            assert self._writer is not None
            (free,), (pages,) = (
                self._writer.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_count")
            )
            if free * 10 >= pages:
                self._writer.execute("VACUUM")

    def size_bytes(self) -> int:
        """Return the size of the catalogue with SQLite's log."""
        return _size(self._path) + _size(self._log)

    def close(self) -> None:
        """Close the connections: readers' when they are done, the writer's after its transaction."""
        with self._lock:
            self._closed = True
            self._drop_idle()
        with self._writing:
            if self._writer is not None:
                self._writer.close()

    def _writing_connection(self) -> sqlite3.Connection:
        if self._writer is None:
            self._writer = self._open("mode=rw")
            self._writer.execute("PRAGMA synchronous = FULL")  # a setting of the connection, not of the file
        return self._writer

    def _drop_idle(self) -> None:
        self._age += 1
        while self._idle:
            self._idle.pop().close()

    def _connect(self) -> sqlite3.Connection:
        for suffix in ("-wal", "-shm", "-journal"):  # opening a pipe would block for ever
            with suppress(FileNotFoundError):
                file = self._path.with_name(self._path.name + suffix)
                disk.require_regular(file, file.stat())
        if self._writable:
            return self._open("mode=rw")
        if not self._log.exists() and not os.access(self._path.parent, os.W_OK):
            self._seen = self._signature()
            return self._open("mode=ro&immutable=1")
        self._seen = None
        return self._open("mode=ro")

    def _open(self, options: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?{options}",
            uri=True,
            isolation_level=None,  # transactions begin and end explicitly
            check_same_thread=False,
            timeout=_BUSY_TIMEOUT_S,
            factory=GuardedConnection,
        )
        guard(connection)
        return connection

    def _placed(self) -> tuple[int, int]:
        status = self._path.stat()
        disk.require_regular(self._path, status)
        return status.st_dev, status.st_ino

    def _changed(self, seen: tuple[int, int, int]) -> bool:
        return self._log.exists() or self._signature() != seen

    def _change(self) -> CatalogueChangedError:
        return CatalogueChangedError(
            f"the index {self._path.parent} was changed while it was read, and SQLite needs write access to its folder "
            "to read beside a writer: try again, or make the folder writable"
        )

    def _signature(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # SQLite removes its log
        return 0
