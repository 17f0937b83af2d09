"""Snapshot of an open index: an index built over the first rows, kept on disk and read when first needed.

The vector file is authoritative: a snapshot that is damaged or missing is rebuilt by the next writer, with a warning;
until then search is exact. Rows behind the snapshot, the tail, are searched exactly; a writer adds them to it when they
are many.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import IndexStoreError, InputError
from twinspire.index import disk
from twinspire.index.ann import AnnIndex, IndexSpec, Selection, choose, predict
from twinspire.index.ann.calibration import MARGIN, K, calibrated, group_recalls, held_out
from twinspire.index.ann.files import read_snapshot, snapshot_name, snapshot_number, snapshot_problem, write_snapshot
from twinspire.index.ann.reports import BuildReport, Calibration, SnapshotStats, TuneReport
from twinspire.index.ann.tuning import QueryGroup, best_setting, check_reached
from twinspire.index.catalogue import Catalogue
from twinspire.index.error_mapping import UncertainCommit
from twinspire.index.flat import ScoredRows, merge, merge_queries, nearest
from twinspire.index.state import DEAD, State, States
from twinspire.index.view import SnapshotRow, View
from twinspire.index.writer import Writer
from twinspire.similarity import vectors_per_item
from twinspire.stores.items import ItemKind

_log = logging.getLogger("twinspire.index")
EXACT_KEPT = 20_000
"""Number of vectors up to which what a filter keeps is searched exactly. Chosen, not measured."""
TAIL_SHARE = 0.1
TAIL_ROWS = 20_000


class Snapshots:
    """Searches with the snapshot, and its upkeep where the index is open for writing."""

    def __init__(self, folder: Path, catalogue: Catalogue, states: States) -> None:
        self._folder = folder
        self._catalogue = catalogue
        self._states = states
        self._lock = threading.Lock()  # held while a file is read
        self._open: tuple[str, int, AnnIndex] | None = None  # file, checksum
        self._damaged: tuple[str, int] | None = None  # file and checksum of the one that cannot be used
        self._selected: Selection | None = None
        self._several = catalogue.vectors_per_item

    def nearest(
        self,
        view: View,
        state: State,
        queries: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.bool_] | None,
        effort: int | None,
        kind: ItemKind | None = None,
    ) -> ScoredRows:
        """Return scores and rows of the k best, (Q, n) each; exact where no snapshot can be used.

        `queries` is (Q, D), or (Q, V, D) of queries with several vectors, whose best scores. `kind` is the kind of all
        items that `allowed` keeps, None for several. Images and texts are hardly connected in a graph, so a search that
        is restricted to one of them is exact: with 90,000 images and 22,500 texts a search with efSearch 4,096 found
        0.47 of the ten best, in several times the time.
        """
        if queries.ndim == 3:
            each = self.nearest(view, state, queries.reshape(-1, queries.shape[2]), k, allowed, effort, kind)
            return merge_queries(each, queries.shape[1], k, state.ids)
        row = view.snapshot()
        kept = None if allowed is None else self._selection(allowed)
        ann = None if row is None or (kept is not None and kept.kept <= self._exact_kept()) else self._opened(row)
        if ann is not None and kind is not None and ann.spec.family.is_graph:
            of_kind = self._states.allowed(view, state, kind, None)
            if of_kind is not None and int(np.count_nonzero(of_kind)) < state.items:
                ann = None
        if row is None or ann is None:
            return nearest(state.vectors, queries, k, allowed=allowed, order=state.ids)
        covered = len(ann)
        if covered < len(state.vectors) and kept is not None:
            kept = Selection.of(kept.mask[:covered], self._several)
        effort = effort or row.effort
        parts = [
            ann.search(queries, k, state.vectors, selection=kept, effort=effort, rescore_factor=row.rescore_factor)
        ]
        if covered < len(state.vectors):
            parts.append(nearest(state.vectors, queries, k, allowed=allowed, order=state.ids, start=covered))
        found = merge(parts, k, state.ids)
        available = len(state.vectors) if allowed is None else int(np.count_nonzero(allowed))
        short = np.flatnonzero((found[1] >= 0).sum(axis=1) < min(k, available))
        if short.size:  # lists and graphs may lead to too few of the rows that are kept
            scores, rows = nearest(state.vectors, queries[short], k, allowed=allowed, order=state.ids)
            width = scores.shape[1]
            found[0][short, :width], found[1][short, :width] = scores, rows
        return found

    def stats(self, view: View) -> SnapshotStats | None:
        """Describe the snapshot; None where search is exact. Checks the file unless a search has."""
        row = view.snapshot()
        if row is None:
            return None
        path, now = self._folder / row.name, self._open
        if not row.name:
            damage: str | None = "it is rebuilt by the next process that opens the index for writing"
        elif now is not None and now[:2] == (row.name, row.checksum):
            damage = None
        else:
            damage = snapshot_problem(path, row.checksum)
        size = path.stat().st_size if row.name and path.is_file() else 0
        return SnapshotStats(row.spec, row.rows, row.effort, row.rescore_factor, size, damage)

    def build(
        self, writer: Writer, spec: IndexSpec | None, *, threads: int | None, memory_bytes: int | None
    ) -> BuildReport:
        """Build a snapshot over all rows and search with it from then on; for exact search, remove the one there is.

        `spec` None: as `choose` has it.
        """
        with writer.exclusive():
            state = self._state()
            count, dim = len(state.vectors), state.vectors.shape[-1]
            if spec is None:
                spec = choose(state.items * self._several, dim, memory_bytes=memory_bytes)
            spec.check(dim)
            predicted = predict(spec, count * self._several, dim, threads=threads)
            start = time.perf_counter()
            if spec.is_exact:
                self._put(writer, None)
                return BuildReport(str(spec), count, predicted, 0.0, 0)
            if state.items == 0:
                raise InputError(f"the index {self._folder} is empty: add items, then build {spec}")
            ann = AnnIndex.build(spec, state.vectors, threads=threads)
            taken = time.perf_counter() - start
            found = self._calibrated(ann, state)
            calibration_s = time.perf_counter() - start - taken
            state.mapping.check()
            row = SnapshotRow("", str(spec), count, 0)
            if found is not None:
                row = replace(row, effort=found.effort, rescore_factor=found.rescore_factor or None)
            row = self._save(writer, ann, row)
            size = (self._folder / row.name).stat().st_size
            return BuildReport(str(spec), count, predicted, taken, size, found, calibration_s)

    def _calibrated(self, ann: AnnIndex, state: State) -> Calibration | None:
        """Choose effort and rescore factor for `ann`, which covers `state`; None where there is nothing to choose."""
        if not (ann.spec.family.is_tunable or ann.spec.is_lossy):
            return None
        groups = self._held_out(ann, state, K)
        return calibrated(ann, state.vectors, groups) if groups else None

    def _held_out(self, ann: AnnIndex, state: State, k: int) -> list[QueryGroup]:
        """Return the queries to calibrate `ann` with, over the rows that it covers."""
        with self._states.current() as (view, now):
            masks = {f"{kind}s": self._states.allowed(view, now, kind, None) for kind in ItemKind}
        rows = {name: mask[: len(ann)] for name, mask in masks.items() if mask is not None}
        graph = ann.spec.family.is_graph  # searched exactly where a filter names one of two kinds of item
        return held_out(state.vectors[: len(ann)], rows, k, len(ann) if graph else self._exact_kept())

    def tune(self, writer: Writer, queries: NDArray[np.float32] | None, *, recall: float, k: int) -> TuneReport:
        """Find and store the fastest setting that reaches `recall` for `queries` (Q, D).

        None: for the held-out queries that a build is calibrated with, with its margin.
        """
        with writer.exclusive():
            state = self._state()
            row = self._row()
            ann = self._opened(row) if row is not None else None
            if row is None or ann is None or not ann.spec.family.is_tunable:
                raise InputError(
                    f"the index {self._folder} is searched exactly: there is nothing to tune. "
                    "Build an approximate index first: `twinspire index build INDEX --spec ivf,pq64`"
                )
            start = time.perf_counter()
            if queries is None:
                groups, aim = self._held_out(ann, state, k), min(1.0, recall + MARGIN)
            else:
                groups, aim = [_group_of(queries, state, len(ann), k)], recall
            exact_s = time.perf_counter() - start
            if not groups or groups[0].exact.shape[1] == 0:
                raise InputError(
                    f"the index {self._folder} has too few items to measure recall with: add items, or pass queries"
                )
            found = best_setting(ann, state.vectors, groups, aim)
            check_reached(ann, found, recall, k)
            writer.put_snapshot(replace(row, effort=found.effort, rescore_factor=found.rescore_factor))
            count = sum(len(group.queries) for group in groups)
            ms_per_query = 1000 / count
            return TuneReport(
                effort=found.effort,
                rescore_factor=0 if ann.spec.family.effort_is_candidates else found.rescore_factor,
                recall=found.recall,
                query_ms=found.seconds * ms_per_query,
                exact_query_ms=exact_s * ms_per_query,
                queries=count,
                k=k,
                measured=group_recalls(groups, found),
            )

    def refresh(self, writer: Writer, *, check: bool = False) -> None:
        """Rebuild the snapshot where it has to be, or add the tail where that is long.

        `check` reads the file to find damage. Errors are logged, not raised: search is right without a snapshot.
        """
        try:
            with writer.exclusive() as commit:
                row = self._row()
                if row is None:
                    return
                usable = bool(row.name) and not (check and self._is_damaged(row))
                if not usable or commit.rows - row.rows > max(TAIL_ROWS // self._several, TAIL_SHARE * row.rows):
                    self._renew(writer, row)
        except Exception as error:
            _log.warning("the snapshot of the index %s could not be brought up to date: %s", self._folder, error)

    def close(self) -> None:
        """Release the snapshot."""
        with self._lock:
            self._open = None

    def remove_stale(self, writer: Writer) -> None:
        """Remove snapshot files that the catalogue does not name."""
        with writer.exclusive():
            row = self._row()
            for path in self._folder.iterdir():
                if snapshot_number(path.name) is not None and (row is None or path.name != row.name):
                    with suppress(OSError):  # a folder of that name, say, does no harm
                        disk.remove(path)

    def _renew(self, writer: Writer, row: SnapshotRow) -> None:
        state = self._state()
        count = len(state.vectors)
        spec = IndexSpec.parse(row.spec)
        ann = None
        if row.name and spec.family.can_add:
            with suppress(IndexStoreError):  # damaged: logged when it was found
                # Read it again: searches go on with the open one.
                ann = read_snapshot(self._folder / row.name, spec, row.rows, row.checksum, self._several)
        if ann is not None and not ann.is_outgrown(count):
            ann.add(state.vectors[len(ann) :])
        else:
            if state.items == 0:
                return
            try:
                ann = AnnIndex.build(spec, state.vectors)
            except InputError as error:
                _log.warning("the index %s is searched exactly from now on: %s", self._folder, error)
                self._put(writer, None)
                return
            lists, before = ann.index.lists, spec.family.list_count(spec, row.rows * self._several)
            if row.effort is not None and lists is not None and before is not None:  # keep the share of the lists
                effort = math.ceil(row.effort * lists / before)
                row = replace(row, effort=min(effort, lists))
        state.mapping.check()
        self._save(writer, ann, replace(row, rows=count))

    def _save(self, writer: Writer, ann: AnnIndex, row: SnapshotRow) -> SnapshotRow:
        now = self._row()
        # Never reuse the name of a file that exists or was just lost: readers remember it as damaged.
        taken = [path.name for path in self._folder.iterdir()] + ([now.name] if now is not None else [])
        name = snapshot_name(1 + max(snapshot_number(name) or 0 for name in taken))
        checksum = write_snapshot(ann, self._folder / name)
        row = replace(row, name=name, rows=len(ann), checksum=checksum)
        self._put(writer, row)
        with self._lock:
            self._open, self._damaged = (name, checksum, ann), None
        return row

    def _put(self, writer: Writer, row: SnapshotRow | None) -> None:
        try:
            writer.put_snapshot(row)
        except BaseException as error:
            if row is not None and not isinstance(error, UncertainCommit):
                with suppress(OSError):
                    disk.remove(self._folder / row.name)
            raise
        with suppress(OSError, sqlite3.Error, IndexStoreError):  # stale files do no harm; the next open removes them
            self.remove_stale(writer)

    def _is_damaged(self, row: SnapshotRow) -> bool:
        problem = snapshot_problem(self._folder / row.name, row.checksum)
        if problem is not None:
            _log.warning("%s: it is rebuilt from the vectors", problem)
        return problem is not None

    def _opened(self, row: SnapshotRow) -> AnnIndex | None:
        """Return the snapshot; None where it cannot be used, which is logged once."""
        with self._lock:
            now = self._open
            if now is not None and now[:2] == (row.name, row.checksum):
                return now[2]
            if not row.name or self._damaged == (row.name, row.checksum):
                return None
            try:
                spec = IndexSpec.parse(row.spec)
                ann = read_snapshot(self._folder / row.name, spec, row.rows, row.checksum, self._several)
            except IndexStoreError as error:
                if self._row() != row:
                    return None  # replaced since the search began
                self._damaged = (row.name, row.checksum)
                _log.warning(
                    "%s: searches are exact until the next process that opens the index for writing rebuilds it", error
                )
                return None
            self._open = (row.name, row.checksum, ann)
            return ann

    def _exact_kept(self) -> int:
        """Return the number of rows up to which what a filter keeps is searched exactly."""
        return EXACT_KEPT // self._several

    def _selection(self, allowed: NDArray[np.bool_]) -> Selection:
        selected = self._selected  # for a repeated filter, `allowed` is the same array
        if selected is None or selected.mask is not allowed:
            self._selected = selected = Selection.of(allowed, self._several)
        return selected

    def _row(self) -> SnapshotRow | None:
        with self._catalogue.view() as view:
            return view.snapshot()

    def _state(self) -> State:
        with self._states.current() as (_, state):
            return state


def _group_of(queries: NDArray[np.float32], state: State, covered: int, k: int) -> QueryGroup:
    """Return `queries` (Q, D) with the scores of exact search for them in the first `covered` rows."""
    ids = state.ids[:covered]
    living = None if (ids != DEAD).all() else ids != DEAD
    exact, _ = nearest(state.vectors[:covered], queries, k, allowed=living, order=ids)
    selection = None if living is None else Selection.of(living, vectors_per_item(state.vectors))
    return QueryGroup(queries, exact, selection)
