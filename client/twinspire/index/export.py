"""Export of an index to files that other tools read: Parquet, or NumPy's .npy with JSON lines.

Both hold one committed state, items in the order of ids, and are written whole or not at all. Embeddings are float32,
also of a float16 index; of an index with Q vectors an item they are (Q, D) each. In Parquet metadata keys are columns
of their own, as in clip-retrieval's metadata files; embedding-reader and autofaiss read the column `embedding`.
"""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinspire._arguments import file_errors
from twinspire._times import iso_utc
from twinspire.errors import IndexStoreError, InputError
from twinspire.index import disk
from twinspire.index.connections import repeated
from twinspire.index.error_mapping import RESTORE
from twinspire.index.item_pages import ItemPages
from twinspire.stores.items import StoredItem

if TYPE_CHECKING:
    from twinspire.index.export_parquet import ParquetWriter
    from twinspire.index.store import Index
    from twinspire.stores.filters.filter import Filter

SUFFIXES = (".parquet", ".npy")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Result of an export: the number of items, D of their embeddings, and the files."""

    items: int
    dim: int
    files: list[Path]


def export_index(
    index: Index,
    destination: str | os.PathLike[str],
    *,
    where: Filter | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write the items that `where` keeps, by default all, to `destination`, a .parquet or .npy file.

    The .npy file holds the embeddings, (N, D) or (N, Q, D) float32; NAME.items.jsonl beside it has the items as JSON
    lines in the same order. Existing files are replaced. `on_progress` is called with the number of written items and
    of all. Memory does not grow with the number of embeddings. Raises `InputError` for a destination that cannot be
    written, `MissingDependencyError` without pyarrow (extra `parquet`), `IndexStoreError` for a damaged index.
    """
    path = _checked_destination(Path(destination), index)
    if path.suffix.lower() == ".parquet":
        from twinspire.index.export_parquet import require_pyarrow

        require_pyarrow()
    return _exported(index, path, where, on_progress or (lambda _done, _total: None))


@repeated
def _exported(index: Index, path: Path, where: Filter | None, on_progress: Callable[[int, int], None]) -> ExportReport:
    parquet = path.suffix.lower() == ".parquet"
    files = [path] if parquet else [path, path.with_name(f"{path.stem}.items.jsonl")]
    # The files are renamed last: the end of the read transaction may find that its result is invalid.
    with (
        file_errors(f"cannot export to {path}", path),
        _drafts(files) as drafts,
        index._handle.reading("export") as (view, state),
        file_errors(f"cannot export to {path}", path),
    ):
        ids = np.array(view.ids(None, where), dtype=np.int64)
        if where is None and len(ids) != state.items:
            raise IndexStoreError(f"the catalogue is damaged: {len(ids)} items for {state.items} vectors. {RESTORE}")
        pages = ItemPages(ids, state.vectors.shape[1:], index.space, view, state)
        done = 0
        with closing(_writer(drafts, pages)) as writer:
            for items, embeddings in pages.pages():
                writer.write(items, embeddings)
                done += len(items)
                on_progress(done, len(ids))
    return ExportReport(done, index.dim, files)


def _writer(drafts: list[Path], pages: ItemPages) -> NpyWriter | ParquetWriter:
    if len(drafts) == 2:
        return NpyWriter(drafts[0], drafts[1], pages.shape)
    from twinspire.index.export_parquet import ParquetWriter

    return ParquetWriter(drafts[0], pages)


class NpyWriter:
    """Writes the embeddings to one .npy file and the items to JSON lines."""

    def __init__(self, matrix: Path, lines: Path, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._rows = 0
        self._matrix = matrix.open("wb")
        self._lines = lines.open("w", encoding="utf-8")
        self._write_header()

    def write(self, items: list[StoredItem], embeddings: NDArray[np.float32]) -> None:
        """Append a page to both files; `embeddings` is (n, *shape) float32."""
        self._matrix.write(embeddings.astype("<f4", copy=False).tobytes())
        self._lines.writelines(f"{json.dumps(_document(item), ensure_ascii=False)}\n" for item in items)
        self._rows += len(items)

    def close(self) -> None:
        """Write the number of rows into the header, in which NumPy leaves room for it."""
        with self._matrix, self._lines:
            end = self._matrix.tell()
            self._matrix.seek(0)
            self._write_header()
            assert end - self._matrix.tell() == self._rows * math.prod(self._shape) * 4

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, *self._shape)}
        np.lib.format.write_array_header_1_0(self._matrix, header)  # type: ignore[no-untyped-call]


def _document(item: StoredItem) -> dict[str, object]:
    return {
        "id": item.id,
        "uri": item.uri,
        "kind": item.kind.value,
        "caption": item.caption,
        "metadata": dict(item.metadata),
        "content_hash": item.content_hash,
        "added_at": iso_utc(item.added_at),
        "changed_at": iso_utc(item.changed_at),
    }


def _checked_destination(path: Path, index: Index) -> Path:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"cannot export to {path}: expected a name ending in {' or '.join(SUFFIXES)}")
    full = Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute keeps "..", resolve follows links
    if full.is_dir():
        raise InputError(f"cannot export to {path}: it is a folder. Name a file in it")
    if not full.parent.is_dir():
        raise InputError(f"cannot export to {path}: there is no folder {full.parent}, create it first")
    if full.parent.resolve() == index.path.resolve():
        raise InputError(f"cannot export to {path}: that is the folder of the index itself. Name another folder")
    return full


@contextmanager
def _drafts(files: list[Path]) -> Iterator[list[Path]]:
    """Give a temporary file for each file, renamed to it when the block ends, and removed if the block raises."""
    drafts = [file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp") for file in files]
    try:
        yield drafts
        for draft in drafts:
            disk.sync_file(draft)
        for draft, file in zip(drafts, files, strict=True):
            draft.replace(file)
        disk.sync_folder(files[0].parent)
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)
