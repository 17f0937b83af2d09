"""What shorter embeddings and shorter codes find, and what they take: index families over each length of a bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from twinspire import Client, Index
from twinspire._dims import cut_vectors
from twinspire.errors import InputError
from twinspire.index import Item, ItemKind
from twinspire.index.ann.reports import BuildReport
from twinspire.similarity import similarities
from twinspire_bench.search.inputs import QueryKind, SceneQuery
from twinspire_bench.search.measure import Groups, K, rankings_of

FLAT = "flat"
KINDS = (QueryKind.SHORT, QueryKind.DESCRIBED)
_SAME_SCORE = 1e-6


@dataclass(frozen=True)
class CodeResult:
    """A code at one length of the embeddings.

    `groups` are the rankings of its first 10 hits. `recall` is the share of the 10 best hits of exact search at this
    length that are among them. `vector_bytes` is what an item takes in memory, with its part of what all items share;
    exact search has none of its own and reads the vector file. `search_ms` has the milliseconds of each query, without
    encoding.
    """

    dim: int
    spec: str
    groups: Groups
    recall: float
    vector_bytes: float
    search_ms: Sequence[float]


@dataclass(frozen=True)
class SkippedCode:
    """A code that the number of items or the length does not suit, and why."""

    dim: int
    spec: str
    reason: str


def code_specs(dim: int) -> tuple[str, ...]:
    """Return the codes to measure with embeddings of `dim` numbers, exact search first."""
    return FLAT, "binary", f"ivf,pq{max(1, dim // 4)}x4"


def lengths_of(client: Client) -> list[int]:
    """Return the lengths to measure: the whole embedding, then those that the bundle allows, the longest first."""
    return sorted({client.dim, *client.bundle.dims}, reverse=True)


def measure_codes(
    client: Client, images: NDArray[np.float32], queries: Sequence[SceneQuery]
) -> Iterator[CodeResult | SkippedCode]:
    """Search N images, embeddings (N, D), with the short and the describing queries, by each length and code.

    The first result is exact search by whole embeddings. An index is built as the product does it, with the effort that
    it calibrates for itself.
    """
    asked = [query for query in queries if query.kind in KINDS]
    texts = client.encode_texts([query.text for query in asked])
    items = [Item(f"/images/{position}", ItemKind.IMAGE) for position in range(len(images))]
    for dim in lengths_of(client):
        vectors, cut_texts = cut_vectors(images, dim), cut_vectors(texts, dim)
        exact = similarities(vectors, cut_texts)  # (N, Q)
        space = client.bundle.space_of(dim)
        with (
            TemporaryDirectory(prefix="twinspire-bench-") as folder,
            Index.create(
                Path(folder) / "index", space=space, dim=dim, vectors_per_item=client.vectors_per_item
            ) as index,
        ):
            index.add(vectors, items, space=space)
            for spec in code_specs(dim):
                try:
                    built = index.build(spec)
                except InputError as error:
                    yield SkippedCode(dim, spec, str(error))
                    continue
                found, search_ms = _search(index, cut_texts)
                ranks = [_first_right(hits, query) for hits, query in zip(found, asked, strict=True)]
                groups = rankings_of(asked, ranks, len(images))
                yield CodeResult(dim, spec, groups, recall_at_k(found, exact), _vector_bytes(built, vectors), search_ms)


def recall_at_k(found: Sequence[Sequence[int]], exact: NDArray[np.float32]) -> float:
    """Return the share of the 10 best items of each query that were found, given all scores, (N, Q).

    Any item with the score of the tenth or more counts.
    """
    k = min(K, len(exact))
    least = np.sort(exact, axis=0)[-k]  # (Q,)
    right = [int((exact[list(ids), query] >= least[query] - _SAME_SCORE).sum()) for query, ids in enumerate(found)]
    return sum(right) / (k * len(right))


def _search(index: Index, texts: NDArray[np.float32]) -> tuple[list[list[int]], list[float]]:
    """Return the ids of the first hits of each query, asked one by one, and the milliseconds of each."""
    found, search_ms = [], []
    index.search(texts[:1], k=K, space=index.space)
    for text in texts:
        start_s = time.perf_counter()
        (hits,) = index.search(text[None], k=K, space=index.space)
        search_ms.append(1e3 * (time.perf_counter() - start_s))
        found.append([hit.id for hit in hits])
    return found, search_ms


def _first_right(ids: Sequence[int], query: SceneQuery) -> int:
    return next((rank for rank, item in enumerate(ids, start=1) if item in query.right), 0)


def _vector_bytes(built: BuildReport, vectors: NDArray[np.float32]) -> float:
    return (vectors.nbytes if built.spec == FLAT else built.file_bytes) / len(vectors)
