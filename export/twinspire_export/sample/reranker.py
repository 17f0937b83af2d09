"""The sample's reranker: `python -m twinspire_export.sample.reranker runs/sample runs/bundle -o runs/reranker`.

Begun with the first layers of the sample's two towers. The last ones of the text also attend to the image's tokens.
Early layers that see text alone, late ones that fuse, and hard examples found by the towers are those of ALBEF (Li et
al. 2021, arXiv:2107.07651). It learns by binary cross-entropy which text is true of which image of a cluster: a scene,
siblings that differ in one respect, scenes that the trained towers take for nearest, and any others, which differ from
a short query in all ways. Hidden weight matrices are trained with Muon, the rest with AdamW, as the sample's are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
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
from transformers import CLIPModel

from twinspire import Client
from twinspire._cores import usable_cores
from twinspire_eval.scenes.captions import caption
from twinspire_eval.scenes.vocabulary import Language
from twinspire_export.sample.batches import SHIFT, Said, Texts, Wording, padded_ids, shifted, truth
from twinspire_export.sample.data import (
    END,
    IMAGE_SETTINGS,
    SPECIAL_TOKENS,
    TrainingSet,
    TrainingSettings,
    load_training_set,
)
from twinspire_export.sample.minimise import minimise

END_ID = SPECIAL_TOKENS.index(END)
FIRST_THRESHOLD = 0.45
"""The cosine similarity of the towers from which, before it is trained, a text is taken for true."""
WEIGHTS = "reranker.safetensors"


@dataclass(frozen=True)
class RerankerSettings:
    """Settings of the reranker and its training. A batch has `clusters` of `images` images and as many texts.

    The first `image_layers` and `text_layers` of the towers are kept; the last `fused_layers` of the text attend to the
    image. In a cluster `siblings` images are of one unit, `nearest` resemble it, and the rest are any.
    """

    image_layers: int = 5
    text_layers: int = 3
    fused_layers: int = 2
    steps: int = 3_000
    clusters: int = 10
    images: int = 7
    siblings: int = 3
    nearest: int = 2
    query_share: float = 0.5
    warmup_steps: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    seed: int = 2026


class CrossAttention(nn.Module):
    """Adds to text tokens (N, L, W) what they find among image tokens (N, P, V); before it is trained, nothing."""

    def __init__(self, width: int, image_width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, kdim=image_width, vdim=image_width, batch_first=True)
        nn.init.zeros_(self.attention.out_proj.weight)

    def forward(self, hidden: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Return the text tokens, (N, L, W)."""
        found: torch.Tensor = self.attention(self.norm(hidden), image, image, need_weights=False)[0]
        return hidden + found


class Fusion(nn.Module):
    """The cross-attentions before the last layers of the text tower."""

    def __init__(self, count: int, width: int, image_width: int, heads: int) -> None:
        super().__init__()
        layers = nn.ModuleList(CrossAttention(width, image_width, heads) for _ in range(count))
        self.layers: Sequence[CrossAttention] = layers  # type: ignore[assignment]  # is not generic


class SceneReranker(nn.Module):
    """Image and text to the probability that the text is true of the image.

    `checkpoint` is the sample's model, whose layers become the reranker's.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, checkpoint: CLIPModel, settings: RerankerSettings) -> None:
        super().__init__()
        vision, text = checkpoint.config.vision_config, checkpoint.config.text_config
        self.towers = checkpoint
        for tower, count in (
            (checkpoint.vision_model, settings.image_layers),
            (checkpoint.text_model, settings.text_layers),
        ):
            tower.encoder.layers = tower.encoder.layers[:count]
        self.fusion = Fusion(settings.fused_layers, text.hidden_size, vision.hidden_size, text.num_attention_heads)
        self.image_norm = nn.LayerNorm(vision.hidden_size)
        self.head = nn.Linear(text.hidden_size, 1)
        with torch.no_grad():
            self.head.bias.copy_(-FIRST_THRESHOLD * checkpoint.logit_scale.exp())
        self.register_buffer("mean", torch.tensor(IMAGE_SETTINGS.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_SETTINGS.std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def load(cls, checkpoint: Path, folder: Path, settings: RerankerSettings | None = None) -> SceneReranker:
        """Return the reranker that `train` wrote to `folder`, ready to be exported."""
        model = cls(_towers(checkpoint), settings or RerankerSettings())
        load_model(model, folder / WEIGHTS)
        return model.eval()

    def see(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens (N, P, V) and the embeddings (N, D), not normalised, of images (N, S, S, 3) uint8."""
        pixels = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        outputs = self.towers.vision_model(pixel_values=pixels)
        return self.image_norm(outputs.last_hidden_state), self.towers.visual_projection(outputs.pooler_output)

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the tokens (N, L, W) of texts (N, L) after the layers that see text alone."""
        hidden: torch.Tensor = self.towers.text_model.embeddings(input_ids=ids)
        for layer in self._text_layers[: -len(self.fusion.layers)]:
            (hidden,) = layer(hidden, None, _causal(hidden))
        return hidden

    def match(
        self, seen: torch.Tensor, embeddings: torch.Tensor, read: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits (N, 1) of what `see` and `read` return for N pairs, and of the texts' ids (N, L).

        A text ends with its first end token; what follows it changes nothing.
        """
        hidden = read
        for attend, layer in zip(self.fusion.layers, self._text_layers[-len(self.fusion.layers) :], strict=True):
            (hidden,) = layer(attend(hidden, seen), None, _causal(hidden))
        end = (ids == END_ID).int().argmax(dim=1)[:, None, None].expand(-1, 1, hidden.shape[2])
        pooled = self.towers.text_model.final_layer_norm(hidden.gather(1, end)[:, 0])
        similarity = functional.cosine_similarity(self.towers.text_projection(pooled), embeddings)
        logits: torch.Tensor = self.towers.logit_scale.exp() * similarity[:, None] + self.head(pooled)
        return logits

    @property
    def _text_layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = self.towers.text_model.encoder.layers
        return layers

    def forward(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the probabilities (N, 1) of images (N, S, S, 3) uint8 and texts (N, L)."""
        return self.match(*self.see(images), self.read(ids), ids).sigmoid()


def _towers(checkpoint: Path) -> CLIPModel:
    # Plain attention: for sequences this short it compiles to faster code than the fused operator.
    model: CLIPModel = CLIPModel.from_pretrained(checkpoint, attn_implementation="eager")
    return model


def _causal(hidden: torch.Tensor) -> torch.Tensor:
    """Return the mask (1, 1, L, L) of text tokens (N, L, W) that see those before them."""
    length = hidden.shape[1]
    return torch.full((1, 1, length, length), torch.finfo(torch.float32).min).triu(1)


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
    model = SceneReranker(_towers(checkpoint), settings)

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
