"""Calibration of an index when it is built: the setting that reaches a recall for held-out queries.

A query's own item does not count as its result. Queries of the other modality lie apart from the items (the modality
gap: Liang et al., Mind the Gap, NeurIPS 2022) and need several times the effort, so held-out items of one kind promise
too much. Where the index has both kinds, items of one search those of the other. Where it has only one, queries are
generated: half the difference of two items is the content that is asked for, noise as large as an item's distance from
the mean is added, and of the mean, which all items share, half the queries have the opposite and half nothing. The
lowest nprobe for a recall@10 of 0.95, with FAISS's ranking of lists and the opposite mean alone:

    items                                           lists   held-out items   generated   across a gap
    30,000 x 256, 1,000 clusters                      128            22-32       26-32          30-34
    30,000 x 256, 3,000 clusters of power-law size    128            22-24          38             44
    1,203 CLIP text embeddings                         32              6-8       28-30          16-24

`MARGIN` makes up for the shortfall of generated queries.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from twinspire.index.ann.ann_index import AnnIndex
from twinspire.index.ann.family import Selection
from twinspire.index.ann.reports import Calibration, GroupRecall
from twinspire.index.ann.tuning import QueryGroup, Setting, best_setting, without_own
from twinspire.index.flat import nearest
from twinspire.index.vectors import Vectors
from twinspire.similarity import vectors_per_item

TARGET, K = 0.95, 10
MARGIN = 0.03
"""Calibration aims this much higher, for other queries than those measured."""
_MAXIMUM_QUERIES, _MINIMUM_QUERIES = 128, 64  # in a group
_MULTIPLICATIONS = 3.2e10  # of exact search for a group: bounds the queries of a large index
_MEAN_SAMPLE = 4_096


def calibrated(ann: AnnIndex, vectors: Vectors, groups: list[QueryGroup]) -> Calibration:
    """Return the fastest setting that reaches `TARGET` for each of `groups`, else the one of the highest recall."""
    found = best_setting(ann, vectors, groups, min(1.0, TARGET + MARGIN))
    return Calibration(
        target=TARGET,
        k=max(group.exact.shape[1] for group in groups),
        effort=found.effort,
        effort_name=ann.spec.family.effort_name,
        lists=ann.index.lists,
        rescore_factor=found.rescore_factor if ann.spec.has_rescore_factor else 0,
        measured=group_recalls(groups, found),
        effort_is_candidates=ann.spec.family.effort_is_candidates,
    )


def group_recalls(groups: list[QueryGroup], found: Setting) -> tuple[GroupRecall, ...]:
    """Return the recall and time of each of `groups` with the setting `found`."""
    return tuple(
        GroupRecall(group.name, len(group.queries), recall, 1000 * seconds / len(group.queries))
        for group, recall, seconds in zip(groups, found.recalls, found.seconds_by_group, strict=True)
    )


def held_out(vectors: Vectors, kinds: Mapping[str, NDArray[np.bool_]], k: int, exact_kept: int) -> list[QueryGroup]:
    """Return groups of queries to calibrate an index of `vectors` with; none for fewer than two items.

    `vectors` is (N, D), or (N, V, D) of items with several vectors, of which one is a query.

    `kinds` maps the name of each kind of item, in the plural, to the mask (N,) of its rows. A search that a filter
    restricts to `exact_kept` rows or fewer is exact and needs no queries. Equal items give equal queries.
    """
    random = np.random.default_rng(0)
    kinds = {name: mask for name, mask in kinds.items() if mask.any()}
    living = np.logical_or.reduce(list(kinds.values())) if kinds else np.zeros(len(vectors), np.bool_)
    count = int(np.clip(_MULTIPLICATIONS / max(1, vectors.size), _MINIMUM_QUERIES, _MAXIMUM_QUERIES))
    everything = None if living.all() else living

    def sample(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        rows = np.flatnonzero(mask)
        return np.sort(random.choice(rows, min(count, len(rows)), replace=False))

    rows = sample(living)
    groups = [_group("held-out items", vectors, _one_each(vectors, rows), rows, everything, k)]
    for name, mask in kinds.items():
        if len(kinds) > 1 and int(np.count_nonzero(mask)) <= exact_kept:
            continue
        searched = mask if len(kinds) > 1 else everything
        for other, other_mask in kinds.items():
            if other != name and int(np.count_nonzero(other_mask)) >= _MINIMUM_QUERIES:
                rows = sample(other_mask)
                groups.append(_group(f"{other} against {name}", vectors, _one_each(vectors, rows), rows, searched, k))
                break
        else:
            rows = sample(mask)
            queries = _across_a_gap(vectors, mask, rows, random)
            groups.append(_group(f"generated cross-modal queries against {name}", vectors, queries, rows, searched, k))
    return [group for group in groups if group is not None]


def _group(
    name: str,
    vectors: Vectors,
    queries: NDArray[np.float32],
    own: NDArray[np.int64],
    searched: NDArray[np.bool_] | None,
    k: int,
) -> QueryGroup | None:
    """Return the group with the scores of exact search; None where there is nothing to find."""
    available = len(vectors) if searched is None else int(np.count_nonzero(searched))
    k = min(k, available - 1)
    if k < 1 or len(queries) == 0:
        return None
    scores, rows = nearest(vectors, queries, k + 1, allowed=searched)
    exact = without_own(scores, rows, own, k)
    selection = None if searched is None else Selection.of(searched, vectors_per_item(vectors))
    return QueryGroup(queries, exact, selection, own, name)


def _across_a_gap(
    vectors: Vectors, mask: NDArray[np.bool_], rows: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.float32]:
    """Generate queries (Q, D), one for each of `rows` (Q,), as of another modality than the items of `mask`."""
    living = np.flatnonzero(mask)
    part = _one_each(vectors, np.sort(random.choice(living, min(_MEAN_SAMPLE, len(living)), replace=False)))
    mean = part.mean(axis=0)
    spread = float(np.sqrt(((part - mean) ** 2).sum(axis=1).mean()))
    between = (_one_each(vectors, rows) - part[random.integers(0, len(part), len(rows))]) / np.float32(np.sqrt(2))
    noise = random.standard_normal((len(rows), vectors.shape[-1]), dtype=np.float32)
    noise *= spread / np.linalg.norm(noise, axis=1, keepdims=True)
    opposite = (np.arange(len(rows)) % 2)[:, None] * mean
    queries = 0.5 * between + noise - opposite
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    return _float32(queries / np.maximum(lengths, 1e-12))


def _one_each(vectors: Vectors, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return a vector of each of `rows`, (n, D) float32; of items with several, not always that of the same place."""
    return _float32(vectors[rows] if vectors.ndim == 2 else vectors[rows, rows % vectors.shape[1]])


def _float32(vectors: Vectors) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors, dtype=np.float32)
