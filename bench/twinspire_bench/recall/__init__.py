"""Recall: how well captions find their pictures, and pictures their captions."""

from __future__ import annotations

from twinspire_bench.recall.estimates import Estimate, difference, estimates
from twinspire_bench.recall.measures import Measure, measured
from twinspire_bench.recall.pairs import BothWays, Recall, both_ways, pair_accuracy, ranks, recall
from twinspire_bench.recall.ranking import Direction, Ranking, rank_both_ways

__all__ = [
    "BothWays",
    "Direction",
    "Estimate",
    "Measure",
    "Ranking",
    "Recall",
    "both_ways",
    "difference",
    "estimates",
    "measured",
    "pair_accuracy",
    "rank_both_ways",
    "ranks",
    "recall",
]
