"""The parts of an open index, opened, used and closed together."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from twinspire.errors import IndexStoreError
from twinspire.index.catalogue import Catalogue
from twinspire.index.commit_record import read_record
from twinspire.index.error_mapping import store_errors
from twinspire.index.lock import WriterLock
from twinspire.index.recovery import require_nothing_lost
from twinspire.index.snapshots import Snapshots
from twinspire.index.state import State, States
from twinspire.index.view import View
from twinspire.index.writer import Writer

_log = logging.getLogger("twinspire.index")


@dataclass(frozen=True, slots=True)
class OpenParts:
    """What an index consists of while it is open; `writer` is None in one that was opened for reading."""

    catalogue: Catalogue
    states: States
    snapshots: Snapshots
    writer: Writer | None
    closing: ExitStack

    @classmethod
    def open(cls, folder: Path, *, writable: bool) -> OpenParts:
        """Open the index in `folder` and check all of it; a writer clears away what an interrupted change left.

        Raises `IndexLockedError`, `IndexStoreError`, `sqlite3.Error` and `OSError`; nothing stays open then.
        """
        with ExitStack() as parts:
            lock = None
            if writable:
                lock = WriterLock(folder)
                parts.callback(lock.release)
            record = read_record(folder)  # before the state is read, which is never older then
            if writable:
                require_nothing_lost(folder)
            catalogue = Catalogue(folder, writable=writable)
            parts.callback(catalogue.close)
            states = States(folder, catalogue)
            parts.callback(states.close)
            with states.current() as (_, state):  # checks all of it, before anything is touched
                if record is not None and record.generation > state.commit.generation:
                    _log.warning(
                        "acknowledged changes of the index %s are missing, generations %d to %d: `twinspire index "
                        "recover` restores what it can",
                        folder,
                        state.commit.generation + 1,
                        record.generation,
                    )
            writer = None
            if lock is not None:
                states.trusting = True
                writer = Writer(folder, catalogue, states, lock)
                parts.callback(writer.close)
            snapshots = Snapshots(folder, catalogue, states)
            parts.callback(snapshots.close)
            if writer is not None:
                snapshots.remove_stale(writer)
                snapshots.refresh(writer, check=True)
            return cls(catalogue, states, snapshots, writer, parts.pop_all())


class Handle:
    """An open index folder until it is closed, in the process that opened it.

    Its methods map SQLite's and the system's errors to `IndexStoreError`, which they raise too once it is closed.
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self.writable = writable
        self._folder = folder
        self._pid = os.getpid()
        with store_errors(folder, "open"):
            self._parts: OpenParts | None = OpenParts.open(folder, writable=writable)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._parts is None

    def parts(self) -> OpenParts:
        """Return the open parts."""
        if os.getpid() != self._pid:
            raise IndexStoreError(
                f"the index {self._folder} was opened by process {self._pid}, from which this one was forked: "
                "open it again in this process"
            )
        if self._parts is None:
            raise IndexStoreError(f"the index {self._folder} is closed: open it again with Index.open")
        return self._parts

    @contextmanager
    def reading(self, doing: str) -> Iterator[tuple[View, State]]:
        """Give the committed state and a view of it; `doing` is the verb of an error: "cannot search the index"."""
        with store_errors(self._folder, doing), self.parts().states.current() as current:
            yield current

    @contextmanager
    def changing(self, doing: str) -> Iterator[tuple[Writer, Snapshots]]:
        """Give what makes changes. Raises `IndexStoreError` if the index was opened for reading."""
        parts = self.parts()
        if parts.writer is None:
            raise IndexStoreError(
                f"the index {self._folder} was opened for reading: open it with mode='write' to change it"
            )
        with store_errors(self._folder, doing):
            yield parts.writer, parts.snapshots

    def close(self) -> None:
        """Close the files, the last opened first, and release the lock; does nothing the second time."""
        parts, self._parts = self._parts, None
        if parts is not None and os.getpid() == self._pid:  # in a forked child they are the parent's
            with store_errors(self._folder, "close"):
                parts.closing.close()
