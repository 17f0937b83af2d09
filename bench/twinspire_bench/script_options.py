"""What the benchmarks of a seeded model share, each a script: options, the captions they send, how errors are told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import typer
from rich.console import Console

from twinspire.errors import InputError, TwinspireError
from twinspire.ingest.caption_files import CaptionForm
from twinspire_eval.datasets.caption_files import list_images
from twinspire_eval.scenes import Language, Split, scene_set

SizeOption: TypeAlias = Annotated[str, typer.Option(help="vit-b-32, vit-b-16, vit-l-14 or vit-l-14-336; tiny to try.")]
WorkOption: TypeAlias = Annotated[Path, typer.Option(help="Where the models are made and kept.")]
VocabularyOption: TypeAlias = Annotated[Path | None, typer.Option(help="A folder with OpenAI's CLIP merges.")]
CaptionsOption: TypeAlias = Annotated[Path | None, typer.Option(help="COCO's captions; drawn scenes' without.")]
ThreadsOption: TypeAlias = Annotated[int | None, typer.Option(help="By default all cores.")]
JsonFileOption: TypeAlias = Annotated[Path | None, typer.Option("--json", help="Write the record to this file.")]

DEFAULT_WORK = Path("runs/bench")


def progress_lines(console: Console) -> Callable[[str], None]:
    """Return what prints a line on `console`: the time since this call, as minutes and seconds, and a text."""
    start = time.monotonic()

    def say(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        console.print(f"{minutes:3d}:{seconds:02d}  {text}", markup=False, highlight=False, soft_wrap=True)

    return say


@contextmanager
def errors_told(console: Console) -> Iterator[None]:
    """Print a TwinspireError inside, and end with status 1."""
    try:
        yield
    except TwinspireError as error:
        console.print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from None


def read_captions(file: Path | None, count: int) -> list[str]:
    """Read so many captions, each image's first one first, from a file in COCO's form; drawn scenes' without a file.

    Raises InputError where the file is none, or holds too few.
    """
    if file is None:
        return [scene.captions[Language.ENGLISH] for scene in scene_set(count, seed=0, split=Split.HELDOUT)]
    _, listed = list_images(file, CaptionForm.COCO)
    most = max(len(picture.captions) for picture in listed)
    texts = [p.captions[turn].text for turn in range(most) for p in listed if turn < len(p.captions)]
    if len(texts) < count:
        raise InputError(f"{file} holds {len(texts)} captions: expected at least {count}")
    return texts[:count]
