"""The command `python -m twinspire_bench.engines`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from twinspire._cores import thread_count
from twinspire_bench.engines.inputs import make_inputs
from twinspire_bench.engines.measure import EngineSettings, check_names, measure, show
from twinspire_bench.engines.peer import require_peers
from twinspire_bench.scripts import (
    DEFAULT_WORK,
    CaptionsOption,
    JsonFileOption,
    SizeOption,
    ThreadsOption,
    VocabularyOption,
    WorkOption,
    exit_on_error,
    progress_lines,
    random_model,
    read_captions,
)
from twinspire_eval.datasets import open_dataset
from twinspire_eval.smoke import smoke_option
from twinspire_eval.tables import figures_console


def main(
    size: SizeOption = "vit-b-32",
    work: WorkOption = DEFAULT_WORK,
    vocabulary: VocabularyOption = None,
    data: Annotated[str, typer.Option(help="Data set of images with captions, such as coco:DIR.")] = "scenes:76",
    captions: CaptionsOption = None,
    texts: Annotated[int, typer.Option(min=1, help="Captions that the text towers encode.")] = 5_000,
    threads: ThreadsOption = None,
    streams: Annotated[int, typer.Option(help="Streams: parts of a batch that twinspire computes in parallel.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures every peer once.")] = EngineSettings.rounds,
    only: Annotated[
        list[str] | None, typer.Option(help="Run only this comparison: image_tower, text_tower, folder or one_caption.")
    ] = None,
    json_file: JsonFileOption = None,
    _smoke: Annotated[bool, smoke_option(size="tiny", data="scenes:8", texts=64, rounds=1)] = False,
) -> None:
    """Compare int8 engines of a published size with other libraries. Progress is printed on standard error.

    Making the model takes minutes the first time; --work keeps it.
    """
    console = Console(stderr=True)
    with exit_on_error(console):
        say = progress_lines(console)
        check_names(only or ())
        require_peers()
        dataset, sentences = open_dataset(data), read_captions(captions, texts)
        model = random_model(size, work, vocabulary=vocabulary)
        inputs = make_inputs(model, data=dataset, captions=sentences, say=say)
        record = measure(
            inputs,
            data=dataset,
            threads=thread_count(threads),
            streams=streams,
            settings=EngineSettings(rounds=rounds),
            say=say,
            only=only or (),
        )
        show(record, figures_console())
        if json_file is not None:
            record.save(json_file)


if __name__ == "__main__":
    typer.run(main)
