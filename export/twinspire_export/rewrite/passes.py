"""The rewrites themselves: constants folded into weights, fewer and smaller matrix multiplications, a finite mask."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from twinspire_export.text_encoder import TextEncoder
from twinspire_export.towers import BlockTower, ImageTower, Patches, TextTower, TransformerTower
from twinspire_export.transformer import Linear, Norm, frozen

MASKED = -1e4
"""The mask's value for a masked logit: its exp is exactly 0, yet it is finite in float16."""


class FiniteMask(nn.Module):
    """A causal mask of finite numbers, a slice of one constant: (L, L), 0 and `MASKED`."""

    mask: Tensor

    def __init__(self, context_length: int) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((context_length, context_length), MASKED).triu(1))

    def forward(self, length: int) -> Tensor:
        """Return the mask of `length` tokens: (L, L)."""
        return self.mask[:length, :length]


class EndTokenByIndex(nn.Module):
    """Pool at the end token by a single integer index: `(N, L, W), (N,) -> (N, 1, W)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden: Tensor, end: Tensor) -> Tensor:
        """Return the tokens at the positions `end` (N,) int64 of `hidden` (N, L, W)."""
        rows, length = hidden.shape[:2]
        flat = hidden.reshape(-1, self.width)  # (N * L, W)
        return flat.index_select(0, torch.arange(rows) * length + end).unsqueeze(1)


class PatchMatmul(nn.Module):
    """Images to patch embeddings, `(N, S, S, 3) uint8 -> (N, P, W)`, by one matrix multiplication."""

    def __init__(self, patches: Patches) -> None:
        super().__init__()
        # (W, 3, size, size) to (W, size * size * 3): the order of a patch's bytes in an image.
        self.linear = Linear(patches.weight.permute(0, 2, 3, 1).flatten(1), patches.bias)
        self.side, self.size = patches.side, patches.size

    def forward(self, image: Tensor) -> Tensor:
        """Embed the patches of `image` (N, S, S, 3) uint8, row by row."""
        side, row = self.side, self.size * 3
        patches = image.reshape(-1, side, self.size, side, row).transpose(2, 3)  # (N, side, side, size, row)
        pixels = patches.reshape(-1, side * side, self.size * row).to(torch.float32)  # (N, P, size * row)
        embedded: Tensor = self.linear(pixels)
        return embedded


def finite_mask(tower: TextTower | TextEncoder) -> None:
    """Mask with a number that is finite in float16, as float32's minimum is not; a causal mask is made once."""
    if isinstance(tower, TextEncoder):
        tower.masked = MASKED
    else:
        tower.mask = FiniteMask(len(tower.positions))


def end_token_by_index(tower: TextTower) -> None:
    """Pool by one Gather with an integer index; a pair of them becomes a chain of shape arithmetic and a GatherND."""
    tower.pool = EndTokenByIndex(tower.final_norm.width)


def fold_normalisation(tower: ImageTower) -> None:
    """Fold 1/255, mean and standard deviation of the pixels into the weights and bias of the patch convolution.

    Exact because the convolution has no padding: every patch covers the whole mean.
    """
    patches = tower.patches
    assert isinstance(patches, Patches), "the patches are a convolution until `patches_as_matmul`, which comes later"
    assert patches.mean is not None
    assert patches.std is not None
    weight, mean, std = patches.weight.double(), patches.mean.double(), patches.std.double()
    bias = -(weight * (mean / std)).sum(dim=(1, 2, 3))
    if patches.bias is not None:
        bias = bias + patches.bias.double()
    patches.weight, patches.bias = frozen((weight / std / 255.0).float()), frozen(bias.float())
    patches.mean = patches.std = None


def patches_as_matmul(tower: ImageTower) -> None:
    """Replace the patch convolution by the matrix multiplication that it is; pixels are moved as bytes before it."""
    assert isinstance(tower.patches, Patches)
    assert tower.patches.mean is None, "the normalisation must be folded first: the multiplication reads bytes"
    tower.patches = PatchMatmul(tower.patches)


def fold_norms(tower: TransformerTower) -> None:
    """Fold the scale and shift of each LayerNorm into the layers that read it.

    Not in post-norm blocks, where the output of each norm is a residual too. For the same reason the norm before
    the image tower's first block keeps its own.
    """
    for block in tower.all_blocks():
        _fold_norm(block.attention_norm, block.attention.input_layers())
        _fold_norm(block.mlp_norm, [block.mlp.up])
    _fold_norm(tower.final_norm, [tower.projection])


def fold_scale(tower: BlockTower) -> None:
    """Fold the attention's scale, one over the root of a head's width, into the weights and bias of the queries."""
    for block in tower.all_blocks():
        attention = block.attention
        scale, attention.heads.scale = attention.heads.scale, None
        assert scale is not None
        queries = attention.input_layers()[0]  # a layer of its own, or the topmost rows of a joint one
        factor = torch.ones(len(queries.weight), dtype=torch.float64)
        factor[: attention.heads.width] = scale
        bias = None if queries.bias is None else (queries.bias.double() * factor).float()
        queries.set((queries.weight.double() * factor[:, None]).float(), bias)


def join_projections(tower: BlockTower) -> None:
    """Compute queries, keys and values by one matrix multiplication; keys and values in a block for one token."""
    for block in tower.all_blocks():
        project = block.attention.project
        weights: list[Tensor] = [linear.weight for linear in project.linears]
        biases: list[Tensor] = [linear.bias for linear in project.linears if linear.bias is not None]
        project.set([Linear(torch.cat(weights), torch.cat(biases) if biases else None)])


def pool_before_last_block(tower: BlockTower) -> None:
    """Transform only the pooled token in the last block: one query over all keys, one row through output and MLP.

    The other tokens are not read afterwards. Their keys and values are still computed. A tower that pools by the mean
    of its tokens reads all of them: it stays as it is.
    """
    if tower.pools_one_token:
        *others, last = tower.blocks
        tower.set_blocks(others, last.pooled())


def _fold_norm(norm: Norm, readers: Iterable[Linear]) -> None:
    """Fold `norm` into `readers`, all the layers that read it: W (g x + b) = (W g) x + W b."""
    assert norm.weight is not None
    assert norm.bias is not None
    scale, shift = norm.weight.double(), norm.bias.double()
    for linear in readers:
        weight = linear.weight.double()
        bias = weight @ shift
        if linear.bias is not None:
            bias = bias + linear.bias.double()
        linear.set((weight * scale).float(), bias.float())
    norm.weight = norm.bias = None
