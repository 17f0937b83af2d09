"""The sample bundle with its reranker: `python -m twinspire_export.sample.build_reranker --help`.

Exports the trained reranker and quantizes it with the functions that serve any other checkpoint. The fp32 engine is not
kept: the sample stays small. Measures what reranking changes and writes it to figures.json.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from twinspire import Client
from twinspire._codec import encode
from twinspire.bundle import Bundle, BundleWriter, Precision, Reranker
from twinspire.contract import padded
from twinspire.text import Tokenizer
from twinspire_eval.recall import pair_accuracy_of_scores
from twinspire_eval.scenes import Contrast, Language, Split, draw_dataset, draw_pairs, short_queries
from twinspire_export.calibration import image_samples, scene_captions, scene_images, text_samples
from twinspire_export.pairs import agreement, pair_samples
from twinspire_export.quantization.recipe import Ranges
from twinspire_export.quantize import write_engine
from twinspire_export.reranker import RERANKER_FILE, export_reranker
from twinspire_export.sample.build import PAIRS, SCENES, SEED, PairAccuracy
from twinspire_export.sample.matcher import SceneMatcher
from twinspire_export.sample.reranker import SceneReranker

NAME = "reranker"
CANDIDATES = 20


@dataclass(frozen=True)
class RerankedFigures:
    """Figures with the first `candidates` hits reranked, by language.

    `r1` is R@1 of captions finding their images, `short_query_p1` the share of short queries whose first image is
    right; `pairs` are told apart by the reranker alone.
    """

    candidates: int
    r1: dict[Language, float]
    short_query_p1: dict[Language, float]
    pairs: dict[Contrast, dict[Language, PairAccuracy]]


def add_reranker(checkpoint: Path, weights: Path, base: Bundle, destination: Path) -> Bundle:
    """Write `base` with the reranker that was trained in the folder `weights` as int8 engine."""
    image, text = base.image, base.text
    with tempfile.TemporaryDirectory() as temporary, BundleWriter(destination, base=base) as writer:
        reference = Path(temporary) / RERANKER_FILE
        tokenizer = Tokenizer(base.tokenizer_json(), text)
        trained = SceneReranker.load(checkpoint, weights)

        def trained_scores(images: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.float32]:
            input_ids = padded(tokenizer.encode(captions), text.pad_id, text.context_length)
            with torch.inference_mode():
                scores: NDArray[np.float32] = trained(torch.from_numpy(images), torch.from_numpy(input_ids)).numpy()
            return scores[:, 0]

        export_reranker(
            SceneMatcher(trained, image), reference, image=image, tokenizer=tokenizer, reference=trained_scores
        )
        pairs = pair_samples(image_samples(base, scene_images()), text_samples(base, scene_captions()), text)
        file = f"{NAME}.{Precision.INT8}.onnx"
        engine = writer.path(file)
        write_engine(reference, pairs.calibration, engine, precision=Precision.INT8, ranges=Ranges.ASYMMETRIC)
        import onnx

        differences = 1 - agreement(reference, pairs.measurement)(onnx.load(engine), None)
        typer.echo(f"int8 differs from fp32 by {differences.mean():.4f} on average, {differences.max():.4f} at most")
        spec = Reranker.of_contract(image, text, {Precision.INT8: file})
        return writer.commit(replace(base.manifest.draft(), rerankers={NAME: spec}), {})


def measure_reranked(bundle: Bundle, *, precision: Precision, scenes: int = SCENES) -> RerankedFigures:
    """Measure on held-out scenes and pairs what reranking the hits of one precision's towers gives."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        Client.local(bundle, precision=precision, provider="cpu") as client,
    ):
        folder = Path(temporary)
        entries = draw_dataset(folder / "scenes", scenes, seed=SEED, split=Split.HELDOUT)
        searched = _Searched(client, sorted((folder / "scenes").glob("*.jpg")))
        queries = short_queries([entry.scene for entry in entries])
        r1, short_query_p1 = {}, {}
        for language in Language:
            first = searched.first_hits([entry.captions[language] for entry in entries])
            r1[language] = float(np.mean(first == np.arange(len(entries))))
            first = searched.first_hits([query.texts[language] for query in queries])
            right = [hit in query.relevant for hit, query in zip(first.tolist(), queries, strict=True)]
            short_query_p1[language] = float(np.mean(right))
        pairs = {contrast: told_apart(client, contrast, folder / contrast) for contrast in Contrast}
    return RerankedFigures(CANDIDATES, r1, short_query_p1, pairs)


class _Searched:
    """Images that are searched, each read once."""

    def __init__(self, client: Client, files: Sequence[Path]) -> None:
        self._client = client
        self._pixels = client.preprocess(files)  # (N, S, S, 3)
        self._images = client.towers.encode_images(self._pixels)  # (N, D)

    def first_hits(self, texts: Sequence[str]) -> NDArray[np.intp]:
        """Return the position of the image that is first for each text once the candidates are reranked: (T,)."""
        scores = self._client.encode_texts(texts) @ self._images.T
        ranked = np.argsort(-scores, axis=1)[:, :CANDIDATES]
        first = []
        for candidates, ids in zip(ranked, self._client.tokenize(texts), strict=True):
            found = self._client.towers.score_pairs(self._pixels[candidates], [ids] * len(candidates))
            first.append(candidates[int(found.argmax())])
        return np.array(first)


def told_apart(client: Client, contrast: Contrast, folder: Path) -> dict[Language, PairAccuracy]:
    """Draw pairs to `folder`, and return the share that the reranker tells apart in each language."""
    entries = draw_pairs(folder, PAIRS, contrast, seed=SEED, split=Split.HELDOUT)
    files = sorted(folder.glob("*.jpg"))  # 2P
    figures = {}
    for language in Language:
        texts = [entry.captions[language] for entry in entries]
        own = client.score_pairs(files, texts)
        other = client.score_pairs(files, [texts[position ^ 1] for position in range(len(texts))])
        own, other = own.reshape(-1, 2), other.reshape(-1, 2)  # (P, 2): image i with its caption, with the other one
        # (P, 2, 2): caption t of a pair with image i
        scores = np.stack([np.stack([own[:, 0], other[:, 1]], 1), np.stack([other[:, 0], own[:, 1]], 1)], 1)
        by_caption, by_image = pair_accuracy_of_scores(scores)
        figures[language] = PairAccuracy(by_caption, by_image)
    return figures


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of twinspire_export.sample.train.")],
    weights: Annotated[Path, typer.Argument(help="Folder of twinspire_export.sample.train_reranker.")],
    bundle: Annotated[Path, typer.Argument(help="The sample bundle without a reranker.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The bundle to make.")],
) -> None:
    """Make the sample bundle with its reranker, and add the figures to figures.json in the checkpoint's folder."""
    made = add_reranker(checkpoint, weights, Bundle.open(bundle), out)
    figures = encode(measure_reranked(made, precision=Precision.INT8))
    file = checkpoint / "figures.json"
    document = json.loads(file.read_text(encoding="utf-8")) | {"reranked": figures}
    file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    typer.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    typer.run(main)
