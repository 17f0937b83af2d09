"""`twinspire bench recall`."""

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
    from twinspire_eval.recall import Estimate, Measure
    from twinspire_eval.recall.benchmark import RecallReport
    from twinspire_eval.records import Record

_WAYS = {"text_to_image": "caption", "image_to_text": "picture"}
"""What is asked with, by direction."""
_DATA_HELP = (
    "scenes:COUNT:SEED, or a file of captions or the folder with it: COCO's, Karpathy's, Flickr30k's, CSV, TSV, JSONL; "
    "coco:, karpathy:, flickr30k: or table: in front says which."
)


def recall(
    data: Annotated[str, typer.Option("--data", "-d", help=_DATA_HELP, show_default=False)],
    bundle: BundleOption = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", "-p", help="Engines to measure, such as fp32,int8, or auto; all if not given."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option("--language", "-l", help="Languages to ask in, such as en,zh; all if not given."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="The part of the data, such as Karpathy's test; or all.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the images, if it is not found.")] = None,
    limit: Annotated[int | None, typer.Option(help="Draw so many of the pictures.")] = None,
    seed: Annotated[int, typer.Option(help="What --limit draws with.")] = 0,
    provider: Annotated[str, typer.Option(help="What runs the engines: auto, cpu, openvino or cuda.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the record to this file.")] = None,
    _smoke: Annotated[bool, smoke_option(limit=20)] = False,
) -> None:
    """Measure how often captions find their images, and images their captions.

    R@k is the share of queries that find one of their own among the first k. Below each figure stands where it lies
    with 95% confidence. Engines after the first are compared with it, or with fp32, on the same queries.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from twinspire import Bundle, Client, sample_bundle
    from twinspire_eval.datasets import open_dataset
    from twinspire_eval.recall.benchmark import measure_recall
    from twinspire_eval.tables import figures_console

    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise InputError(f"the record cannot be written to {json_file}: it is a folder, or its folder is missing")
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
        tasks = {stage: bar.add_task(stage, total=None) for stage in ("pictures", "captions")}

        def tell(stage: str, done: int, total: int) -> None:
            bar.update(tasks[stage], completed=done, total=total)

        reference = "fp32" if "fp32" in chosen else chosen[0]
        report = measure_recall(clients, captioned, languages=_words(language), reference=reference, on_progress=tell)
        runtimes = {name: _runtime(client) for name, client in clients.items()}
    _print(report, runtimes, figures_console())
    if json_file is not None:
        _record(report, opened, runtimes, spec=data).save(json_file)


def _words(values: list[str] | None) -> list[str] | None:
    """Take apart what came with commas between, none twice."""
    return list(dict.fromkeys(word for value in values for word in value.split(","))) if values else None


def _precisions(bundle: Bundle, asked: list[str] | None) -> list[str]:
    """Return what to measure: what was asked for, or every precision that both towers have."""
    from twinspire.bundle import Precision, Tower

    if not asked:
        return [name.value for name in Precision if all(name in bundle.precisions(tower) for tower in Tower)]
    unknown = [name for name in asked if name not in ("auto", *Precision)]
    if unknown:
        raise InputError(f"precision {unknown[0]!r}: expected auto, {', '.join(Precision)}")
    return asked


def _runtime(client: Client) -> Runtime:
    from twinspire import LocalTowers

    assert isinstance(client.towers, LocalTowers)
    return client.towers.runtime


def _record(report: RecallReport, bundle: Bundle, runtimes: dict[str, Runtime], *, spec: str) -> Record:
    from twinspire.bundle import Tower
    from twinspire_eval.records import Record

    engines = {
        name: {"runtime": str(runtime)}
        | {f"{tower}_sha256": bundle.manifest.engines[tower][runtime.precision].sha256 for tower in Tower}
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
    """Print the engines' figures, then what each has above the reference."""

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    counts = ", ".join(
        f"{count:,} captions ({language})" for language, count in report.parameters()["captions"].items()
    )
    say(f"{report.data.name}: {len(report.data):,} pictures, {counts}")
    for name, runtime in runtimes.items():
        say(f"{name}: {runtime}")
    say("\nRecall, MRR and mAP in %, recall with its 95% interval; the median rank counts from 1")
    found = _table()
    for engine, by_language in report.figures.items():
        for language, both in by_language.items():
            for way, figures in both.items():
                found.add_row(engine, language, _WAYS[way], *_cells(figures, "{:.1f}"))
    console.print(found)
    for engine, loss in report.losses.items():
        say(f"\n{engine} above {report.reference}, in points; pooled: the mean of all rows")
        above = _table()
        above.add_row(engine, "", "pooled", *_cells(loss.pooled, "{:+.2f}"))
        for language, both in loss.each.items():
            for way, figures in both.items():
                above.add_row(engine, language, _WAYS[way], *_cells(figures, "{:+.2f}"))
        console.print(above)


def _table() -> Table:
    from twinspire_eval.tables import figures_table

    table = figures_table(["engine", "", "query"], ["R@1", "R@5", "R@10", "median", "MRR", "mAP"])
    for column in table.columns:
        column.no_wrap, column.overflow = False, "fold"  # a narrow terminal breaks intervals, it cuts none
    return table


def _cells(figures: Mapping[Measure, Estimate], form: str) -> Iterator[Text]:
    """Write each figure, and below recall where it lies: shares in percent, as published tables have them."""
    from rich.text import Text

    from twinspire_eval.recall import Measure

    for measure, estimate in figures.items():
        if measure is Measure.MEDIAN_RANK:
            yield Text(f"{estimate.value:g}")
            continue
        value, low, high = (
            form.format(100 * share) for share in (estimate.value, estimate.interval.low, estimate.interval.high)
        )
        is_recall = measure in (Measure.R1, Measure.R5, Measure.R10)
        yield Text.assemble((value, "bold"), (f"\n{low} {high}", "dim") if is_recall else "")
