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
    pair_accuracy_of_scores,
    recall,
    register_metric,
    told_apart,
)
from twinspire_eval.recall.queries import P1, QueryReport, query_figures
from twinspire_eval.recall.ranking import Direction, Ranking, rank_both_ways, rank_captions, rank_pairs, rank_queries
from twinspire_eval.statistics import Estimate

__all__ = [
    "MAP",
    "MEDIAN_RANK",
    "METRICS",
    "MRR",
    "P1",
    "R1",
    "R5",
    "R10",
    "BothWays",
    "Direction",
    "Estimate",
    "MeanMetric",
    "Metric",
    "QueryReport",
    "Ranking",
    "Recall",
    "both_ways",
    "difference",
    "estimates",
    "metrics_of",
    "pair_accuracy",
    "pair_accuracy_of_scores",
    "query_figures",
    "rank_both_ways",
    "rank_captions",
    "rank_pairs",
    "rank_queries",
    "recall",
    "register_metric",
    "told_apart",
]
