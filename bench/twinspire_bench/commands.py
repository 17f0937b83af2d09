"""The commands `twinspire bench`, `twinspire scenes` and `twinspire tune`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from twinspire.cli.shared import BundleOption
from twinspire.errors import InputError
from twinspire_bench.index.command import index
from twinspire_bench.peers.command import peers
from twinspire_bench.recall import recall
from twinspire_bench.search.command import search
from twinspire_bench.tracking import command as tracking
from twinspire_bench.tune.command import tune
from twinspire_eval.scenes.description import Contrast, Split
from twinspire_eval.smoke import smoke_option

Value = TypeVar("Value", int, float)

bench = typer.Typer(help="Measure speed and recall, and compare what was measured.", no_args_is_help=True)
bench.command()(recall)
bench.command()(index)
bench.command()(search)
bench.command()(peers)
for command in (tracking.run, tracking.history, tracking.report, tracking.gate):
    bench.command()(command)
scenes = typer.Typer(help="Draw synthetic scenes with captions in English and Chinese.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
    app.add_typer(scenes, name="scenes")
    app.add_typer(bench, name="bench")
    app.command()(tune)


@bench.callback()
def group() -> None:
    """Measure speed and recall, and compare what was measured."""


@bench.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Record, as --json writes it.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another record of the same machine.", show_default=False)],
) -> None:
    """Compare the results of two records: both values and the ratio of B to A.

    Both records must be of the same benchmark, machine and parameters.
    """
    from twinspire_eval.comparison import compare as compare_records
    from twinspire_eval.records import Record
    from twinspire_eval.tables import figure, figures_console, figures_table, spread

    found = compare_records(Record.load(a), Record.load(b))
    table = figures_table(["result"], ["A", "B", "B / A", "95% interval"])
    for result in found:
        row = [figure(result.a), figure(result.b), figure(result.ratio), spread(result.interval)]
        table.add_row(" · ".join(result.name), *row)
    figures_console().print(table)


@bench.command()
def latency(
    bundle: BundleOption = None,
    precision: Annotated[
        list[str] | None, typer.Option("--precision", "-p", help="Precisions of the engines; by default all.")
    ] = None,
    provider: Annotated[
        list[str] | None, typer.Option(help="Execution providers, such as cpu,openvino; by default all.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of a call; by default one per core.")] = None,
    streams: Annotated[list[str] | None, typer.Option(help="Streams: parallel parts of a call; by default 1.")] = None,
    batch: Annotated[
        list[str] | None, typer.Option(help="Images or texts per call; by default 1,8,32, for a server 1.")
    ] = None,
    lengths: Annotated[
        list[str] | None, typer.Option(help="Token ids of a text; by default 8,16 and the context length.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Measure a server of the bundle, at HOST:PORT.")] = None,
    in_flight: Annotated[
        list[str] | None, typer.Option(help="Calls in flight; by default 1, for a server 1,16.")
    ] = None,
    rate: Annotated[list[str] | None, typer.Option(help="Also measure open loops at this many calls/s.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures every case once.")] = 10,
    visit: Annotated[
        float | None, typer.Option(help="Seconds of a case in a round; by default 0.2, for a server 1.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the record to this file too.")] = None,
    _smoke: Annotated[bool, smoke_option(rounds=1, visit=0.01)] = False,
) -> None:
    """Measure latency and throughput of the towers, in this process or on a server.

    Options with several values take them separated by commas, or can be repeated.
    """
    from twinspire_bench.latency.command import LatencyRequest, run_latency

    run_latency(
        LatencyRequest(
            bundle=bundle,
            precisions=_words(precision),
            providers=_words(provider),
            threads=threads,
            streams=_numbers(streams, int, "--streams"),
            batches=_numbers(batch, int, "--batch"),
            lengths=_numbers(lengths, int, "--lengths"),
            url=url,
            in_flight=_numbers(in_flight, int, "--in-flight"),
            rates_per_s=_numbers(rate, float, "--rate"),
            rounds=rounds,
            visit_s=visit,
            json_file=json_file,
        )
    )


@scenes.callback()
def scenes_group() -> None:
    """Draw synthetic scenes with captions in English and Chinese."""


@scenes.command()
def draw(
    out: Annotated[Path, typer.Option("-o", "--out", help="New or empty folder to write.")],
    count: Annotated[
        int, typer.Option("-n", "--count", min=1, help="Number of scenes, or of pairs with --pairs.")
    ] = 500,
    seed: Annotated[int, typer.Option(help="Seed; the same seed draws the same images.")] = 7,
    split: Annotated[Split, typer.Option(help="Split; the sample model was trained on train only.")] = Split.HELDOUT,
    pairs: Annotated[
        Contrast | None,
        typer.Option(
            help="Draw pairs that differ only in their objects' colours or sides (swap), or in the objects (kind)."
        ),
    ] = None,
) -> None:
    """Draw scenes as JPEG files, with a COCO captions file, captions.json."""
    from rich.console import Console
    from rich.progress import Progress

    from twinspire_eval.scenes.dataset import draw_dataset, draw_pairs

    console = Console(stderr=True)
    total = count if pairs is None else 2 * count
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("drawing scenes", total=total)

        def advance(done: int) -> None:
            progress.update(task, completed=done)

        if pairs is None:
            draw_dataset(out, count, seed=seed, split=split, on_progress=advance)
        else:
            draw_pairs(out, count, pairs, seed=seed, split=split, on_progress=advance)
    console.print(f"{total} images and captions.json in {out}")


def _words(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return tuple(word.strip() for value in values for word in value.split(",")) if values else None


def _numbers(values: Sequence[str] | None, kind: Callable[[str], Value], option: str) -> tuple[Value, ...] | None:
    words = _words(values)
    if words is None:
        return None
    try:
        return tuple(kind(word) for word in words)
    except ValueError:
        raise InputError(f"{option} {','.join(words)}: expected numbers separated by commas, such as 1,8,32") from None
