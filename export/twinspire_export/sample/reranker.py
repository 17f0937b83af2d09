"""The sample's reranker as it is trained; `train_reranker.py` trains it, `matcher.py` is its form for the export.

Its weights begin as those of the first layers of the sample's two towers. The last text layers also attend to the
image's tokens. Early layers that see text alone and late ones that fuse are those of ALBEF (Li et al. 2021,
arXiv:2107.07651).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model
from torch import nn
from torch.nn import functional
from transformers import CLIPModel

from twinspire_export.sample.data import END, IMAGE_SETTINGS, SPECIAL_TOKENS

END_ID = SPECIAL_TOKENS.index(END)
FIRST_THRESHOLD = 0.45
"""Before training, the cosine similarity of the towers from which on a pair counts as a match."""
WEIGHTS = "reranker.safetensors"


@dataclass(frozen=True)
class RerankerSettings:
    """Settings of the reranker and its training. A batch has `clusters` of `images` images and as many texts.

    The first `image_layers` and `text_layers` of the towers are kept; the last `fused_layers` of the text attend to the
    image. In a cluster `siblings` images are of one unit, `nearest` resemble it, and the rest are drawn from all.
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
        model = cls(open_towers(checkpoint), settings or RerankerSettings())
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


def open_towers(checkpoint: Path) -> CLIPModel:
    """Open a sample checkpoint with plain attention: on short sequences it compiles to faster code."""
    model: CLIPModel = CLIPModel.from_pretrained(checkpoint, attn_implementation="eager")
    return model


def _causal(hidden: torch.Tensor) -> torch.Tensor:
    """Return the mask (1, 1, L, L) of text tokens (N, L, W) that see those before them."""
    length = hidden.shape[1]
    return torch.full((1, 1, length, length), torch.finfo(torch.float32).min).triu(1)
