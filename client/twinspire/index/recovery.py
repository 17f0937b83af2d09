"""Detection and recovery of acknowledged changes that are missing after a crash.

SQLite silently drops a damaged commit of its log and all commits after it, and the next writer would truncate the
vectors behind the committed length. So opening an index for writing first looks for signs of such a loss, and refuses
to write. `recover_index` saves the log, repairs single flipped bits, verifies the result and commits it.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import count, islice, product
from pathlib import Path

from twinspire.errors import IndexStoreError
from twinspire.index import disk
from twinspire.index.ann.files import snapshot_number
from twinspire.index.catalogue import CATALOGUE_NAME, Catalogue
from twinspire.index.commit_record import CommitRecord, read_record
from twinspire.index.error_mapping import store_errors
from twinspire.index.lock import WriterLock
from twinspire.index.log_frames import LostFrames, flipped, lost_frames
from twinspire.index.vectors import HEADER_BYTES, header, vectors_number
from twinspire.index.verify import verify_index
from twinspire.index.view import Commit

_log = logging.getLogger("twinspire.index")
_LOG_NAME = CATALOGUE_NAME + "-wal"
_TRIES = 400


@dataclass(frozen=True, slots=True)
class RecoverReport:
    """Result of `recover_index`.

    `saved_in` is a folder with SQLite's log as it was found and, if changes could not be recovered, a vector file of
    the `vectors_saved` vectors behind the committed length; None: nothing was missing. `acknowledged` is the generation
    up to which changes are known to have returned.
    """

    path: Path
    saved_in: Path | None
    generation_before: int
    generation_after: int
    acknowledged: int | None
    items_before: int
    items_after: int
    vectors_saved: int

    @property
    def complete(self) -> bool:
        """Whether no acknowledged change is missing."""
        return self.generation_after >= (self.acknowledged or 0) and self.vectors_saved == 0


def require_nothing_lost(folder: Path) -> None:
    """Raise `IndexStoreError` if acknowledged changes are missing, and leave everything as it is.

    Without a commit record, vectors behind the committed length are saved, and a warning says where. Call it as the
    only writer, before SQLite opens the catalogue for writing: closing that connection removes the log.
    """
    with closing(Catalogue(folder, writable=False)) as catalogue:
        with catalogue.view() as view:
            commit = view.commit
        record = read_record(folder)
        vectors_behind = _rows_behind(folder, commit, catalogue)
        if not _changes_missing(folder, catalogue, lost_frames(_read_log(folder)), commit.generation):
            if record is None and vectors_behind:
                saved_in = _new_folder(folder)
                _save_vectors(folder, commit, catalogue, saved_in)
                _log.warning(
                    "%s has %d vectors behind the committed length and no record of the last acknowledged change: they "
                    "are saved in %s",
                    folder,
                    vectors_behind,
                    saved_in,
                )
            return
    raise IndexStoreError(
        f"acknowledged changes of the index {folder} are missing: SQLite's log is damaged or gone. The catalogue is at "
        f"generation {commit.generation} with {commit.rows} vectors"
        + (f", the last acknowledged change at {record.generation} with {record.rows}" if record else "")
        + f"; the vector file has {vectors_behind} more. Nothing was changed. `twinspire index recover {folder}` "
        "restores what it can and saves the rest; until then searches see the earlier state"
    )


def recover_index(path: str | os.PathLike[str]) -> RecoverReport:
    """Recover acknowledged changes that the index at `path` lost in a crash, if there are any.

    The recovered state is verified as a whole before it is committed. Changes that cannot be recovered are saved in a
    folder `recovered-N` of the index and dropped. Raises `IndexLockedError` beside a writer, `IndexStoreError` if the
    index cannot be read or its disk fails.
    """
    folder = Path(path).absolute()
    with store_errors(folder, "recover"), ExitStack() as stack:
        if not (folder / CATALOGUE_NAME).is_file():
            raise IndexStoreError(f"no index at {folder}: it has no {CATALOGUE_NAME}")
        stack.callback(WriterLock(folder).release)
        catalogue = stack.enter_context(closing(Catalogue(folder, writable=False)))
        log = _read_log(folder)
        with catalogue.view() as view:
            before = view.commit
        record = read_record(folder)
        acknowledged = record.generation if record is not None else None
        lost = lost_frames(log)
        if not _changes_missing(folder, catalogue, lost, before.generation):
            generation, items = before.generation, before.items
            return RecoverReport(folder, None, generation, generation, acknowledged, items, items, 0)
        saved_in = _new_folder(folder)
        (saved_in / _LOG_NAME).write_bytes(log)
        disk.sync_file(saved_in / _LOG_NAME)
        disk.sync_folder(saved_in)
        disk.sync_folder(folder)
        vectors_saved = 0
        if lost is None or not _restored(folder, catalogue, lost):
            vectors_saved = _save_vectors(folder, before, catalogue, saved_in)
        with closing(Catalogue(folder, writable=True)) as live:
            live.recover()  # overwrites the lost frames
            live.connections.checkpoint()
        with catalogue.view() as view:
            after = view.commit
        with closing(CommitRecord(folder)) as new:
            new.write(after.generation, after.rows)
    return RecoverReport(
        folder, saved_in, before.generation, after.generation, acknowledged, before.items, after.items, vectors_saved
    )


def _read_log(folder: Path) -> bytes:
    """Return the bytes of SQLite's log, empty if there is none."""
    try:
        return (folder / _LOG_NAME).read_bytes()
    except FileNotFoundError:
        return b""


