"""`twinspire precision`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from twinspire.errors import InputError

_DATA_HELP = (
    "scenes:COUNT:SEED, or a file of captions or the folder with it: COCO's, Karpathy's, Flickr30k's, CSV, TSV, JSONL; "
    "coco:, karpathy:, flickr30k: or table: in front says which."
)


def precision(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle with fp32 engines and others.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="NEW", help="The new bundle's folder; must not exist yet.")
    ],
    data: Annotated[str, typer.Option("--data", "-d", help=_DATA_HELP, show_default=False)],
    max_recall_drop: Annotated[
        float, typer.Option(help="How much of fp32's R@1 may be lost, pooled: 0.005 is half a point.")
    ] = 0.005,
    recipes: Annotated[
        int | None,
        typer.Option(
            help="Int8 engines to make on the way, by so many recipes (0 to 4). By default 1 if BUNDLE has fp32 alone."
        ),
    ] = None,
    calibrate_images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pictures to calibrate these on. By default drawn scenes.")
    ] = None,
    calibrate_captions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Captions to calibrate these on. By default those of scenes.")
    ] = None,
    no_baseline: Annotated[
        bool, typer.Option("--no-baseline", help="Do not measure onnxruntime's quantize_dynamic beside them.")
    ] = False,
    split: Annotated[str | None, typer.Option(help="The part of the data, such as Karpathy's test; or all.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the data's images, if it is not found.")] = None,
    limit: Annotated[int | None, typer.Option(help="Draw so many of the pictures.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of a call. By default all cores.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds in which speed is measured.")] = 10,
    work: Annotated[
        Path | None,
        typer.Option(help="Where each measurement is kept, to go on with. By default NEW.work, until done."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the record to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="The plot's PNG. By default NEW.png.")] = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Draw no plot.")] = False,
) -> None:
    """Measure every engine on this machine, and make a bundle whose `auto` is the fastest that keeps recall.

    Where none but fp32 does, fp32 stays. Nothing else should run meanwhile: speed is measured.
    """
    from twinspire.ingest import find_images
    from twinspire_eval.datasets import open_dataset
    from twinspire_eval.tables import figures_console
    from twinspire_export.calibration import read_captions
    from twinspire_export.precision import PrecisionOptions, choose_precision
    from twinspire_export.precision.plot import check_plot, save_plot
    from twinspire_export.precision.report import record, sentences, table

    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise InputError(f"the record cannot be written to {json_file}: it is a folder, or its folder is missing")
    if plot is not None and no_plot:
        raise InputError(f"--plot {plot} and --no-plot: expected one of them")
    target = None if no_plot else plot or output.with_name(f"{output.name}.png")
    if target is not None:
        check_plot(target, is_named=plot is not None)
    options = PrecisionOptions(
        max_recall_drop=max_recall_drop,
        recipes=recipes,
        pictures=None if calibrate_images is None else find_images([calibrate_images]),
        captions=None if calibrate_captions is None else read_captions(calibrate_captions),
        baseline=not no_baseline,
        threads=threads,
        rounds=rounds,
    )
    captioned = open_dataset(data, images=images, split=split, limit=limit)
    with _telling() as (step, progress):
        result = choose_precision(
            bundle, output, captioned, options=options, work=work, on_step=step, on_progress=progress
        )
    console = figures_console()
    console.print(table(result))
    for line in sentences(result):
        console.print(line, soft_wrap=True)
    if target is not None:
        save_plot(result, target)
    if json_file is not None:
        record(result, data_spec=data).save(json_file)
    console.print(f"{result.bundle.path}: bundle {result.bundle.name!r}", soft_wrap=True)


@contextmanager
def _telling() -> Iterator[tuple[Callable[[str], None], Callable[[str, int, int], None]]]:
    """Show on stderr what is being done: a line that changes on a terminal, else a line for each step."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield lambda step: console.print(step, soft_wrap=True), lambda *_: None
        return
    current = ""
    with console.status("precision ...") as status:

        def step(words: str) -> None:
            nonlocal current
            current = words
            console.print(words, soft_wrap=True)
            status.update("...")

        def progress(stage: str, done: int, total: int) -> None:
            status.update(f"{current}: {stage} {done:,} of {total:,}")

        yield step, progress
