"""Training of the sample's reranker: `python -m twinspire_export.sample.train_reranker --help`.

It learns by binary cross-entropy which text is true of which image of a cluster: a scene, siblings that differ in one
respect, scenes that the trained towers take for nearest (as ALBEF's hard examples, arXiv:2107.07651), and scenes drawn
from all, without which short queries are learnt badly. Hidden weight matrices are trained with Muon, the rest with
AdamW, as the sample's are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer
from safetensors.torch import save_model
from tokenizers import Tokenizer
from torch.nn import functional

from twinspire import Client
from twinspire._cores import usable_cores
from twinspire_eval.scenes.captions import caption
from twinspire_eval.scenes.vocabulary import Language
from twinspire_export.sample.batches import SHIFT, Said, Texts, Wording, padded_ids, shifted, truth
from twinspire_export.sample.data import TrainingSet, TrainingSettings, load_training_set
from twinspire_export.sample.minimise import minimise
from twinspire_export.sample.reranker import WEIGHTS, RerankerSettings, SceneReranker, open_towers


def nearest_scenes(data: TrainingSet, client: Client, count: int, *, seed: int) -> npt.NDArray[np.int64]:
    """Return the `count` images that the towers find first for a caption of the first scene of each unit, (U, count).

    The scene itself is not one of them. Half of the captions are English, half Chinese.
    """
    rng = random.Random(seed)
    images = np.concatenate(
        [client.towers.encode_images(data.images[start : start + 1024]) for start in range(0, len(data.scenes), 1024)]
    )
    own = np.array([unit[0] for unit in data.units])
    texts = client.encode_texts([caption(data.scenes[place], rng.choice(list(Language)), rng) for place in own])
    found = np.empty((len(own), count), np.int64)
    for start in range(0, len(own), 256):
        rows = np.arange(start, min(start + 256, len(own)))
        scores = texts[rows] @ images.T
        scores[np.arange(len(rows)), own[rows]] = -np.inf
        best = np.argpartition(scores, -count, axis=1)[:, -count:]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        found[rows] = np.take_along_axis(best, order, axis=1)
    return found


@dataclass(frozen=True)
class ClusterBatch:
    """C clusters of G images and G texts: `images` (C, G, S, S, 3) uint8, `ids` (C, G, L), `true` (C, G, G) float32.

    `true[c, t, i]` is 1 where text t is true of image i.
    """

    images: torch.Tensor
    ids: torch.Tensor
    true: torch.Tensor


class ClusterBatches:
    """Batches of clusters, with other texts each time."""

    def __init__(
        self, data: TrainingSet, nearest: npt.NDArray[np.int64], texts: Texts, settings: RerankerSettings
    ) -> None:
        self._data, self._nearest, self._texts, self._settings = data, nearest, texts, settings
        self._rng = random.Random(f"clusters/{settings.seed}")

    def __iter__(self) -> Iterator[ClusterBatch]:
        """Yield batches endlessly."""
        rng, settings = self._rng, self._settings
        while True:
            images, rows, true = [], list[Said](), []
            for number in rng.sample(range(len(self._data.units)), settings.clusters):
                positions = self._cluster(number)
                scenes = [self._data.scenes[position] for position in positions]
                down, across = (rng.randint(-SHIFT, SHIFT) for _ in range(2))
                images.append(shifted(self._data.images[np.asarray(positions)], down, across))
                texts = [
                    self._texts.query(scene) if rng.random() < settings.query_share else self._texts.caption(scene)
                    for scene in scenes
                ]
                rows += texts
                true.append(truth(texts, scenes))
            shape = settings.clusters, settings.images
            yield ClusterBatch(
                torch.from_numpy(np.stack(images)),
                padded_ids(rows).view(*shape, -1),
                torch.stack(true).float(),
            )

    def _cluster(self, number: int) -> list[int]:
        """Return the positions of the images of the cluster of a unit, its first scene before the others."""
        rng, settings = self._rng, self._settings
        first, *others = self._data.units[number]
        cluster = [first, *rng.sample(others, settings.siblings - 1)]
        near = [int(position) for position in self._nearest[number] if position not in cluster]
        cluster += rng.sample(near, settings.nearest)
        while len(cluster) < settings.images:
            position = rng.randrange(len(self._data.scenes))
            if position not in cluster:
                cluster.append(position)
        return cluster


def train(
    checkpoint: Path,
    client: Client,
    settings: RerankerSettings,
    out: Path,
    cache: Path,
    *,
    data_settings: TrainingSettings | None = None,
    threads: int,
    compiled: bool = True,
) -> SceneReranker:
    """Train the reranker of a sample checkpoint whose towers `client` runs; write weights and a log to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    data = load_training_set(data_settings or TrainingSettings(), cache, processes=threads)
    torch.set_num_threads(threads)
    torch.manual_seed(settings.seed)
    nearest = nearest_scenes(data, client, 4 * settings.images, seed=settings.seed)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    texts = Texts(
        Wording(lambda text: list(tokenizer.encode(text).ids)), TrainingSettings(), random.Random(settings.seed)
    )
    model = SceneReranker(open_towers(checkpoint), settings)

    @torch.compile(disable=not compiled, dynamic=False)
    def logits(images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        clusters, count = ids.shape[:2]
        with torch.autocast("cpu", torch.bfloat16):
            texts = ids.flatten(0, 1)

            def of_images(rows: torch.Tensor) -> torch.Tensor:  # for each text the images of its cluster
                parts = rows.view(clusters, 1, count, *rows.shape[1:])
                return parts.expand(-1, count, *parts.shape[2:]).flatten(0, 2)

            seen, embeddings = (of_images(rows) for rows in model.see(images.flatten(0, 1)))
            read = model.read(texts).repeat_interleave(count, 0)
            found = model.match(seen, embeddings, read, texts.repeat_interleave(count, 0))
            return found.view(clusters, count, count)

    def loss_of(batch: ClusterBatch) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(logits(batch.images, batch.ids).float(), batch.true)

    minimise(
        model,
        loss_of,
        ClusterBatches(data, nearest, texts, settings),
        settings,
        out,
        save=lambda: save_model(model, str(out / WEIGHTS)),
        header={"settings": asdict(settings), "threads": threads},
    )
    return model


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of twinspire_export.sample.train.")],
    bundle: Annotated[Path, typer.Argument(help="Its bundle, whose towers find the hard examples.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the weights and the log.")],
    cache: Annotated[Path, typer.Option(help="Folder that caches the training images.")] = Path("runs/cache"),
    steps: Annotated[int, typer.Option(min=1)] = RerankerSettings.steps,
) -> None:
    """Train the reranker of the sample."""
    with Client.local(bundle) as client:
        train(checkpoint, client, RerankerSettings(steps=steps), out, cache, threads=usable_cores())


if __name__ == "__main__":
    typer.run(main)
