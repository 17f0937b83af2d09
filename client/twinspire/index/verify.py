"""Verification of a whole index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from twinspire.errors import IndexStoreError, InputError, TwinspireError
from twinspire.index.ann.files import snapshot_problem
from twinspire.index.catalogue import Catalogue
from twinspire.index.commit_record import Acknowledged, read_record
from twinspire.index.connections import CatalogueChangedError, repeated
from twinspire.index.digests import pair_sum
from twinspire.index.error_mapping import store_errors
from twinspire.index.reports import VerifyReport
from twinspire.index.vectors import CHECKSUM_OF_NOTHING, LostVectorFileError, VectorFile, VectorType
from twinspire.index.view import View
from twinspire.stores.items import Item
from twinspire.stores.text_query import indexed_text

_BLOCK_VECTORS = 8192
_SHOWN = 5
# float16 rounds each number by at most 2**-11 of it, and the length of the whole by no more than that.
_TOLERANCE = {VectorType.FLOAT32: 1.1e-3, VectorType.FLOAT16: 1.6e-3}


@repeated
def verify_index(path: str | os.PathLike[str]) -> VerifyReport:
    """Read all of the last commit of the index at `path` and report what is damaged; change nothing.

    Checks SQLite's file, every item, its words and their full-text index, the checksums and sums over all rows, that
    each row of the vector file has one item or is dead, the checksums of the vector file and the snapshot, and that
    every item's vector is finite and of length 1. Needs room for a copy of the catalogue in the temporary folder.
    Damage is reported, not raised.
    """
    folder = Path(path).absolute()
    try:
        with store_errors(folder, "read"), closing(Catalogue(folder, writable=False)) as catalogue:
            lost = ""
            while True:
                record = read_record(folder)  # before the view, which is never older then
                with catalogue.view() as view:
                    try:
                        return _verified(folder, catalogue, view, record)
                    except LostVectorFileError as error:
                        # `compact` may have put another file in its place since the view began.
                        if view.commit.vectors_file == lost:
                            return VerifyReport(folder, view.commit.items, view.commit.rows, [str(error)])
                        lost = view.commit.vectors_file
    except CatalogueChangedError:
        raise
    except TwinspireError as error:
        return VerifyReport(folder, 0, 0, [str(error)])


def _verified(folder: Path, catalogue: Catalogue, view: View, record: Acknowledged | None) -> VerifyReport:
    problems = list[str]()
    if record is not None and record.generation > view.commit.generation:
        problems.append(
            f"acknowledged changes from generation {view.commit.generation + 1} to {record.generation} are missing; "
            "`twinspire index recover` restores what it can"
        )
    problems += _found(folder, lambda: _vector_problems(folder, catalogue, view))
    for check in (_catalogue_problems, _row_problems, _item_problems, View.full_text_problems):
        problems += _found(folder, partial(check, view))
    problems += _found(folder, lambda: _snapshot_problems(folder, catalogue, view))
    return VerifyReport(folder, view.commit.items, view.commit.rows, list(dict.fromkeys(problems)))


def _found(folder: Path, check: Callable[[], Iterable[str]]) -> list[str]:
    """Return the problems that a check finds, with the error that ended it."""
    found: list[str] = []
    try:
        with store_errors(folder, "read"):
            found.extend(check())
    except (LostVectorFileError, CatalogueChangedError):
        raise
    except TwinspireError as error:
        found.append(str(error))
    return found


def _catalogue_problems(view: View) -> Iterator[str]:
    yield from (f"the catalogue: {problem}" for problem in view.integrity_problems())


def _row_problems(view: View) -> Iterator[str]:
    """Yield where rows and items are not one to one, and ids that were not given yet."""
    commit = view.commit
    placed, dead = view.placed(), view.dead_rows()
    taken = np.concatenate([placed[:, 0], dead])
    rows, counts = np.unique(taken, return_counts=True)
    yield from _listed("rows beyond the committed vectors", rows[(rows < 0) | (rows >= commit.rows)].tolist())
    yield from _listed("rows that are used twice, by two items or by one although dead", rows[counts > 1].tolist())
    yield from _listed("rows without an item that are not dead", np.setdiff1d(np.arange(commit.rows), rows).tolist())
    yield from _listed("ids that were not given yet", placed[placed[:, 1] >= commit.next_id, 1].tolist())
    if len(placed) != commit.items:
        yield f"the catalogue has {len(placed)} items instead of {commit.items}"
    if pair_sum(placed[:, 0], placed[:, 1]) != commit.placed:
        yield "the sum over the items' rows and ids is wrong: the catalogue lost items or has others"
    if view.contents_sum() != commit.contents:
        yield "the sum over the items' checksums is wrong: the catalogue lost items or has others"
    if view.dead_sum() != commit.dead:
        yield "the sum over the dead rows is wrong: the catalogue lost some or has others"


def _item_problems(view: View) -> Iterator[str]:
    """Yield items that could not have been added as they are, and items with the words of others."""
    damaged: list[int] = []
    wordless: list[int] = []
    for number, stored, text in view.every_item():
        if isinstance(stored, IndexStoreError):
            damaged.append(number)
            continue
        try:
            Item(stored.uri, stored.kind, stored.caption, stored.metadata, stored.content_hash)
        except InputError:
            damaged.append(number)
            continue
        if text != indexed_text(stored.caption, stored.uri):
            wordless.append(number)
    yield from _listed("items that are no longer valid", damaged)
    yield from _listed("items whose indexed words are not those of their captions and names", wordless)
    yield from _listed("items that do not exist but have indexed words", view.words_without_item())


def _vector_problems(folder: Path, catalogue: Catalogue, view: View) -> Iterator[str]:
    commit = view.commit
    path, several = folder / commit.vectors_file, catalogue.vectors_per_item
    with closing(VectorFile(path, catalogue.dim, catalogue.dtype, several)) as file:
        file.verify(0, CHECKSUM_OF_NOTHING, commit.rows, commit.checksum)
        placed = view.placed()
        placed = placed[(placed[:, 0] >= 0) & (placed[:, 0] < commit.rows)]
        mapping, bad, step = file.mapped(commit.rows), list[int](), max(1, _BLOCK_VECTORS // several)
        vectors = mapping.vectors
        for start in range(0, len(placed), step):
            mapping.check()
            some = placed[start : start + step]
            with np.errstate(over="ignore", invalid="ignore"):
                norms = np.linalg.norm(vectors[some[:, 0]].astype(np.float32), axis=-1)
                good = np.abs(norms - 1) <= _TOLERANCE[catalogue.dtype]  # False for NaN
            bad += some[~good.reshape(len(some), -1).all(axis=1), 1].tolist()
    yield from _listed("items whose vector is not of length 1", sorted(bad))


def _snapshot_problems(folder: Path, catalogue: Catalogue, view: View) -> Iterator[str]:
    row = view.snapshot()
    if row is None or not row.name:
        return
    problem = snapshot_problem(folder / row.name, row.checksum)
    with catalogue.view() as now:
        replaced = now.snapshot() != row  # and the file removed, since this view began
    if problem is not None and not replaced:
        yield f"{problem}; no item is lost, it is rebuilt when the index is next opened for writing"


def _listed(what: str, found: list[int]) -> Iterator[str]:
    if found:
        shown = ", ".join(map(str, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
        yield f"{len(found)} {what}: {shown}"
