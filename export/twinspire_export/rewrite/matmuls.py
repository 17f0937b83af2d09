"""Fewer and smaller matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinspire_export.towers import ClipTower, ImageTower, Patches
from twinspire_export.transformer import Linear, PooledBlock


class PatchProduct(nn.Module):
    """Images to patch embeddings, `(N, S, S, 3) uint8 -> (N, P, W)`, by one matrix product."""

    def __init__(self, patches: Patches) -> None:
        super().__init__()
        # (W, 3, size, size) to (W, size * size * 3): the order in which a patch's bytes lie in an image.
        self.linear = Linear(patches.weight.permute(0, 2, 3, 1).flatten(1), patches.bias)
        self.side, self.size = patches.side, patches.size

    def forward(self, image: Tensor) -> Tensor:
        """Embed the patches of `image` (N, S, S, 3) uint8, row by row."""
        side, row = self.side, self.size * 3
        patches = image.reshape(-1, side, self.size, side, row).transpose(2, 3)  # (N, side, side, size, row)
        pixels = patches.reshape(-1, side * side, self.size * row).to(torch.float32)  # (N, P, size * row)
        embedded: Tensor = self.linear(pixels)
        return embedded


def patches_as_product(tower: ImageTower) -> None:
    """Write the patch convolution as the matrix product that it is; pixels are moved as bytes, by a patch's rows."""
    assert isinstance(tower.patches, Patches)
    assert tower.patches.mean is None, "the normalisation must be folded already: pixels come in as bytes"
    tower.patches = PatchProduct(tower.patches)


def join_projections(tower: ClipTower) -> None:
    """Make queries, keys and values by one product; in a block for the pooled token alone, keys and values."""
    for block in tower.every_block():
        project = block.attention.project
        weights: list[Tensor] = [linear.weight for linear in project.linears]
        biases: list[Tensor] = [linear.bias for linear in project.linears if linear.bias is not None]
        project.set([Linear(torch.cat(weights), torch.cat(biases) if biases else None)])


def pool_before_last_block(tower: ClipTower) -> None:
    """Let the last block transform the pooled token alone: one query over all keys, one row through output and MLP.

    The other tokens come to nothing there. Their keys and values are still made.
    """
    *others, last = tower.blocks
    tower.set_blocks(others, PooledBlock(last))
