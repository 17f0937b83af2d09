"""Precision of a data set's queries, each of which has several right images, by engine and language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twinspire_eval.recall.estimates import difference, estimates
from twinspire_eval.recall.metrics import MAP, R1
from twinspire_eval.recall.ranking import Ranking
from twinspire_eval.records import SAMPLES
from twinspire_eval.statistics import Estimate

P1 = "p1"
"""Precision at 1: the share of queries whose first image is a right one."""
_SEED = 0


@dataclass(frozen=True)
class QueryReport:
    """Rankings of the queries by engine and language, `P1` and `MAP` with their intervals, and what engines lose.

    `losses` are the differences of each other engine to the reference, below 0 where it finds less. Intervals resample
    queries. All are empty where the data set has no queries.
    """

    reference: str
    rankings: Mapping[str, Mapping[str, Ranking]]
    figures: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    losses: Mapping[str, Mapping[str, Mapping[str, Estimate]]]

    @classmethod
    def of(cls, rankings: Mapping[str, Mapping[str, Ranking]], *, reference: str) -> QueryReport:
        """Compute the metrics of rankings by engine and language, and their differences to those of `reference`."""
        figures = {
            engine: {language: query_figures(ranking) for language, ranking in found.items()}
            for engine, found in rankings.items()
        }
        before = rankings[reference]
        losses = {
            engine: {
                language: _named(difference([before[language]], [ranking], seed=_SEED))
                for language, ranking in found.items()
            }
            for engine, found in rankings.items()
            if engine != reference
        }
        return cls(reference, rankings, figures, losses)

    @property
    def queries(self) -> dict[str, int]:
        """The number of queries by language."""
        return {language: len(ranking) for language, ranking in self.rankings[self.reference].items()}

    def results(self, *, with_ranks: bool = True) -> dict[str, Any]:
        """Return the results of a record; `with_ranks` includes the rank of the first right image of each query."""
        engines: dict[str, dict[str, Any]] = {}
        for engine, by_language in self.figures.items():
            engines[engine] = {}
            for language, found in by_language.items():
                ranks = self.rankings[engine][language].first_ranks
                raw = {"first_ranks": {SAMPLES: ranks}} if with_ranks else {}
                engines[engine][language] = {"queries": len(ranks), **_plain(found), **raw}
        above = {
            engine: {language: _plain(found) for language, found in by_language.items()}
            for engine, by_language in self.losses.items()
        }
        return {"engines": engines, "above": {self.reference: above}}


def query_figures(ranking: Ranking) -> dict[str, Estimate]:
    """Return `P1` and `MAP` of a ranking of `rank_queries`, with their intervals."""
    return _named(estimates(ranking, seed=_SEED))


def _named(found: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {P1: found[R1], MAP: found[MAP]}


def _plain(found: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_json() for name, estimate in found.items()}
