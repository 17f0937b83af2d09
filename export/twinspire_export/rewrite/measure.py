"""Speed of towers after each rewrite: `python -m twinspire_export.rewrite.measure make DIR`, then `... run DIR`.

`make` exports a random model once without rewrites and again after each of them, in the order in which they are
applied; `run` measures all of these engines in turn, round by round. They are two commands because making uses all
cores and measuring wants them idle.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from twinspire._cores import usable_cores
from twinspire.bundle import Precision, Tower
from twinspire.contract import EMBEDDING, INPUT_NAMES
from twinspire.errors import InputError, TwinspireError
from twinspire.towers import OpenVinoOptions, Provider
from twinspire.towers.providers import open_session
from twinspire_eval.load import interleaved
from twinspire_eval.records import Record, series
from twinspire_eval.statistics import paired_ratio
from twinspire_eval.tables import figure, figures_console, figures_table, spread
from twinspire_export.dependencies import Extra, require
from twinspire_export.random_checkpoints import CONTEXT_LENGTH, SHAPES, VOCABULARY_SIZE, ModelSize, random_model

if TYPE_CHECKING:
    from transformers import CLIPModel

    from twinspire_export.towers import TransformerTower

DESCRIPTION = "engines.json"
UNREWRITTEN = "none"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_UNITS = {Tower.IMAGE: "images_per_s", Tower.TEXT: "texts_per_s"}
app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class RewriteStep:
    """A tower after one more rewrite: the rewrite's name, the engine's file, and its difference from transformers.

    `difference` is the largest over the components of four embeddings.
    """

    rewrite: str
    file: str
    difference: float


@app.command()
def make(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the engines, 4 GB for ViT-B/32; must not exist.")
    ],
    size: Annotated[ModelSize, typer.Option(help="Published size of the model.")] = ModelSize.VIT_B_32,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
    layers: Annotated[int | None, typer.Option(min=1, help="Blocks of each tower. By default as published.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantize each engine, calibrated on noise: to measure speed only.")
    ] = False,
) -> None:
    """Export the engines: both towers without rewrites, and after each of them."""
    require(Extra.EXPORT, "making the engines")
    if int8:
        require(Extra.QUANTIZE, "making int8 engines")
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(f"{folder} exists: name a new folder") from error
    model = random_model(size, seed=seed, layers=layers)
    steps: dict[str, list[dict[str, Any]]] = {}
    for tower in (Tower.IMAGE, Tower.TEXT):
        steps[tower] = [vars(step) for step in _make(model, tower, folder, int8=int8, on_message=typer.echo)]
    precision = Precision.INT8 if int8 else Precision.FP32
    description = {"size": size, "seed": seed, "layers": layers, "precision": precision, "steps": steps}
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `make` wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="RECORD", help="Write a record to this file.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds of the image tower; the text tower has three times as many.")
    ] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Images or texts per call.")] = 32,
    length: Annotated[int, typer.Option(min=2, max=CONTEXT_LENGTH, help="Tokens per text.")] = 16,
) -> None:
    """Measure the engines on onnxruntime's CPU provider, all of them in each round, and print a table."""
    description = _description(folder)
    threads = usable_cores()
    results: dict[str, Any] = {}
    for tower in (Tower.IMAGE, Tower.TEXT):
        steps = [RewriteStep(**step) for step in description["steps"][tower]]
        size = SHAPES[ModelSize(description["size"])].image_size
        feed: NDArray[Any] = _images(size, batch) if tower is Tower.IMAGE else _captions(batch, length)
        calls = {step.rewrite: _call(folder / step.file, feed, threads) for step in steps}
        figures = interleaved(calls, rounds=rounds if tower is Tower.IMAGE else 3 * rounds)
        results[tower] = _table(tower, steps, figures)
    if output is not None:
        settings = {"provider": "cpu", "threads": threads}
        measured = {"rounds": rounds, "batch": batch, "length": length}
        model = {name: description[name] for name in ("size", "seed", "layers", "precision")}
        Record(kind="rewrites", parameters={**model, **settings, **measured}, results=results).save(output)


