"""`twinspire bench recall`: recall of a model's engines on captioned images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.shared import BundleOption
from twinspire.errors import InputError
from twinspire_eval.smoke import smoke_option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from twinspire import Bundle
    from twinspire.towers import Runtime
    from twinspire_eval.recall import Estimate
    from twinspire_eval.recall.benchmark import RecallReport
    from twinspire_eval.records import Record

_QUERY_NAMES = {"text_to_image": "caption", "image_to_text": "image", "text_to_text": "caption"}
"""Names of the queries in tables, by direction."""
_DATA_HELP = (
    "Data set: scenes:COUNT:SEED, or a captions file (COCO, Karpathy, Flickr30k, CSV, TSV or JSONL) or its folder; "
    "a prefix coco:, karpathy:, flickr30k:, table:, coco-cn:, flickr30k-cn:, muge:, xflickrco: or xm3600: sets the "
    "format; with --reproduce it may be repeated; captions:PATH leaves the images out, and a "
    "caption finds the other captions of its image."
)


def recall(
    data: Annotated[list[str], typer.Option("--data", "-d", help=_DATA_HELP, show_default=False)],
    bundle: BundleOption = None,
    form: Annotated[
        str | None, typer.Option("--format", help="Form of the data set, as a prefix of --data: coco-cn, muge, ...")
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", "-p", help="Precisions to measure, such as fp32,int8 or auto; by default all."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option("--language", "-l", help="Languages of the captions, such as en,zh; by default all."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data set, such as test of Karpathy's, or all.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, if not beside the captions.")] = None,
    dim: Annotated[
        list[int] | None,
        typer.Option(
            "--dim",
            min=1,
            help="Length to cut embeddings to and measure as well, shown as PRECISION:DIM; may be repeated; by default "
            "all that the bundle allows.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take a random sample of this many images.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample that --limit takes.")] = 0,
    provider: Annotated[str, typer.Option(help="Execution provider: auto, cpu, openvino or cuda.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the record to this file too.")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--published", help="Checkpoint whose published recall is shown; by default the one of the bundle."
        ),
    ] = None,
    reproduce: Annotated[
        bool, typer.Option("--reproduce", help="Measure every precision on each --data, and print one table for all.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="With --reproduce: folder to write recall.json, recall.md and recall.png to."),
    ] = None,
    _smoke: Annotated[bool, smoke_option(limit=20)] = False,
) -> None:
    """Measure how often captions find their images and images their captions, or captions each other.

    R@k is the share of queries with an own item among the first k results. Below each value stands its 95% confidence
    interval. Scenes are also searched by short queries, "a red car", each with all images that show one: P@1 is the
    share whose first image is right. Other engines are compared with fp32, or with the first one where fp32 is not
    measured, on the same queries; so are embeddings that are cut to the lengths that the bundle allows. Of a published
    test set, recall that is published of the same checkpoint is shown beside one's own.
    """
    from twinspire import Bundle, sample_bundle
    from twinspire_bench.recall_engines import measure_engines, precisions_of, shorter_dims
    from twinspire_bench.reproduce import ReproduceRequest, run_reproduction
    from twinspire_eval.datasets import open_dataset
    from twinspire_eval.published import check_published_checkpoint
    from twinspire_eval.records import check_record_path
    from twinspire_eval.tables import figures_console

    specs = [spec if form is None else f"{form}:{spec}" for spec in data]
    if checkpoint is not None:
        check_published_checkpoint(checkpoint)
    if reproduce:
        if dim:
            raise InputError("--dim is for one data set: leave it out, or --reproduce", option="--dim")
        run_reproduction(
            ReproduceRequest(
                data=specs,
                bundle=bundle,
                precisions=_words(precision),
                languages=_words(language),
                checkpoint=checkpoint,
                images=images,
                split=split,
                limit=limit,
                seed=seed,
                provider=provider,
                out=out,
                json_file=json_file,
            )
        )
        return
    if len(specs) > 1 or out is not None:
        raise InputError("several --data and --out belong to --reproduce: add it, or measure one data set")
    check_record_path(json_file)
    captioned = open_dataset(specs[0], images=images, split=split, limit=limit, seed=seed)
    opened = Bundle.open(bundle if bundle is not None else sample_bundle())
    report, runtimes = measure_engines(
        opened,
        precisions_of(opened, _words(precision)),
        captioned,
        provider=provider,
        languages=_words(language),
        dims=shorter_dims(opened, dim),
    )
    _print(report, runtimes, figures_console())
    _print_published(report, checkpoint or opened.manifest.source.checkpoint, figures_console())
    if json_file is not None:
        _record(report, opened, runtimes, spec=specs[0]).save(json_file)


def _words(values: list[str] | None) -> list[str] | None:
    """Split the values at commas, without repetitions."""
    return list(dict.fromkeys(word for value in values for word in value.split(","))) if values else None


def _record(report: RecallReport, bundle: Bundle, runtimes: dict[str, Runtime], *, spec: str) -> Record:
    from twinspire_bench.recall_engines import engines_subject
    from twinspire_eval.records import Record

    return Record(
        kind="recall",
        parameters=report.parameters(),
        subject={
            "bundle": bundle.name,
            "space": bundle.space,
            "data": report.data.name,
            "data_spec": spec,
            "engines": engines_subject(bundle, runtimes),
        },
        results=report.results(),
    )


def _print(report: RecallReport, runtimes: dict[str, Runtime], console: Console) -> None:
    """Print the metrics of each engine, then the difference of each other engine to the reference."""

    def line(text: str) -> None:
        console.print(text, soft_wrap=True)

    counts = ", ".join(
        f"{count:,} captions ({language})" for language, count in report.parameters()["captions"].items()
    )
    line(f"{report.data.name}: {len(report.data):,} images, {counts}")
    if report.data.note:
        line(report.data.note)
    for name, runtime in runtimes.items():
        line(f"{name}: {runtime}")
    line("\nRecall, MRR and mAP in %, recall with its 95% confidence interval; ranks start at 1")
    found = _table()
    for engine, by_language in report.figures.items():
        for language, both in by_language.items():
            for direction, figures in both.items():
                found.add_row(engine, language, _QUERY_NAMES[direction], *_cells(figures, "{:.1f}"))
    console.print(found)
    for engine, loss in report.losses.items():
        line(f"\n{engine} above {report.reference}, in percentage points; pooled: the mean of all rows")
        above = _table()
        above.add_row(engine, "", "pooled", *_cells(loss.pooled, "{:+.2f}"))
        for language, both in loss.by_language.items():
            for direction, figures in both.items():
                above.add_row(engine, language, _QUERY_NAMES[direction], *_cells(figures, "{:+.2f}"))
        console.print(above)
    _print_queries(report, console)


def _print_queries(report: RecallReport, console: Console) -> None:
    """Print P@1 and mAP of the data set's short queries, if it has any, and the difference to the reference."""
    from twinspire_eval.recall import MAP, P1
    from twinspire_eval.tables import figures_table

    queries = report.queries
    if not queries.queries:
        return
    counts = ", ".join(f"{count:,} ({language})" for language, count in queries.queries.items())
    console.print(
        f"\nShort queries, {counts}: P@1, the share whose first image is right, and mAP in % with their 95% confidence "
        "intervals",
        soft_wrap=True,
    )
    heads = ["P@1", "mAP"]
    if queries.losses:
        heads += [f"{head} above {report.reference}, points" for head in heads]
    table = figures_table(["engine", "language"], heads)
    for engine, by_language in queries.figures.items():
        for language, found in by_language.items():
            cells = [_with_interval(found[name], "{:.1f}") for name in (P1, MAP)]
            if engine in queries.losses:
                loss = queries.losses[engine][language]
                cells += [_with_interval(loss[name], "{:+.2f}") for name in (P1, MAP)]
            table.add_row(engine, language, *cells)
    console.print(table)


