"""`twinspire scenes`: draw pictures with captions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinspire_bench.scenes.description import Split

app = typer.Typer(help="Draw scenes: pictures with captions in English and Chinese.", no_args_is_help=True)


@app.callback()
def scenes() -> None:
    """Draw scenes: pictures with captions in English and Chinese."""


@app.command()
def draw(
    out: Annotated[Path, typer.Option("-o", "--out", help="A new or an empty folder.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many scenes; with --swap, pairs.")] = 500,
    seed: Annotated[int, typer.Option(help="The same seed draws the same pictures.")] = 7,
    split: Annotated[Split, typer.Option(help="No held-out scene is ever trained on.")] = Split.HELDOUT,
    swap: Annotated[
        bool, typer.Option("--swap", help="Pairs that differ only in which object has which colour or side.")
    ] = False,
) -> None:
    """Draw scenes as JPEG files, with captions.json in COCO's form."""
    from rich.console import Console
    from rich.progress import Progress

    from twinspire_bench.scenes.dataset import draw_dataset, draw_swap_dataset

    console = Console(stderr=True)
    total = 2 * count if swap else count
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("drawing scenes", total=total)
        write = draw_swap_dataset if swap else draw_dataset
        write(out, count, seed=seed, split=split, on_progress=lambda done: progress.update(task, completed=done))
    console.print(f"{total} pictures and captions.json in {out}")
