"""The two towers of a CLIP checkpoint as plain modules to the tensor contract that every runtime shares.

As made from a checkpoint they compute step by step what transformers computes; `twinspire_export.rewrite` makes
them faster. They are written down anew because transformers' `forward` decides on shapes in Python, which a
trace would freeze, and because modules of one's own can be taken apart. That the result is the same is what the
certificate of each export measures, against transformers' own code.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from twinspire.bundle import ImageSettings
from twinspire_export.transformer import Block, Linear, Norm, PooledBlock, frozen

if TYPE_CHECKING:
    from transformers import CLIPModel
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

LEGACY_EOS_ID = 2
"""`eos_token_id` in configs older than transformers' #24773: pooling is then at the highest token id."""


class Patches(nn.Module):
    """Images to patch embeddings, `(N, S, S, 3) uint8 -> (N, P, W)`, by a convolution whose stride is its size."""

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, convolution: nn.Conv2d, settings: ImageSettings) -> None:
        super().__init__()
        self.weight = frozen(convolution.weight)  # (W, 3, size, size)
        self.bias = None if convolution.bias is None else frozen(convolution.bias)
        self.width, _, self.size, _ = (int(extent) for extent in convolution.weight.shape)
        self.side = settings.size // self.size
        self.register_buffer("mean", torch.tensor(settings.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(settings.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Embed the patches of `image` (N, S, S, 3) uint8, row by row."""
        pixels = image.permute(0, 3, 1, 2).to(torch.float32)  # (N, 3, S, S), 0 to 255
        if self.mean is not None and self.std is not None:
            pixels = (pixels / 255.0 - self.mean) / self.std
        patches = nn.functional.conv2d(pixels, self.weight, self.bias, stride=self.size)  # (N, W, side, side)
        return patches.reshape(-1, self.width, self.side * self.side).transpose(1, 2)


class FirstToken(nn.Module):
    """Pool at the first token, which stands for the image: `(N, L, W) -> (N, 1, W)`."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Take it out of `hidden` (N, L, W)."""
        return hidden[:, :1]


class EndToken(nn.Module):
    """Pool at the end token, as transformers does, by a pair of indices: `(N, L, W), (N,) -> (N, 1, W)`."""

    def forward(self, hidden: Tensor, end: Tensor) -> Tensor:
        """Take the tokens at the positions `end` (N,) int64 out of `hidden` (N, L, W)."""
        return hidden[torch.arange(hidden.shape[0]), end].unsqueeze(1)


class CausalMask(nn.Module):
    """What is added to the logits so that no token sees a later one, as transformers makes it."""

    def forward(self, length: int) -> Tensor:
        """Make it for `length` tokens: (L, L), 0 and float32's least value."""
        return torch.full((length, length), torch.finfo(torch.float32).min).triu(1)


class ClipTower(nn.Module):
    """What both towers have: blocks, a norm behind them, and the projection into the space that they share."""

    def __init__(self, blocks: Iterable[CLIPEncoderLayer], final_norm: nn.LayerNorm, projection: nn.Linear) -> None:
        super().__init__()
        self.set_blocks(map(Block, blocks), None)
        self.final_norm, self.projection = Norm(final_norm), Linear.of(projection)
        self.unit_length = False

    def set_blocks(self, blocks: Iterable[Block], pooled_block: PooledBlock | None) -> None:
        """Take other blocks: those that transform all tokens, then perhaps one that transforms the pooled one alone."""
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]  # is not generic
        self.pooled_block = pooled_block

    def every_block(self) -> list[Block | PooledBlock]:
        """List the blocks, that for the pooled token included."""
        return [*self.blocks, *([] if self.pooled_block is None else [self.pooled_block])]

    def transform(self, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Send the tokens `hidden` (N, L, W) through the blocks that transform them all."""
        for block in self.blocks:
            hidden = block(hidden, length, mask)
        return hidden

    def embed(self, token: Tensor) -> Tensor:
        """Turn the pooled token (N, 1, W) into an embedding (N, D)."""
        embedding: Tensor = self.projection(self.final_norm(token))[:, 0]
        if self.unit_length:
            embedding = embedding / embedding.norm(dim=-1, keepdim=True)
        return embedding


class ImageTower(ClipTower):
    """Images to embeddings: `(N, S, S, 3) uint8 -> (N, D) float32`. Rescaling, mean and std are in it.

    Not L2-normalised before the rewrite `unit_length`.
    """

    def __init__(self, model: CLIPModel, settings: ImageSettings) -> None:
        vision = model.vision_model
        super().__init__(vision.encoder.layers, vision.post_layernorm, model.visual_projection)
        self.config = copy.deepcopy(vision.config)
        self.patches: nn.Module = Patches(vision.embeddings.patch_embedding, settings)
        self.start = frozen(vision.embeddings.class_embedding)  # (W,)
        self.positions = frozen(vision.embeddings.position_embedding.weight)  # (L, W)
        self.norm = Norm(vision.pre_layrnorm)
        self.pool = FirstToken()

    def forward(self, image: Tensor) -> Tensor:
        """Encode `image` (N, S, S, 3) uint8 to (N, D) float32."""
        patches = self.patches(image)  # (N, P, W)
        start = self.start.view(1, 1, -1).repeat(image.shape[0], 1, 1)  # (N, 1, W)
        hidden = self.norm(torch.cat([start, patches], dim=1) + self.positions)  # (N, L, W)
        length = len(self.positions)
        hidden = self.transform(hidden, length, None)
        token = self.pool(hidden)  # (N, 1, W)
        if self.pooled_block is not None:
            token = self.pooled_block(token, hidden, length, None)
        return self.embed(token)


class TextTower(ClipTower):
    """Token ids to embeddings: `(N, L) int32 -> (N, D) float32`.

    L is anything up to the context length. The mask is causal and the output is taken at the end token, so what stands
    right of it never matters. Not L2-normalised before the rewrite `unit_length`.
    """

    end_id: Tensor

    def __init__(self, model: CLIPModel) -> None:
        text = model.text_model
        super().__init__(text.encoder.layers, text.final_layer_norm, model.text_projection)
        self.config = copy.deepcopy(text.config)
        self.tokens = frozen(text.embeddings.token_embedding.weight)  # (V, W)
        self.positions = frozen(text.embeddings.position_embedding.weight)  # (C, W)
        self.mask: nn.Module = CausalMask()
        self.pool: nn.Module = EndToken()
        self.pooled_at_highest = self.config.eos_token_id == LEGACY_EOS_ID
        self.register_buffer("end_id", torch.tensor(self.config.eos_token_id, dtype=torch.int32))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode `input_ids` (N, L) int32 to (N, D) float32."""
        length = input_ids.shape[1]
        hidden = nn.functional.embedding(input_ids, self.tokens) + self.positions[:length]  # (N, L, W)
        mask = self.mask(length)  # (L, L)
        hidden = self.transform(hidden, length, mask)
        ids = input_ids if self.pooled_at_highest else (input_ids == self.end_id).to(torch.int32)
        end = ids.argmax(dim=1)  # (N,), the first of equal ones
        token = self.pool(hidden, end)  # (N, 1, W)
        if self.pooled_block is not None:
            rows = mask.index_select(0, end).reshape(-1, 1, 1, length)  # each end token's row of the mask
            token = self.pooled_block(token, hidden, length, rows)
        return self.embed(token)
