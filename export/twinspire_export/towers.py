"""The towers of two-tower transformers as plain modules that keep the tensor contract.

As made from a checkpoint they compute step by step what the original code computes; `twinspire_export.rewrite` makes
them faster. They are written anew because transformers' `forward` decides on shapes in Python, which a trace would
freeze, and so that rewrites can replace their parts. Each export compares them with the original code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from twinspire.bundle import ImageSettings
from twinspire_export.transformer import Block, Linear, Norm, PooledBlock, frozen


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
    """Pool at the first token, the class token: `(N, L, W) -> (N, 1, W)`."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the first token of `hidden` (N, L, W)."""
        return hidden[:, :1]


class EndToken(nn.Module):
    """Pool at the end token, as transformers does, by a pair of indices: `(N, L, W), (N,) -> (N, 1, W)`."""

    def forward(self, hidden: Tensor, end: Tensor) -> Tensor:
        """Return the tokens at the positions `end` (N,) int64 of `hidden` (N, L, W)."""
        return hidden[torch.arange(hidden.shape[0]), end].unsqueeze(1)


class CausalMask(nn.Module):
    """Mask added to the attention logits so that no token attends to a later one, as transformers makes it."""

    def forward(self, length: int) -> Tensor:
        """Return the mask of `length` tokens: (L, L), 0 and float32's minimum."""
        return torch.full((length, length), torch.finfo(torch.float32).min).triu(1)


class BlockTower(nn.Module):
    """What all towers here have: blocks, the last of which may compute the pooled token only."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        super().__init__()
        self.set_blocks(blocks, None)

    @property
    def pools_one_token(self) -> bool:
        """Whether the embedding is made of one token, so that the last block need not compute the others."""
        return True

    def set_blocks(self, blocks: Iterable[Block], pooled_block: PooledBlock | None) -> None:
        """Replace the blocks: those that transform all tokens, and optionally a last one for the pooled token only."""
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]  # is not generic
        self.pooled_block = pooled_block

    def all_blocks(self) -> list[Block | PooledBlock]:
        """List the blocks, including the one for the pooled token."""
        return [*self.blocks, *([] if self.pooled_block is None else [self.pooled_block])]

    def transform(self, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Run the tokens `hidden` (N, L, W) through the blocks that transform all of them."""
        for block in self.blocks:
            hidden = block(hidden, length, mask)
        return hidden


class TransformerTower(BlockTower):
    """What pre-norm towers have: blocks, a final norm, and the projection into the shared embedding space."""

    def __init__(self, *, blocks: Iterable[Block], final_norm: Norm, projection: Linear) -> None:
        super().__init__(blocks)
        self.final_norm, self.projection = final_norm, projection

    def embed(self, token: Tensor) -> Tensor:
        """Turn the pooled token (N, 1, W) into an embedding (N, D), L2-normalised."""
        embedding: Tensor = self.projection(self.final_norm(token))[:, 0]
        unit: Tensor = embedding / embedding.norm(dim=-1, keepdim=True)
        return unit


class ImageTower(TransformerTower):
    """A ViT pooled at its class token: `(N, S, S, 3) uint8 -> (N, D) float32`, L2-normalised.

    Rescaling, mean and standard deviation of the pixels are part of it.
    """

    def __init__(
        self,
        *,
        patches: nn.Module,
        class_token: Tensor,
        positions: Tensor,
        norm: Norm,
        blocks: Iterable[Block],
        final_norm: Norm,
        projection: Linear,
    ) -> None:
        super().__init__(blocks=blocks, final_norm=final_norm, projection=projection)
        self.patches, self.norm, self.pool = patches, norm, FirstToken()
        self.class_token = frozen(class_token)  # (W,)
        self.positions = frozen(positions)  # (L, W)

    def forward(self, image: Tensor) -> Tensor:
        """Encode `image` (N, S, S, 3) uint8 to (N, D) float32."""
        patches = self.patches(image)  # (N, P, W)
        first = self.class_token.view(1, 1, -1).repeat(image.shape[0], 1, 1)  # (N, 1, W)
        hidden = self.norm(torch.cat([first, patches], dim=1) + self.positions)  # (N, L, W)
        length = len(self.positions)
        hidden = self.transform(hidden, length, None)
        token = self.pool(hidden)  # (N, 1, W)
        if self.pooled_block is not None:
            token = self.pooled_block(token, hidden, length, None)
        return self.embed(token)


class TextTower(TransformerTower):
    """A causal text transformer pooled at its end token: `(N, L) int32 -> (N, D) float32`, L2-normalised.

    L is any length up to the context. Tokens right of the end token never affect the result. `end_id` is the end
    token's id; None pools at the highest id of each text.
    """

    end_id: Tensor | None

    def __init__(
        self,
        *,
        tokens: Tensor,
        positions: Tensor,
        blocks: Iterable[Block],
        final_norm: Norm,
        projection: Linear,
        end_id: int | None,
    ) -> None:
        super().__init__(blocks=blocks, final_norm=final_norm, projection=projection)
        self.tokens = frozen(tokens)  # (V, W)
        self.positions = frozen(positions)  # (C, W)
        self.mask: nn.Module = CausalMask()
        self.pool: nn.Module = EndToken()
        self.register_buffer("end_id", None if end_id is None else torch.tensor(end_id, dtype=torch.int32))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode `input_ids` (N, L) int32 to (N, D) float32."""
        length = input_ids.shape[1]
        hidden = nn.functional.embedding(input_ids, self.tokens) + self.positions[:length]  # (N, L, W)
        mask = self.mask(length)  # (L, L)
        hidden = self.transform(hidden, length, mask)
        ids = input_ids if self.end_id is None else (input_ids == self.end_id).to(torch.int32)
        end = ids.argmax(dim=1)  # (N,), the first of equal ones
        token = self.pool(hidden, end)  # (N, 1, W)
        if self.pooled_block is not None:
            rows = mask.index_select(0, end).reshape(-1, 1, 1, length)  # each end token's row of the mask
            token = self.pooled_block(token, hidden, length, rows)
        return self.embed(token)
