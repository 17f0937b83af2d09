"""What a bundle's reranker adds to its towers: objects that exchanged colours or sides, and the first 20 hits."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from twinspire import Client
from twinspire.similarity import similarities
from twinspire_bench.search.inputs import NamedScene, QueryKind, SceneQuery
from twinspire_bench.search.measure import Groups, OnProgress, rankings_of
from twinspire_eval.recall import told_apart
from twinspire_eval.scenes import CaptionedScene, Contrast, Language, Split
from twinspire_eval.scenes.dataset import JPEG_QUALITY, pair_set
from twinspire_eval.statistics import STATISTICS, Estimate, interval, statistic_of

CANDIDATES = 20
PAIRS = 100
QUERIES = 100
"""Queries of each kind and language whose hits are reranked."""
KINDS = (QueryKind.SHORT, QueryKind.DESCRIBED)


@dataclass(frozen=True)
class RerankingResult:
    """Figures of the towers alone and with the reranker.

    `towers` and `reranked` are rankings of the same queries, without and with the first 20 hits in the reranker's
    order. `pairs_by_towers` and `pairs_by_reranker` are by language the share of pairs of scenes, which differ in what
    has which colour or side, whose captions both find their own image; chance is 0.25. `candidates_ms` has the
    milliseconds in which the candidates of a query were scored, from JPEG files in memory.
    """

    towers: Groups
    reranked: Groups
    pairs_by_towers: dict[Language, Estimate]
    pairs_by_reranker: dict[Language, Estimate]
    candidates_ms: Sequence[float]


def measure_reranking(
    client: Client,
    scenes: Sequence[NamedScene],
    images: NDArray[np.float32],
    queries: Sequence[SceneQuery],
    *,
    seed: int,
    on_progress: OnProgress,
) -> RerankingResult | None:
    """Rerank the first 20 images, embeddings (N, D), of some queries, and score swapped pairs.

    Return None where the bundle has no reranker.
    """
    if not client.bundle.manifest.rerankers:
        return None
    asked = _some(queries)
    scores = similarities(images, client.encode_texts([query.text for query in asked]))  # (N, Q)
    before, after, candidates_ms = [], [], []

    @cache
    def file(position: int) -> bytes:
        return _jpeg(scenes[position].scene)

    for place, query in enumerate(asked):
        on_progress("reranking", place, len(asked))
        order = np.argsort(-scores[:, place], kind="stable")
        candidates = order[:CANDIDATES].tolist()
        files = [file(position) for position in candidates]
        start_s = time.perf_counter()
        probabilities = client.score_pairs(files, [query.text] * len(files))
        candidates_ms.append(1e3 * (time.perf_counter() - start_s))
        before.append(_first_right(order, query))
        reranked = [candidates[candidate] for candidate in np.argsort(-probabilities, kind="stable")]
        after.append(_first_right([*reranked, *order[CANDIDATES:]], query))
    by_towers, by_reranker = _pairs(client, seed=seed, on_progress=on_progress)
    return RerankingResult(
        rankings_of(asked, before, len(images)),
        rankings_of(asked, after, len(images)),
        by_towers,
        by_reranker,
        candidates_ms,
    )


def share_told_apart(scores: NDArray[np.float32]) -> Estimate:
    """Return the share of pairs whose captions both find their own image, of the scores (P, 2, 2): caption by image."""
    found, mean = told_apart(scores), STATISTICS["mean"]
    return Estimate(statistic_of(found, mean), interval(found, mean))


def _some(queries: Sequence[SceneQuery]) -> list[SceneQuery]:
    """Return the same number of queries of each kind and language, spread evenly over all that there are."""
    found = []
    for kind in KINDS:
        for language in Language:
            own = [query for query in queries if (query.kind, query.language) == (kind, language)]
            found += own[:: -(-len(own) // QUERIES)]
    return found


def _pairs(
    client: Client, *, seed: int, on_progress: OnProgress
) -> tuple[dict[Language, Estimate], dict[Language, Estimate]]:
    members = pair_set(PAIRS, Contrast.SWAP, seed=seed, split=Split.HELDOUT)
    files = [_jpeg(member) for member in members]  # 2i and 2i + 1 are a pair
    images = client.encode_images(files)
    by_towers, by_reranker = {}, {}
    for done, language in enumerate(Language):
        on_progress("pairs", done, len(Language))
        captions = [member.captions[language] for member in members]
        texts = client.encode_texts(captions)
        alone, read = (np.empty((PAIRS, 2, 2), np.float32) for _ in range(2))
        for pair in range(PAIRS):
            own = slice(2 * pair, 2 * pair + 2)
            alone[pair] = similarities(images[own], texts[own]).T
            first, second = captions[own]
            read[pair] = client.score_pairs(files[own] * 2, [first, first, second, second]).reshape(2, 2)
        by_towers[language], by_reranker[language] = share_told_apart(alone), share_told_apart(read)
    return by_towers, by_reranker


def _first_right(order: Sequence[int] | NDArray[np.int64], query: SceneQuery) -> int:
    return next(rank for rank, position in enumerate(order, start=1) if position in query.right)


def _jpeg(scene: CaptionedScene) -> bytes:
    encoded = io.BytesIO()
    scene.draw().save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()
