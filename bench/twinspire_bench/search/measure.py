"""Recall of search setups over generated scenes, and the latency of filtered search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from twinspire import Client, Index
from twinspire.index import Item, ItemKind
from twinspire.ingest.caption_fusion import encode_captions, fuse
from twinspire.search import FusionWeights, LruCache, Mode, Query, Searcher, Templates
from twinspire.stores.filters.filter import Filter
from twinspire_bench.search.inputs import NamedScene, QueryKind, SceneQuery
from twinspire_eval.recall import Ranking
from twinspire_eval.scenes import Language

K = 10
CAPTION_WEIGHTS = (0.1, 0.3, 0.5)
FILTER_SHARES = (1.0, 0.9, 0.5, 0.1, 0.01, 0.001)
TEMPLATES = Templates(("{}", "a picture of {}", "a drawing of {}", "this shows {}"))
_CHUNK = 256
_FILTER_QUERIES = 16
_FILTER_DIM = 128

OnProgress: TypeAlias = Callable[[str, int, int], None]
Groups: TypeAlias = dict[tuple[QueryKind, Language], Ranking]
"""Rankings by what the queries say and by language."""


@dataclass(frozen=True)
class SearchSetup:
    """A way to search: the mode and its settings, and the weight of captions in the indexed vectors."""

    name: str
    mode: Mode
    caption_weight: float = 0.0
    weights: FusionWeights | None = None
    templates: Templates | None = None


BASELINE = "vector"
SETUPS = (
    SearchSetup(BASELINE, Mode.VECTOR),
    SearchSetup("keyword", Mode.KEYWORD),
    SearchSetup("hybrid, keyword weight 1, no rare words", Mode.HYBRID, weights=FusionWeights(1, 1, 0)),
    SearchSetup("hybrid, no rare words", Mode.HYBRID, weights=FusionWeights(1, 0.25, 0)),
    SearchSetup("hybrid", Mode.HYBRID),
    SearchSetup("vector, 4 templates", Mode.VECTOR, templates=TEMPLATES),
    *(SearchSetup(f"vector, caption weight {weight:g}", Mode.VECTOR, weight) for weight in CAPTION_WEIGHTS),
    SearchSetup("hybrid, caption weight 0.3", Mode.HYBRID, 0.3),
)


def measure_search(
    client: Client,
    scenes: Sequence[NamedScene],
    images: NDArray[np.float32],
    queries: Sequence[SceneQuery],
    *,
    on_progress: OnProgress,
) -> tuple[dict[str, Groups], dict[str, float]]:
    """Run the queries with every setup over an index of the scenes, of which `images` are the embeddings, (N, D).

    Return the rankings by setup, and the median of the milliseconds a query took without encoding.
    """
    captions = encode_captions(client, [scene.caption.split("\n") for scene in scenes])
    items = [Item(f"/images/{scene.file_name}", ItemKind.IMAGE, caption=scene.caption) for scene in scenes]
    cache = LruCache[NDArray[np.float32]](len(SETUPS) * len(queries))
    rankings: dict[str, Groups] = {}
    times_ms: dict[str, float] = {}
    with TemporaryDirectory(prefix="twinspire-bench-") as folder:
        for weight in (0.0, *CAPTION_WEIGHTS):
            vectors = fuse(images, captions, weight) if weight else images
            with Index.create(
                Path(folder) / f"{weight:g}",
                space=client.space,
                dim=client.dim,
                vectors_per_item=client.vectors_per_item,
            ) as index:
                index.add(vectors, items, space=client.space)
                for setup in SETUPS:
                    if setup.caption_weight == weight:
                        on_progress(setup.name, len(rankings), len(SETUPS))
                        ranks, took_ms = _run(client, index, setup, queries, cache)
                        rankings[setup.name] = rankings_of(queries, ranks, len(scenes))
                        times_ms[setup.name] = took_ms
    on_progress("", len(SETUPS), len(SETUPS))
    return {setup.name: rankings[setup.name] for setup in SETUPS}, times_ms


def measure_filters(*, count: int, seed: int) -> list[dict[str, Any]]:
    """Search `count` random vectors with filters that match shares of them, and compare with a search by NumPy.

    Return for each share the number of matching items, the milliseconds of each query, and the share of queries with
    exactly NumPy's ids.
    """
    generator = np.random.default_rng(seed)
    vectors, queries = (_unit(generator, number) for number in (count, _FILTER_QUERIES))
    marks = generator.permutation(count)  # a filter `mark < n` matches n items, spread evenly
    rows = []
    with (
        TemporaryDirectory(prefix="twinspire-bench-") as folder,
        Index.create(Path(folder) / "index", space="0" * 64, dim=_FILTER_DIM) as index,
    ):
        for start in range(0, count, 10_000):
            some = slice(start, start + 10_000)
            items = [
                Item(f"/{start + place}", ItemKind.TEXT, metadata={"mark": int(mark)})
                for place, mark in enumerate(marks[some])
            ]
            index.add(vectors[some], items, space=index.space)
        for share in FILTER_SHARES:
            kept = max(1, round(share * count))
            where = Filter.parse(f"mark < {kept}") if share < 1 else None
            index.search(queries[:1], k=K, space=index.space, where=where)
            took_ms, same = [], []
            for query in queries:
                start_s = time.perf_counter()
                (hits,) = index.search(query[None], k=K, space=index.space, where=where)
                took_ms.append(1e3 * (time.perf_counter() - start_s))
                scores = np.where(marks < kept, vectors @ query, -np.inf)
                same.append([hit.id for hit in hits] == np.argsort(-scores, kind="stable")[: min(K, kept)].tolist())
            rows.append({"share": share, "kept": kept, "latency_ms": took_ms, "exact": float(np.mean(same))})
    return rows


def encode_scenes(client: Client, scenes: Sequence[NamedScene], on_progress: OnProgress) -> NDArray[np.float32]:
    """Draw the scenes and encode them: (N, D) float32, L2-normalised."""
    parts = []
    for start in range(0, len(scenes), _CHUNK):
        on_progress("images", start, len(scenes))
        parts.append(client.encode_images([named.scene.draw() for named in scenes[start : start + _CHUNK]]))
    on_progress("images", len(scenes), len(scenes))
    return np.concatenate(parts)


def _run(
    client: Client,
    index: Index,
    setup: SearchSetup,
    queries: Sequence[SceneQuery],
    cache: LruCache[NDArray[np.float32]],
) -> tuple[list[int], float]:
    """Return the rank of each query's first right image, 0 if there was none, and the median milliseconds."""
    searcher = Searcher(client, index, weights=setup.weights, templates=setup.templates, embeddings=cache)
    texts = [Query.text(query.text) for query in queries]
    if setup.mode is not Mode.KEYWORD:
        for text in texts:
            searcher.search(text, 1, mode=Mode.VECTOR)  # caches its vector
    ranks, took_ms = [], []
    for text, query in zip(texts, queries, strict=True):
        start_s = time.perf_counter()
        response = searcher.search(text, K, mode=setup.mode)
        took_ms.append(1e3 * (time.perf_counter() - start_s))
        ranks.append(next((hit.rank for hit in response.hits if hit.id in query.right), 0))
    return ranks, float(np.median(took_ms))


def rankings_of(queries: Sequence[SceneQuery], ranks: Sequence[int], last: int) -> Groups:
    """Return the rankings of groups of queries from the rank of each one's first right image.

    A rank of 0, for none among the hits, becomes `last`.
    """
    members: dict[tuple[QueryKind, Language], list[int]] = {}
    for query, rank in zip(queries, ranks, strict=True):
        members.setdefault((query.kind, query.language), []).append(rank or last)
    return {group: _ranking(np.array(some, np.int64)) for group, some in members.items()}


def _ranking(ranks: NDArray[np.int64]) -> Ranking:
    return Ranking(ranks, 1 / ranks, np.arange(len(ranks)), len(ranks))


def _unit(generator: np.random.Generator, count: int) -> NDArray[np.float32]:
    vectors = generator.normal(size=(count, _FILTER_DIM)).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
