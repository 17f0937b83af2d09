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
from twinspire.errors import CheckpointError
from twinspire_export.attention_pool import AttentionPool, ProbeAttention
from twinspire_export.transformer import Attention, Block, Linear, Mlp, Norm, PooledAttention, PooledBlock, frozen


def pixel_values(image: Tensor, mean: Tensor | None, std: Tensor | None) -> Tensor:
    """Turn `image` (N, S, S, 3) uint8 into (N, 3, S, S) float32: 0 to 255, or normalised by `mean` and `std`."""
    pixels = image.permute(0, 3, 1, 2).to(torch.float32)
    return pixels if mean is None or std is None else (pixels / 255.0 - mean) / std


class Patches(nn.Module):
    """Images to patch embeddings, `(N, S, S, 3) uint8 -> (N, P, W)`, by a convolution whose stride is its size.

    Where the size of a patch does not divide the image's, the pixels left over at the right and below are not read.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, convolution: nn.Conv2d, settings: ImageSettings) -> None:
        super().__init__()
        self.weight = frozen(convolution.weight)  # (W, 3, size, size)
        self.bias = None if convolution.bias is None else frozen(convolution.bias)
        self.width, _, self.size, _ = (int(extent) for extent in convolution.weight.shape)
        self.image_size = settings.size
        self.side = settings.size // self.size
        self.register_buffer("mean", torch.tensor(settings.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(settings.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Embed the patches of `image` (N, S, S, 3) uint8, row by row."""
        pixels = pixel_values(image, self.mean, self.std)  # (N, 3, S, S)
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

    def attentions(self) -> list[Attention | PooledAttention | ProbeAttention]:
        """List the attentions of all blocks."""
        return [block.attention for block in self.all_blocks()]

    def transform(self, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Run the tokens `hidden` (N, L, W) through the blocks that transform all of them."""
        for block in self.blocks:
            hidden = block(hidden, length, mask)
        return hidden


class TransformerTower(BlockTower):
    """What pre-norm towers have: blocks, a final norm, and, unless None, a projection into the embedding space.

    A projection of two layers and an activation is an `Mlp`.
    """

    def __init__(self, *, blocks: Iterable[Block], final_norm: Norm, projection: Linear | Mlp | None) -> None:
        super().__init__(blocks)
        self.final_norm, self.projection = final_norm, projection

    def embed(self, token: Tensor) -> Tensor:
        """Turn the pooled token (N, 1, W) into an embedding (N, D), L2-normalised."""
        token = self.final_norm(token)
        embedding: Tensor = token if self.projection is None else self.projection(token)
        return unit(embedding[:, 0])


def unit(vectors: Tensor) -> Tensor:
    """Return vectors (..., D), L2-normalised."""
    normalised: Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
    return normalised


class ImageTower(TransformerTower):
    """A ViT: `(N, S, S, 3) uint8 -> (N, D) float32`, L2-normalised; pooled at its class token, where it has one.

    Rescaling, mean and standard deviation of the pixels are part of it.
    """

    def __init__(
        self,
        *,
        patches: nn.Module,
        class_token: Tensor | None,
        positions: Tensor,
        norm: nn.Module | None,
        blocks: Iterable[Block],
        final_norm: Norm,
        projection: Linear | Mlp | None,
    ) -> None:
        super().__init__(blocks=blocks, final_norm=final_norm, projection=projection)
        self.patches, self.norm, self.pool = patches, norm, FirstToken()
        self.class_token = None if class_token is None else frozen(class_token)  # (W,)
        self.positions, self.length = frozen(positions), len(positions)  # (L, W), L

    def forward(self, image: Tensor) -> Tensor:
        """Encode `image` (N, S, S, 3) uint8 to (N, D) float32."""
        return self.pooled(self.tokens(image))

    def tokens(self, image: Tensor) -> Tensor:
        """Transform `image` (N, S, S, 3) uint8 to all its tokens, a class token first: (N, L, W)."""
        hidden = self.patches(image)  # (N, P, W)
        if self.class_token is not None:
            first = self.class_token.view(1, 1, -1).repeat(image.shape[0], 1, 1)  # (N, 1, W)
            hidden = torch.cat([first, hidden], dim=1)
        hidden = hidden + self.positions  # (N, L, W)
        if self.norm is not None:
            hidden = self.norm(hidden)
        return self.transform(hidden, self.length, None)

    def pooled(self, hidden: Tensor) -> Tensor:
        """Pool the tokens (N, L, W) that left the blocks: (N, D), L2-normalised."""
        token = self.pool(hidden)  # (N, 1, W)
        if self.pooled_block is not None:
            token = self.pooled_block(token, hidden, self.length, None)
        return self.embed(token)


class AttentionPoolImageTower(ImageTower):
    """A ViT without class token whose last part, an attention pool, reads all tokens after the final norm."""

    def __init__(
        self,
        *,
        patches: nn.Module,
        positions: Tensor,
        blocks: Iterable[Block],
        final_norm: Norm,
        attention_pool: AttentionPool,
    ) -> None:
        super().__init__(
            patches=patches,
            class_token=None,
            positions=positions,
            norm=None,
            blocks=blocks,
            final_norm=final_norm,
            projection=None,
        )
        self.attention_pool = attention_pool

    @property
    def pools_one_token(self) -> bool:
        """Whether the embedding is made of one token: the attention pool reads all."""
        return False

    def attentions(self) -> list[Attention | PooledAttention | ProbeAttention]:
        """List the attentions of all blocks, and of the pool."""
        return [*super().attentions(), self.attention_pool.attention]

    def pooled(self, hidden: Tensor) -> Tensor:
        """Pool the tokens (N, L, W) that left the blocks: (N, D), L2-normalised."""
        return unit(self.attention_pool(self.final_norm(hidden), self.length)[:, 0])


class TokenTable(nn.Module):
    """Embeddings of token ids: `(N, L) int32 -> (N, L, W) float32`; a table in float16 is cast after the lookup."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = frozen(weight)  # (V, W)

    def store_as_fp16(self) -> None:
        """Halve the table; a value keeps 11 bits. Raises CheckpointError where one is beyond float16's range."""
        half = self.weight.to(torch.float16)
        if not half.isfinite().all():
            raise CheckpointError("token embeddings beyond 65,504, or not finite, cannot be stored in float16")
        self.weight = frozen(half)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look up `input_ids` (N, L)."""
        rows = nn.functional.embedding(input_ids, self.weight)
        return rows if rows.dtype == torch.float32 else rows.to(torch.float32)


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
        projection: Linear | None,
        end_id: int | None,
    ) -> None:
        super().__init__(blocks=blocks, final_norm=final_norm, projection=projection)
        self.tokens = TokenTable(tokens)  # (V, W)
        self.positions = frozen(positions)  # (C, W)
        self.mask: nn.Module = CausalMask()
        self.pool: nn.Module = EndToken()
        self.register_buffer("end_id", None if end_id is None else torch.tensor(end_id, dtype=torch.int32))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode `input_ids` (N, L) int32 to (N, D) float32."""
        length = input_ids.shape[1]
        hidden, mask = self.read(input_ids, length)
        hidden = self.transform(hidden, length, mask)
        return self.embed(self.pooled(hidden, input_ids, length, mask))

    def read(self, input_ids: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return the tokens of `input_ids` (N, L) that enter the blocks, (N, L, W), and the mask, (L, L)."""
        return self.tokens(input_ids) + self.positions[:length], self.mask(length)

    def pooled(self, hidden: Tensor, input_ids: Tensor, length: int, mask: Tensor) -> Tensor:
        """Pool the tokens (N, L, W) that left the blocks at the end token: (N, 1, W)."""
        ids = input_ids if self.end_id is None else (input_ids == self.end_id).to(torch.int32)
        end = ids.argmax(dim=1)  # (N,), the first of equal ones
        token: Tensor = self.pool(hidden, end)
        if self.pooled_block is not None:
            rows = mask.index_select(0, end).reshape(-1, 1, 1, length)  # each end token's row of the mask
            token = self.pooled_block(token, hidden, length, rows)
        return token


class LastTokenTextTower(TransformerTower):
    """A text transformer without a mask, pooled at its last token: `(N, L) int32 -> (N, D) float32`, L2-normalised.

    Every token sees every other, padding included: a model trained on one length gives its embeddings only there.
    """

    def __init__(
        self, *, tokens: Tensor, positions: Tensor, blocks: Iterable[Block], final_norm: Norm, projection: Linear | None
    ) -> None:
        super().__init__(blocks=blocks, final_norm=final_norm, projection=projection)
        self.tokens = TokenTable(tokens)  # (V, W)
        self.positions = frozen(positions)  # (C, W)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode `input_ids` (N, L) int32 to (N, D) float32."""
        length = input_ids.shape[1]
        hidden = self.tokens(input_ids) + self.positions[:length]  # (N, L, W)
        hidden = self.transform(hidden, length, None)
        token = hidden[:, -1:]  # (N, 1, W)
        if self.pooled_block is not None:
            token = self.pooled_block(token, hidden, length, None)
        return self.embed(token)
