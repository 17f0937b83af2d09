"""Tables and record of `twinspire bench search`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from rich.console import Console
from rich.table import Table

from twinspire_bench.search.codes import CodeResult, SkippedCode
from twinspire_bench.search.copies import CopyChange
from twinspire_bench.search.duplicates import GroupScores
from twinspire_bench.search.inputs import QueryKind
from twinspire_bench.search.measure import BASELINE, Groups
from twinspire_bench.search.reranking import CANDIDATES, RerankingResult
from twinspire_eval.recall import P1, R1, R5, R10, Estimate, difference, estimates
from twinspire_eval.records import series
from twinspire_eval.scenes import Language
from twinspire_eval.tables import MISSING, figure, figures_table

Values: TypeAlias = Mapping[str, Estimate]
Figures: TypeAlias = Mapping[tuple[QueryKind, Language], tuple[Values, Values | None]]
"""By group of queries: the estimates, and their differences to those of the first row of a table."""


def figures_of(groups: Groups, baseline: Groups | None = None) -> Figures:
    """Return the estimates of rankings, and their differences to a baseline's."""
    return {
        group: (estimates(ranking), None if baseline is None else difference([baseline[group]], [ranking]))
        for group, ranking in groups.items()
    }


@dataclass(frozen=True, kw_only=True)
class SearchResults:
    """All that was measured. `reranking` is None where the bundle has no reranker."""

    bundle: str
    count: int
    rankings: Mapping[str, Groups]
    times_ms: Mapping[str, float]
    codes: Sequence[CodeResult | SkippedCode]
    reranking: RerankingResult | None
    filters: Sequence[Mapping[str, Any]]
    filter_items: int
    groups: Mapping[str, GroupScores]
    copies: int

    @cached_property
    def searches(self) -> dict[str, Figures]:
        """The figures of each setup."""
        baseline = self.rankings[BASELINE]
        return {
            name: figures_of(groups, None if name == BASELINE else baseline) for name, groups in self.rankings.items()
        }

    @cached_property
    def code_figures(self) -> list[tuple[CodeResult, Figures]]:
        """The figures of each code that suits the items; the first is exact search by whole embeddings."""
        found = [code for code in self.codes if isinstance(code, CodeResult)]
        return [(code, figures_of(code.groups, found[0].groups if place else None)) for place, code in enumerate(found)]

    def to_json(self) -> dict[str, Any]:
        """Return the results of a record."""
        return {
            "searches": {
                name: {"p50_ms": self.times_ms[name], **_groups_json(figures)}
                for name, figures in self.searches.items()
            },
            "codes": dict(self._codes_json()),
            "reranking": None if self.reranking is None else _reranking_json(self.reranking),
            "filters_by_share_kept": {
                f"{row['share']:g}": {
                    "kept": row["kept"],
                    "exact": row["exact"],
                    "latency_ms": series(row["latency_ms"], "p50", "p95"),
                }
                for row in self.filters
            },
            "groups": {name: scores.to_json() for name, scores in self.groups.items()},
        }

    def _codes_json(self) -> Iterator[tuple[str, Any]]:
        for code, figures in self.code_figures:
            yield (
                f"{code.spec}, {code.dim} numbers",
                {
                    "dim": code.dim,
                    "recall": code.recall,
                    "vector_bytes": code.vector_bytes,
                    "search_ms": series(code.search_ms, "p50", "p95"),
                    **_groups_json(figures),
                },
            )
        for skipped in self.codes:
            if isinstance(skipped, SkippedCode):
                reason = {"dim": skipped.dim, "recall": None, "skipped": skipped.reason}
                yield f"{skipped.spec}, {skipped.dim} numbers", reason


def print_tables(results: SearchResults, console: Console) -> None:
    """Print a table of each part that was measured."""
    title = f"{results.count:,} named scenes, in %"
    console.print(_recall_table(results, (QueryKind.DESCRIBED, QueryKind.NAMED), title))
    console.print(_recall_table(results, (QueryKind.SHORT,), f"Short queries, {results.count:,} scenes, in %"))
    console.print(_codes_table(results))
    for code in results.codes:
        if isinstance(code, SkippedCode):
            console.print(f"{code.dim} numbers, {code.spec}: not measured, {code.reason}", soft_wrap=True)
    if results.reranking is None:
        console.print(
            f"Reranking: not measured, since the bundle {results.bundle} has no reranker",
            soft_wrap=True,
        )
    else:
        console.print(_reranking_table(results.reranking))
        console.print(_pairs_table(results.reranking))
    if results.filters:
        console.print(_filter_table(results))
    if results.groups:
        console.print(_groups_table(results))


def _recall_table(results: SearchResults, kinds: Sequence[QueryKind], title: str) -> Table:
    groups = [group for group in sorted(results.searches[BASELINE]) if group[0] in kinds]
    columns = [(group, name) for group in groups for name in _shown(group[0])]
    table = figures_table(["search"], [*(_head(*group, name) for group, name in columns), "ms"], title=title)
    for name, by_group in results.searches.items():
        cells = [_cell(measure, *by_group[group]) for group, measure in columns]
        table.add_row(name, *cells, figure(results.times_ms[name]))
    return table


