"""Checkpoint to sample bundle: `python -m twinspire_export.sample.build runs/sample -o runs/bundle`.

Exports and quantizes with the public functions, measures both precisions and writes their recall to certificates.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from twinspire import Client
from twinspire._codec import encode
from twinspire._dims import cut_vectors
from twinspire.bundle import Bundle, BundleWriter, Precision, Tower
from twinspire_eval.recall import R1, BothWays, both_ways, metrics_of, pair_accuracy, rank_queries, recall
from twinspire_eval.scenes import (
    CaptionedScene,
    Contrast,
    Language,
    Split,
    draw_dataset,
    draw_pairs,
    short_queries,
)
from twinspire_eval.scenes.captions import TEMPLATES
from twinspire_export.export import export_checkpoint
from twinspire_export.quantize import quantize_bundle

NAME = "scenes"
SCENES = 1_000
PAIRS = 200
SEED = 101
SHORTER_DIMS = (64, 32)
"""Lengths to which embeddings are cut and measured as well."""
DATA = f"{SCENES} held-out scenes, seed {SEED}, one caption a language, JPEG files"


@dataclass(frozen=True)
class PairAccuracy:
    """Share of pairs whose members both find their own partner; chance is 0.25."""

    by_caption: float
    by_image: float


@dataclass(frozen=True)
class SampleFigures:
    """Figures of one precision by language: recall, precision, and the accuracy on pairs that differ in one respect.

    `recall_in_template` is of captions within the first of the `TEMPLATES`. `r1_by_dim` is R@1 of captions finding
    their images by shorter embeddings, by their length; `short_query_p1` the share of short queries, an object and its
    colour, whose first image is right.
    """

    recall: dict[Language, BothWays]
    recall_in_template: dict[Language, BothWays]
    r1_by_dim: dict[str, dict[Language, float]]
    short_query_p1: dict[Language, float]
    pairs: dict[Contrast, dict[Language, PairAccuracy]]


def measure(bundle: Bundle, precision: Precision) -> SampleFigures:
    """Measure the engines of one precision on held-out scenes and pairs, drawn to a temporary folder."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        Client.local(bundle, precision=precision, provider="cpu") as client,
    ):
        folder = Path(temporary)
        entries = draw_dataset(folder / "scenes", SCENES, seed=SEED, split=Split.HELDOUT)
        images = client.encode_images(sorted((folder / "scenes").glob("*.jpg")))  # (N, D)
        pairs = {contrast: _pair_accuracy(client, contrast, folder / contrast) for contrast in Contrast}
        captions = {language: _captions(entries, language) for language in Language}
        texts = {language: client.encode_texts(captions[language]) for language in Language}  # (N, D) each
        templated = {
            language: client.encode_texts([TEMPLATES[language][0].format(text) for text in captions[language]])
            for language in Language
        }
        short_query_p1 = _short_query_p1(client, images, entries)
    return SampleFigures(
        recall={language: both_ways(images, texts[language]) for language in Language},
        recall_in_template={language: both_ways(images, templated[language]) for language in Language},
        r1_by_dim={
            str(dim): {
                language: recall(cut_vectors(texts[language], dim), cut_vectors(images, dim)).r1
                for language in Language
            }
            for dim in SHORTER_DIMS
        },
        short_query_p1=short_query_p1,
        pairs=pairs,
    )


def _short_query_p1(
    client: Client, images: NDArray[np.float32], entries: list[CaptionedScene]
) -> dict[Language, float]:
    queries = short_queries([entry.scene for entry in entries])
    relevant = [query.relevant for query in queries]
    return {
        language: metrics_of(
            rank_queries(images, client.encode_texts([query.texts[language] for query in queries]), relevant)
        )[R1]
        for language in Language
    }


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


def build(checkpoint: Path, destination: Path) -> dict[Precision, SampleFigures]:
    """Make the sample bundle `destination` from a trained checkpoint and return its figures."""
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        exported = export_checkpoint(
            checkpoint, Path(folder) / "fp32", name=NAME, dims=SHORTER_DIMS, on_step=typer.echo
        )
        quantized = quantize_bundle(exported, Path(folder) / "int8", on_step=typer.echo)
        figures = {}
        for precision in (Precision.FP32, Precision.INT8):
            typer.echo(f"measuring {precision} on {DATA}")
            figures[precision] = measure(quantized, precision)
        _certify(quantized, figures, destination)
    return figures


def _certify(bundle: Bundle, figures: dict[Precision, SampleFigures], destination: Path) -> None:
    """Write `bundle` again with the measured recall in its certificates."""
    engines = {}
    for tower in (Tower.IMAGE, Tower.TEXT):
        for precision, measured in figures.items():
            record = bundle.manifest.engines[tower][precision]
            assert record.certificate is not None
            recall = {"data": DATA, **{language.value: both.to_json() for language, both in measured.recall.items()}}
            engines[tower, precision] = (record.file, replace(record.certificate, recall=recall))
    with BundleWriter(destination, base=bundle) as writer:
        draft = bundle.manifest.draft()
        source = replace(draft.source, checkpoint="twinspire_export.sample", licence="Apache-2.0")
        writer.commit(replace(draft, source=source), engines)


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of twinspire_export.sample.train.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The bundle to make.")],
) -> None:
    """Make the sample bundle; figures.json and training.png are written into the checkpoint's folder."""
    figures = build(checkpoint, out)
    document = {precision.value: encode(measured) for precision, measured in figures.items()}
    (checkpoint / "figures.json").write_text(json.dumps({"data": DATA, **document}, indent=2) + "\n", encoding="utf-8")
    plot_training(checkpoint / "training.jsonl", checkpoint / "training.png")
    typer.echo(json.dumps(document, indent=2))


if __name__ == "__main__":
    typer.run(main)
