"""`twinspire bench search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinspire.cli.shared import BundleOption
from twinspire_eval.smoke import smoke_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinspire_bench.search.duplicates import GroupScores
    from twinspire_bench.search.measure import Groups
    from twinspire_eval.recall import Estimate


def search(
    bundle: BundleOption = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Number of scenes, 8 or more.")] = 2_000,
    seed: Annotated[int, typer.Option(help="Seed of scenes, names and queries.")] = 101,
    filter_items: Annotated[
        int, typer.Option(min=0, help="Number of vectors to search with filters; 0: none.")
    ] = 50_000,
    copies: Annotated[
        int, typer.Option(min=0, help="Number of scenes with near-equal copies to group; 0: none.")
    ] = 200,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the record to this file.")] = None,
    _smoke: Annotated[bool, smoke_option(count=24, filter_items=1_000, copies=6)] = False,
) -> None:
    """Measure the recall of vector, keyword and hybrid search, the latency of filters, and groups of copies.

    Generated scenes have invented names, which no model knows, in captions or file names. Queries describe an image in
    other words than its caption, with or without the name. R@k is the share of queries that find their image among the
    first k hits; below it is the difference to vector search, with 95% confidence.

    Copies are scenes that were re-encoded, cropped and recoloured, beside other images of the same description. Groups
    are right by pairs: precision and recall with 95% confidence, of the product's defaults and of the thresholds that
    are best on another seed.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from twinspire import Bundle, Client, sample_bundle
    from twinspire_bench.search.duplicates import measure_duplicates
    from twinspire_bench.search.measure import measure_filters, measure_search
    from twinspire_eval.records import Record, check_record_path
    from twinspire_eval.tables import figures_console

    check_record_path(json_file)
    opened = Bundle.open(bundle if bundle is not None else sample_bundle())
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with (
        Client.local(opened) as client,
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
    ):
        task = bar.add_task("", total=None)

        def show_progress(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        rankings, times_ms = measure_search(client, count=count, seed=seed, on_progress=show_progress)
        groups = measure_duplicates(client, count=copies, seed=seed, on_progress=show_progress) if copies else {}
    filters = measure_filters(count=filter_items, seed=seed) if filter_items else []
    console = figures_console()
    figures = _estimated(rankings)
    console.print(_recall_table(figures, times_ms, count))
    if filters:
        console.print(_filter_table(filters, filter_items))
    if groups:
        console.print(_groups_table(groups, copies))
    if json_file is not None:
        subject = {"bundle": opened.name, "space": opened.space}
        parameters = {"count": count, "seed": seed, "filter_items": filter_items, "copies": copies, "k": 10}
        results = _results(figures, times_ms, filters)
        results["groups"] = {name: scores.to_json() for name, scores in groups.items()}
        Record(kind="search", parameters=parameters, results=results, subject=subject).save(json_file)


Figures = dict[str, dict[tuple[str, str], tuple[dict[Any, Any], dict[Any, Any] | None]]]
"""By setup and group: the estimates, and their differences to those of vector search."""


def _estimated(rankings: Mapping[str, Groups]) -> Figures:
    from twinspire_bench.search.measure import BASELINE
    from twinspire_eval.recall import difference, estimates

    return {
        name: {
            group: (
                estimates(ranking),
                difference([rankings[BASELINE][group]], [ranking]) if name != BASELINE else None,
            )
            for group, ranking in groups.items()
        }
        for name, groups in rankings.items()
    }


def _recall_table(figures: Figures, times_ms: Mapping[str, float], count: int) -> Any:  # noqa: ANN401 - rich's table
    from twinspire_bench.search.measure import BASELINE
    from twinspire_eval.recall import R1, R10
    from twinspire_eval.tables import figure, figures_table

    groups = sorted(figures[BASELINE])
    heads = [f"{queries} {language} R@{k}" for queries, language in groups for k in (1, 10)]
    table = figures_table(["search"], [*heads, "ms"], title=f"{count:,} named scenes, R@k in %")
    for name, by_group in figures.items():
        cells = [_cell(measure, *by_group[group]) for group in groups for measure in (R1, R10)]
        table.add_row(name, *cells, figure(times_ms[name]))
    return table


def _cell(measure: str, values: Mapping[str, Estimate], gains: Mapping[str, Estimate] | None) -> str:
    value = f"{100 * values[measure].value:.1f}"
    if gains is None:
        return value
    interval = gains[measure].interval
    return f"{value}\n{100 * interval.low:+.1f} {100 * interval.high:+.1f}"


def _filter_table(filters: list[dict[str, Any]], count: int) -> Any:  # noqa: ANN401 - rich's table
    import numpy as np

    from twinspire_eval.tables import figure, figures_table

    table = figures_table(
        ["filter"], ["matches", "p50 ms", "equal to NumPy"], title=f"{count:,} vectors of 128 numbers"
    )
    for row in filters:
        name = "none" if row["share"] == 1 else f"matches {100 * row['share']:g}%"
        table.add_row(name, figure(row["kept"]), figure(float(np.median(row["latency_ms"]))), f"{row['exact']:.0%}")
    return table


def _groups_table(groups: Mapping[str, GroupScores], count: int) -> Any:  # noqa: ANN401 - rich's table
    from twinspire_bench.search.copies import CopyChange
    from twinspire_eval.tables import MISSING, figures_table

    def percent(estimate: Estimate) -> str:
        between = estimate.interval
        return f"{100 * estimate.value:.1f} ({100 * between.low:.1f} to {100 * between.high:.1f})"

    heads = ["cosine", "second", "precision", "recall", *CopyChange]
    table = figures_table(["groups by"], heads, title=f"{count:,} scenes with copies, pairs in %")
    for name, scores in groups.items():
        second = MISSING if scores.minimum is None else f"{scores.minimum:g}"
        changes = [f"{100 * scores.by_change[change]:.1f}" for change in CopyChange]
        table.add_row(name, f"{scores.cosine:g}", second, percent(scores.precision), percent(scores.recall), *changes)
    return table


def _results(figures: Figures, times_ms: Mapping[str, float], filters: list[dict[str, Any]]) -> dict[str, Any]:
    from twinspire_eval.records import series

    searches: dict[str, Any] = {}
    for name, by_group in figures.items():
        searches[name] = {"p50_ms": times_ms[name]}
        for (queries, language), (values, gains) in by_group.items():
            group = {"recall": _plain(values)} | ({"above_baseline": _plain(gains)} if gains is not None else {})
            searches[name].setdefault(queries, {})[language] = group
    shares = {
        f"{row['share']:g}": {
            "kept": row["kept"],
            "exact": row["exact"],
            "latency_ms": series(row["latency_ms"], "p50", "p95"),
        }
        for row in filters
    }
    return {"searches": searches, "filters_by_share_kept": shares}


def _plain(values: Mapping[str, Estimate]) -> dict[str, Any]:
    from twinspire_eval.recall import R1, R5, R10

    return {measure: values[measure].to_json() for measure in (R1, R5, R10)}
