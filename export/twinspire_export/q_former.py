"""BLIP-2 as plain modules: a ViT whose tokens a Q-Former reads, the Q-Former over a text, and over a pair of both.

A Q-Former is BERT with post-norm layers, some of which attend to an image's tokens between attention and MLP; images
and texts share the attention, not the MLPs. https://arxiv.org/abs/2301.12597, section 3.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from twinspire.bundle import ImageSettings
from twinspire_export.rewrite.passes import MASKED
from twinspire_export.towers import ImageTower, Patches, unit
from twinspire_export.transformer import Attention, Block, Heads, Linear, Mlp, Norm, frozen


class QFormerAttention(nn.Module):
    """Attention of the Q-Former to its own tokens or to those of an image, with a residual sum and a norm after it."""

    def __init__(self, attention: Any) -> None:  # noqa: ANN401 - transformers' module
        super().__init__()
        inner, output = attention.attention, attention.output
        self.query, self.key, self.value = map(Linear.of, (inner.query, inner.key, inner.value))
        width = len(inner.query.weight)
        self.heads = Heads(int(inner.num_attention_heads), width, float(inner.attention_head_size) ** -0.5)
        self.output, self.norm = Linear.of(output.dense), Norm(output.LayerNorm)

    def forward(self, hidden: Tensor, read: Tensor, *, queries: int, keys: int, mask: Tensor | None = None) -> Tensor:
        """Transform `hidden` (N, Q, W), which attends to `read` (N, K, V); `mask` is added to the logits."""
        mixed = self.heads(self.query(hidden), self.key(read), self.value(read), queries=queries, keys=keys, mask=mask)
        normed: Tensor = self.norm(self.output(mixed) + hidden)
        return normed


class QFormerMlp(nn.Module):
    """MLP of the Q-Former, with a residual sum and a norm after it."""

    def __init__(self, intermediate: Any, output: Any) -> None:  # noqa: ANN401 - transformers' modules
        super().__init__()
        self.mlp = Mlp(Linear.of(intermediate.dense), intermediate.intermediate_act_fn, Linear.of(output.dense))
        self.norm = Norm(output.LayerNorm)

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform (N, L, W)."""
        normed: Tensor = self.norm(self.mlp(hidden) + hidden)
        return normed


class Blip2ImageTower(ImageTower):
    """A ViT whose tokens a Q-Former reads: `(N, S, S, 3) uint8 -> (N, Q, D) float32`, each vector of length 1."""

    def __init__(self, model: Any, settings: ImageSettings) -> None:  # noqa: ANN401 - transformers' model
        vision = model.vision_model
        super().__init__(
            patches=Patches(vision.embeddings.patch_embedding, settings),
            class_token=vision.embeddings.class_embedding.flatten(),
            positions=vision.embeddings.position_embedding[0],
            norm=nn.Identity(),
            blocks=map(_block, vision.encoder.layers),
            final_norm=Norm(vision.post_layernorm),
            projection=Linear.of(model.vision_projection),
        )
        with torch.no_grad():
            self.queries = frozen(model.qformer.layernorm(model.query_tokens))  # (1, Q, W)
        self.count = int(model.query_tokens.shape[1])
        layers = model.qformer.encoder.layer
        self.self_attentions = nn.ModuleList(map(QFormerAttention, (layer.attention for layer in layers)))
        self.cross_attentions = nn.ModuleList(
            QFormerAttention(layer.crossattention) if layer.has_cross_attention else nn.Identity() for layer in layers
        )
        self.mlps = nn.ModuleList(QFormerMlp(layer.intermediate_query, layer.output_query) for layer in layers)

    def forward(self, image: Tensor) -> Tensor:
        """Encode `image` (N, S, S, 3) uint8 to (N, Q, D) float32."""
        tokens = self.final_norm(self.tokens(image))  # (N, L, W)
        hidden = self.queries.repeat(image.shape[0], 1, 1)  # (N, Q, W)
        for position, attention in enumerate(self.self_attentions):
            hidden = attention(hidden, hidden, queries=self.count, keys=self.count)
            hidden = self.read(hidden, tokens, position)
        assert self.projection is not None
        return unit(self.projection(hidden))

    def read(self, hidden: Tensor, tokens: Tensor, layer: int) -> Tensor:
        """Do what follows the attention in a layer: queries (N, Q, W) may attend to an image's `tokens` (N, P, V)."""
        cross_attention, mlp = self.cross_attentions[layer], self.mlps[layer]
        if isinstance(cross_attention, QFormerAttention):
            hidden = cross_attention(hidden, tokens, queries=self.count, keys=self.length)
        output: Tensor = mlp(hidden)
        return output


