"""Swin Transformer as plain modules that keep the tensor contract: https://arxiv.org/abs/2103.14030.

transformers' own code decides on windows in Python and writes masks element by element; in a trace of it most nodes are
arithmetic of shapes. Here the size of images is known: windows, shifts and masks are constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twinspire.bundle import ImageSettings
from twinspire.errors import CheckpointError
from twinspire_export.towers import Patches, TransformerTower, unit
from twinspire_export.transformer import Attention, Block, Heads, Linear, Mlp, Norm, PooledBlock


class WindowHeads(Heads):
    """Attention within windows of `length` tokens, with one mask for all or one for each window of an image.

    A mask is (`masks`, heads, length, length).
    """

    def __init__(self, heads: Heads, *, length: int, masks: int) -> None:
        super().__init__(heads.count, heads.width, heads.scale or 1.0)
        self.length, self.masks = length, masks

    def masked(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Add `mask` to the logits (N * windows, heads, length, length)."""
        shape = (self.count, self.length, self.length)
        return (logits.reshape(-1, self.masks, *shape) + mask).reshape(-1, *shape) if self.masks > 1 else logits + mask


class WindowBlock(Block):
    """A block whose attention is within windows of a square grid of tokens: `(N, L, W) -> (N, L, W)`.

    The grid is rolled by `shift`, padded with zeros to whole windows, and cut into windows of `window` by `window`.
    The biases of relative positions are part of `mask`.
    """

    mask: Tensor

    def __init__(
        self,
        attention_norm: Norm,
        attention: Attention,
        mlp_norm: Norm,
        mlp: Mlp,
        *,
        side: int,
        window: int,
        shift: int,
        mask: Tensor,
    ) -> None:
        super().__init__(attention_norm, attention, mlp_norm, mlp)
        self.side, self.window, self.shift, self.width = side, window, shift, attention.heads.width
        self.across = -(-side // window)
        """Windows in a row of them."""
        self.padding = self.across * window - side
        # The padding is 0 after the norm, whose shift, folded into the layers behind it, would reach it too.
        self.folds_attention_norm = self.padding == 0
        self.register_buffer("mask", mask)
        attention.heads = WindowHeads(attention.heads, length=window**2, masks=len(mask))

    @classmethod
    def of_swin(cls, layer: Any, side: int) -> WindowBlock:  # noqa: ANN401 - a layer of transformers
        """Return a block that shares the weights of a layer of transformers' Swin over `side` by `side` tokens."""
        attention = layer.attention.self
        window = int(attention.window_size[0])
        if side < window:
            raise CheckpointError(
                f"a stage of the Swin has {side} x {side} tokens, less than its window of {window} ('window_size'); "
                "transformers cannot run it either"
            )
        shift = int(layer.shift_size) if side > window else 0
        length, padded = window**2, -(-side // window) * window
        biases = attention.relative_position_bias_table.detach()[attention.relative_position_index.flatten()]
        mask = biases.view(1, length, length, -1).permute(0, 3, 1, 2).contiguous()  # (1, heads, L, L)
        if shift:
            mask = mask + layer.get_attn_mask(padded, padded, torch.float32, mask.device)[:, None]
        return cls(
            Norm(layer.layernorm_before),
            Attention.of_vit(layer),
            Norm(layer.layernorm_after),
            Mlp.of_vit(layer),
            side=side,
            window=window,
            shift=shift,
            mask=mask,
        )

    def forward(self, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Transform (N, L, W); `length` is that of a window, `mask` (windows or 1, heads, length, length)."""
        windows = self._cut(self.attention_norm(hidden))
        hidden = hidden + self._joined(self.attention(windows, length, mask))
        output: Tensor = hidden + self.mlp(self.mlp_norm(hidden))
        return output

    def _cut(self, hidden: Tensor) -> Tensor:
        """(N, L, W) to (N * windows, window * window, W)."""
        grid = hidden.reshape(-1, self.side, self.side, self.width)
        if self.padding:
            grid = nn.functional.pad(grid, (0, 0, 0, self.padding, 0, self.padding))
        if self.shift:
            grid = grid.roll((-self.shift, -self.shift), dims=(1, 2))
        parts = grid.reshape(-1, self.across, self.window, self.across, self.window, self.width)
        return parts.transpose(2, 3).reshape(-1, self.window**2, self.width)

    def _joined(self, windows: Tensor) -> Tensor:
        """(N * windows, window * window, W) to (N, L, W)."""
        padded = self.side + self.padding
        parts = windows.reshape(-1, self.across, self.across, self.window, self.window, self.width)
        grid = parts.transpose(2, 3).reshape(-1, padded, padded, self.width)
        if self.shift:
            grid = grid.roll((self.shift, self.shift), dims=(1, 2))
        if self.padding:
            grid = grid[:, : self.side, : self.side]
        return grid.reshape(-1, self.side**2, self.width)


class PatchMerging(nn.Module):
    """Join each two by two tokens of a square grid: `(N, L, W) -> (N, L / 4, 2 W)`; an odd grid is padded with 0."""

    def __init__(self, merging: Any, side: int) -> None:  # noqa: ANN401 - a module of transformers
        super().__init__()
        self.norm, self.reduction = Norm(merging.norm), Linear.of(merging.reduction)
        self.side, self.merged_side, self.width = side, (side + 1) // 2, self.norm.width // 4

    def forward(self, hidden: Tensor) -> Tensor:
        """Join the tokens of (N, L, W)."""
        grid = hidden.reshape(-1, self.side, self.side, self.width)
        if self.side % 2:
            grid = nn.functional.pad(grid, (0, 0, 0, 1, 0, 1))
        # (N, rows, 2, columns, 2, W): the four tokens by columns, then by rows.
        parts = grid.reshape(-1, self.merged_side, 2, self.merged_side, 2, self.width).permute(0, 1, 3, 4, 2, 5)
        merged: Tensor = self.reduction(self.norm(parts.reshape(-1, self.merged_side**2, 4 * self.width)))
        return merged


class SwinTower(TransformerTower):
    """A Swin pooled by the mean of its tokens: `(N, S, S, 3) uint8 -> (N, D) float32`, L2-normalised.

    `merging` has a module, or None, for each block: what follows it.
    """

    def __init__(
        self,
        *,
        patches: nn.Module,
        norm: Norm,
        blocks: Iterable[Block],
        merging: Iterable[nn.Module | None],
        final_norm: Norm,
        projection: Linear,
    ) -> None:
        super().__init__(blocks=blocks, final_norm=final_norm, projection=projection)
        self.patches, self.norm = patches, norm
        self.merging: Sequence[nn.Module] = nn.ModuleList(  # type: ignore[assignment]  # is not generic
            nn.Identity() if module is None else module for module in merging
        )

    @classmethod
    def of(cls, model: Any, projection: nn.Linear, settings: ImageSettings) -> SwinTower:  # noqa: ANN401 - a SwinModel
        """Return a tower that shares the weights of transformers' `SwinModel`.

        Raises CheckpointError where it has absolute positions, or windows larger than its images.
        """
        if model.embeddings.position_embeddings is not None:
            raise CheckpointError(
                "the Swin has absolute positions ('use_absolute_embeddings'), which are not supported"
            )
        if settings.size % model.config.patch_size:
            raise CheckpointError(
                f"the Swin's patches of {model.config.patch_size} pixels do not divide its images of {settings.size}"
            )
        patches = Patches(model.embeddings.patch_embeddings.projection, settings)
        blocks: list[Block] = []
        merging: list[nn.Module | None] = []
        side = patches.side
        for stage in model.encoder.layers:
            blocks += [WindowBlock.of_swin(layer, side) for layer in stage.blocks]
            merging += [None] * len(stage.blocks)
            if stage.downsample is not None:
                merging[-1] = PatchMerging(stage.downsample, side)
                side = (side + 1) // 2
        return cls(
            patches=patches,
            norm=Norm(model.embeddings.norm),
            blocks=blocks,
            merging=merging,
            final_norm=Norm(model.layernorm),
            projection=Linear.of(projection),
        )

    @property
    def pools_one_token(self) -> bool:
        """All tokens are averaged."""
        return False

    def all_blocks(self) -> list[Block | PooledBlock]:
        """List the blocks."""
        return list(self.blocks)

    def forward(self, image: Tensor) -> Tensor:
        """Encode `image` (N, S, S, 3) uint8 to (N, D) float32."""
        hidden = self.norm(self.patches(image))  # (N, L, W)
        for block, merging in zip(self.blocks, self.merging, strict=True):
            assert isinstance(block, WindowBlock)
            hidden = merging(block(hidden, block.window**2, block.mask))
        token = self.final_norm(hidden).mean(dim=1, keepdim=True)  # (N, 1, W)
        assert self.projection is not None
        return unit(self.projection(token)[:, 0])
