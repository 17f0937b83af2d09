"""An index folder that is open: its parts, and how calls read and change them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from twinspire._arguments import as_member, as_whole, require_text, shown
from twinspire.errors import IndexStoreError, InputError, SpaceMismatchError, TwinspireError
from twinspire.index.catalogue import Catalogue
from twinspire.index.commit_record import read_record
from twinspire.index.connections import CATALOGUE_NAME, repeated
from twinspire.index.error_mapping import store_errors
from twinspire.index.folder import make_folder
from twinspire.index.lock import WriterLock
from twinspire.index.recovery import require_nothing_lost
from twinspire.index.snapshots import Snapshots
from twinspire.index.state import State, States
from twinspire.index.vectors import VectorType
from twinspire.index.view import View
from twinspire.index.writer import Writer
from twinspire.stores.reference import BundleReference
from twinspire.stores.validation import check_bundle

_log = logging.getLogger("twinspire.index")
_MOST_DIM = 2**31 - 1  # an int of FAISS


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
                    if record is not None and record.generation > state.commit.generation:
                        _log.warning(
                            "changes of the index %s are missing that were acknowledged, from generation %d to %d: "
                            "`twinspire index recover` brings back what it can",
                            path,
                            state.commit.generation + 1,
                            record.generation,
                        )
                self._snapshots = Snapshots(path, self._catalogue, self._states)
                if writable:
                    self._states.trusting = True
                    assert self._writer_lock is not None
                    self._writer = Writer(path, self._catalogue, self._states, self._writer_lock)
                    self._snapshots.remove_stale(self._writer)
                    self._snapshots.refresh(self._writer, check=True)
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        space: str,
        dim: int,
        dtype: VectorType | str = VectorType.FLOAT32,
        bundle: BundleReference | None = None,
    ) -> Self:
        """Make an empty index for embeddings of `space` with `dim` numbers and open it for writing.

        `dtype` says how vectors are stored, `bundle` which bundle makes the embeddings, for the index to remember. The
        folder appears whole or not at all; an empty one is taken. Raises `InputError` for an empty space, a dim below
        1, an unknown dtype and what is no bundle reference, `IndexStoreError` where something is at `path` already or
        it cannot be written.
        """
        if not isinstance(space, str) or not space.strip():
            raise InputError(f"an index's space must be a non-empty str, got {shown(space)}")
        require_text(space, "an index's space")
        dim = as_whole(dim, "an index's dim", minimum=1, maximum=_MOST_DIM)
        dtype = as_member(dtype, VectorType, "an index's dtype")
        if bundle is not None:
            check_bundle(bundle)
        folder = _folder(path)
        with store_errors(folder, "create"):
            if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
                raise IndexStoreError(
                    f"cannot make an index at {folder}: something is there already. Open it, or name another"
                )
            if not folder.parent.is_dir():
                raise IndexStoreError(f"cannot make an index at {folder}: there is no folder {folder.parent}")
            make_folder(folder, space=space, dim=dim, dtype=dtype, bundle=bundle)
        return cls(folder, writable=True)

    @classmethod
    @repeated
    def open(cls, path: str | os.PathLike[str], *, mode: Literal["read", "write"] = "read") -> Self:
        """Open the index at `path`, after checking all of it against its checksum.

        `write` also clears away what an interrupted change left behind; `read` changes nothing. Raises
        `IndexStoreError` where there is no index, it is damaged or of another schema version, and
        `IndexLockedError` for a second writer.
        """
        if mode not in ("read", "write"):
            raise InputError(f"an index is opened with mode 'read' or 'write', got {shown(mode)}")
        folder = _folder(path)
        if not folder.is_dir():
            found = "it is no folder" if os.path.lexists(folder) else "nothing is there"
            raise IndexStoreError(f"there is no index at {folder}: {found}. `twinspire index add` makes one")
        if not (folder / CATALOGUE_NAME).is_file():  # said before a lock file is put into a stranger's folder
            raise IndexStoreError(f"{folder} is no index: it has no {CATALOGUE_NAME}. `twinspire index add` makes one")
        return cls(folder, writable=mode == "write")

    @classmethod
    def open_or_create(
        cls,
        path: str | os.PathLike[str],
        *,
        space: str,
        dim: int,
        dtype: VectorType | str | None = None,
        bundle: BundleReference | None = None,
    ) -> Self:
        """Open the index at `path` for writing; make it where there is none, as `create` does.

        An index that is there must have the `dtype` that is given, if one is, and keeps the bundle that it remembers:
        `set_bundle` changes it. Raises what `open` and `create` raise,
        `SpaceMismatchError` where the index is of another space and `InputError` where it has another dim or dtype.
        """
        wanted = None if dtype is None else as_member(dtype, VectorType, "an index's dtype")
        folder = _folder(path)
        with store_errors(folder, "open"):
            is_free = not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))
        if is_free:
            try:
                return cls.create(folder, space=space, dim=dim, dtype=wanted or VectorType.FLOAT32, bundle=bundle)
            except IndexStoreError:
                if not (folder / CATALOGUE_NAME).is_file():
                    raise
                # another process was first
        opened = cls.open(folder, mode="write")
        try:
            opened.check_space(space)
            if opened.dim != dim or wanted not in (None, opened.dtype):
                raise InputError(
                    f"the index {folder} is of dim {opened.dim} and {opened.dtype}, asked for were {shown(dim)} and "
                    f"{wanted or 'any dtype'}: name another folder, or ask for what is there"
                )
        except BaseException:
            opened.close()
            raise
        return opened

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return self._path

    @property
    def uri(self) -> str:
        """The folder, absolute, as `open_index` takes it."""
        return str(self._path)

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
    @repeated
    def bundle(self) -> BundleReference | None:
        """The bundle that made the embeddings, as last set; None where that is not known."""
        with self._reading("read") as (view, _):
            return view.bundle()

    @property
    @repeated
    def generation(self) -> int:
        """A number that every add, remove, update and compact makes greater, in any process."""
        with self._reading("read") as (view, _):
            return view.commit.generation

    @repeated
    def __len__(self) -> int:
        """How many items are committed now."""
        with self._reading("read") as (_, state):
            return state.items

    def check_space(self, space: str) -> None:
        """Raise `SpaceMismatchError` where embeddings of `space` can neither be added nor searched with."""
        if space != self._space:
            raise SpaceMismatchError(
                f"the index {self._path} was made with {self.bundle or 'a bundle that it does not remember'}: these "
                "embeddings are of another space, they cannot be compared with its own. Use the bundle that made it, "
                "or one quantized from that, or make another index"
            )

    def __repr__(self) -> str:
        if self._closed:
            return f"<Index {str(self._path)!r}, closed>"
        try:
            items = f"{len(self):,} items"
        except TwinspireError as error:
            items = f"not readable: {error}"
        access = "read" if self._writer is None else "write"
        kind = f"dim {self._dim}, {self._dtype}, space {self._space[:12]}"
        return f"<Index {str(self._path)!r}: {items}, {kind}, open to {access}>"

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


def _folder(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of an index. Raises `InputError` for what no path can be."""
    try:
        if not os.fspath(path) or b"\0" in os.fsencode(path):
            raise ValueError
    except (TypeError, ValueError):  # lone surrogates are a ValueError
        raise InputError(f"the path of an index: expected that of a folder, got {shown(path)}") from None
    return Path(os.fsdecode(path)).absolute()
