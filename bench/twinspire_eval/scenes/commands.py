"""`twinspire scenes`: draw images with captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinspire_eval.scenes.description import Contrast, Split

app = typer.Typer(help="Draw scenes: pictures with captions in English and Chinese.", no_args_is_help=True)


@app.callback()
def scenes() -> None:
    """Draw scenes: images with captions in English and Chinese."""


@app.command()
def draw(
    out: Annotated[Path, typer.Option("-o", "--out", help="A new or an empty folder.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many scenes; with --pairs, pairs.")] = 500,
    seed: Annotated[int, typer.Option(help="The same seed draws the same pictures.")] = 7,
    split: Annotated[Split, typer.Option(help="No held-out scene is ever trained on.")] = Split.HELDOUT,
    pairs: Annotated[
        Contrast | None,
        typer.Option(help="Pairs that differ only in which object has which colour or side, or only in the kinds."),
    ] = None,
) -> None:
    """Draw scenes as JPEG files, with captions.json in COCO's form."""
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
    console.print(f"{total} pictures and captions.json in {out}")
