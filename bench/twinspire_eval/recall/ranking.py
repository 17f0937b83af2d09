"""Ranks of the own items of each query, for images with any number of captions.

Scores are computed in blocks and not kept: 5,000 images and 25,000 captions need 50 MB beside their embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import EmbeddingError, InputError
from twinspire.similarity import similarities, vectors_per_item

# How many scores are in memory at a time, as float64 and as float32.
_SCORES_AT_ONCE = 1 << 21
_TEXTS_AT_ONCE = 1 << 12


class Direction(StrEnum):
    """Modality of the queries and of the items that they are to find."""

    TEXT_TO_IMAGE = "text_to_image"
    IMAGE_TO_TEXT = "image_to_text"
    TEXT_TO_TEXT = "text_to_text"
    """A caption finds the other captions of its image."""


@dataclass(frozen=True)
class Ranking:
    """Ranks of the own items of Q queries in one direction.

    `first_ranks` is (Q,) int64: the rank of the best own item, from 1. `average_precisions` is (Q,) float64: the mean,
    over all own items, of the share of own items among those down to it. `images` is (Q,) int64: the image that the
    query belongs to, of `image_count`.
    """

    first_ranks: NDArray[np.int64]
    average_precisions: NDArray[np.float64]
    images: NDArray[np.int64]
    image_count: int

    def __len__(self) -> int:
        return len(self.first_ranks)


def rank_both_ways(
    images: NDArray[np.float32], texts: NDArray[np.float32], owners: NDArray[np.int64]
) -> Mapping[Direction, Ranking]:
    """Rank N images for each of T captions, and T captions for each image that has one.

    `images` is (N, D) float32, or (N, Q, D) where an image has Q vectors of which the best scores, `texts` (T, D)
    float32, L2-normalised; `owners` is (T,) int64, the row of `images` that a caption belongs to. An image without a
    caption is ranked but is no query.

    Another item with the same score as an own one ranks before it: a model whose embeddings are all equal has no
    recall. Scores are computed in float64 and compared in float32, so that equal embeddings score
    the same wherever they stand.

    Raises EmbeddingError for shapes that do not fit and numbers that are not finite, InputError for `owners` that
    are no rows of `images`.
    """
    _check(images, texts, owners)
    own = _own_scores(images, texts, owners)
    order = np.lexsort((-own, owners))  # captions by image, of each the best first
    place = _places(owners[order])  # (T,): 0 for an image's best own caption, 1 for its second
    images_ahead = np.zeros(len(texts), np.int64)  # for each caption: other images ahead of its own
    captions_ahead = np.zeros(len(texts), np.int64)  # for each caption: other images' captions ahead, for its image
    # Sorted by image, a block of images owns a range of captions.
    bounds = np.searchsorted(owners[order], np.arange(len(images) + 1))  # (N + 1,)
    rows = max(1, _SCORES_AT_ONCE // (min(_TEXTS_AT_ONCE, len(texts)) * vectors_per_item(images)))
    for left in range(0, len(texts), _TEXTS_AT_ONCE):
        columns = order[left : left + _TEXTS_AT_ONCE]
        some_texts = texts[columns].astype(np.float64)  # (t, D)
        for top in range(0, len(images), rows):
            bottom = min(top + rows, len(images))
            scores = similarities(images[top:bottom].astype(np.float64), some_texts).astype(np.float32)  # (n, t)
            inside = np.flatnonzero((owners[columns] >= top) & (owners[columns] < bottom))
            scores[owners[columns[inside]] - top, inside] = -np.inf  # own ones are counted by their place
            images_ahead[columns] += (scores >= own[columns]).sum(axis=0)
            ours = slice(bounds[top], bounds[bottom])
            for nth in range(int(place[ours].max(initial=-1)) + 1):
                asked = order[ours][place[ours] == nth]  # one caption of each image, at most
                captions_ahead[asked] += (scores[owners[asked] - top] >= own[asked, None]).sum(axis=1)
    return {
        Direction.TEXT_TO_IMAGE: Ranking(
            images_ahead + 1, 1 / (images_ahead + 1), owners.astype(np.int64), len(images)
        ),
        Direction.IMAGE_TO_TEXT: _of_images(captions_ahead[order], owners[order], place, len(images)),
    }


def rank_pairs(
    images: NDArray[np.float32], texts: NDArray[np.float32], pairs: NDArray[np.int64]
) -> Mapping[Direction, Ranking]:
    """Rank N images for each of T captions, and the captions for each image, where a caption may have several images.

    `images` and `texts` are those of `rank_both_ways`; `pairs` is (P, 2) int64, the rows of a caption and of an image
    of its. Equal scores rank as in `rank_both_ways`, as do images without a caption. Raises EmbeddingError as it does,
    and InputError for a caption without an image.
    """
    own_images = _by_query(pairs, len(texts))
    own_captions = _by_query(pairs[:, ::-1], len(images))
    queries = rank_queries(images, texts, own_images)
    first = np.array([own.min() for own in own_images], np.int64)

    def images_scores(some: slice) -> NDArray[np.float32]:
        return similarities(images[some].astype(np.float64), texts.astype(np.float64)).astype(np.float32)

    asked = np.flatnonzero([len(own) > 0 for own in own_captions])
    ranks, precisions = _ranks_of(images_scores, own_captions, len(texts))
    return {
        Direction.TEXT_TO_IMAGE: replace(queries, images=first, image_count=len(images)),
        Direction.IMAGE_TO_TEXT: Ranking(ranks[asked], precisions[asked], asked, len(images)),
    }


def rank_queries(
    images: NDArray[np.float32], texts: NDArray[np.float32], relevant: Sequence[Sequence[int] | NDArray[np.int64]]
) -> Ranking:
    """Rank N images for each of T queries of which several images may be right.

    `images` and `texts` are those of `rank_both_ways`; `relevant` has for each query the rows of its right images. A
    query counts for itself, not for an image: intervals resample queries. Equal scores rank as in `rank_both_ways`.
    Raises EmbeddingError as it does, and InputError for a query without a right image and rows that are not there.
    """
    own = [np.asarray(places, np.int64) for places in relevant]
    _check_embeddings(images, texts)
    if len(own) != len(texts):
        raise InputError(f"right images of {len(own):,} queries: expected those of each of {len(texts):,}")
    if empty := [place for place, mine in enumerate(own) if not len(mine)]:
        raise InputError(f"query {empty[0]} has no image: expected at least one for each")
    _check_rows(np.concatenate(own), len(images))

    def scores_of(some: slice) -> NDArray[np.float32]:
        return similarities(images.astype(np.float64), texts[some].astype(np.float64)).T.astype(np.float32)

    return Ranking(*_ranks_of(scores_of, own, len(images)), np.arange(len(texts)), len(texts))


def _by_query(pairs: NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """Group (P, 2) pairs of a query and an item by query."""
    order = pairs[np.argsort(pairs[:, 0], kind="stable")]
    return np.split(order[:, 1], np.searchsorted(order[:, 0], np.arange(1, count)))


def _ranks_of(
    scores_of: Callable[[slice], NDArray[np.float32]], own: Sequence[NDArray[np.int64]], items: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the rank of the best own item and the average precision of each query: (Q,) each, 0 for one without."""
    ranks, precisions = np.zeros(len(own), np.int64), np.zeros(len(own))
    rows = max(1, _SCORES_AT_ONCE // items)
    for top in range(0, len(own), rows):
        scores = scores_of(slice(top, top + rows))  # (q, items)
        for query, (row, mine) in enumerate(zip(scores, own[top : top + rows], strict=True), start=top):
            best = -np.sort(-row[mine])
            row[mine] = -np.inf  # own ones are counted by their place
            place = np.arange(1, len(mine) + 1)
            found = place + (row >= best[:, None]).sum(axis=1)
            if len(mine):
                ranks[query], precisions[query] = found[0], (place / found).mean()
    return ranks, precisions


def rank_captions(texts: NDArray[np.float32], owners: NDArray[np.int64]) -> Ranking:
    """Rank T captions for each that has others of its image, itself left out.

    `texts` is (T, D) float32, L2-normalised; `owners` is (T,) int64, ascending, the number of the image that a caption
    belongs to. A caption without others of its image is ranked but is no query. Equal scores rank as in
    `rank_both_ways`.

    Raises EmbeddingError for numbers that are not finite, InputError where no image has several captions.
    """
    image_count = int(owners.max()) + 1 if len(owners) else 0
    _check(np.zeros((image_count, texts.shape[-1]), np.float32), texts, owners)
    counts = np.bincount(owners, minlength=image_count)  # (N,)
    starts = np.cumsum(counts) - counts
    queries = np.flatnonzero(counts[owners] > 1)
    if not len(queries):
        raise InputError(f"none of {image_count:,} images has several captions: expected images with two or more each")
    first, average = np.empty(len(queries), np.int64), np.empty(len(queries))
    others = int(counts.max()) - 1
    transposed = texts.T.astype(np.float64)  # (D, T)
    rows = max(1, _SCORES_AT_ONCE // len(texts))
    for top in range(0, len(queries), rows):
        asked = queries[top : top + rows]  # (n,)
        scores = (texts[asked].astype(np.float64) @ transposed).astype(np.float32)  # (n, T)
        own = np.full((len(asked), others + 1), -np.inf, np.float32)
        for nth in range(others + 1):
            has = np.flatnonzero(counts[owners[asked]] > nth)
            columns = starts[owners[asked[has]]] + nth
            own[has, nth] = np.where(columns == asked[has], -np.inf, scores[has, columns])
            scores[has, columns] = -np.inf  # own ones are counted by their place
        own = -np.sort(-own, axis=1)[:, :others]  # (n, M), the best first, -inf where there are fewer
        found = np.stack([(scores >= own[:, nth, None]).sum(axis=1) for nth in range(others)], axis=1)
        place = np.arange(1, others + 1)
        precision = np.where(np.isfinite(own), place / (found + place), 0)
        some = slice(top, top + len(asked))
        first[some], average[some] = found[:, 0] + 1, precision.sum(axis=1) / (counts[owners[asked]] - 1)
    return Ranking(first, average, owners[queries].astype(np.int64), image_count)


def _own_scores(
    images: NDArray[np.float32], texts: NDArray[np.float32], owners: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Score each caption against its own image, by the same rule as all others: (T,) float32."""
    own = np.empty(len(texts), np.float32)
    for left in range(0, len(texts), _TEXTS_AT_ONCE):
        some = slice(left, left + _TEXTS_AT_ONCE)
        products = np.einsum("t...d,td->t...", images[owners[some]], texts[some], dtype=np.float64)
        own[some] = products if images.ndim == 2 else products.max(axis=1)
    return own


def _of_images(
    ahead: NDArray[np.int64], owners: NDArray[np.int64], place: NDArray[np.int64], image_count: int
) -> Ranking:
    """Rank images by their captions, which are sorted by image, the best of each image first."""
    found = ahead + place + 1  # (T,): the rank of every own caption
    precision = (place + 1) / found
    first = np.flatnonzero(place == 0)  # (Q,)
    counts = np.diff(np.append(first, len(owners)))
    return Ranking(found[first], np.add.reduceat(precision, first) / counts, owners[first], image_count)


def _places(owners: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number equal neighbours from 0: (T,)."""
    starts = np.flatnonzero(np.diff(owners, prepend=-1))
    return np.arange(len(owners)) - np.repeat(starts, np.diff(np.append(starts, len(owners))))


def _check(images: NDArray[np.float32], texts: NDArray[np.float32], owners: NDArray[np.int64]) -> None:
    _check_embeddings(images, texts)
    if owners.shape != (len(texts),) or not np.issubdtype(owners.dtype, np.integer):
        raise InputError(f"owners of {owners.dtype} {owners.shape}: expected integers, one for each of {len(texts):,}")
    _check_rows(owners, len(images))


def _check_embeddings(images: NDArray[np.float32], texts: NDArray[np.float32]) -> None:
    if images.ndim not in (2, 3) or texts.ndim != 2 or images.shape[-1] != texts.shape[1] or not len(texts):
        raise EmbeddingError(
            f"images {images.shape} and captions {texts.shape}: expected (N, D) or (N, Q, D), and (T, D), at least "
            "one of each"
        )
    for name, embeddings in (("image", images), ("caption", texts)):
        wrong = np.flatnonzero(~np.isfinite(embeddings.reshape(len(embeddings), -1)).all(axis=1))
        if len(wrong):
            raise EmbeddingError(
                f"the embeddings of {len(wrong):,} {name}s are not finite, such as that of {name} {wrong[0]}: expected "
                "unit vectors; the engine that made them is broken"
            )


def _check_rows(owners: NDArray[np.int64], count: int) -> None:
    if owners.min() < 0 or owners.max() >= count:
        raise InputError(f"owners from {owners.min()} to {owners.max()}: expected rows of the {count:,} images")
