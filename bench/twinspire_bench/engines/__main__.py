"""The command `python -m twinspire_bench.engines`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from twinspire_bench.datasets import open_dataset
from twinspire_bench.engines.material import make_material
from twinspire_bench.engines.measure import Effort, measure
from twinspire_bench.engines.show import show
from twinspire_bench.machine import usable_cores
from twinspire_bench.product import seeded_bundle, seeded_checkpoint
from twinspire_bench.script import (
    DEFAULT_WORK,
    CaptionsOption,
    JsonFileOption,
    ThreadsOption,
    VocabularyOption,
    WorkOption,
    errors_told,
    read_captions,
)
from twinspire_bench.tables import figures_console

CAPTIONS = 5000


def main(
    size: Annotated[str, typer.Option(help="vit-b-32, vit-b-16, vit-l-14 or vit-l-14-336.")] = "vit-b-32",
    work: WorkOption = DEFAULT_WORK,
    vocabulary: VocabularyOption = None,
    data: Annotated[str, typer.Option(help="Pictures with captions, such as coco:DIR.")] = "scenes:76",
    captions: CaptionsOption = None,
    threads: ThreadsOption = None,
    streams: Annotated[int, typer.Option(help="Parts of a batch that twinspire computes side by side.")] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = Effort.rounds,
    only: Annotated[
        list[str] | None, typer.Option(help="One race alone: image_tower, text_tower, folder or one_caption.")
    ] = None,
    json_file: JsonFileOption = None,
) -> None:
    """Measure a published size, int8, against what is used today."""
    console = Console(stderr=True)
    with errors_told(console):
        pictures = open_dataset(data)
        material = make_material(
            seeded_bundle(size, work, vocabulary=vocabulary),
            seeded_checkpoint(size, work),
            work,
            data=pictures,
            captions=read_captions(captions, CAPTIONS),
            say=console.print,
        )
        record = measure(
            material,
            data=pictures,
            threads=usable_cores() if threads is None else threads,
            streams=streams,
            effort=Effort(rounds=rounds),
            say=console.print,
            only=only or (),
        )
        show(record, figures_console())
        if json_file is not None:
            record.save(json_file)


if __name__ == "__main__":
    typer.run(main)
