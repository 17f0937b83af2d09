"""The commands that this package adds to `twinspire`: `export` and `quantize`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from twinspire.bundle import Bundle

_Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="BUNDLE", help="The bundle's folder; must not exist yet.")
]


def register(app: typer.Typer) -> None:
    """Add this package's commands to `app`."""
    app.command("export")(export)
    app.command("quantize")(quantize)


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
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pictures to calibrate on. By default drawn scenes.")
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Captions to calibrate on, one a line, or COCO's JSON. By default those of drawn scenes.",
        ),
    ] = None,
) -> None:
    """Make a new bundle with int8 engines beside those of BUNDLE. Needs no torch."""
    with _progress("quantize") as step:
        step("loading nncf")
        from twinspire.ingest import find_pictures
        from twinspire_export import quantize_bundle
        from twinspire_export.calibration import read_captions

        made = quantize_bundle(
            bundle,
            output,
            pictures=None if pictures is None else find_pictures([pictures]),
            captions=None if captions is None else read_captions(captions),
            on_step=step,
        )
    _report(made)


@contextmanager
def _progress(command: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr what is being done; gone when done."""
    from rich.console import Console

    with Console(stderr=True).status(f"{command} ...") as status:
        yield lambda step: status.update(f"{command}: {step} ...")


def _report(bundle: Bundle) -> None:
    """Print what was made: a line for the bundle, and one for each engine with its size and certificate."""
    typer.echo(f"{bundle.path}: bundle {bundle.name!r}, {bundle.dim} dimensions, space {bundle.space[:12]}")
    for tower, engines in bundle.manifest.engines.items():
        for precision, record in engines.items():
            line = f"  {tower:<5} {precision:<4} {record.size_bytes / 2**20:8.1f} MiB"
            if (certificate := record.certificate) is not None:
                line += (
                    f"   cosine to {certificate.reference}: least {certificate.min_cosine:.6f}, mean "
                    f"{certificate.mean_cosine:.6f} ({certificate.data})"
                )
            typer.echo(line)
