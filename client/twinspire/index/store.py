"""The index folder: catalogue and vector file kept in step.

One `add` appends the vectors, waits until the disk has them, and only then commits the items together with
the new length in one SQLite transaction. A crash before that leaves a tail behind the committed length, which
readers ignore and the next writer cuts off; a crash after it leaves a finished add. Needs a local file system
(SQLite's log and flock do).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import IndexStoreError, InputError, SpaceMismatchError
from twinspire.index.catalogue import CATALOGUE_NAME, SCHEMA_VERSION, Catalogue, Commit
from twinspire.index.failures import store_errors
from twinspire.index.flat import nearest
from twinspire.index.folder import make_folder
from twinspire.index.items import AddReport, Hit, IndexStats, Item, ItemKind
from twinspire.index.lock import WriterLock
from twinspire.index.vectors import CHECKSUM_OF_NOTHING, VectorFile, as_stored, checksum_of, unit_vectors

_NOTHING = Commit(generation=-1, vectors=0, checksum=CHECKSUM_OF_NOTHING)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What was committed at one moment. Never changes, so a search needs no lock."""

    commit: Commit
    vectors: NDArray[np.float32]  # (N, D), a mapping of the vector file


class Index:
    """An open index; made by `Index.create` and `Index.open`, a context manager.

    One `Index` at a time may be open for writing, in one process; any number for reading, in any process. A
    reader sees what was added since at its next `search`, `stats` or `len`. All methods may be called from
    several threads at once: searches run side by side, adds one after the other. Not to be carried across
    `os.fork`: open it in the child.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self._path = path
        self._changing = threading.RLock()  # held while the snapshot or the files change
        self._closed = False
        self._settled = False
        self._writer_lock: WriterLock | None = None
        self._catalogue: Catalogue | None = None
        self._vectors: VectorFile | None = None
        try:
            with store_errors(path, "open"):
                if writable:
                    self._writer_lock = WriterLock(path)
                self._catalogue = Catalogue(path, writable=writable)
                self._space, self._dim = self._catalogue.space, self._catalogue.dim
                self._vectors = VectorFile(path, self._dim, writable=writable)
                self._snapshot = _Snapshot(_NOTHING, self._vectors.mapped(0))
                self._refresh()
                if writable:
                    self._settle()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: str | os.PathLike[str], *, space: str, dim: int) -> Self:
        """Make an empty index for embeddings of `space` with `dim` numbers and open it for writing.

        The folder appears whole or not at all. Raises `InputError` for an empty space or a dim below 1,
        `IndexStoreError` where something is at `path` already or it cannot be written.
        """
        if not isinstance(space, str) or not space.strip():
            raise InputError(f"an index's space must be a non-empty str, got {space!r}")
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            raise InputError(f"an index's dim must be a whole number from 1 up, got {dim!r}")
        folder = Path(path).absolute()
        if os.path.lexists(folder):
            raise IndexStoreError(
                f"cannot make an index at {folder}: something is there already. Open it, or name another"
            )
        if not folder.parent.is_dir():
            raise IndexStoreError(f"cannot make an index at {folder}: there is no folder {folder.parent}")
        with store_errors(folder, "create"):
            make_folder(folder, space=space, dim=dim)
        return cls(folder, writable=True)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, mode: Literal["read", "write"] = "read") -> Self:
        """Open the index at `path`, after checking all of it against its checksum.

        `write` also cuts off what an interrupted `add` left behind; `read` changes nothing. Raises
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

    def __len__(self) -> int:
        """How many items are committed now."""
        with store_errors(self._path, "read"):
            return self._current().commit.vectors

    def check_space(self, space: str) -> None:
        """Raise `SpaceMismatchError` where embeddings of `space` can neither be added nor searched with."""
        if space != self._space:
            raise SpaceMismatchError(
                f"the index {self._path} holds embeddings of the space {self._space[:12]}, these are of "
                f"{space[:12]}: they cannot be compared. Use a bundle of the index's space (the one it was "
                "made with), or make another index"
            )

    def add(self, embeddings: NDArray[np.float32], items: Sequence[Item], *, space: str) -> AddReport:
        """Add `items` with their `embeddings`, (N, D) float32, L2-normalised: durable when it returns.

        An item whose kind and content hash the index has already, or an earlier item of the same call has, is
        skipped and reported. All of them are added or, where it raises, none. Raises `SpaceMismatchError`,
        `EmbeddingError`, `InputError` where items and embeddings differ in number, `IndexStoreError` where
        the disk fails or the index was opened for reading.
        """
        self.check_space(space)
        vectors = unit_vectors(embeddings, self._dim, "embeddings to add")  # (N, D)
        items = list(items)
        if len(items) != len(vectors):
            raise InputError(f"every item needs one embedding: got {len(items)} items and {len(vectors)} embeddings")
        if self._writer_lock is None:
            raise IndexStoreError(
                f"the index {self._path} was opened for reading: open it with mode='write' to add to it"
            )
        with self._changing, store_errors(self._path, "add to"):
            catalogue, file = self._parts()
            if not self._settled:
                self._settle()
            new = self._new_positions(catalogue, items)
            skipped = sorted(set(range(len(items))) - set(new))
            if not new:
                return AddReport([], skipped)
            before = self._snapshot.commit
            vectors = vectors[new]
            self._settled = False  # until all of it has worked
            data = as_stored(vectors)
            file.append(before.vectors, data)
            checksum = checksum_of(data, before.checksum)
            commit = catalogue.commit(before.vectors, [items[position] for position in new], checksum)
            self._snapshot = _Snapshot(commit, file.mapped(commit.vectors))
            self._settled = True
            return AddReport(list(range(before.vectors, commit.vectors)), skipped)

    def search(self, queries: NDArray[np.float32], *, k: int = 10, space: str) -> list[list[Hit]]:
        """Return the k best hits of each query, best first, equal scores in the order of ids.

        `queries` is (Q, D) float32, L2-normalised. The search is exact. A query gets fewer than k hits where
        the index holds fewer, none where it is empty. Raises `SpaceMismatchError`, `EmbeddingError`,
        `InputError` for a k below 1, `IndexStoreError`, and `MissingDependencyError` without FAISS (extra
        `cpu`).
        """
        self.check_space(space)
        vectors = unit_vectors(queries, self._dim, "queries")  # (Q, D)
        if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
            raise InputError(f"k, the number of hits, must be a whole number from 1 up, got {k!r}")
        with store_errors(self._path, "search"):
            snapshot = self._current()
            if snapshot.commit.vectors == 0 or len(vectors) == 0:
                return [[] for _ in vectors]
            scores, rows = nearest(snapshot.vectors, vectors, int(k))  # (Q, k) each
            catalogue, _ = self._parts()
            width = rows.shape[1]
            hits = catalogue.hits(zip(rows.ravel().tolist(), scores.ravel().tolist(), strict=True))
        return [hits[start : start + width] for start in range(0, len(hits), width)]

    def known_hashes(self, hashes: Iterable[str], *, kind: ItemKind = ItemKind.IMAGE) -> set[str]:
        """Return those of `hashes` that belong to an item of this kind: what `add` would skip."""
        with store_errors(self._path, "read"):
            catalogue, _ = self._parts()
            return catalogue.known_hashes(hashes, kind)

    def stats(self) -> IndexStats:
        """Return what the index holds now and how large it is."""
        with store_errors(self._path, "read"):
            commit = self._current().commit
            catalogue, vectors = self._parts()
            return IndexStats(
                path=self._path,
                space=self._space,
                dim=self._dim,
                items=commit.vectors,
                items_by_kind=catalogue.count_by_kind(),
                generation=commit.generation,
                schema_version=SCHEMA_VERSION,
                vectors_bytes=vectors.size_bytes(),
                catalogue_bytes=catalogue.size_bytes(),
            )

    def close(self) -> None:
        """Close the files and, for a writer, let go of the lock. Does nothing the second time."""
        with self._changing:
            self._closed = True
            with store_errors(self._path, "close"):
                if self._catalogue is not None:
                    self._catalogue.close()
                if self._vectors is not None:
                    self._vectors.close()
                if self._writer_lock is not None:
                    self._writer_lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _parts(self) -> tuple[Catalogue, VectorFile]:
        if self._closed:
            raise IndexStoreError(f"the index {self._path} is closed: open it again with Index.open")
        assert self._catalogue is not None
        assert self._vectors is not None
        return self._catalogue, self._vectors

    def _current(self) -> _Snapshot:
        """Return what is committed now. A writer knows: nobody else adds."""
        self._parts()
        return self._snapshot if self._writer_lock is not None else self._refresh()

    def _refresh(self) -> _Snapshot:
        """Take in what was committed since, checking only that."""
        with self._changing:
            catalogue, file = self._parts()
            before, now = self._snapshot.commit, catalogue.last_commit()
            if now.generation != before.generation:
                file.verify(before.vectors, before.checksum, now.vectors, now.checksum)
                self._snapshot = _Snapshot(now, file.mapped(now.vectors))
            return self._snapshot

    def _settle(self) -> None:
        """Make the catalogue's last commit the last one for good, then cut the vector file to its length."""
        catalogue, file = self._parts()
        commit = catalogue.settle()
        snapshot = self._refresh()
        assert snapshot.commit == commit
        file.truncate(commit.vectors)
        self._settled = True

    @staticmethod
    def _new_positions(catalogue: Catalogue, items: Sequence[Item]) -> list[int]:
        """Return the positions of items whose content neither the catalogue nor an earlier item has."""
        seen: set[tuple[ItemKind, str | None]] = set()
        for kind in ItemKind:
            hashes = {item.content_hash for item in items if item.kind is kind and item.content_hash is not None}
            seen |= {(kind, known) for known in catalogue.known_hashes(hashes, kind)}
        new = []
        for position, item in enumerate(items):
            content = (item.kind, item.content_hash)
            if content not in seen:
                new.append(position)
                if item.content_hash is not None:
                    seen.add(content)
        return new
