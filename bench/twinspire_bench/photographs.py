"""Real photographs: how fast 12 megapixels become items of an index, decoded exactly and scaled, and what that costs.

`python -m twinspire_bench.photographs` measures, with one bundle,

- photographs/s from JPEG files to a durable index (`add_images`), with exact and with scaled decoding in turn;
- how long a file takes in one thread to decode and resize;
- with `--scenes COUNT`, on generated scenes of 12 megapixels: the difference of pixels, the cosine between both
  embeddings, and the recall lost.

The files are 4000 x 3000 pixels at JPEG quality 90: photographs of a folder, enlarged, or generated scenes. Both get
the noise of a sensor, without which their files would be far smaller than a camera's and decode faster.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console

from twinspire import Client, sample_bundle
from twinspire._cores import thread_count
from twinspire.bundle import Bundle, DecodeMode
from twinspire.images import Preprocessor, load_image
from twinspire.ingest import find_images
from twinspire_bench.ingest import added_per_s
from twinspire_bench.scripts import JsonFileOption, ThreadsOption, exit_on_error, progress_lines
from twinspire_eval.datasets import open_dataset
from twinspire_eval.load import interleaved
from twinspire_eval.recall import R1
from twinspire_eval.recall.benchmark import RecallReport
from twinspire_eval.recall.decoding import compare_decoding
from twinspire_eval.records import Record, series
from twinspire_eval.scenes import Split, scene_set
from twinspire_eval.smoke import smoke_option
from twinspire_eval.statistics import paired_ratio
from twinspire_eval.tables import figure, figures_console, figures_table, ratio_cells

JPEG_QUALITY = 90
_EXACT, _SCALED = DecodeMode.EXACT, DecodeMode.SCALED


@dataclass(frozen=True, kw_only=True)
class PhotographSettings:
    """Amount of measurement: each round adds `photographs` files with each mode.

    A file has `width` by `height` pixels with normal noise of `noise` levels. `scenes` of 0 measures no recall.
    """

    rounds: int = 5
    photographs: int = 24
    width: int = 4000
    height: int = 3000
    noise: float = 4.0
    scenes: int = 0
    seed: int = 101


def write_photographs(folder: Path, settings: PhotographSettings, images: Path | None = None) -> list[Path]:
    """Write the JPEG files, of the photographs in `images` or of scenes; return their paths.

    Raises InputError where `images` has none, ImageError for one that cannot be read.
    """
    size = settings.width, settings.height
    random = np.random.default_rng(settings.seed)
    noise = random.normal(0, settings.noise, (settings.height, settings.width, 3)).astype(np.float32)
    found = [] if images is None else list(find_images([images]))
    scenes = [] if found else scene_set(settings.photographs, seed=settings.seed, split=Split.HELDOUT)
    paths = []
    for number in range(settings.photographs):
        if found:
            image = load_image(found[number % len(found)]).resize(size, Image.Resampling.BICUBIC)
        else:
            side = max(size)
            top = (side - settings.height) // 2
            image = scenes[number].draw(side).crop((0, top, settings.width, top + settings.height))
        noisy = np.asarray(image) + np.roll(noise, random.integers(1, settings.height), axis=0)
        paths.append(folder / f"{number:04}.jpg")
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(paths[-1], quality=JPEG_QUALITY)
    return paths


def measure_adding(
    bundle: Bundle, files: Sequence[Path], *, threads: int, settings: PhotographSettings, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure photographs/s to a durable index in both modes, and the time of a file in one thread."""
    with tempfile.TemporaryDirectory() as work:
        clients = {mode: Client.local(bundle, decode=mode, threads=threads) for mode in DecodeMode}
        indexes = (Path(work, str(number)) for number in count())

        def adding(mode: DecodeMode) -> Callable[[], float]:
            return lambda: added_per_s(clients[mode], files, next(indexes))

        try:
            found = interleaved({mode: adding(mode) for mode in DecodeMode}, rounds=settings.rounds, on_round=say)
        finally:
            for client in clients.values():
                client.close()
    single = {mode: Preprocessor(bundle.image, decode=mode, threads=1) for mode in DecodeMode}
    contents = [path.read_bytes() for path in files[: min(8, len(files))]]

    def decoding(mode: DecodeMode) -> Callable[[], float]:
        def ms_per_file() -> float:
            began = time.perf_counter()
            for data in contents:
                single[mode].one(data)
            return 1e3 * (time.perf_counter() - began) / len(contents)

        return ms_per_file

    alone = interleaved({mode: decoding(mode) for mode in DecodeMode}, rounds=settings.rounds, on_round=lambda _: None)
    return {
        "photographs_per_s": {mode: series(rates, "median") for mode, rates in found.items()},
        "scaled_of_exact": paired_ratio(found[_SCALED], found[_EXACT]),
        "decoding_ms_in_one_thread": {mode: series(times, "median") for mode, times in alone.items()},
        "file_bytes": series([path.stat().st_size for path in files], "median"),
    }


