"""Search for the lowest effort, and the lowest number of candidates to rescore, that reach a recall."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index.ann.ann_index import AnnIndex
from twinspire.index.ann.family import IndexSpec, Selection
from twinspire.index.vectors import Vectors

_RESCORE_FACTORS = (640, 320, 160, 80, 40, 20, 10, 5, 3, 2)
_FIRST_FACTOR = 80  # more only for codes that are too coarse for it
_FIRST_FACTOR_OF_FINE_CODES = 3
_MAXIMUM_RESCORED = 0.1  # of all rows: more is hardly faster than exact search
_MAXIMUM_EF = 4096
_SAME_SCORE = 1e-6
_REPEATS = 2


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """Queries (Q, D) to measure recall with, and the scores (Q, k) of their exact results.

    `selection` are the rows that are searched, None: all. `own` (Q,) is the row that each query was made from, which
    does not count as a result; None: the queries are not from rows.
    """

    queries: NDArray[np.float32]
    exact: NDArray[np.float32]
    selection: Selection | None = None
    own: NDArray[np.int64] | None = None
    name: str = "queries"


@dataclass(frozen=True, slots=True)
class Setting:
    """Options of a search, and for each group of queries the recall and the seconds that all of them take."""

    effort: int
    rescore_factor: int
    recalls: tuple[float, ...]
    seconds_by_group: tuple[float, ...]

    @property
    def recall(self) -> float:
        """Lowest of the groups."""
        return min(self.recalls)

    @property
    def seconds(self) -> float:
        """Time of all groups."""
        return sum(self.seconds_by_group)


def recall_by_score(found: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    """Return the recall@k from the scores that were `found` and those that are `exact`, (Q, k) each, best first.

    Any result with the score of the k-th counts.
    """
    minimum = exact[:, -1:] - _SAME_SCORE
    return float((found >= minimum).mean())


def without_own(
    scores: NDArray[np.float32], rows: NDArray[np.int64], own: NDArray[np.int64], k: int
) -> NDArray[np.float32]:
    """Return the k best of `scores` (Q, n), without those whose row in `rows` is the query's `own`: (Q, k)."""
    kept = np.where(rows == own[:, None], -np.inf, scores).astype(np.float32)
    return -np.sort(-kept, axis=1)[:, :k]


def check_reached(ann: AnnIndex, found: Setting, recall: float, k: int) -> None:
    """Raise `InputError`, which names the highest recall, where `found` stays below `recall`."""
    if found.recall < recall:
        raise InputError(
            f"an index {ann.spec} cannot reach a recall@{k} of {recall}: it finds at most {found.recall:.4f} of the "
            "exact results. Build one with longer codes, or tune for a lower recall"
        )


def best_setting(ann: AnnIndex, vectors: Vectors, groups: Sequence[QueryGroup], recall: float) -> Setting:
    """Return the fastest setting that reaches `recall` in each of `groups`.

    Where none does, return the one of the highest recall that was measured.
    """
    measure = _Measure(ann, vectors, groups, recall)
    tunable, index = ann.spec.family.is_tunable, ann.index
    k = max(group.exact.shape[1] for group in groups)
    maximum = 1
    if tunable:
        maximum = index.maximum_effort if index.lists is not None else min(index.maximum_effort, max(_MAXIMUM_EF, k))

    def lowest(factor: int, start: int, low: int, high: int) -> Setting:
        return _lowest_effort(lambda effort: measure(effort, factor), start, low, high, recall)

    first, higher, lower = _rescore_factors(ann.spec)
    found = lowest(first, min(index.default_effort, maximum), 0, maximum)
    for factor in higher:
        if found.recall >= recall or k * factor > _MAXIMUM_RESCORED * len(ann):
            break
        found = max(found, lowest(factor, maximum, 0, maximum), key=lambda setting: setting.recall)
    if found.recall < recall:
        return measure(found.effort, found.rescore_factor, whole=True)
    if not lower:
        return found
    fitting = [measure(found.effort, found.rescore_factor, repeats=_REPEATS)]
    for factor in lower:
        if factor >= found.rescore_factor:
            continue
        effort = fitting[-1].effort  # fewer candidates find less, so they take at least as much effort
        tried = lowest(factor, effort, effort - 1, min(maximum, 4 * effort))  # more takes longer than what is known
        if tried.recall < recall:
            break
        fitting.append(measure(tried.effort, factor, repeats=_REPEATS))
    return min(fitting, key=lambda setting: setting.seconds) if tunable else fitting[-1]


def _rescore_factors(spec: IndexSpec) -> tuple[int, list[int], list[int]]:
    """Return the factor to try first, those to try where no effort is enough with it, and where one is."""
    if not spec.has_rescore_factor:
        return 1, [], []
    fine = spec.code is not None and spec.code.keeps_order and spec.pca is None
    first = _FIRST_FACTOR_OF_FINE_CODES if fine else _FIRST_FACTOR
    return first, [factor for factor in reversed(_RESCORE_FACTORS) if factor > first], list(_RESCORE_FACTORS)


class _Measure:
    """Measurement of settings. Stops at the first group that stays below the recall, and begins with it next time."""

    def __init__(self, ann: AnnIndex, vectors: Vectors, groups: Sequence[QueryGroup], recall: float) -> None:
        self._ann = ann
        self._vectors = vectors
        self._groups = groups
        self._recall = recall
        self._order = list(reversed(range(len(groups))))  # the hardest are the last, as a rule

    def __call__(self, effort: int, factor: int, *, repeats: int = 1, whole: bool = False) -> Setting:
        recalls, seconds = dict[int, float](), dict[int, float]()
        for position in list(self._order):
            taken = []
            for _ in range(repeats):
                start = time.perf_counter()
                recalls[position] = self._found(self._groups[position], effort, factor)
                taken.append(time.perf_counter() - start)
            seconds[position] = min(taken)
            if recalls[position] < self._recall and not whole:
                self._order.remove(position)
                self._order.insert(0, position)
                break
        done = sorted(recalls)
        return Setting(effort, factor, tuple(recalls[at] for at in done), tuple(seconds[at] for at in done))

    def _found(self, group: QueryGroup, effort: int, factor: int) -> float:
        k = group.exact.shape[1]
        wanted = k if group.own is None else k + 1
        scores, rows = self._ann.search(
            group.queries, wanted, self._vectors, selection=group.selection, effort=effort, rescore_factor=factor
        )
        if group.own is not None:
            scores = without_own(scores, rows, group.own, k)
        return recall_by_score(scores, group.exact)


def _lowest_effort(at: Callable[[int], Setting], start: int, low: int, maximum: int, recall: float) -> Setting:
    """Return the setting of the lowest effort above `low` that reaches `recall`, otherwise that of the maximum."""
    found = at(max(start, low + 1))
    if found.recall >= recall:
        while found.effort > low + 1:
            tried = at(max(low + 1, found.effort // 2))
            if tried.recall < recall:
                low = tried.effort
                break
            found = tried
    while found.recall < recall:
        if found.effort >= maximum:
            return found
        low = found.effort
        found = at(min(2 * low, maximum))
    while found.effort - low > max(1, low // 8):
        middle = (low + found.effort) // 2
        tried = at(middle)
        if tried.recall >= recall:
            found = tried
        else:
            low = middle
    return found
