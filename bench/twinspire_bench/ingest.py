"""Images to a durable index: `python -m twinspire_bench.ingest`.

Generated scenes are written as JPEG files; each round adds all of them to a new index, as `twinspire index add` does.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from twinspire import Client, Index, sample_bundle
from twinspire._cores import thread_count
from twinspire.bundle import Bundle
from twinspire.cli.shared import BundleOption
from twinspire.errors import InputError
from twinspire.ingest import add_images, find_images
from twinspire_bench.scripts import JsonFileOption, ThreadsOption, exit_on_error, progress_lines
from twinspire_eval.records import Record, series
from twinspire_eval.scenes import Split, scene_set
from twinspire_eval.smoke import smoke_option
from twinspire_eval.tables import figure, figures_console


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Amount of measurement: each round adds `images` scenes of `side` pixels, or the files of a folder."""

    rounds: int = 5
    images: int = 400
    side: int = 512


def write_scenes(folder: Path, settings: IngestSettings) -> list[Path]:
    """Write scenes as JPEG files of quality 90; return their paths."""
    paths = []
    for number, scene in enumerate(scene_set(settings.images, seed=5, split=Split.HELDOUT)):
        paths.append(folder / f"{number:05}.jpg")
        scene.draw(settings.side).save(paths[-1], quality=90)
    return paths


def added_per_s(client: Client, files: Sequence[Path], folder: Path) -> float:
    """Add files to a new index in `folder`; return files/s. Raises InputError where one of them cannot be added."""
    start_s = time.perf_counter()
    with Index.create(folder, space=client.space, dim=client.dim) as index:
        report = add_images(index, client, files)
    taken_s = time.perf_counter() - start_s
    if report.added != len(files):
        raise InputError(f"{report.added} of {len(files)} files were added: {report.failed[:1]}")
    return len(files) / taken_s


def measure(
    bundle: Bundle, files: Sequence[Path], *, threads: int, settings: IngestSettings, say: Callable[[str], None]
) -> Record:
    """Add the files to a new index in each round. Raises InputError where one of them cannot be added."""
    rates = []
    with tempfile.TemporaryDirectory() as work, Client.local(bundle, threads=threads) as client:
        for turn in range(settings.rounds + 1):  # the first one warms up
            rate = added_per_s(client, files, Path(work, str(turn)))
            say(f"round {turn}: {rate:.1f} images/s")
            rates += [rate] * (turn > 0)
        towers = str(client.towers)
    return Record(
        kind="ingest",
        parameters={**asdict(settings), "files": len(files), "threads": threads},
        subject={"bundle": bundle.name, "space": bundle.space, "towers": towers},
        results={"images_per_s": series(rates, "median")},
    )


def main(
    bundle: BundleOption = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of images to add; by default generated scenes.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each with a new index.")] = IngestSettings.rounds,
    images: Annotated[int, typer.Option(min=1, help="Scenes to add in a round.")] = IngestSettings.images,
    threads: ThreadsOption = None,
    json_file: JsonFileOption = None,
    _smoke: Annotated[bool, smoke_option(rounds=1, images=8)] = False,
) -> None:
    """Measure images/s from files to a durable index. Progress is printed on standard error."""
    console = Console(stderr=True)
    settings = IngestSettings(rounds=rounds, images=images)
    with exit_on_error(console), tempfile.TemporaryDirectory() as scenes:
        files = write_scenes(Path(scenes), settings) if folder is None else list(find_images([folder]))
        if not files:
            raise InputError(f"{folder} has no images: expected a folder with JPEG, PNG or WebP files")
        opened = Bundle.open(sample_bundle() if bundle is None else bundle)
        record = measure(opened, files, threads=thread_count(threads), settings=settings, say=progress_lines(console))
        figures_console().print(f"{figure(record.results['images_per_s']['median'])} images/s to a durable index")
        if json_file is not None:
            record.save(json_file)


if __name__ == "__main__":
    typer.run(main)
