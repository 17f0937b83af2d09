"""The text towers that are BERT, RoBERTa or XLM-RoBERTa, as one plain module that keeps the tensor contract.

A bidirectional post-norm transformer: https://arxiv.org/abs/1810.04805, https://arxiv.org/abs/1907.11692. Padding is
told from tokens by its id, inside the graph, so that a text has the same embedding at any length from its own up.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from twinspire.errors import CheckpointError
from twinspire_export.towers import BlockTower, TokenTable, unit
from twinspire_export.transformer import Block, Linear, Norm, PostNormBlock, frozen

_PARTS = ("embeddings.token_type_embeddings", "embeddings.LayerNorm", "encoder.layer")


class TextPooling(StrEnum):
    """How the tokens of a text become one vector. The values name it in a bundle's space."""

    FIRST_TOKEN = "first token"  # noqa: S105 - no password
    MEAN = "mean of tokens"


class TextEncoder(BlockTower):
    """A BERT-like text tower: `(N, L) int32 -> (N, D) float32`, L2-normalised.

    Tokens with the id `pad_id` are padding: no token attends to them, and the mean leaves them out. `head` turns the
    pooled token (N, 1, W) into (N, 1, D): a pooler, a norm, a projection, or nothing at all.
    """

    def __init__(
        self,
        *,
        tokens: Tensor,
        positions: Tensor,
        counted: bool,
        norm: Norm,
        blocks: Iterable[Block],
        pooling: TextPooling,
        head: Iterable[nn.Module],
        pad_id: int,
    ) -> None:
        super().__init__(blocks)
        self.tokens = TokenTable(tokens)  # (V, W)
        self.positions = frozen(positions)  # (C, W)
        self.counted = counted
        """Whether a position is `pad_id` plus the number of tokens so far, and `pad_id` for padding: RoBERTa."""
        self.norm, self.pooling, self.head, self.pad_id = norm, pooling, nn.Sequential(*head), pad_id
        self.masked = torch.finfo(torch.float32).min
        """Added to the logits of padding."""

    @property
    def pools_one_token(self) -> bool:
        """Whether the embedding is made of the first token alone."""
        return self.pooling is TextPooling.FIRST_TOKEN

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode `input_ids` (N, L) int32 to (N, D) float32."""
        length = input_ids.shape[1]
        is_token = input_ids != self.pad_id  # (N, L)
        hidden = self.norm(self.tokens(input_ids) + self._positions(is_token, length))  # (N, L, W)
        mask = ((~is_token).to(torch.float32) * self.masked).reshape(-1, 1, 1, length)
        hidden = self.transform(hidden, length, mask)
        pooled = hidden[:, :1] if self.pools_one_token else masked_mean(hidden, is_token)  # (N, 1, W)
        if self.pooled_block is not None:
            pooled = self.pooled_block(pooled, hidden, length, mask)
        return unit(self.head(pooled)[:, 0])

    def _positions(self, is_token: Tensor, length: int) -> Tensor:
        """Return the position embeddings of the tokens: (L, W), or (N, L, W) where they are counted."""
        if not self.counted:
            return self.positions[:length]
        count = is_token.to(torch.int32)
        position = count.cumsum(dim=1, dtype=torch.int32) * count + self.pad_id
        return nn.functional.embedding(position, self.positions)


def masked_mean(hidden: Tensor, is_token: Tensor) -> Tensor:
    """Return the mean of the tokens of `hidden` (N, L, W) where `is_token` (N, L) is true: (N, 1, W).

    As sentence-transformers computes it (models/Pooling.py). Not a matrix multiplication: it would be quantized.
    """
    weights = is_token.to(hidden.dtype).unsqueeze(-1)  # (N, L, 1)
    total = (hidden * weights).sum(dim=1, keepdim=True)
    return total / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)


def encoder_of(
    model: Any,  # noqa: ANN401 - one of many classes, with the same names for their parts
    *,
    pooling: TextPooling = TextPooling.FIRST_TOKEN,
    pooler: bool = False,
    head: Iterable[nn.Module] = (),
) -> TextEncoder:
    """Return a text tower that shares the weights of `model`, a BERT of transformers or one of its descendants.

    BertModel, RobertaModel, XLMRobertaModel, CamembertModel, and the text models inside ChineseCLIPModel, AltCLIPModel,
    AlignModel and ClapModel. With `pooler`, the model's own dense layer and tanh follow the pooling. `head` are the
    layers after it: Linear, LayerNorm and activations, none for an embedding that is the pooled token itself.

    Raises CheckpointError for a model that is built otherwise, is a decoder or has relative positions.
    """
    name = type(model).__name__
    if missing := [part for part in _PARTS if not _has(model, part)]:
        raise CheckpointError(f"the text model {name} is not built as BERT is: it has no {missing[0]}")
    config, embeddings = model.config, model.embeddings
    if (kind := getattr(config, "position_embedding_type", "absolute")) != "absolute":
        raise CheckpointError(f"the text model {name} has {kind!r} positions; only 'absolute' ones are supported")
    if getattr(config, "is_decoder", False):
        raise CheckpointError(f"the text model {name} is a decoder ('is_decoder'); expected an encoder")
    if pooler and getattr(model, "pooler", None) is None:
        raise CheckpointError(f"the text model {name} has no pooler, from which its embeddings are taken")
    layers = [model.pooler.dense, model.pooler.activation, *head] if pooler else list(head)
    positions = embeddings.position_embeddings.weight.detach()
    return TextEncoder(
        tokens=embeddings.word_embeddings.weight,
        # All tokens are of the first type.
        positions=positions + embeddings.token_type_embeddings.weight.detach()[0],
        # The embeddings of RoBERTa and its descendants alone know the padding's id: they count positions from it.
        counted=counts_positions(model),
        norm=Norm(embeddings.LayerNorm),
        blocks=map(PostNormBlock.of, model.encoder.layer),
        pooling=pooling,
        head=map(_plain, layers),
        pad_id=int(config.pad_token_id),
    )


def counts_positions(model: Any) -> bool:  # noqa: ANN401 - as above
    """Whether positions are counted from the padding's id, as in RoBERTa, and not from 0, as in BERT."""
    return hasattr(model.embeddings, "padding_idx")


def _has(model: Any, part: str) -> bool:  # noqa: ANN401 - as above
    for name in part.split("."):
        model = getattr(model, name, None)
    return model is not None


def _plain(layer: nn.Module) -> nn.Module:
    """Return our own module in place of torch's, other modules as they are."""
    if isinstance(layer, nn.Linear):
        return Linear.of(layer)
    return Norm(layer) if isinstance(layer, nn.LayerNorm) else layer
