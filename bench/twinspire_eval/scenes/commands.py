"""The command `twinspire scenes`: draw synthetic images with captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinspire_eval.scenes.description import Contrast, Split

app = typer.Typer(help="Draw synthetic scenes with captions in English and Chinese.", no_args_is_help=True)


@app.callback()
def scenes() -> None:
    """Draw synthetic scenes with captions in English and Chinese."""


@app.command()
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
