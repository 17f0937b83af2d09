"""Finding the least effort, and the fewest candidates to rescore, that reach a recall."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index.ann.ann_index import AnnIndex
from twinspire.index.ann.selection import Selection
from twinspire.index.ann.spec import IndexSpec, Scheme
from twinspire.index.vectors import Vectors

_REACHES = (640, 320, 160, 80, 40, 20, 10, 5, 3, 2)
_FIRST_REACH = 80  # more only for codes that are too coarse for it
_FIRST_REACH_OF_SQ = 3  # of 8 bits a number, which hardly change the order
_MOST_RESCORED = 0.1  # of all rows: more is hardly faster than exact search
_MOST_BREADTH = 4096
_SAME_SCORE = 1e-6
_REPEATS = 2


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """Queries (Q, D) to measure recall with, and the scores (Q, k) of what exact search finds for them.

    `selection` keeps the rows that are searched; None: all. `own` (Q,) is the row that each query was made from,
    which is left out of its answer; None: nothing is.
    """

    queries: NDArray[np.float32]
    exact: NDArray[np.float32]
    selection: Selection | None = None
    own: NDArray[np.int64] | None = None
    name: str = "queries"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a search passes, and for each group the recall that it gives and the seconds that all its queries take."""

    effort: int
    reach: int
    recalls: tuple[float, ...]
    seconds_by_group: tuple[float, ...]

    @property
    def recall(self) -> float:
        """The lowest of the groups."""
        return min(self.recalls)

    @property
    def seconds(self) -> float:
        """The time of all groups."""
        return sum(self.seconds_by_group)


