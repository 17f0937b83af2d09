"""The commands that this package adds to `twinspire`: `export`, `quantize`, `precision` and `tensorrt`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twinspire.cli.shared import printable
from twinspire_export.precision.command import precision as precision_command

if TYPE_CHECKING:
    from twinspire.bundle import Bundle
    from twinspire.errors import ImageError

_SHOWN_BAD = 5

_Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="BUNDLE", help="The bundle's folder; must not exist yet.")
]


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
    app.command("export")(export)
    app.command("quantize")(quantize)
    app.command("precision")(precision_command)
    app.command("tensorrt")(tensorrt)


def export(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="Folder or Hugging Face hub id of a CLIP model.")
    ],
    output: _Output,
    name: Annotated[str | None, typer.Option(help="The bundle's name. By default the checkpoint's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    rewrites: Annotated[
        str,
        typer.Option(
            metavar="all|none|NAME,...", help="Lossless rewrites of the towers to apply; an unknown name lists them."
        ),
    ] = "all",
) -> None:
    """Turn a checkpoint into a bundle with fp32 engines, measured against torch."""
    with _progress("export") as step:
        step("loading torch")
        from twinspire_export import export_checkpoint
        from twinspire_export.rewrite import select_rewrites

        chosen = select_rewrites(rewrites)
        bundle = export_checkpoint(checkpoint, output, name=name, revision=revision, rewrites=chosen, on_step=step)
    _report(bundle)


def quantize(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle with fp32 engines.")],
    output: _Output,
    precision: Annotated[
        str, typer.Option(help="int8 for processors, fp16 for GPUs, int8-tensorrt for GPUs with TensorRT.")
    ] = "int8",
    ranges: Annotated[
        str | None, typer.Option(help="symmetric or asymmetric ranges of int8 activations. By default symmetric.")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Pictures to calibrate and measure on; what cannot be used is left out. By default drawn scenes.",
        ),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Captions to calibrate and measure on, one a line, or COCO's JSON. By default those of drawn scenes.",
        ),
    ] = None,
) -> None:
    """Make a new bundle with engines of another precision beside those of BUNDLE. Needs no torch."""
    bad: list[ImageError] = []
    with _progress("quantize") as step:
        step("loading nncf")
        from twinspire.ingest import find_images
        from twinspire_export import quantize_bundle
        from twinspire_export.calibration import read_captions
        from twinspire_export.quantization.quantizer import recipes_with

        made = quantize_bundle(
            bundle,
            output,
            precision=precision,
            recipes=None if ranges is None else recipes_with(ranges=ranges),
            pictures=None if pictures is None else find_images([pictures]),
            captions=None if captions is None else read_captions(captions),
            on_step=step,
            on_bad_image=bad.append,
        )
    if bad:
        typer.echo(f"left out {len(bad)} pictures that cannot be used:", err=True)
        for error in bad[:_SHOWN_BAD]:
            typer.echo(f"  {printable(error.name)}: {error.cause}", err=True)
        if len(bad) > _SHOWN_BAD:
            typer.echo(f"  and {len(bad) - _SHOWN_BAD} more", err=True)
    _report(made)


def tensorrt(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle with engines of the precision.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="A folder for the plans; must not exist. Or BUNDLE.plans."),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp16, int8-tensorrt or fp32, as `quantize` made them.")] = "fp16",
    max_batch: Annotated[int, typer.Option(help="The largest batch that the plans take, and are tuned for.")] = 64,
    timing_cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Timings of an earlier build: read where there, and written.")
    ] = None,
) -> None:
    """Build TensorRT plans of BUNDLE for this machine's GPU. To be run inside NVIDIA's container."""
    with _progress("tensorrt") as step:
        from twinspire_export.tensorrt_plans import build_plans

        folder = build_plans(
            bundle,
            bundle.absolute().with_name(f"{bundle.absolute().name}.plans") if output is None else output,
            precision=precision,
            max_batch=max_batch,
            timing_cache=timing_cache,
            on_step=step,
        )
    for file in sorted(folder.iterdir()):
        typer.echo(f"{file}  {file.stat().st_size / 2**20:.1f} MiB")


@contextmanager
def _progress(command: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr what is being done: on a terminal one line, gone when done, elsewhere a line for each step."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: typer.echo(f"{command}: {step}", err=True)
        return
    with console.status(f"{command} ...") as status:
        yield lambda step: status.update(f"{command}: {step} ...")


def _report(bundle: Bundle) -> None:
    """Print what was made: a line for the bundle, and one for each engine with its size and certificate."""
    typer.echo(f"{bundle.path}: bundle {bundle.name!r}, {bundle.dim} dimensions, space {bundle.space[:12]}")
    width = max(len(precision) for engines in bundle.manifest.engines.values() for precision in engines)
    for tower, engines in bundle.manifest.engines.items():
        for precision, record in engines.items():
            line = f"  {tower:<5} {precision:<{width}} {record.size_bytes / 2**20:8.1f} MiB"
            if (certificate := record.certificate) is not None:
                line += (
                    f"   cosine to {certificate.reference}: least {certificate.min_cosine:.6f}, mean "
                    f"{certificate.mean_cosine:.6f} ({certificate.data})"
                )
            typer.echo(line)