def measure_recall(
    bundle: Bundle, *, threads: int, settings: PhotographSettings, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure what scaled decoding changes on scenes of as many pixels as the photographs."""
    side = round((settings.width * settings.height) ** 0.5)
    data = open_dataset(f"scenes:{settings.scenes}:{settings.seed}:{side}")
    with Client.local(bundle, threads=threads) as client:
        compared = compare_decoding(
            client, data, threads=threads, on_progress=lambda what, done, total: say(f"{what} {done} of {total}")
        )
    embeddings = {str(mode): found for mode, found in compared.embeddings.items()}
    report = RecallReport.of(data, embeddings, reference=_EXACT)
    return {
        "data": data.name,
        **report.parameters(),
        "reduced": compared.reduced,
        "pixels": {"mean_difference": compared.mean_difference, "max_difference": compared.max_difference},
        "cosine": {"min": float(compared.cosines.min()), "mean": float(compared.cosines.mean())},
        "scaled_of_exact_files_per_s": compared.speed,
        **report.results(with_ranks=False),
    }


def measure(
    bundle: Bundle, images: Path | None, *, threads: int, settings: PhotographSettings, say: Callable[[str], None]
) -> Record:
    """Measure all and return the record."""
    with tempfile.TemporaryDirectory() as work:
        say(f"writing {settings.photographs} photographs of {settings.width} x {settings.height} pixels")
        files = write_photographs(Path(work), settings, images)
        results: dict[str, Any] = {
            "adding": measure_adding(bundle, files, threads=threads, settings=settings, say=say),
            "recall": None,
        }
    if settings.scenes:
        results["recall"] = measure_recall(bundle, threads=threads, settings=settings, say=say)
    return Record(
        kind="photographs",
        parameters={**asdict(settings), "threads": threads, "quality": JPEG_QUALITY},
        subject={
            "bundle": bundle.name,
            "space": bundle.space,
            "image_size": [bundle.image.height, bundle.image.width],
            "source": "scenes" if images is None else "enlarged photographs",
        },
        results=results,
    )


def show(record: Record, console: Console) -> None:
    """Print a record of this benchmark."""
    adding, recall = record.results["adding"], record.results["recall"]
    table = figures_table(["decoding"], ["photographs/s to an index", "of exact", "95% interval", "ms in one thread"])
    for mode, rates in adding["photographs_per_s"].items():
        ratio = ratio_cells(adding["scaled_of_exact"] if mode == _SCALED else None)
        alone = adding["decoding_ms_in_one_thread"][mode]["median"]
        table.add_row(mode, figure(rates["median"]), *ratio, figure(alone))
    console.print(table)
    console.print(f"a file has {adding['file_bytes']['median'] / 1e6:.1f} MB")
    if recall is not None:
        lost = recall["above"][_EXACT][_SCALED]["pooled"][R1]
        pixels, cosine = recall["pixels"], recall["cosine"]
        console.print(
            f"{recall['data']}: pixels differ by {pixels['mean_difference']:.2f} of 255 on average, "
            f"{pixels['max_difference']} at most; cosine {cosine['min']:.5f} at least, "
            f"{cosine['mean']:.5f} on average; "
            f"R@1 {100 * lost['value']:+.2f} points ({100 * lost['low']:+.2f} to {100 * lost['high']:+.2f})"
        )


def main(
    bundle: Annotated[Path | None, typer.Option("--bundle", "-b", help="Bundle; by default the sample.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of photographs to enlarge; default: scenes.")] = None,
    threads: ThreadsOption = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each with both modes.")] = PhotographSettings.rounds,
    photographs: Annotated[int, typer.Option(min=1, help="Files of a round.")] = PhotographSettings.photographs,
    width: Annotated[int, typer.Option(min=64, help="Width of a file in pixels.")] = PhotographSettings.width,
    height: Annotated[int, typer.Option(min=64, help="Height of a file in pixels.")] = PhotographSettings.height,
    noise: Annotated[float, typer.Option(min=0, help="Noise of the sensor in levels.")] = PhotographSettings.noise,
    scenes: Annotated[int, typer.Option(min=0, help="Scenes to measure recall on.")] = PhotographSettings.scenes,
    json_file: JsonFileOption = None,
    _smoke: Annotated[bool, smoke_option(rounds=1, photographs=2, width=640, height=480, scenes=4)] = False,
) -> None:
    """Measure photographs from files to an index, exactly decoded and scaled. Progress is on standard error."""
    console = Console(stderr=True)
    with exit_on_error(console):
        settings = PhotographSettings(
            rounds=rounds, photographs=photographs, width=width, height=height, noise=noise, scenes=scenes
        )
        opened = Bundle.open(sample_bundle() if bundle is None else bundle)
        record = measure(opened, images, threads=thread_count(threads), settings=settings, say=progress_lines(console))
        show(record, figures_console())
        if json_file is not None:
            record.save(json_file)


if __name__ == "__main__":
    typer.run(main)