def _changes_missing(folder: Path, catalogue: Catalogue, lost: LostFrames | None, generation: int) -> bool:
    """Return whether a catalogue at `generation` misses acknowledged changes; `lost` are SQLite's lost frames.

    If the commit record is exact it alone decides: a failed commit may have left whole frames. Otherwise two kinds of
    lost frames are no acknowledged change: a single commit that cannot be repaired, for a power cut leaves one in
    progress like that, and commits of before the last recovery of the catalogue.
    """
    record = read_record(folder)
    if record is not None and (record.exact or record.generation > generation):
        return record.generation > generation
    if lost is None or (lost.commits == 1 and lost.damaged):
        return False
    with tempfile.TemporaryDirectory(prefix=".recovery-", dir=folder) as scratch:
        rebuilt = Path(scratch) / CATALOGUE_NAME
        _rebuild(catalogue, lost, rebuilt)
        return _is_later(rebuilt, folder / CATALOGUE_NAME)


def _is_later(path: Path, other: Path) -> bool:
    """Return whether the catalogue at `path` can be read, has a later generation and no fewer recoveries."""
    one, two = _progress(path), _progress(other)
    return one is not None and two is not None and one[0] > two[0] and one[1] >= two[1]


def _progress(path: Path) -> tuple[int, int] | None:
    """Return the generation of a catalogue and its count of recoveries, None if it cannot be read."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            generation, writers = connection.execute("SELECT generation, writers FROM catalogue").fetchone()
            return int(generation), int(writers)
    except (sqlite3.Error, TypeError, ValueError):
        return None


def _rebuild(catalogue: Catalogue, lost: LostFrames, path: Path) -> None:
    """Write the catalogue with the lost pages to `path`."""
    catalogue.connections.copy(path)
    with path.open("r+b") as file:
        for page, data in lost.pages:
            file.seek((page - 1) * len(data))
            file.write(data)
        file.truncate(lost.size * len(lost.pages[0][1]))


def _restored(folder: Path, catalogue: Catalogue, lost: LostFrames) -> bool:
    """Commit the catalogue with the lost pages, if it passes verification; return whether it does."""
    last = {page: place for place, (page, _) in enumerate(lost.pages)}
    unsure = [place for place in lost.ambiguous if last[lost.pages[place][0]] == place]
    with tempfile.TemporaryDirectory(prefix=".recovery-", dir=folder) as scratch:
        rebuilt = Path(scratch) / CATALOGUE_NAME
        for file in list(folder.iterdir()):
            if vectors_number(file.name) is not None or snapshot_number(file.name) is not None:
                os.link(file, rebuilt.with_name(file.name))
        _rebuild(catalogue, lost, rebuilt)
        for flips in islice(product(*(lost.ambiguous[place] for place in unsure)), _TRIES):
            with rebuilt.open("r+b") as written:
                for place, (word, bit) in zip(unsure, flips, strict=True):
                    page, data = lost.pages[place]
                    written.seek((page - 1) * len(data))
                    written.write(flipped(data, word, bit))
            if _is_later(rebuilt, folder / CATALOGUE_NAME) and verify_index(rebuilt.parent).ok:
                with closing(Catalogue(folder, writable=True)) as live:
                    live.connections.replace(rebuilt)
                return True
    return False


def _rows_behind(folder: Path, commit: Commit, catalogue: Catalogue) -> int:
    """Return the number of whole vectors behind the committed length."""
    try:
        size = (folder / commit.vectors_file).stat().st_size
    except FileNotFoundError:
        return 0
    return max(0, (size - HEADER_BYTES) // catalogue.row_bytes - commit.rows)


def _save_vectors(folder: Path, commit: Commit, catalogue: Catalogue, saved_in: Path) -> int:
    """Copy the vectors behind the committed length to a vector file in `saved_in`; return their number."""
    rows = _rows_behind(folder, commit, catalogue)
    if rows:
        offset = HEADER_BYTES + commit.rows * catalogue.row_bytes
        with (folder / commit.vectors_file).open("rb") as file, (saved_in / commit.vectors_file).open("wb") as copy:
            copy.write(header(catalogue.dim, catalogue.dtype, catalogue.vectors_per_item))
            file.seek(offset)
            shutil.copyfileobj(file, copy)
        disk.sync_file(saved_in / commit.vectors_file)
        disk.sync_folder(saved_in)
    return rows


def _new_folder(folder: Path) -> Path:
    paths = (folder / f"recovered-{number}" for number in count(1))
    new = next(path for path in paths if not path.exists())
    new.mkdir()
    return new
