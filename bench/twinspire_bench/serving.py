"""All that serving is measured by, in one run: overhead, lanes, overload and, on request, perf_analyzer.

`python -m twinspire_bench.serving -o FOLDER` makes ViT-B/32 at full size with random weights, quantizes it, and writes
a record of each benchmark to FOLDER. `python -m twinspire_bench.serving_overhead`, `.lanes` and `.overload` run one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from twinspire._cores import thread_count
from twinspire_bench import lanes, overload, perf_analyzer, serving_overhead
from twinspire_bench.scripts import (
    DEFAULT_WORK,
    CaptionsOption,
    ServedOptions,
    SizeOption,
    ThreadsOption,
    VocabularyOption,
    WorkOption,
    exit_on_error,
    progress_lines,
    random_model,
    read_captions,
)
from twinspire_eval.records import Record
from twinspire_eval.smoke import smoke_option
from twinspire_eval.tables import figures_console

PARTS = ("served", "lanes", "overload", "perf_analyzer")


def main(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the records.")] = Path("runs/bench/serving"),
    size: SizeOption = "vit-b-32",
    work: WorkOption = DEFAULT_WORK,
    vocabulary: VocabularyOption = None,
    captions: CaptionsOption = None,
    threads: ThreadsOption = None,
    streams: Annotated[int, typer.Option(help="Streams: parts of a batch computed in parallel.")] = 2,
    only: Annotated[list[str] | None, typer.Option(help=f"Parts to measure: {', '.join(PARTS)}.")] = None,
    program: Annotated[
        Path | None,
        typer.Option("--perf-analyzer", help="perf_analyzer, to compare with; without it that is left out."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of overhead, lanes and perf_analyzer.")] = 4,
    visit: Annotated[float, typer.Option(help="Seconds of each part of a round of lanes and perf_analyzer.")] = 10.0,
    seconds: Annotated[float, typer.Option(help="Seconds of each overload.")] = 30.0,
    images: Annotated[int, typer.Option(min=1, help="Images of a round of overhead.")] = 480,
    texts: Annotated[int, typer.Option(min=1, help="Captions of a round of overhead.")] = 512,
    _smoke: Annotated[bool, smoke_option(size="tiny", rounds=1, visit=2.0, seconds=2.0, images=32, texts=64)] = False,
) -> None:
    """Measure how a model is served. Progress is printed on standard error."""
    console, tables = Console(stderr=True), figures_console()
    say = progress_lines(console)
    chosen = PARTS if not only else tuple(only)
    unknown = set(chosen) - set(PARTS)
    if unknown:
        raise typer.BadParameter(f"--only {', '.join(sorted(unknown))}: expected some of {', '.join(PARTS)}")
    with exit_on_error(console):
        model = random_model(size, work, vocabulary=vocabulary)
        out.mkdir(parents=True, exist_ok=True)
        served = ServedOptions(bundle=model.bundle, threads=thread_count(threads), streams=streams, work=model.folder)

        def keep(record: Record, show: Callable[[Record, Console], None]) -> None:
            show(record, tables)
            record.save(out / f"{record.kind}.json")

        if "served" in chosen:
            settings = serving_overhead.ServingSettings(rounds=rounds, images=images, texts=texts)
            keep(
                serving_overhead.measure(
                    served.bundle,
                    read_captions(captions, texts),
                    threads=served.threads,
                    streams=streams,
                    settings=settings,
                    work=model.folder,
                    say=say,
                ),
                serving_overhead.show,
            )
        if "lanes" in chosen:
            keep(
                lanes.measure_bundle(served, settings=lanes.LaneSettings(rounds=rounds, visit_s=visit), say=say),
                lanes.show,
            )
        if "overload" in chosen:
            keep(
                overload.measure_bundle(served, settings=overload.OverloadSettings(seconds=seconds), say=say),
                overload.show,
            )
        if program is not None and "perf_analyzer" in chosen:
            keep(perf_analyzer.measure_bundle(served, program, rounds=rounds, seconds=visit), perf_analyzer.show)


if __name__ == "__main__":
    typer.run(main)
