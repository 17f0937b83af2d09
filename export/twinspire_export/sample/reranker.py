"""The sample's reranker: `python -m twinspire_export.sample.reranker runs/sample runs/bundle -o runs/reranker`.

A small ViT, begun with the first layers of the sample's image tower, and a decoder whose text tokens attend to the
image's patches (a cross-encoder, as the image-text matching head of BLIP, Li et al. 2022, arXiv:2201.12086). It learns
by binary cross-entropy which text is true of which image. The images of a cluster are alike: a scene, its siblings that
differ in one respect, and the scenes that the trained towers take for nearest. Hidden weight matrices are trained with
Muon, the rest with AdamW, as the sample's are.
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
from safetensors.torch import load_model, save_model
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional
from transformers import CLIPModel, CLIPVisionModel

from twinspire import Client
from twinspire._cores import usable_cores
from twinspire_eval.scenes.captions import caption
from twinspire_eval.scenes.vocabulary import Language
from twinspire_export.sample.batches import SHIFT, Said, Texts, Wording, padded_ids, shifted, truth
from twinspire_export.sample.data import (
    IMAGE_SETTINGS,
    TrainingSet,
    TrainingSettings,
    load_training_set,
)
from twinspire_export.sample.minimise import minimise

PAD_ID = 0
WEIGHTS = "reranker.safetensors"


@dataclass(frozen=True)
class RerankerSettings:
    """Settings of the reranker and its training. A batch has `clusters` of `images` images and as many texts."""

    image_layers: int = 4
    layers: int = 3
    steps: int = 1_000
    clusters: int = 12
    images: int = 6
    query_share: float = 0.3
    warmup_steps: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    seed: int = 2026


class SceneReranker(nn.Module):
    """Image and text to the probability that the text is true of the image.

    `checkpoint` is the sample's model, whose first image layers and token embeddings it begins with.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, checkpoint: CLIPModel, settings: RerankerSettings) -> None:
        super().__init__()
        vision, text = checkpoint.config.vision_config, checkpoint.config.text_config
        vision.num_hidden_layers = settings.image_layers
        self.vision = CLIPVisionModel._from_config(vision, attn_implementation="eager")
        known = self.vision.state_dict()
        own = checkpoint.vision_model.state_dict()
        self.vision.load_state_dict({name: own[name.removeprefix("vision_model.")] for name in known})
        width = text.hidden_size
        self.memory = nn.Sequential(nn.LayerNorm(vision.hidden_size), nn.Linear(vision.hidden_size, width))
        self.tokens = nn.Embedding(text.vocab_size, width)
        self.tokens.load_state_dict(checkpoint.text_model.embeddings.token_embedding.state_dict())
        self.positions = nn.Parameter(checkpoint.text_model.embeddings.position_embedding.weight.detach().clone())
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                width, text.num_attention_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1)
        self.register_buffer("mean", torch.tensor(IMAGE_SETTINGS.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_SETTINGS.std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def load(cls, checkpoint: Path, folder: Path, settings: RerankerSettings | None = None) -> SceneReranker:
        """Return the reranker that `train` wrote to `folder`, ready to be exported."""
        model = cls(CLIPModel.from_pretrained(checkpoint), settings or RerankerSettings())
        load_model(model, folder / WEIGHTS)
        return model.eval()

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """Return the tokens (N, P, W) of images (N, S, S, 3) uint8."""
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        tokens: torch.Tensor = self.memory(self.vision(pixel_values=pixels).last_hidden_state)
        return tokens

    def match(self, patches: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits (N, 1) of the tokens of images (N, P, W) and texts (N, L), padded on the right."""
        hidden = self.tokens(ids) + self.positions[: ids.shape[1]]
        padding = ids == PAD_ID
        for layer in self.layers:
            hidden = layer(hidden, patches, tgt_key_padding_mask=padding)
        logits: torch.Tensor = self.head(self.norm(hidden[:, 0]))
        return logits

    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the probabilities (N, 1) of images (N, S, S, 3) uint8 and texts (N, L)."""
        return self.match(self.patches(images), ids).sigmoid()


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
    """Batches of clusters: a unit of siblings, and those of the nearest scenes that complete it."""

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
        """Return the positions of the images of the cluster of a unit."""
        unit = self._data.units[number]
        near = [int(position) for position in self._nearest[number] if position not in unit]
        missing = self._settings.images - len(unit)
        return [*unit, *self._rng.sample(near, missing)]


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
    model = SceneReranker(CLIPModel.from_pretrained(checkpoint), settings)

    @torch.compile(disable=not compiled, dynamic=False)
    def logits(images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        clusters, count = images.shape[:2]
        with torch.autocast("cpu", torch.bfloat16):
            patches = model.patches(images.flatten(0, 1)).view(clusters, 1, count, -1, model.positions.shape[1])
            pairs = patches.expand(-1, count, -1, -1, -1).flatten(0, 2)  # (C * T * I, P, W)
            repeated = ids[:, :, None].expand(-1, -1, count, -1).flatten(0, 2)
            return model.match(pairs, repeated).view(clusters, count, count)

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
