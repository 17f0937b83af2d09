"""Recall and pair accuracy of the sample model, from JPEG file to hit, and the plot of its training."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twinspire import Bundle, Client
from twinspire.bundle import Precision
from twinspire_eval.recall import BothWays, both_ways, pair_accuracy
from twinspire_eval.scenes import CaptionedScene, Contrast, Language, Split, draw_dataset, draw_pairs

SCENES = 1_000
PAIRS = 200
SEED = 101
DATA = f"{SCENES} held-out scenes, seed {SEED}, one caption a language, JPEG files"


@dataclass(frozen=True)
class PairAccuracy:
    """Share of pairs whose members both find their own partner; chance is 0.25."""

    by_caption: float
    by_image: float


@dataclass(frozen=True)
class SampleFigures:
    """Figures of one precision by language: recall, and the accuracy on pairs that differ in one respect."""

    recall: dict[Language, BothWays]
    pairs: dict[Contrast, dict[Language, PairAccuracy]]

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers."""
        return asdict(self)


def measure(bundle: Bundle, precision: Precision) -> SampleFigures:
    """Measure the engines of one precision on held-out scenes and pairs, drawn to a temporary folder."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        Client.local(bundle, precision=precision, provider="cpu") as client,
    ):
        folder = Path(temporary)
        entries = draw_dataset(folder / "scenes", SCENES, seed=SEED, split=Split.HELDOUT)
        images = client.encode_images(sorted((folder / "scenes").glob("*.jpg")))  # (N, D)
        recall = {
            language: both_ways(images, client.encode_texts(_captions(entries, language))) for language in Language
        }
        pairs = {contrast: _pair_accuracy(client, contrast, folder / contrast) for contrast in Contrast}
    return SampleFigures(recall, pairs)


def _pair_accuracy(client: Client, contrast: Contrast, folder: Path) -> dict[Language, PairAccuracy]:
    entries = draw_pairs(folder, PAIRS, contrast, seed=SEED, split=Split.HELDOUT)
    images = client.encode_images(sorted(folder.glob("*.jpg")))  # (2P, D)
    return {
        language: PairAccuracy(*pair_accuracy(images, client.encode_texts(_captions(entries, language))))
        for language in Language
    }


def plot_training(log: Path, destination: Path) -> None:
    """Plot the loss over the steps of a `training.jsonl` as a PNG."""
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


def _captions(entries: list[CaptionedScene], language: Language) -> list[str]:
    return [entry.captions[language] for entry in entries]