def _make(
    model: CLIPModel, tower: Tower, folder: Path, *, int8: bool, on_message: Callable[[str], None]
) -> list[RewriteStep]:
    import torch

    from twinspire.bundle import ImageSettings
    from twinspire_export.engine_check import EngineRunner
    from twinspire_export.families.clip import image_tower, text_tower
    from twinspire_export.onnx_export import Exporter, export_graph
    from twinspire_export.rewrite import ALL, REWRITES, apply_rewrites

    size = int(model.config.vision_config.image_size)
    settings = ImageSettings.centre_crop(size, mean=_MEAN, std=_STD)

    def plain() -> TransformerTower:
        return image_tower(model, settings) if tower is Tower.IMAGE else text_tower(model)

    names = [name for name in ALL if isinstance(plain(), REWRITES[name].tower)]
    feed = _images(size, 4) if tower is Tower.IMAGE else _captions(4, 16)
    expected = _reference(model, feed)
    steps = []
    for count, rewrite in enumerate((UNREWRITTEN, *names)):
        file = f"{tower}.{count}.{rewrite}.onnx"
        rewritten = apply_rewrites(plain(), names[:count])
        export_graph(
            rewritten,
            folder / file,
            inputs={INPUT_NAMES[tower]: torch.from_numpy(feed[:2])},
            exporter=Exporter.OPTIMUM,
        )
        if int8:
            _quantize(folder / file, feed)
        difference = float(np.abs(EngineRunner(folder / file).embed([feed]) - expected).max())
        on_message(f"{file}: largest difference from transformers {difference:.1e}")
        steps.append(RewriteStep(rewrite, file, difference))
    return steps


def _quantize(engine: Path, samples: NDArray[Any]) -> None:
    """Replace an fp32 engine by an int8 one."""
    import onnx

    from twinspire_export.quantization.quantizer import quantize_graph

    model = onnx.load(engine)
    name = model.graph.input[0].name
    onnx.save(quantize_graph(model, [{name: sample[None]} for sample in samples]), engine)


def _reference(model: CLIPModel, feed: NDArray[Any]) -> NDArray[np.float32]:
    """Encode by transformers: (N, D), L2-normalised."""
    import torch

    inputs = torch.from_numpy(feed)
    with torch.inference_mode():
        if feed.ndim == 2:
            features = model.get_text_features(input_ids=inputs.long())
        else:
            mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
            pixels = (inputs.permute(0, 3, 1, 2).float() / 255 - mean) / std
            features = model.get_image_features(pixel_values=pixels)
        unit: NDArray[np.float32] = torch.nn.functional.normalize(features, dim=-1).numpy()
    return unit


def _call(engine: Path, feed: NDArray[Any], threads: int) -> Callable[[], float]:
    """Open an engine; return a function that runs it once and returns items per second."""
    session = open_session(engine, Provider.CPU, threads=threads, openvino=OpenVinoOptions())
    name = session.get_inputs()[0].name

    def call() -> float:
        start = time.perf_counter()
        session.run([EMBEDDING], {name: feed})
        return len(feed) / (time.perf_counter() - start)

    return call


def _table(tower: Tower, steps: list[RewriteStep], figures: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Print a tower's table and return its part of the record."""
    unit, first = _UNITS[tower], figures[steps[0].rewrite]
    names = [unit.replace("_per_s", "/s"), "vs. previous", "95%", "vs. none", "95%", "difference"]
    table = figures_table(["rewrite"], names, title=f"{tower} tower")
    part: dict[str, Any] = {}
    for before, step in zip([steps[0], *steps[:-1]], steps, strict=True):
        rates = figures[step.rewrite]
        one, all_ = paired_ratio(rates, figures[before.rewrite]), paired_ratio(rates, first)
        ratios = [text for ratio in (one, all_) for text in (f"{ratio.value:.3f}", spread(ratio.interval))]
        table.add_row(step.rewrite, figure(float(np.median(rates))), *ratios, f"{step.difference:.0e}")
        part[step.rewrite] = {
            unit: series(rates, "median"),
            "ratio_to_the_one_before": one,
            "ratio_to_none": all_,
            "largest_difference_to_transformers": step.difference,
        }
    figures_console().print(table)
    return part


def _description(folder: Path) -> dict[str, Any]:
    file = folder / DESCRIPTION
    if not file.is_file():
        raise InputError(f"{folder} has no {DESCRIPTION}; expected a folder that `make` completed")
    description: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return description


def _images(size: int, count: int) -> NDArray[np.uint8]:
    """Generate (count, size, size, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def _captions(count: int, length: int) -> NDArray[np.int32]:
    """Generate (count, length) int32 of one length: start, random tokens, end."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY_SIZE - 2, (count, length), dtype=np.int32)
    ids[:, 0], ids[:, -1] = VOCABULARY_SIZE - 2, VOCABULARY_SIZE - 1
    return ids


if __name__ == "__main__":
    try:
        app()
    except TwinspireError as error:
        sys.exit(f"error: {error}")
