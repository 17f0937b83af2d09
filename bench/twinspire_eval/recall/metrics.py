"""Metrics of a ranking, a registry of them, and the recall of data sets with one caption an image.

A metric is added by one class: `register_metric` makes it appear in reports, records and tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import InputError
from twinspire_eval.recall.ranking import Ranking, rank_both_ways

# Names of the metrics registered here.
R1 = "r1"
R5 = "r5"
R10 = "r10"
MEDIAN_RANK = "median_rank"
MRR = "mrr"
MAP = "map"


class Metric(ABC):
    """One number that says how good a ranking is.

    `name` is its key in records, `label` its header in tables. `is_share` says that it lies between 0 and 1 and is
    printed in percent, `shows_interval` that tables show its confidence interval.
    """

    name: str
    label: str
    is_share: bool = True
    shows_interval: bool = False

    @abstractmethod
    def weighted(self, ranking: Ranking, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the metric of R rankings in which image n counts `weights[r, n]` times: (R,), NaN without queries.

        `weights` is (R, N) float64, whole numbers; the queries of an image count as often as the image.
        """


class MeanMetric(Metric):
    """Mean of a number for each query."""

    @abstractmethod
    def per_query(self, ranking: Ranking) -> NDArray[np.float64]:
        """Return the number of each query: (Q,) float64."""

    def weighted(self, ranking: Ranking, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return _weighted_means([self], ranking, weights)[:, 0]


class RecallAtK(MeanMetric):
    """Share of queries that find an own item among the first `k`."""

    shows_interval = True

    def __init__(self, k: int) -> None:
        self.k, self.name, self.label = k, f"r{k}", f"R@{k}"

    def per_query(self, ranking: Ranking) -> NDArray[np.float64]:
        return (ranking.first_ranks <= self.k).astype(np.float64)


class MedianRank(Metric):
    """Median rank of the first own item, from 1."""

    name, label, is_share = MEDIAN_RANK, "median", False

    def weighted(self, ranking: Ranking, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the middle rank, or the mean of the two in the middle: (R,)."""
        order = np.argsort(ranking.first_ranks, kind="stable")
        sorted_ranks = ranking.first_ranks[order]
        last = np.flatnonzero(np.diff(sorted_ranks, append=sorted_ranks[-1] + 1))  # where each different rank ends
        up_to = np.cumsum(weights[:, ranking.images[order]], axis=1)[:, last]  # (R, ranks)
        total = up_to[:, -1:]
        lower, upper = (
            sorted_ranks[last][np.argmax(up_to >= middle, axis=1)] for middle in ((total + 1) // 2, total // 2 + 1)
        )
        return np.where(total[:, 0] > 0, (lower + upper) / 2, np.nan)


class MeanReciprocalRank(MeanMetric):
    """Mean of 1 / the rank of the first own item."""

    name, label = MRR, "MRR"

    def per_query(self, ranking: Ranking) -> NDArray[np.float64]:
        return 1 / ranking.first_ranks


class MeanAveragePrecision(MeanMetric):
    """Mean of the average precision over all own items."""

    name, label = MAP, "mAP"

    def per_query(self, ranking: Ranking) -> NDArray[np.float64]:
        return ranking.average_precisions


METRICS: dict[str, Metric] = {}
"""Registered metrics by name, in the order of tables and records."""


def register_metric(metric: Metric) -> None:
    """Add a metric to those that every ranking is measured by. Raises InputError where its name is taken."""
    if metric.name in METRICS:
        raise InputError(f"the metric {metric.name!r} is registered already: give the new one another name")
    METRICS[metric.name] = metric


for _metric in (RecallAtK(1), RecallAtK(5), RecallAtK(10), MedianRank(), MeanReciprocalRank(), MeanAveragePrecision()):
    register_metric(_metric)


def metrics_of(ranking: Ranking) -> dict[str, float]:
    """Return all registered metrics of a ranking, by name."""
    once = np.ones((1, ranking.image_count))
    return {name: float(values[0]) for name, values in weighted_metrics(ranking, once).items()}


def weighted_metrics(ranking: Ranking, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return all registered metrics, (R,) float64 each, as `Metric.weighted` does. Means share one multiplication."""
    means = [metric for metric in METRICS.values() if isinstance(metric, MeanMetric)]
    columns = dict(zip((metric.name for metric in means), _weighted_means(means, ranking, weights).T, strict=True))
    return {name: columns[name] if name in columns else METRICS[name].weighted(ranking, weights) for name in METRICS}


def _weighted_means(metrics: list[MeanMetric], ranking: Ranking, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted means of M metrics: (R, M)."""
    per_query = np.stack([metric.per_query(ranking) for metric in metrics] + [np.ones(len(ranking))])  # (M + 1, Q)
    per_image = np.stack(
        [np.bincount(ranking.images, row, minlength=ranking.image_count) for row in per_query], axis=1
    )  # (N, M + 1)
    sums = weights @ per_image  # (R, M + 1)
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = sums[:, :-1] / sums[:, -1:]
    return means


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
        """Return it as JSON data, as it stands in certificates and reports."""
        return asdict(self)


def recall(queries: NDArray[np.float32], items: NDArray[np.float32]) -> Recall:
    """Return the recall of row i of `queries` finding row i of `items`, both (N, D) float32, L2-normalised."""
    return both_ways(items, queries).text_to_image


def both_ways(images: NDArray[np.float32], texts: NDArray[np.float32]) -> BothWays:
    """Return the recall between row i of `images` and row i of `texts`, both (N, D) float32, L2-normalised."""
    if len(images) == 0 or images.shape != texts.shape:
        raise ValueError(f"images {images.shape} and texts {texts.shape} must be equally many, at least one")
    both = rank_both_ways(images, texts, np.arange(len(images)))
    return BothWays(**{direction.value: _recall(ranking) for direction, ranking in both.items()})


def _recall(ranking: Ranking) -> Recall:
    found = metrics_of(ranking)
    return Recall(found[R1], found[R5], found[R10])


def pair_accuracy(images: NDArray[np.float32], texts: NDArray[np.float32]) -> tuple[float, float]:
    """Return how often the members of a pair are distinguished: by their captions, and by their images.

    `images` and `texts` are (2P, D) float32, rows 2i and 2i + 1 a pair; see `pair_accuracy_of_scores`.
    """
    return pair_accuracy_of_scores(
        np.einsum("pid,pjd->pij", texts.reshape(-1, 2, texts.shape[1]), images.reshape(-1, 2, images.shape[1]))
    )


def pair_accuracy_of_scores(scores: NDArray[np.float32]) -> tuple[float, float]:
    """Return how often the members of a pair are distinguished, of the scores (P, 2, 2) of both texts and images.

    `scores[p, t, i]` is that of text t and image i of a pair. A pair counts where both members find their own partner
    and not the other's, as Winoground's scores do (Thrush et al. 2022, arXiv:2204.03162); chance is 0.25.
    """
    return float(told_apart(scores).mean()), float(told_apart(scores.transpose(0, 2, 1)).mean())


def told_apart(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return of which pairs both texts find their own image, (P,), of the scores (P, 2, 2): text by image."""
    first, second = scores[:, 0], scores[:, 1]  # (P, 2): each text against the pair's two images
    found: NDArray[np.bool_] = (first[:, 0] > first[:, 1]) & (second[:, 1] > second[:, 0])
    return found
