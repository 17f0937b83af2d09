"""What the sample model is worth: recall and swap accuracy, from JPEG file to hit, and the curve of its training."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twinspire import Bundle, Client
from twinspire.bundle import Precision
from twinspire_bench.recall import BothWays, both_ways, swap_accuracy
from twinspire_bench.scenes import CaptionedScene, Language, Split, draw_dataset, draw_swap_dataset

SCENES = 1_000
SWAP_PAIRS = 200
SEED = 101
DATA = f"{SCENES} held-out scenes, seed {SEED}, one caption a language, JPEG files"


@dataclass(frozen=True)
class Figures:
    """Figures of one precision: recall each language and way, and shares of swap pairs told apart."""

    recall: dict[Language, BothWays]
    swap_by_caption: dict[Language, float]
    swap_by_picture: dict[Language, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers."""
        return asdict(self)


def measure(bundle: Bundle, precision: Precision) -> Figures:
    """Draw held-out scenes and swap pairs into a temporary folder and measure the engines of one precision."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Client.local(bundle, precision=precision, providers="cpu") as client,
    ):
        scenes, pairs = Path(folder) / "scenes", Path(folder) / "swap"
        entries = draw_dataset(scenes, SCENES, seed=SEED, split=Split.HELDOUT)
        swapped = draw_swap_dataset(pairs, SWAP_PAIRS, seed=SEED, split=Split.HELDOUT)
        images = client.encode_images(sorted(scenes.glob("*.jpg")))  # (N, D)
        swap_images = client.encode_images(sorted(pairs.glob("*.jpg")))  # (2P, D)
        recall, by_caption, by_picture = {}, {}, {}
        for language in Language:
            recall[language] = both_ways(images, client.encode_text(_said(entries, language)))
            texts = client.encode_text(_said(swapped, language))
            by_caption[language], by_picture[language] = swap_accuracy(swap_images, texts)
    return Figures(recall, by_caption, by_picture)


def plot_training(log: Path, destination: Path) -> None:
    """Draw the loss over the steps of a `training.jsonl` as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    reports = [line for line in lines if "step" in line]
    figure, loss_axis = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    steps = [report["step"] for report in reports]
    loss_axis.plot(steps, [report["loss"] for report in reports], color="#2a62c8")
    loss_axis.set(xlabel="step", ylabel="InfoNCE loss", title="Training of the sample model")
    loss_axis.grid(alpha=0.25)
    loss_axis.spines[["top", "right"]].set_visible(False)
    scale_axis = loss_axis.twinx()
    scale_axis.plot(steps, [report["logit_scale"] for report in reports], color="#d97a1a", linestyle="--")
    scale_axis.set_ylabel("logit scale (dashed)")
    scale_axis.spines["top"].set_visible(False)
    figure.savefig(destination, dpi=120)
    pyplot.close(figure)


def _said(entries: list[CaptionedScene], language: Language) -> list[str]:
    return [entry.captions[language] for entry in entries]
