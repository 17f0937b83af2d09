"""Recall: how well captions find their images, and images their captions."""

from __future__ import annotations

from twinspire_eval.recall.estimates import Estimate, difference, estimates
from twinspire_eval.recall.measures import Measure, measured
from twinspire_eval.recall.pairs import BothWays, Recall, both_ways, pair_accuracy, ranks, recall
from twinspire_eval.recall.ranking import Direction, Ranking, rank_both_ways

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