def _codes_table(results: SearchResults) -> Table:
    groups = sorted(results.code_figures[0][1])
    heads = [*(_head(kind, lang, R1) for kind, lang in groups), "recall@10", "bytes a vector", "ms"]
    table = figures_table(["numbers", "code"], heads, title=f"Codes of {results.count:,} scenes, in %")
    for code, by_group in results.code_figures:
        cells = [_cell(R1, *by_group[group]) for group in groups]
        own = [f"{100 * code.recall:.1f}", figure(code.vector_bytes), figure(float(np.median(code.search_ms)))]
        table.add_row(str(code.dim), code.spec, *cells, *own)
    return table


def _reranking_table(result: RerankingResult) -> Table:
    towers, reranked = figures_of(result.towers), figures_of(result.reranked, result.towers)
    heads = [*(_head(kind, lang, R1) for kind, lang in towers), "ms"]
    table = figures_table(["hits"], heads, title=f"The first {CANDIDATES} reranked, in %")
    table.add_row("of the towers", *(_cell(R1, *found) for found in towers.values()), MISSING)
    cells = [_cell(R1, *found) for found in reranked.values()]
    table.add_row("reranked", *cells, figure(float(np.median(result.candidates_ms))))
    return table


def _pairs_table(result: RerankingResult) -> Table:
    table = figures_table(["pairs told apart"], list(Language), title="Scenes that exchanged colours or sides, in %")
    for name, shares in (("by the towers", result.pairs_by_towers), ("by the reranker", result.pairs_by_reranker)):
        table.add_row(name, *(_percent(shares[language]) for language in Language))
    return table


def _filter_table(results: SearchResults) -> Table:
    title = f"{results.filter_items:,} vectors of 128 numbers"
    table = figures_table(["filter"], ["matches", "p50 ms", "equal to NumPy"], title=title)
    for row in results.filters:
        name = "none" if row["share"] == 1 else f"matches {100 * row['share']:g}%"
        table.add_row(name, figure(row["kept"]), figure(float(np.median(row["latency_ms"]))), f"{row['exact']:.0%}")
    return table


def _groups_table(results: SearchResults) -> Table:
    heads = ["cosine", "second", "precision", "recall", *CopyChange]
    table = figures_table(["groups by"], heads, title=f"{results.copies:,} scenes with copies, pairs in %")
    for name, scores in results.groups.items():
        second = MISSING if scores.minimum is None else f"{scores.minimum:g}"
        changes = [f"{100 * scores.by_change[change]:.1f}" for change in CopyChange]
        percents = [_percent(scores.precision), _percent(scores.recall)]
        table.add_row(name, f"{scores.cosine:g}", second, *percents, *changes)
    return table


def _shown(kind: QueryKind) -> tuple[str, ...]:
    return (R1,) if kind is QueryKind.SHORT else (R1, R10)


def _head(kind: QueryKind, language: Language, name: str) -> str:
    measure = "P@1" if kind is QueryKind.SHORT else {R1: "R@1", R10: "R@10"}[name]
    return f"{kind} {language} {measure}"


def _cell(measure: str, values: Values, gains: Values | None) -> str:
    value = f"{100 * values[measure].value:.1f}"
    if gains is None:
        return value
    interval = gains[measure].interval
    return f"{value}\n{100 * interval.low:+.1f} {100 * interval.high:+.1f}"


def _percent(estimate: Estimate) -> str:
    between = estimate.interval
    return f"{100 * estimate.value:.1f} ({100 * between.low:.1f} to {100 * between.high:.1f})"


def _groups_json(figures: Figures) -> dict[str, Any]:
    """Return recall, of short queries the precision at 1, and its differences by kind of query and language."""
    document: dict[str, Any] = {}
    for (kind, language), (values, gains) in figures.items():
        plain = _p1 if kind is QueryKind.SHORT else _recalls
        group = {"precision" if kind is QueryKind.SHORT else "recall": plain(values)}
        above = {"above_baseline": plain(gains)} if gains is not None else {}
        document.setdefault(kind.value, {})[language.value] = group | above
    return document


def _recalls(values: Values) -> dict[str, Any]:
    return {measure: values[measure].to_json() for measure in (R1, R5, R10)}


def _p1(values: Values) -> dict[str, Any]:
    return {P1: values[R1].to_json()}


def _reranking_json(result: RerankingResult) -> dict[str, Any]:
    pairs = {"towers": result.pairs_by_towers, "reranker": result.pairs_by_reranker}
    return {
        "candidates": CANDIDATES,
        "towers": _groups_json(figures_of(result.towers)),
        "reranked": _groups_json(figures_of(result.reranked, result.towers)),
        "candidates_ms": series(result.candidates_ms, "p50", "p95"),
        "swap_pairs_told_apart": {
            name: {language.value: share.to_json() for language, share in shares.items()}
            for name, shares in pairs.items()
        },
    }
