"""An index folder that is open: its parts, and how calls read and change them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from twinspire.errors import IndexStoreError, InputError, SpaceMismatchError
from twinspire.index.catalogue import Catalogue
from twinspire.index.commit_record import read_record
from twinspire.index.connections import CATALOGUE_NAME
from twinspire.index.failures import store_errors
from twinspire.index.folder import make_folder
from twinspire.index.lock import WriterLock
from twinspire.index.recovery import require_nothing_lost
from twinspire.index.snapshots import Snapshots
from twinspire.index.state import State, States
from twinspire.index.vectors import VectorType
from twinspire.index.view import View
from twinspire.index.writer import Writer

_log = logging.getLogger("twinspire.index")


class OpenedIndex:
    """What `Index` stands on: made, opened and closed here; what it offers beyond is in `store`."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        self._path = path
        self._pid = os.getpid()
        self._closed = False
        self._writer_lock: WriterLock | None = None
        self._catalogue: Catalogue | None = None
        self._states: States | None = None
        self._writer: Writer | None = None
        self._snapshots: Snapshots | None = None
        try:
            with store_errors(path, "open"):
                if writable:
                    self._writer_lock = WriterLock(path)
                record = read_record(path)  # before the state is read, which is never older then
                if writable:
                    require_nothing_lost(path)
                self._catalogue = Catalogue(path, writable=writable)
                self._space, self._dim, self._dtype = (
                    self._catalogue.space,
                    self._catalogue.dim,
                    self._catalogue.dtype,
                )
                self._states = States(path, self._catalogue)
                with self._states.current() as (_, state):  # checks all of it, before anything is touched
                    if record is not None and record[0] > state.commit.generation:
                        _log.warning(
                            "changes of the index %s are missing that were acknowledged, from generation %d to %d: "
                            "`twinspire index recover` brings back what it can",
                            path,
                            state.commit.generation + 1,
                            record[0],
                        )
                self._snapshots = Snapshots(path, self._catalogue, self._states)
                if writable:
                    self._states.trusting = True
                    assert self._writer_lock is not None
                    self._writer = Writer(path, self._catalogue, self._states, self._writer_lock)
                    self._snapshots.tidy(self._writer)
                    self._snapshots.keep_up(self._writer, check=True)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], *, space: str, dim: int, dtype: VectorType = VectorType.FLOAT32
    ) -> Self:
        """Make an empty index for embeddings of `space` with `dim` numbers and open it for writing.

        `dtype` says how vectors are stored. The folder appears whole or not at all; an empty one is taken. Raises
        `InputError` for an empty space, a dim below 1 and an unknown dtype, `IndexStoreError` where something is
        at `path` already or it cannot be written.
        """
        if not isinstance(space, str) or not space.strip():
            raise InputError(f"an index's space must be a non-empty str, got {space!r}")
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            raise InputError(f"an index's dim must be a whole number from 1 up, got {dim!r}")
        if not isinstance(dtype, VectorType):
            raise InputError(f"an index's dtype must be a VectorType ({', '.join(VectorType)}), got {dtype!r}")
        folder = Path(path).absolute()
        with store_errors(folder, "create"):
            if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
                raise IndexStoreError(
                    f"cannot make an index at {folder}: something is there already. Open it, or name another"
                )
            if not folder.parent.is_dir():
                raise IndexStoreError(f"cannot make an index at {folder}: there is no folder {folder.parent}")
            make_folder(folder, space=space, dim=dim, dtype=dtype)
        return cls(folder, writable=True)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, mode: Literal["read", "write"] = "read") -> Self:
        """Open the index at `path`, after checking all of it against its checksum.

        `write` also clears away what an interrupted change left behind; `read` changes nothing. Raises
        `IndexStoreError` where there is no index, it is damaged or of another schema version, and
        `IndexLockedError` for a second writer.
        """
        if mode not in ("read", "write"):
            raise InputError(f"an index is opened with mode 'read' or 'write', got {mode!r}")
        folder = Path(path).absolute()
        if not folder.is_dir():
            found = "it is no folder" if os.path.lexists(folder) else "nothing is there"
            raise IndexStoreError(f"there is no index at {folder}: {found}. `twinspire index add` makes one")
        if not (folder / CATALOGUE_NAME).is_file():  # said before a lock file is put into a stranger's folder
            raise IndexStoreError(f"{folder} is no index: it has no {CATALOGUE_NAME}. `twinspire index add` makes one")
        return cls(folder, writable=mode == "write")

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return self._path

    @property
    def space(self) -> str:
        """The space of its embeddings; others can neither be added nor searched with."""
        return self._space

    @property
    def dim(self) -> int:
        """D, how many numbers an embedding has."""
        return self._dim

    @property
    def dtype(self) -> VectorType:
        """How vectors are stored."""
        return self._dtype

    @property
    def generation(self) -> int:
        """A number that every add, remove, update and compact makes greater, in any process."""
        with self._reading("read") as (view, _):
            return view.commit.generation

    def __len__(self) -> int:
        """How many items are committed now."""
        with self._reading("read") as (_, state):
            return state.items

    def check_space(self, space: str) -> None:
        """Raise `SpaceMismatchError` where embeddings of `space` can neither be added nor searched with."""
        if space != self._space:
            raise SpaceMismatchError(
                f"the index {self._path} holds embeddings of the space {self._space[:12]}, these are of "
                f"{space[:12]}: they cannot be compared. Use a bundle of the index's space (the one it was "
                "made with), or make another index"
            )

    def close(self) -> None:
        """Close the files and, for a writer, let go of the lock. Does nothing the second time, or after a fork."""
        self._closed = True
        if os.getpid() != self._pid:
            return  # the files are the parent's
        with store_errors(self._path, "close"), ExitStack() as parts:  # the last is closed first, each in any case
            if self._writer_lock is not None:
                parts.callback(self._writer_lock.release)
            for part in (self._catalogue, self._states, self._writer, self._snapshots):
                if part is not None:
                    parts.callback(part.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _parts(self) -> States:
        if os.getpid() != self._pid:
            raise IndexStoreError(
                f"the index {self._path} was opened by process {self._pid}, from which this one was forked: "
                "open it again in this process"
            )
        if self._closed:
            raise IndexStoreError(f"the index {self._path} is closed: open it again with Index.open")
        assert self._states is not None
        return self._states

    @contextmanager
    def _reading(self, doing: str) -> Iterator[tuple[View, State]]:
        with store_errors(self._path, doing), self._parts().current() as current:
            yield current

    @contextmanager
    def _changing(self, doing: str) -> Iterator[Writer]:
        self._parts()
        if self._writer is None:
            raise IndexStoreError(
                f"the index {self._path} was opened for reading: open it with mode='write' to change it"
            )
        with store_errors(self._path, doing):
            yield self._writer
