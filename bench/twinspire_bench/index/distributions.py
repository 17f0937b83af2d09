"""Distributions of synthetic vectors, pinned by their seed: one that is easy to cut into lists, two that are hard.

D is the number of dimensions, z a draw of independent normal numbers, B a random orthonormal basis, and
s_i = i^-p / |(1^-p, ..., D^-p)| the standard deviation of direction i, so that a point B(s z) is about 1 long. Items
and queries are brought to length 1.

clusters: an item is c_j + 0.7 B(s z) + g, a query c_j + 0.7 B(s z) - g. p = 0.5 (variances 1, 1/2, 1/3, ..., as
    embeddings have few directions that matter), j uniform of 1,000 centres c_j = B(s z), and g a random direction of
    length 0.7: items are shifted one way and queries the other, as two towers shift theirs (Liang et al., Mind the Gap,
    NeurIPS 2022). Items and queries of one cluster have a cosine of 0.2 to 0.4, as images and captions in CLIP.
power-law: the same with 20,000 centres, and j drawn with a probability in proportion to 1/j. So a few clusters are cut
    into many lists, and most lists hold many clusters, which differ in their spread.
spectrum: an item is B(s z), a query another one. p = 0.4, without clusters or gap: nothing that lists could follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

SPREAD = 0.7
GAP = 1.4
BLOCK = 50_000

Blocks = Iterator[NDArray[np.float32]]
"""Parts of some vectors, (n, D) float32 of length 1 each."""


class Distribution(StrEnum):
    """Distribution of vectors; the formulas are in the module's docstring."""

    CLUSTERS = "clusters"
    POWER_LAW = "power-law"
    SPECTRUM = "spectrum"

    @property
    def clusters(self) -> int:
        """Default number of clusters; 0: none."""
        return {Distribution.CLUSTERS: 1_000, Distribution.POWER_LAW: 20_000, Distribution.SPECTRUM: 0}[self]


def generated(
    distribution: Distribution, *, size: int, queries: int, dim: int, clusters: int, seed: int
) -> tuple[Blocks, Blocks]:
    """Return the blocks of `size` items and of `queries` queries. Take all items before the first query.

    The same arguments give the same vectors.
    """
    draw = np.random.default_rng(seed)
    basis = np.linalg.qr(draw.standard_normal((dim, dim)))[0]
    scales = np.arange(1, dim + 1) ** (-0.4 if distribution is Distribution.SPECTRUM else -0.5)
    scales /= np.linalg.norm(scales)
    shape = (scales[:, None] * basis.T).astype(np.float32)  # (D, D): the directions, each as long as it matters
    if distribution is Distribution.SPECTRUM:

        def points(count: int) -> NDArray[np.float32]:
            return _normal(draw, count, shape)

        return _blocks(size, points), _blocks(queries, points)
    centres = _normal(draw, clusters, shape)
    gap = draw.standard_normal(dim, dtype=np.float32)
    gap *= np.float32(GAP / 2) / np.linalg.norm(gap)
    shares = None
    if distribution is Distribution.POWER_LAW:
        shares = 1 / np.arange(1, clusters + 1)
        shares /= shares.sum()

    def shifted(shift: NDArray[np.float32]) -> Callable[[int], NDArray[np.float32]]:
        def of_clusters(count: int) -> NDArray[np.float32]:
            chosen = draw.integers(0, clusters, count) if shares is None else draw.choice(clusters, count, p=shares)
            found: NDArray[np.float32] = centres[chosen] + shift
            found += np.float32(SPREAD) * _normal(draw, count, shape)
            return found

        return of_clusters

    return _blocks(size, shifted(gap)), _blocks(queries, shifted(-gap))


def _normal(draw: np.random.Generator, count: int, shape: NDArray[np.float32]) -> NDArray[np.float32]:
    """Draw `count` points whose directions have the lengths of the rows of `shape` (D, D): (count, D)."""
    return draw.standard_normal((count, len(shape)), dtype=np.float32) @ shape


def _blocks(count: int, points: Callable[[int], NDArray[np.float32]]) -> Blocks:
    for start in range(0, count, BLOCK):
        found = points(min(BLOCK, count - start))
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        yield found