class QFormerTexts(nn.Module):
    """Token ids to what the Q-Former's layers read."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - transformers' model
        super().__init__()
        embeddings = model.embeddings
        self.words = frozen(embeddings.word_embeddings.weight)  # (V, W)
        self.positions = frozen(embeddings.position_embeddings.weight)  # (C, W)
        self.norm = Norm(model.qformer.layernorm)
        self.pad_id = int(model.config.qformer_config.pad_token_id)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Embed `input_ids` (N, L) int32: (N, L, W), and the mask of the padding for the logits, (N, 1, 1, L)."""
        embedded = nn.functional.embedding(input_ids, self.words) + self.positions[: input_ids.shape[1]]
        mask = (input_ids == self.pad_id).to(torch.float32)[:, None, None, :] * MASKED
        return self.norm(embedded), mask


class Blip2TextTower(nn.Module):
    """The Q-Former over a text, pooled at its first token: `(N, L) int32 -> (N, D) float32`, L2-normalised."""

    def __init__(self, model: Any) -> None:  # noqa: ANN401 - transformers' model
        super().__init__()
        self.texts = QFormerTexts(model)
        layers = model.qformer.encoder.layer
        self.attentions = nn.ModuleList(map(QFormerAttention, (layer.attention for layer in layers)))
        self.mlps = nn.ModuleList(QFormerMlp(layer.intermediate, layer.output) for layer in layers)
        self.projection = Linear.of(model.text_projection)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode `input_ids` (N, L) int32 to (N, D) float32."""
        length = input_ids.shape[1]
        hidden, mask = self.texts(input_ids)  # (N, L, W), (N, 1, 1, L)
        for attention, mlp in zip(self.attentions, self.mlps, strict=True):
            hidden = mlp(attention(hidden, hidden, queries=length, keys=length, mask=mask))
        return unit(self.projection(hidden[:, :1]))[:, 0]


class Blip2Matcher(Blip2ImageTower):
    """The Q-Former over an image and a text, and the matching head: a pair to the probability that they match.

    `(N, S, S, 3) uint8, (N, L) int32 -> (N, 1) float32`. Queries and words attend to each other; the queries alone
    attend to the image, and are what the head reads.
    """

    def __init__(self, model: Any, settings: ImageSettings) -> None:  # noqa: ANN401 - transformers' model
        super().__init__(model, settings)
        self.projection = None  # of the contrast
        self.texts = QFormerTexts(model)
        # The last layer's words are not read.
        self.word_mlps = nn.ModuleList(
            QFormerMlp(layer.intermediate, layer.output) for layer in model.qformer.encoder.layer[:-1]
        )
        self.head = Linear.of(model.itm_head)

    def forward(self, image: Tensor, input_ids: Tensor) -> Tensor:  # type: ignore[override]  # a pair
        """Score `image` (N, S, S, 3) uint8 with `input_ids` (N, L) int32: (N, 1) float32, 0 to 1."""
        tokens = self.final_norm(self.tokens(image))  # (N, P, V)
        words, padding = self.texts(input_ids)  # (N, L, W), (N, 1, 1, L)
        mask = nn.functional.pad(padding, (self.count, 0))  # (N, 1, 1, Q + L)
        length = self.count + input_ids.shape[1]
        hidden = self.queries.repeat(image.shape[0], 1, 1)  # (N, Q, W)
        for position, attention in enumerate(self.self_attentions):
            both = torch.cat([hidden, words], dim=1)  # (N, Q + L, W)
            if position < len(self.word_mlps):
                both = attention(both, both, queries=length, keys=length, mask=mask)
                hidden, words = both[:, : self.count], self.word_mlps[position](both[:, self.count :])
            else:
                hidden = attention(hidden, both, queries=self.count, keys=length, mask=mask)
            hidden = self.read(hidden, tokens, position)
        logits = self.head(hidden).mean(dim=1)  # (N, 2): no match, match
        probability: Tensor = logits.softmax(dim=-1)[:, 1:]
        return probability


def _block(layer: Any) -> Block:  # noqa: ANN401 - transformers' layer
    """Return a block of the ViT; its layer has one matrix for queries, keys and values."""
    attention, joined = layer.self_attn, Linear.of(layer.self_attn.qkv)
    width = len(joined.weight) // 3
    query, key, value = (joined.rows(start, start + width) for start in range(0, 3 * width, width))
    return Block(
        Norm(layer.layer_norm1),
        Attention(
            query,
            key,
            value,
            Linear.of(attention.projection),
            heads=int(attention.num_heads),
            scale=float(attention.scale),
        ),
        Norm(layer.layer_norm2),
        Mlp.of(layer.mlp),
    )
