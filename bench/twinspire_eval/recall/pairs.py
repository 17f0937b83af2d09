"""The short form: one caption an image, R@1, R@5 and R@10. What certificates and the demo's report carry."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from twinspire_eval.recall.measures import Measure, measured
from twinspire_eval.recall.ranking import Direction, Ranking, rank_both_ways


@dataclass(frozen=True)
class Recall:
    """Share of queries, 0 to 1, whose own item is among the first 1, 5 and 10."""

    r1: float
    r5: float
    r10: float


@dataclass(frozen=True)
class BothWays:
    """Recall of captions finding their images, and of images finding their captions."""

    text_to_image: Recall
    image_to_text: Recall

    def to_json(self) -> dict[str, dict[str, float]]:
        """Return it as plain numbers, the form that certificates and reports carry."""
        return asdict(self)


def ranks(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return each query's rank of its own item, from 0: (N,) int64.

    `scores` is (N, N) float32 with query i's own item in column i. An item that scores the same as the own one counts
    as ahead of it: a model that answers everything alike gets no recall for it.
    """
    own = np.diagonal(scores)[:, None]
    # The own item itself is among those counted.
    return np.asarray((scores >= own).sum(axis=1) - 1, dtype=np.int64)


def recall(queries: npt.NDArray[np.float32], items: npt.NDArray[np.float32]) -> Recall:
    """Return the recall of row i of `queries` finding row i of `items`, both (N, D) float32, L2-normalised."""
    if len(queries) == 0 or queries.shape != items.shape:
        raise ValueError(f"queries {queries.shape} and items {items.shape} must be equally many, at least one")
    return _recall(rank_both_ways(items, queries, np.arange(len(items)))[Direction.TEXT_TO_IMAGE])


def both_ways(images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32]) -> BothWays:
    """Return the recall between row i of `images` and row i of `texts`, both (N, D) float32, L2-normalised."""
    if len(images) == 0 or images.shape != texts.shape:
        raise ValueError(f"images {images.shape} and texts {texts.shape} must be equally many, at least one")
    both = rank_both_ways(images, texts, np.arange(len(images)))
    return BothWays(**{direction.value: _recall(ranking) for direction, ranking in both.items()})


def _recall(ranking: Ranking) -> Recall:
    found = measured(ranking)
    return Recall(found[Measure.R1], found[Measure.R5], found[Measure.R10])


def pair_accuracy(images: npt.NDArray[np.float32], texts: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Return how often the members of a pair are told apart: by their captions, and by their images.

    `images` and `texts` are (2P, D) float32, rows 2i and 2i + 1 a pair. A pair counts where both members find their own
    partner and not the other's, as Winoground's scores do (Thrush et al. 2022, arXiv:2204.03162); chance is 0.25.
    """
    scores = np.einsum("pid,pjd->pij", texts.reshape(-1, 2, texts.shape[1]), images.reshape(-1, 2, images.shape[1]))
    first, second = scores[:, 0], scores[:, 1]  # (P, 2): each caption against the pair's two images
    by_caption = (first[:, 0] > first[:, 1]) & (second[:, 1] > second[:, 0])
    by_image = (first[:, 0] > second[:, 0]) & (second[:, 1] > first[:, 1])
    return float(by_caption.mean()), float(by_image.mean())
