"""Calibration of an index when it is built: held-out queries, and the setting that reaches a recall for them.

A query's own item is left out of its answer. Queries of the other modality lie apart from the items (the modality gap:
Liang et al., Mind the Gap, NeurIPS 2022) and need several times the effort, so held-out items of one kind promise too
much. Where both kinds are in the index, items of one are asked against those of the other. Where only one is, queries
are generated: half the difference of two items stands for what is asked, noise as large as an item's distance from the
mean is added, and of the mean, which all items share, half the queries have the opposite and half nothing. The least
nprobe for a recall@10 of 0.95, with FAISS's ranking of lists and the opposite mean alone:

    items                                           lists   held-out items   generated   across a gap
    30,000 x 256, 1,000 clusters                      128            22-32       26-32          30-34
    30,000 x 256, 3,000 clusters of power-law size    128            22-24          38             44
    1,203 CLIP text embeddings                         32              6-8       28-30          16-24

`MARGIN` makes up for what generated queries fall short.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from twinspire.index.ann.ann_index import AnnIndex
from twinspire.index.ann.reports import Calibration, GroupRecall
from twinspire.index.ann.selection import Selection
from twinspire.index.ann.tuning import QueryGroup, Setting, best_setting, without_own
from twinspire.index.flat import nearest
from twinspire.index.vectors import Vectors

TARGET, K = 0.95, 10
MARGIN = 0.03
"""Calibration aims this much higher, for other queries than those measured."""
_MOST_QUERIES, _FEWEST_QUERIES = 128, 64  # a group
_PRODUCTS = 3.2e10  # of exact search for a group, which bounds the queries of a large index
_MEAN_OF = 4_096


def calibrated(
    ann: AnnIndex, vectors: Vectors, groups: list[QueryGroup], *, target: float = TARGET, margin: float = MARGIN
) -> Calibration:
    """Return the setting that reaches `target` for each of `groups` in the least time, or comes nearest to it."""
    found = best_setting(ann, vectors, groups, min(1.0, target + margin))
    return Calibration(
        target=target,
        k=max(group.exact.shape[1] for group in groups),
        effort=found.effort,
        effort_name=ann.kind.family.effort_name,
        lists=ann.lists,
        rescore_factor=found.reach if ann.kind.is_lossy else 0,
        measured=group_recalls(groups, found),
    )


def group_recalls(groups: list[QueryGroup], found: Setting) -> tuple[GroupRecall, ...]:
    """Return what `found` gives each of `groups`."""
    return tuple(
        GroupRecall(group.name, len(group.queries), recall, 1000 * seconds / len(group.queries))
        for group, recall, seconds in zip(groups, found.recalls, found.seconds_by_group, strict=True)
    )


def held_out(vectors: Vectors, kinds: Mapping[str, NDArray[np.bool_]], k: int, exact_kept: int) -> list[QueryGroup]:
    """Return groups of queries for `vectors` (N, D), of which the items of each kind have the rows in its mask (N,).

    `kinds` maps a kind's name, in the plural, to its rows. A search that a filter restricts to `exact_kept` rows or
    fewer is exact and needs no queries. Equal items give equal queries. Empty where there are fewer than two items.
    """
    draw = np.random.default_rng(0)
    kinds = {name: mask for name, mask in kinds.items() if mask.any()}
    living = np.logical_or.reduce(list(kinds.values())) if kinds else np.zeros(len(vectors), np.bool_)
    count = int(np.clip(_PRODUCTS / max(1, vectors.size), _FEWEST_QUERIES, _MOST_QUERIES))
    everything = None if living.all() else living

    def drawn(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        rows = np.flatnonzero(mask)
        return np.sort(draw.choice(rows, min(count, len(rows)), replace=False))

    rows = drawn(living)
    groups = [_group("held-out items", vectors, _float32(vectors[rows]), rows, everything, k)]
    for name, mask in kinds.items():
        if len(kinds) > 1 and int(np.count_nonzero(mask)) <= exact_kept:
            continue
        searched = mask if len(kinds) > 1 else everything
        for other, asking in kinds.items():
            if other != name and int(np.count_nonzero(asking)) >= _FEWEST_QUERIES:
                rows = drawn(asking)
                groups.append(_group(f"{other} against {name}", vectors, _float32(vectors[rows]), rows, searched, k))
                break
        else:
            queries, rows = _across_a_gap(vectors, mask, drawn(mask), draw)
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
    """Return the group with what exact search finds; None where nothing is to be found."""
    there = len(vectors) if searched is None else int(np.count_nonzero(searched))
    k = min(k, there - 1)
    if k < 1 or len(queries) == 0:
        return None
    scores, rows = nearest(vectors, queries, k + 1, allowed=searched)
    exact = without_own(scores, rows, own, k)
    return QueryGroup(queries, exact, None if searched is None else Selection.of(searched), own, name)


def _across_a_gap(
    vectors: Vectors, mask: NDArray[np.bool_], rows: NDArray[np.int64], draw: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return queries (Q, D), one for each of `rows` (Q,), as another modality would ask for the items of `mask`."""
    living = np.flatnonzero(mask)
    some = _float32(vectors[np.sort(draw.choice(living, min(_MEAN_OF, len(living)), replace=False))])
    mean = some.mean(axis=0)
    spread = float(np.sqrt(((some - mean) ** 2).sum(axis=1).mean()))
    between = (_float32(vectors[rows]) - some[draw.integers(0, len(some), len(rows))]) / np.float32(np.sqrt(2))
    anywhere = draw.standard_normal((len(rows), vectors.shape[1]), dtype=np.float32)
    anywhere *= spread / np.linalg.norm(anywhere, axis=1, keepdims=True)
    opposite = (np.arange(len(rows)) % 2)[:, None] * mean
    queries = 0.5 * between + anywhere - opposite
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    return _float32(queries / np.maximum(lengths, 1e-12)), rows


def _float32(vectors: Vectors) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors, dtype=np.float32)