def recall_by_score(found: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    """Return the share of the k best that was found. `found` and `exact` are scores, (Q, k) each, best first.

    Of several with the score of the last, any counts.
    """
    least = exact[:, -1:] - _SAME_SCORE
    return float((found >= least).mean())


def without_own(
    scores: NDArray[np.float32], rows: NDArray[np.int64], own: NDArray[np.int64], k: int
) -> NDArray[np.float32]:
    """Return the k best `scores` (Q, n) of the results at `rows` (Q, n), without the row that each query has in `own`.

    (Q, k), best first.
    """
    kept = np.where(rows == own[:, None], -np.inf, scores).astype(np.float32)
    return -np.sort(-kept, axis=1)[:, :k]


def tuned(
    ann: AnnIndex,
    vectors: Vectors,
    queries: NDArray[np.float32],
    exact: NDArray[np.float32],
    recall: float,
    selection: Selection | None = None,
) -> Setting:
    """Return the setting that takes least time for `queries` (Q, D) of those that reach `recall`.

    `exact` (Q, k) are the scores of exact search over the rows that `ann` covers. Raises `InputError`, which says how
    far it came, where the recall is out of reach.
    """
    found = best_setting(ann, vectors, [QueryGroup(queries, exact, selection)], recall)
    check_reached(ann, found, recall, exact.shape[1])
    return found


def check_reached(ann: AnnIndex, found: Setting, recall: float, k: int) -> None:
    """Raise `InputError`, which says how far it came, where `found` stays below `recall`."""
    if found.recall < recall:
        raise InputError(
            f"a recall@{k} of {recall} is out of reach: an index of kind {ann.kind} finds at most "
            f"{found.recall:.4f} of what exact search finds. Build another kind, with longer codes, or ask for less"
        )


def best_setting(ann: AnnIndex, vectors: Vectors, groups: Sequence[QueryGroup], recall: float) -> Setting:
    """Return the setting that takes least time of those that reach `recall` in each of `groups`.

    Where none does, return the one of the highest recall that was measured.
    """
    measure = _Measure(ann, vectors, groups, recall)
    k = max(group.exact.shape[1] for group in groups)
    greatest = 1
    if ann.kind.is_tunable:
        greatest = ann.most_effort if ann.lists is not None else min(ann.most_effort, max(_MOST_BREADTH, k))

    def least(reach: int, start: int, low: int, greatest: int) -> Setting:
        return _least_effort(lambda effort: measure(effort, reach), start, low, greatest, recall)

    first, higher, lower = _reaches(ann.kind)
    found = least(first, min(ann.usual_effort, greatest), 0, greatest)
    for reach in higher:
        if found.recall >= recall or k * reach > _MOST_RESCORED * len(ann):
            break
        first = reach
        found = max(found, least(reach, greatest, 0, greatest), key=lambda setting: setting.recall)
    if found.recall < recall:
        return measure(found.effort, found.reach, whole=True)
    if not lower:
        return found
    fitting = [measure(found.effort, found.reach, repeats=_REPEATS)]
    for reach in lower:
        if reach >= found.reach:
            continue
        effort = fitting[-1].effort  # fewer candidates find less: it takes as much at least
        tried = least(reach, effort, effort - 1, min(greatest, 4 * effort))  # more is dearer than what is known already
        if tried.recall < recall:
            break
        fitting.append(measure(tried.effort, reach, repeats=_REPEATS))
    return min(fitting, key=lambda setting: setting.seconds) if ann.kind.is_tunable else fitting[-1]


def _reaches(kind: IndexSpec) -> tuple[int, list[int], list[int]]:
    """Return which factor to try first, which after it where no effort is enough, and which where it is."""
    if not kind.is_lossy:
        return 1, [], []
    of_sq = kind.code is not None and kind.code.scheme is Scheme.SQ and kind.pca is None
    first = _FIRST_REACH_OF_SQ if of_sq else _FIRST_REACH
    return first, [reach for reach in reversed(_REACHES) if reach > first], list(_REACHES)


class _Measure:
    """Measures a setting. Stops at the first group that stays below the recall, and begins with that one next time."""

    def __init__(self, ann: AnnIndex, vectors: Vectors, groups: Sequence[QueryGroup], recall: float) -> None:
        self._ann = ann
        self._vectors = vectors
        self._groups = groups
        self._recall = recall
        self._order = list(reversed(range(len(groups))))  # the hardest are the last, as a rule

    def __call__(self, effort: int, reach: int, *, repeats: int = 1, whole: bool = False) -> Setting:
        recalls, seconds = dict[int, float](), dict[int, float]()
        for position in list(self._order):
            taken = []
            for _ in range(repeats):
                start = time.perf_counter()
                recalls[position] = self._found(self._groups[position], effort, reach)
                taken.append(time.perf_counter() - start)
            seconds[position] = min(taken)
            if recalls[position] < self._recall and not whole:
                self._order.remove(position)
                self._order.insert(0, position)
                break
        done = sorted(recalls)
        return Setting(effort, reach, tuple(recalls[at] for at in done), tuple(seconds[at] for at in done))

    def _found(self, group: QueryGroup, effort: int, reach: int) -> float:
        k = group.exact.shape[1]
        wanted = k if group.own is None else k + 1
        scores, rows = self._ann.search(
            group.queries, wanted, self._vectors, selection=group.selection, effort=effort, reach=reach
        )
        if group.own is not None:
            scores = without_own(scores, rows, group.own, k)
        return recall_by_score(scores, group.exact)


def _least_effort(at: Callable[[int], Setting], start: int, low: int, greatest: int, recall: float) -> Setting:
    """Return the setting of the least effort above `low` that reaches `recall`, else that of the greatest."""
    found = at(max(start, low + 1))
    if found.recall >= recall:
        while found.effort > low + 1:
            tried = at(max(low + 1, found.effort // 2))
            if tried.recall < recall:
                low = tried.effort
                break
            found = tried
    while found.recall < recall:
        if found.effort >= greatest:
            return found
        low = found.effort
        found = at(min(2 * low, greatest))
    while found.effort - low > max(1, low // 8):
        middle = (low + found.effort) // 2
        tried = at(middle)
        if tried.recall >= recall:
            found = tried
        else:
            low = middle
    return found
