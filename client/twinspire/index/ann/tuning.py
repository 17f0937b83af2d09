"""Finding the least effort that reaches a recall."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire.index.ann.approximate import Ann
from twinspire.index.ann.selection import Selection
from twinspire.index.vectors import Vectors

_REACHES = (80, 40, 20, 10, 5, 3, 2)
_MOST_BREADTH = 4096
_SAME_SCORE = 1e-6
_REPEATS = 3


@dataclass(frozen=True, slots=True)
class Setting:
    """What a search passes, the recall that it gives, and the seconds that all queries take."""

    effort: int
    reach: int
    recall: float
    seconds: float


def recall_by_score(found: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    """Return the share of the k best that was found. `found` and `exact` are scores, (Q, k) each, best first.

    Of several with the score of the last, any counts.
    """
    least = exact[:, -1:] - _SAME_SCORE
    return float((found >= least).mean())


def tuned(
    ann: Ann,
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
    k = exact.shape[1]
    greatest = ann.most_effort if ann.lists is not None else min(ann.most_effort, max(_MOST_BREADTH, k))
    fitting: list[Setting] = []
    best = 0.0

    def at(effort: int, reach: int, repeats: int = 1) -> Setting:
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            scores, _ = ann.search(queries, k, vectors, selection=selection, effort=effort, reach=reach)
            taken.append(time.perf_counter() - start)
        return Setting(effort, reach, recall_by_score(scores, exact), min(taken))

    limit = greatest
    for reach in _REACHES if ann.kind.is_lossy else (1,):
        least = _least_effort(at, reach, recall, limit)
        best = max(best, least.recall)
        if least.recall < recall:
            break  # fewer candidates find less
        fitting.append(at(least.effort, reach, _REPEATS))
        limit = min(greatest, 4 * least.effort)  # dearer than what is known already
    if not fitting:
        raise InputError(
            f"a recall@{k} of {recall} is out of reach: an index of kind {ann.kind} finds at most {best:.4f} of what "
            "exact search finds. Build another kind, with longer codes, or ask for less"
        )
    return min(fitting, key=lambda setting: setting.seconds)


def _least_effort(at: Callable[[int, int], Setting], reach: int, recall: float, greatest: int) -> Setting:
    """Return the setting of the least effort that reaches `recall`, else that of the greatest."""
    low, effort = 0, 1
    found = at(effort, reach)
    while found.recall < recall:
        if effort >= greatest:
            return found
        low, effort = effort, min(2 * effort, greatest)
        found = at(effort, reach)
    while found.effort - low > max(1, low // 8):
        middle = (low + found.effort) // 2
        tried = at(middle, reach)
        if tried.recall >= recall:
            found = tried
        else:
            low = middle
    return found
