"""`twinspire bench search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinspire.cli.shared import BundleOption
from twinspire.errors import InputError
from twinspire_eval.smoke import smoke_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinspire_bench.search.measure import Groups
    from twinspire_eval.recall import Estimate

REFERENCE = "vectors"


def search(
    bundle: BundleOption = None,
    count: Annotated[int, typer.Option("-n", "--count", help="How many scenes, 8 or more.")] = 2_000,
    seed: Annotated[int, typer.Option(help="What scenes, names and queries are drawn with.")] = 101,
    filter_items: Annotated[int, typer.Option(min=0, help="How many vectors to filter; 0: none.")] = 50_000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the record to this file.")] = None,
    _smoke: Annotated[bool, smoke_option(count=24, filter_items=1_000)] = False,
) -> None:
    """Measure what words beside vectors, captions in vectors, templates and filters bring to a search.

    Drawn scenes get names that no model can know, in captions or file names. Queries describe an image in other words
    than its caption, or say the name as well. R@k is the share of queries that find their image among the first k;
    behind it stands by how much that is above vectors alone, with 95% confidence.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from twinspire import Bundle, Client, sample_bundle
    from twinspire_bench.search.measure import measure_filters, measure_search
    from twinspire_eval.tables import figures_console

    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise InputError(f"the record cannot be written to {json_file}: it is a folder, or its folder is missing")
    opened = Bundle.open(bundle if bundle is not None else sample_bundle())
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with (
        Client.local(opened) as client,
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
    ):
        task = bar.add_task("", total=None)

        def tell(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        rankings, times_ms = measure_search(client, count=count, seed=seed, on_progress=tell)
    filters = measure_filters(count=filter_items, seed=seed) if filter_items else []
    console = figures_console()
    found = _estimated(rankings)
    console.print(_recall_table(found, times_ms, count))
    if filters:
        console.print(_filter_table(filters, filter_items))
    if json_file is not None:
        from twinspire_eval.records import Record

        subject = {"bundle": opened.name, "space": opened.space}
        parameters = {"count": count, "seed": seed, "filter_items": filter_items, "k": 10}
        Record(kind="search", parameters=parameters, results=_results(found, times_ms, filters), subject=subject).save(
            json_file
        )


Figures = dict[str, dict[tuple[str, str], tuple[dict[Any, Any], dict[Any, Any] | None]]]
"""By contestant and group: the estimates, and by how much they are above those of vectors alone."""


def _estimated(rankings: Mapping[str, Groups]) -> Figures:
    from twinspire_eval.recall import difference, estimates

    return {
        name: {
            group: (
                estimates(ranking),
                difference([rankings[REFERENCE][group]], [ranking]) if name != REFERENCE else None,
            )
            for group, ranking in groups.items()
        }
        for name, groups in rankings.items()
    }


def _recall_table(found: Figures, times_ms: Mapping[str, float], count: int) -> Any:  # noqa: ANN401 - rich's table
    from twinspire_eval.recall import R1, R10
    from twinspire_eval.tables import figure, figures_table

    groups = sorted(found[REFERENCE])
    heads = [f"{kind} {language} R@{k}" for kind, language in groups for k in (1, 10)]
    table = figures_table(["search"], [*heads, "ms"], title=f"{count:,} named scenes, R@k in %")
    for name, by_group in found.items():
        cells = [_cell(measure, *by_group[group]) for group in groups for measure in (R1, R10)]
        table.add_row(name, *cells, figure(times_ms[name]))
    return table


def _cell(measure: str, values: Mapping[str, Estimate], above: Mapping[str, Estimate] | None) -> str:
    value = f"{100 * values[measure].value:.1f}"
    if above is None:
        return value
    interval = above[measure].interval
    return f"{value}\n{100 * interval.low:+.1f} {100 * interval.high:+.1f}"


def _filter_table(filters: list[dict[str, Any]], count: int) -> Any:  # noqa: ANN401 - rich's table
    import numpy as np

    from twinspire_eval.tables import figure, figures_table

    table = figures_table(["filter"], ["kept", "p50 ms", "as NumPy"], title=f"{count:,} vectors of 128 numbers")
    for row in filters:
        name = "none" if row["share"] == 1 else f"keeps {100 * row['share']:g}%"
        table.add_row(name, figure(row["kept"]), figure(float(np.median(row["latency_ms"]))), f"{row['exact']:.0%}")
    return table


def _results(found: Figures, times_ms: Mapping[str, float], filters: list[dict[str, Any]]) -> dict[str, Any]:
    from twinspire_eval.records import series

    searches: dict[str, Any] = {}
    for name, by_group in found.items():
        searches[name] = {"p50_ms": times_ms[name]}
        for (kind, language), (values, above) in by_group.items():
            figures = {"recall": _plain(values)} | ({"above_vectors": _plain(above)} if above is not None else {})
            searches[name].setdefault(kind, {})[language] = figures
    shares = {
        f"{row['share']:g}": {
            "kept": row["kept"],
            "exact": row["exact"],
            "latency_ms": series(row["latency_ms"], "p50", "p95"),
        }
        for row in filters
    }
    return {"searches": searches, "filters_by_share_kept": shares}


def _plain(found: Mapping[str, Estimate]) -> dict[str, Any]:
    from twinspire_eval.recall import R1, R5, R10

    return {
        measure: {
            "value": found[measure].value,
            "low": found[measure].interval.low,
            "high": found[measure].interval.high,
        }
        for measure in (R1, R5, R10)
    }