def _print_published(report: RecallReport, checkpoint: str, console: Console) -> None:
    """Print the recall that is published of the checkpoint on this test set beside the measured one, if any."""
    from twinspire_bench.reproduce import rows_of
    from twinspire_eval.tables import figures_table

    rows = [row for row in rows_of(report, checkpoint) if row.published is not None]
    if not rows:
        return
    console.print("\nRecall in % and what is published of this checkpoint", soft_wrap=True)
    columns = [f"{label} {name}" for label in ("R@1", "R@5", "R@10") for name in ("measured", "published")]
    table = figures_table(["engine", "language", "query"], columns)
    for row in rows:
        pairs = zip(("r1", "r5", "r10"), row.published or (), strict=True)
        cells = [f"{100 * share:.1f}" for name, other in pairs for share in (row.figures[name].value, other)]
        table.add_row(row.engine, row.language, _QUERY_NAMES[row.direction], *cells)
    console.print(table)
    for source in dict.fromkeys(row.source for row in rows):
        console.print(f"published: {source}", soft_wrap=True)


def _table() -> Table:
    from twinspire_eval.recall import METRICS
    from twinspire_eval.tables import figures_table

    table = figures_table(["engine", "language", "query"], [metric.label for metric in METRICS.values()])
    for column in table.columns:
        column.no_wrap, column.overflow = False, "fold"  # wrap intervals on a narrow terminal instead of cutting them
    return table


def _cells(figures: Mapping[str, Estimate], form: str) -> Iterator[Text]:
    """Format each metric with its interval below it where the table shows one; shares in percent, as in papers."""
    from rich.text import Text

    from twinspire_eval.recall import METRICS

    for name, estimate in figures.items():
        metric = METRICS[name]
        if not metric.is_share:
            yield Text(f"{estimate.value:g}")
            continue
        yield _with_interval(estimate, form, shows_interval=metric.shows_interval)


def _with_interval(estimate: Estimate, form: str, *, shows_interval: bool = True) -> Text:
    """Format a share in percent, with its interval below it."""
    from rich.text import Text

    value, low, high = (
        form.format(100 * share) for share in (estimate.value, estimate.interval.low, estimate.interval.high)
    )
    return Text.assemble((value, "bold"), (f"\n{low} {high}", "dim") if shows_interval else "")
