"""`twinspire bench recall`: recall of a model's engines on captioned images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
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

    from twinspire import Bundle, Client
    from twinspire.towers import Runtime
    from twinspire_eval.recall import Estimate
    from twinspire_eval.recall.benchmark import RecallReport
    from twinspire_eval.records import Record

_QUERY_NAMES = {"text_to_image": "caption", "image_to_text": "image", "text_to_text": "caption"}
"""Names of the queries in tables, by direction."""
_DATA_HELP = (
    "Data set: scenes:COUNT:SEED, or a captions file (COCO, Karpathy, Flickr30k, CSV, TSV or JSONL) or its folder; "
    "a prefix coco:, karpathy:, flickr30k: or table: sets the format; captions:PATH leaves the images out, and a "
    "caption finds the other captions of its image."
)


def recall(
    data: Annotated[str, typer.Option("--data", "-d", help=_DATA_HELP, show_default=False)],
    bundle: BundleOption = None,
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
    limit: Annotated[int | None, typer.Option(help="Take a random sample of this many images.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sample that --limit takes.")] = 0,
    provider: Annotated[str, typer.Option(help="Execution provider: auto, cpu, openvino or cuda.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the record to this file too.")] = None,
    _smoke: Annotated[bool, smoke_option(limit=20)] = False,
) -> None:
    """Measure how often captions find their images and images their captions, or captions each other.

    R@k is the share of queries with an own item among the first k results. Below each value stands its 95% confidence
    interval. Other engines are compared with fp32, or with the first one where fp32 is not measured, on the same
    queries.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from twinspire import Bundle, Client, sample_bundle
    from twinspire_eval.datasets import open_dataset
    from twinspire_eval.recall.benchmark import measure_recall
    from twinspire_eval.records import check_record_path
    from twinspire_eval.tables import figures_console

    check_record_path(json_file)
    captioned = open_dataset(data, images=images, split=split, limit=limit, seed=seed)
    opened = Bundle.open(bundle if bundle is not None else sample_bundle())
    chosen = _precisions(opened, _words(precision))
    with (
        ExitStack() as stack,
        Progress(
            *Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
        ) as bar,
    ):
        clients = {
            name: stack.enter_context(Client.local(opened, precision=name, provider=provider)) for name in chosen
        }
        tasks = {stage: bar.add_task(stage, total=None) for stage in ("images", "captions")}

        def advance(stage: str, done: int, total: int) -> None:
            bar.update(tasks[stage], completed=done, total=total)

        reference = "fp32" if "fp32" in chosen else chosen[0]
        report = measure_recall(
            clients, captioned, languages=_words(language), reference=reference, on_progress=advance
        )
        runtimes = {name: _runtime(client) for name, client in clients.items()}
    _print(report, runtimes, figures_console())
    if json_file is not None:
        _record(report, opened, runtimes, spec=data).save(json_file)


def _words(values: list[str] | None) -> list[str] | None:
    """Split the values at commas, without repetitions."""
    return list(dict.fromkeys(word for value in values for word in value.split(","))) if values else None


def _precisions(bundle: Bundle, names: list[str] | None) -> list[str]:
    """Return the precisions to measure: `names`, or every one that both towers have."""
    from twinspire.bundle import Precision

    if not names:
        return [name.value for name in Precision if all(name in bundle.precisions(tower) for tower in bundle.towers)]
    unknown = [name for name in names if name not in ("auto", *Precision)]
    if unknown:
        raise InputError(f"unknown precision {unknown[0]!r}: expected auto, {', '.join(Precision)}")
    return names


def _runtime(client: Client) -> Runtime:
    from twinspire import LocalTowers

    assert isinstance(client.towers, LocalTowers)
    return client.towers.runtime


def _record(report: RecallReport, bundle: Bundle, runtimes: dict[str, Runtime], *, spec: str) -> Record:
    from twinspire_eval.records import Record

    engines = {
        name: {"runtime": str(runtime)}
        | {f"{tower}_sha256": bundle.manifest.engines[tower][runtime.precision].sha256 for tower in bundle.towers}
        for name, runtime in runtimes.items()
    }
    return Record(
        kind="recall",
        parameters=report.parameters(),
        subject={
            "bundle": bundle.name,
            "space": bundle.space,
            "data": report.data.name,
            "data_spec": spec,
            "engines": engines,
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
        value, low, high = (
            form.format(100 * share) for share in (estimate.value, estimate.interval.low, estimate.interval.high)
        )
        yield Text.assemble((value, "bold"), (f"\n{low} {high}", "dim") if metric.shows_interval else "")
