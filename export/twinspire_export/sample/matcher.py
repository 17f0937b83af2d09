"""The trained reranker of the sample as the plain modules of which its towers are exported, with their rewrites."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinspire.bundle import ImageSettings
from twinspire_export.families.clip import image_tower, text_tower
from twinspire_export.rewrite import ALL, apply_rewrites
from twinspire_export.sample.reranker import CrossAttention, SceneReranker
from twinspire_export.towers import unit
from twinspire_export.transformer import Heads, Linear, Norm


class ReadImage(nn.Module):
    """Cross-attention of a text's tokens to those of an image, with a residual sum."""

    def __init__(self, trained: CrossAttention) -> None:
        super().__init__()
        attention = trained.attention
        weights = attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight
        self.query, self.key, self.value = map(Linear, weights, attention.in_proj_bias.chunk(3))
        self.heads = Heads(attention.num_heads, attention.embed_dim, float(attention.head_dim) ** -0.5)
        self.norm, self.output = Norm(trained.norm), Linear.of(attention.out_proj)

    def forward(self, hidden: Tensor, image: Tensor, *, queries: int, keys: int) -> Tensor:
        """Transform `hidden` (N, Q, W), which attends to `image` (N, K, V)."""
        query, key, value = self.query(self.norm(hidden)), self.key(image), self.value(image)
        mixed = self.heads(query, key, value, queries=queries, keys=keys, mask=None)
        read: Tensor = hidden + self.output(mixed)
        return read


class SceneMatcher(nn.Module):
    """A pair to the probability that they match: `(N, S, S, 3) uint8, (N, L) int32 -> (N, 1) float32`.

    The last `read_image` of the text's blocks come after a cross-attention each.
    """

    def __init__(self, model: SceneReranker, settings: ImageSettings) -> None:
        super().__init__()
        towers = model.towers
        # All tokens of the image are read: its last block must not leave out any.
        rewrites = [name for name in ALL if name != "pooled"]
        self.image = apply_rewrites(image_tower(towers, settings), rewrites)
        self.image_norm = Norm(model.image_norm)
        self.dim = len(towers.text_projection.weight)
        text = text_tower(towers)
        text.projection = _stacked(towers.text_projection, model.head)
        self.text = apply_rewrites(text)
        self.read_image = nn.ModuleList(map(ReadImage, model.fusion.layers))
        self.scale = float(towers.logit_scale.detach().exp())

    def forward(self, image: Tensor, input_ids: Tensor) -> Tensor:
        """Score `image` (N, S, S, 3) uint8 with `input_ids` (N, L) int32: (N, 1) float32, 0 to 1."""
        tokens = self.image.tokens(image)  # (N, P, V)
        embedding, seen = self.image.pooled(tokens), self.image_norm(tokens)
        length = input_ids.shape[1]
        hidden, mask = self.text.read(input_ids, length)  # (N, L, W), (L, L)
        *early, last = self.read_image
        blocks = list(self.text.blocks)  # without the last one, of which the end token alone is computed
        readers = [None] * (len(blocks) - len(early)) + early
        for reader, block in zip(readers, blocks, strict=True):
            if reader is not None:
                hidden = reader(hidden, seen, queries=length, keys=self.image.length)
            hidden = block(hidden, length, mask)
        hidden = last(hidden, seen, queries=length, keys=self.image.length)
        token = self.text.final_norm(self.text.pooled(hidden, input_ids, length, mask))  # (N, 1, W)
        assert self.text.projection is not None
        projected = self.text.projection(token)[:, 0]  # (N, D + 1)
        similarity = (unit(projected[:, : self.dim]) * embedding).sum(dim=1, keepdim=True)
        logits: Tensor = similarity * self.scale + projected[:, self.dim :]
        return logits.sigmoid()


def _stacked(projection: nn.Linear, head: nn.Linear) -> Linear:
    """Return one layer that computes both, the head's output last."""
    bias = torch.cat([torch.zeros(len(projection.weight)), head.bias.detach()])
    return Linear(torch.cat([projection.weight.detach(), head.weight.detach()]), bias)
