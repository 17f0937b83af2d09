"""The command `python -m twinspire_bench.engines`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from twinspire_bench.cli_runner import seeded_model
from twinspire_bench.engines.inputs import make_material
from twinspire_bench.engines.measure import Effort, check_names, measure
from twinspire_bench.engines.peers import require_peers
from twinspire_bench.engines.show import show
from twinspire_bench.script_options import (
    DEFAULT_WORK,
    CaptionsOption,
    JsonFileOption,
    SizeOption,
    ThreadsOption,
    VocabularyOption,
    WorkOption,
    errors_told,
    progress_lines,
    read_captions,
)
from twinspire_eval.datasets import open_dataset
from twinspire_eval.machine import usable_cores
from twinspire_eval.smoke import smoke_option
from twinspire_eval.tables import figures_console


def main(
    size: SizeOption = "vit-b-32",
    work: WorkOption = DEFAULT_WORK,
    vocabulary: VocabularyOption = None,
    data: Annotated[str, typer.Option(help="Pictures with captions, such as coco:DIR.")] = "scenes:76",
    captions: CaptionsOption = None,
    texts: Annotated[int, typer.Option(min=1, help="How many captions the text towers encode.")] = 5_000,
    threads: ThreadsOption = None,
    streams: Annotated[int, typer.Option(help="Parts of a batch that twinspire computes side by side.")] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = Effort.rounds,
    only: Annotated[
        list[str] | None, typer.Option(help="One race alone: image_tower, text_tower, folder or one_caption.")
    ] = None,
    json_file: JsonFileOption = None,
    _smoke: Annotated[bool, smoke_option(size="tiny", data="scenes:8", texts=64, rounds=1)] = False,
) -> None:
    """Measure a published size, int8, against what is used today. What it does, and each round, go to standard error.

    Making the model takes minutes the first time; --work keeps it.
    """
    console = Console(stderr=True)
    with errors_told(console):
        say = progress_lines(console)
        check_names(only or ())
        require_peers()
        pictures, sentences = open_dataset(data), read_captions(captions, texts)
        model = seeded_model(size, work, vocabulary=vocabulary)
        material = make_material(model, data=pictures, captions=sentences, say=say)
        record = measure(
            material,
            data=pictures,
            threads=usable_cores() if threads is None else threads,
            streams=streams,
            effort=Effort(rounds=rounds),
            say=say,
            only=only or (),
        )
        show(record, figures_console())
        if json_file is not None:
            record.save(json_file)


if __name__ == "__main__":
    typer.run(main)
