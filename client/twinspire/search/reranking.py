"""Reranking: the first hits of a search in the order of a model that reads query and image together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import ImageError, InputError
from twinspire.images import ImageItem
from twinspire.search.ranking import Ranked
from twinspire.search.request import SearchRequest
from twinspire.stores import ItemKind, StoredItem

PART = "rerank"
"""The reranker's probability among a hit's score parts."""


class PairScorer(Protocol):
    """What reranking needs of a client; `twinspire.Client` is one."""

    def score_pairs(
        self, items: Sequence[ImageItem], texts: Sequence[str], *, on_error: Literal["skip"]
    ) -> tuple[NDArray[np.float32], list[ImageError]]:
        """Return the probability that each text is true of its image, NaN for the images of the errors."""


def check_reranks(client: object) -> PairScorer:
    """Return the client where it can rerank.

    Raises BundleError where its bundle has no reranker, InputError where it is not a client that scores pairs.
    """
    if (bundle := getattr(client, "bundle", None)) is not None:
        bundle.manifest.reranker()
    if not hasattr(client, "score_pairs"):
        raise InputError(f"{client!r} scores no pairs: rerank needs a client with `score_pairs`", option=PART)
    return cast("PairScorer", client)


def widened(request: SearchRequest) -> SearchRequest:
    """Return the request whose hits are reranked: from the first on, as many as are candidates or are asked for."""
    assert request.rerank is not None
    return replace(request, k=max(request.rerank, request.depth), offset=0, rerank=None)


def rerank(
    scorer: PairScorer, request: SearchRequest, ranked: Ranked, items: Mapping[int, StoredItem], *, searched: int
) -> tuple[Ranked, list[str]]:
    """Order the first candidates of `ranked`, the hits of the `widened` request, and cut the page of `request`.

    Pinned items stay first. Candidates that are no images or whose file cannot be read come after the others, in their
    order, and a note says so, as one does where more candidates were asked for than the `searched` items of the index.
    Returns the page and the notes. Raises what `Client.score_pairs` raises.
    """
    assert request.rerank is not None
    text = request.query.as_one_text()
    pinned = [id_ for id_ in ranked.ids if "pinned" in ranked.parts[id_]]
    free = [id_ for id_ in ranked.ids if "pinned" not in ranked.parts[id_]]
    candidates, rest = free[: request.rerank], free[request.rerank :]
    images = [id_ for id_ in candidates if items[id_].kind is ItemKind.IMAGE and items[id_].uri.startswith("/")]
    scores, errors = scorer.score_pairs([items[id_].uri for id_ in images], [text] * len(images), on_error="skip")
    probabilities = {id_: float(score) for id_, score in zip(images, scores, strict=True) if np.isfinite(score)}
    parts = dict(ranked.parts)
    for id_, probability in probabilities.items():
        parts[id_] = {**parts[id_], PART: probability}
    scored = sorted(probabilities, key=lambda id_: -probabilities[id_])  # stable: equals keep their order
    ids = pinned + scored + [id_ for id_ in candidates if id_ not in probabilities] + rest
    page = ids[request.offset : request.depth]
    before = min(request.offset, len(ids))
    notes = _notes(len(candidates), probabilities, images, errors)
    if request.rerank > searched:
        notes.append(f"{request.rerank:,} candidates were asked for, and the index has only {searched:,} items")
    return replace(ranked, ids=page, parts=parts, before=before), notes


def _notes(
    candidates: int, probabilities: Mapping[int, float], images: Sequence[int], errors: Sequence[ImageError]
) -> list[str]:
    """Say which candidates were not reranked, and why."""
    left = candidates - len(probabilities)
    if not left:
        return []
    causes = [f"{candidates - len(images):,} without a local image"] if candidates > len(images) else []
    if errors:
        causes.append(f"{len(errors):,} that cannot be opened, the first {errors[0].name}: {errors[0].cause}")
    return [f"{left:,} of {candidates:,} candidates were not reranked and come after the others: {'; '.join(causes)}"]
