"""Retrieval metrics: how well captions find their images, and images their captions, with confidence intervals."""

from __future__ import annotations

from twinspire_eval.recall.estimates import difference, estimates
from twinspire_eval.recall.metrics import (
    MAP,
    MEDIAN_RANK,
    METRICS,
    MRR,
    R1,
    R5,
    R10,
    BothWays,
    MeanMetric,
    Metric,
    Recall,
    both_ways,
    metrics_of,
    pair_accuracy,
    recall,
    register_metric,
)
from twinspire_eval.recall.ranking import Direction, Ranking, rank_both_ways, rank_captions, rank_pairs
from twinspire_eval.statistics import Estimate

__all__ = [
    "MAP",
    "MEDIAN_RANK",
    "METRICS",
    "MRR",
    "R1",
    "R5",
    "R10",
    "BothWays",
    "Direction",
    "Estimate",
    "MeanMetric",
    "Metric",
    "Ranking",
    "Recall",
    "both_ways",
    "difference",
    "estimates",
    "metrics_of",
    "pair_accuracy",
    "rank_both_ways",
    "rank_captions",
    "rank_pairs",
    "recall",
    "register_metric",
]
