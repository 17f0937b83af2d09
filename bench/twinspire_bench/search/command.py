"""`twinspire bench search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinspire.cli.shared import BundleOption
from twinspire_eval.smoke import smoke_option


def search(
    bundle: BundleOption = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Number of scenes, 8 or more.")] = 2_000,
    queries: Annotated[
        int, typer.Option(min=0, help="Number of images, sampled, that are asked for in four queries each; 0: all.")
    ] = 500,
    seed: Annotated[int, typer.Option(help="Seed of scenes, names and queries.")] = 101,
    filter_items: Annotated[
        int, typer.Option(min=0, help="Number of vectors to search with filters; 0: none.")
    ] = 50_000,
    copies: Annotated[
        int, typer.Option(min=0, help="Number of scenes with near-equal copies to group; 0: none.")
    ] = 200,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the record to this file.")] = None,
    _smoke: Annotated[bool, smoke_option(count=24, queries=0, filter_items=1_000, copies=6)] = False,
) -> None:
    """Measure the recall of vector, keyword and hybrid search, short queries, codes, reranking, filters, and groups.

    Generated scenes have invented names, which no model knows, in captions or file names. Queries describe an image in
    other words than its caption, with or without the name. R@k is the share of queries that find their image among the
    first k hits. Short queries name an object and its colour, "a red car": P@1 is the share whose first hit shows one.
    Below each figure is the difference to the first row of its table, with 95% confidence.

    Codes are index families over each length of the embeddings that the bundle allows. Reranking, of bundles with a
    reranker, reorders the first 20 hits and tells apart scenes whose objects have exchanged colours or sides.

    Copies are scenes that were re-encoded, cropped and recoloured, beside other images of the same description. Groups
    are right by pairs: precision and recall with 95% confidence, of the product's defaults and of the thresholds that
    are best on another seed.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from twinspire import Bundle, Client, sample_bundle
    from twinspire_bench.search.codes import measure_codes
    from twinspire_bench.search.duplicates import measure_duplicates
    from twinspire_bench.search.inputs import named_scenes, scene_queries
    from twinspire_bench.search.measure import encode_scenes, measure_filters, measure_search
    from twinspire_bench.search.report import SearchResults, print_tables
    from twinspire_bench.search.reranking import measure_reranking
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

        scenes = named_scenes(count, seed=seed)
        asked = scene_queries(scenes, seed=seed, images=queries or None)
        images = encode_scenes(client, scenes, show_progress)
        rankings, times_ms = measure_search(client, scenes, images, asked, on_progress=show_progress)
        results = SearchResults(
            bundle=opened.name,
            count=count,
            rankings=rankings,
            times_ms=times_ms,
            codes=list(measure_codes(client, images, asked)),
            reranking=measure_reranking(client, scenes, images, asked, seed=seed, on_progress=show_progress),
            filters=measure_filters(count=filter_items, seed=seed) if filter_items else [],
            filter_items=filter_items,
            groups=measure_duplicates(client, count=copies, seed=seed, on_progress=show_progress) if copies else {},
            copies=copies,
        )
    print_tables(results, figures_console())
    if json_file is not None:
        parameters = {
            "count": count,
            "queries": queries,
            "seed": seed,
            "filter_items": filter_items,
            "copies": copies,
            "k": 10,
        }
        subject = {"bundle": opened.name, "space": opened.space}
        Record(kind="search", parameters=parameters, results=results.to_json(), subject=subject).save(json_file)
