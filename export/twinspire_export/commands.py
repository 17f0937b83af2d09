"""The commands that this package adds to `twinspire`: `export`, `convert`, `quantize`, `precision`, `tensorrt`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire._decode_mode import DecodeMode
from twinspire._dims import shown_dims
from twinspire.cli.shared import printable
from twinspire.errors import InputError

if TYPE_CHECKING:
    from twinspire.bundle import Bundle
    from twinspire.errors import ItemError

_MAX_LISTED = 5

_DATA_HELP = (
    "The data set to measure recall on: scenes:COUNT:SEED, or a captions file or its folder in the format of COCO, "
    "Karpathy or Flickr30k, or CSV, TSV or JSONL; the prefix coco:, karpathy:, flickr30k: or table: names the format."
)

_Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="NEW", help="Folder of the new bundle; must not exist yet.")
]


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
    for command in (export, convert, quantize, precision, tensorrt):
        app.command(command.__name__)(command)


def _list_families(wanted: bool) -> None:
    """Print the model families of the registry as a table, and end the command."""
    if not wanted:
        return
    from twinspire_eval.tables import figures_console, figures_table
    from twinspire_export.dependencies import Extra, require

    require(Extra.EXPORT, "listing the model families")
    from twinspire_export.families import FAMILIES

    table = figures_table(["model_type", "architecture", "models", "encodes", "examples on the hub"], [])
    for family in FAMILIES.values():
        examples = "\n".join(family.examples)
        table.add_row(family.model_type, family.architecture, family.title, ", ".join(family.modalities), examples)
    figures_console().print(table)
    raise typer.Exit


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Folder or Hugging Face hub id of a model in the format of transformers, OpenCLIP or "
            "sentence-transformers.",
        ),
    ],
    output: _Output,
    name: Annotated[str | None, typer.Option(help="Name of the bundle. By default the checkpoint's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    rewrites: Annotated[
        str,
        typer.Option(
            metavar="all|none|NAME,...", help="Lossless rewrites of the towers to apply; an unknown name lists them."
        ),
    ] = "all",
    dims: Annotated[
        str | None,
        typer.Option(
            metavar="N,...",
            help="Shorter lengths that the model was trained for (Matryoshka), such as 256,128, where the checkpoint "
            "does not state them: clients may cut embeddings to them.",
        ),
    ] = None,
    no_reranker: Annotated[
        bool,
        typer.Option(
            "--no-reranker",
            help="Leave out the checkpoint's reranker, whose engine holds the weights of an image tower once more.",
        ),
    ] = False,
    list_families: Annotated[  # noqa: ARG001 - the callback does it, before CHECKPOINT is asked for
        bool,
        typer.Option(
            "--list", help="List the model families that can be exported.", is_eager=True, callback=_list_families
        ),
    ] = False,
) -> None:
    """Export a checkpoint to a bundle with fp32 engines, and compare them with torch.

    A checkpoint that scores pairs of an image and a text (BLIP-2's) also gives the bundle a reranker.
    """
    from twinspire_export.dims import parse_dims

    lengths = None if dims is None else parse_dims(dims)
    with _progress() as (step, _):
        step("export: loading torch")
        from twinspire_export import export_checkpoint
        from twinspire_export.rewrite import select_rewrites

        chosen = select_rewrites(rewrites)
        bundle = export_checkpoint(
            checkpoint,
            output,
            name=name,
            revision=revision,
            rewrites=chosen,
            dims=lengths,
            reranker=not no_reranker,
            on_step=lambda message: step(f"export: {message}"),
        )
    _print_bundle(bundle)


def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="Folder or Hugging Face hub id of a model with pickled weights."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="NEW", help="Folder of the new checkpoint; must not exist yet."),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
) -> None:
    """Write a checkpoint whose weights are pickled (.bin, .pt, .pth, .ckpt) as safetensors, for `export`.

    The pickles are read as data only, in a process without network, other programs or files to write.
    """
    with _progress() as (step, _):
        step("convert: loading torch")
        from twinspire_export import convert_checkpoint

        folder = convert_checkpoint(
            checkpoint, output, revision=revision, on_step=lambda message: step(f"convert: {message}")
        )
    for file in sorted(folder.iterdir()):
        typer.echo(f"{file}  {file.stat().st_size / 2**20:.1f} MiB")


def quantize(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle with fp32 engines.")],
    output: _Output,
    precision: Annotated[
        str, typer.Option(help="int8 for CPUs, fp16 for GPUs, int8-tensorrt for GPUs with TensorRT.")
    ] = "int8",
    ranges: Annotated[
        str | None,
        typer.Option(
            help="symmetric or asymmetric ranges of int8 activations. By default as the kind of network needs."
        ),
    ] = None,
    min_cosine: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Minimum cosine of int8 to fp32 over the samples. Where it is lower, outlier channels, then whole "
            "layers stay in float. 0 keeps to the recipe.",
        ),
    ] = 0.995,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Images to calibrate and measure on; unreadable ones are skipped. By default synthetic scenes.",
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Captions to calibrate and measure on, one per line, or COCO's JSON. By default those of the scenes.",
        ),
    ] = None,
    sounds: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Sound files to calibrate and measure on; unreadable ones are skipped. By default generated sounds.",
        ),
    ] = None,
    no_reranker: Annotated[
        bool, typer.Option("--no-reranker", help="Add no engine for the bundle's reranker, which stays as it is.")
    ] = False,
) -> None:
    """Add engines of another precision to BUNDLE, as a new bundle. Needs no torch."""
    bad: list[ItemError] = []
    with _progress() as (step, _):
        step("quantize: loading nncf")
        from twinspire.ingest import find_files, find_images
        from twinspire.stores import ItemKind
        from twinspire_export import quantize_bundle
        from twinspire_export.calibration import read_captions

        quantized = quantize_bundle(
            bundle,
            output,
            precision=precision,
            ranges=ranges,
            min_cosine=min_cosine or None,
            reranker=not no_reranker,
            images=None if images is None else find_images([images]),
            captions=None if captions is None else read_captions(captions),
            sounds=None if sounds is None else find_files([sounds], kinds=[ItemKind.AUDIO]),
            on_step=lambda message: step(f"quantize: {message}"),
            on_bad_item=bad.append,
        )
    if bad:
        typer.echo(f"skipped {len(bad)} files that cannot be read:", err=True)
        for error in bad[:_MAX_LISTED]:
            typer.echo(f"  {printable(error.name)}: {error.cause}", err=True)
        if len(bad) > _MAX_LISTED:
            typer.echo(f"  and {len(bad) - _MAX_LISTED} more", err=True)
    _print_bundle(quantized)


def precision(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle with fp32 engines and optionally others.")],
    output: _Output,
    data: Annotated[str, typer.Option("--data", "-d", help=_DATA_HELP, show_default=False)],
    max_recall_drop: Annotated[
        float, typer.Option(help="How much of fp32's R@1 may be lost, on average: 0.005 is half a point.")
    ] = 0.005,
    recipes: Annotated[
        int | None,
        typer.Option(help="Number of int8 recipes to try as well, 0 to 4. By default 1 if BUNDLE has fp32 only."),
    ] = None,
    calibrate_images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Images to calibrate the recipes on. By default synthetic scenes."),
    ] = None,
    calibrate_captions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Captions to calibrate the recipes on. By default those of the scenes."),
    ] = None,
    decode: Annotated[
        DecodeMode,
        typer.Option(
            help="scaled: measure scaled decoding of JPEG files as well, and recommend it where recall is kept."
        ),
    ] = DecodeMode.EXACT,
    no_baseline: Annotated[
        bool, typer.Option("--no-baseline", help="Do not measure onnxruntime's quantize_dynamic for comparison.")
    ] = False,
    merge_tokens: Annotated[
        str,
        typer.Option(
            help="Tokens of an image to merge in each block, as further candidates: none, numbers such as 4,8, or auto."
        ),
    ] = "none",
    split: Annotated[str | None, typer.Option(help="Split of the data set, such as Karpathy's test; or all.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the data set's images, if not found.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use a random sample of this many images.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of a call. By default all cores.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds in which speed is measured.")] = 10,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder of the measurements, for resuming. By default NEW.work, removed at the end."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the record to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG file of the plot. By default NEW.png.")] = None,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Write no plot.")] = False,
) -> None:
    """Measure every engine and runtime here, and write a bundle whose `auto` is the fastest that keeps recall.

    fp32 stays `auto` where nothing else keeps recall. Run nothing else meanwhile: speed is measured.
    """
    from twinspire.ingest import find_images
    from twinspire_eval.datasets import open_dataset
    from twinspire_eval.records import check_record_path
    from twinspire_eval.tables import figures_console
    from twinspire_export.calibration import read_captions
    from twinspire_export.precision import PrecisionOptions, choose_precision
    from twinspire_export.precision.plot import check_plot, save_plot
    from twinspire_export.precision.report import record, sentences, table

    check_record_path(json_file)
    if plot is not None and no_plot:
        raise InputError(f"--plot {plot} and --no-plot: expected only one of them")
    plot_file = None if no_plot else plot or output.with_name(f"{output.name}.png")
    if plot_file is not None:
        check_plot(plot_file, is_named=plot is not None)
    options = PrecisionOptions(
        max_recall_drop=max_recall_drop,
        recipes=recipes,
        images=None if calibrate_images is None else find_images([calibrate_images]),
        captions=None if calibrate_captions is None else read_captions(calibrate_captions),
        baseline=not no_baseline,
        decode=decode,
        merge_tokens=_merge_tokens(merge_tokens),
        threads=threads,
        rounds=rounds,
    )
    captioned = open_dataset(data, images=images, split=split, limit=limit)
    with _progress(keep=True) as (step, progress):
        result = choose_precision(
            bundle, output, captioned, options=options, work=work, on_step=step, on_progress=progress
        )
    console = figures_console()
    console.print(table(result))
    for line in sentences(result):
        console.print(line, soft_wrap=True)
    if plot_file is not None:
        save_plot(result, plot_file)
    if json_file is not None:
        record(result, data_spec=data).save(json_file)
    console.print(f"{result.bundle.path}: bundle {result.bundle.name!r}", soft_wrap=True)


def _merge_tokens(choice: str) -> tuple[int, ...] | None:
    """Parse the value of `--merge-tokens`: () for none, None for auto."""
    if choice in ("none", "auto"):
        return () if choice == "none" else None
    try:
        return tuple(int(number) for number in choice.split(","))
    except ValueError:
        raise InputError(f"--merge-tokens {choice!r}: expected none, auto, or numbers such as 4,8") from None


def tensorrt(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle with engines of the precision.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for the plans; must not exist yet. By default BUNDLE.plans."
        ),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp16, int8-tensorrt or fp32.")] = "fp16",
    max_batch: Annotated[int, typer.Option(help="Largest batch of the plans, for which they are tuned.")] = 64,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="TensorRT's timing cache: read if it exists, and written, for faster builds."
        ),
    ] = None,
) -> None:
    """Build TensorRT plans of BUNDLE for this machine's GPU. Run it inside NVIDIA's container."""
    with _progress() as (step, _):
        from twinspire_export.tensorrt_plans import build_plans

        folder = build_plans(
            bundle,
            bundle.absolute().with_name(f"{bundle.absolute().name}.plans") if output is None else output,
            precision=precision,
            max_batch=max_batch,
            timing_cache=timing_cache,
            on_step=lambda message: step(f"tensorrt: {message}"),
        )
    for file in sorted(folder.iterdir()):
        typer.echo(f"{file}  {file.stat().st_size / 2**20:.1f} MiB")


@contextmanager
def _progress(*, keep: bool = False) -> Iterator[tuple[Callable[[str], None], Callable[[str, int, int], None]]]:
    """Yield functions that show on stderr that a step begins, and the progress of it.

    A terminal shows the current step in one line, and with `keep` also those before it; elsewhere each is a line.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield lambda message: console.print(message, soft_wrap=True), lambda *_: None
        return
    current = ""
    with console.status("starting") as status:

        def step(message: str) -> None:
            nonlocal current
            current = message
            if keep:
                console.print(message, soft_wrap=True)
            status.update(f"{message} ...")

        def progress(stage: str, done: int, total: int) -> None:
            status.update(f"{current}: {stage} {done:,} of {total:,}")

        yield step, progress


def _print_bundle(bundle: Bundle) -> None:
    """Print a line about the bundle, and one about each engine with its size and certificate, the rerankers' last."""
    shorter = f" (or {shown_dims(bundle.dims[:-1])})" if len(bundle.dims) > 1 else ""
    typer.echo(f"{bundle.path}: bundle {bundle.name!r}, {bundle.dim} dimensions{shorter}, space {bundle.space[:12]}")
    width = max(len(precision) for engines in bundle.manifest.engines.values() for precision in engines)
    for tower, engines in bundle.manifest.engines.items():
        for precision, record in engines.items():
            line = f"  {tower:<5} {precision:<{width}} {record.size_bytes / 2**20:8.1f} MiB"
            if (certificate := record.certificate) is not None:
                line += (
                    f"   cosine to {certificate.reference}: minimum {certificate.min_cosine:.6f}, mean "
                    f"{certificate.mean_cosine:.6f} ({certificate.data})"
                )
            typer.echo(line)
            if certificate is not None:
                for words, layers in (
                    ("outlier channels in float", certificate.split_layers),
                    ("layers in float", certificate.float_layers),
                ):
                    if layers:
                        typer.echo(f"        {words}: {', '.join(layers)}")
                if certificate.merged_tokens is not None:
                    typer.echo(f"        tokens merged in each block: {certificate.merged_tokens}")
    for name, reranker in (bundle.manifest.rerankers or {}).items():
        for precision, file in reranker.engines.items():
            size_bytes = bundle.manifest.files[file].size_bytes
            typer.echo(f"  {name:<5} {precision:<{width}} {size_bytes / 2**20:8.1f} MiB   reranker of images and texts")
