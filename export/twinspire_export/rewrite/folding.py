"""Constants folded into the weights of the products that follow them."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from twinspire_export.towers import ClipTower, ImageTower, Patches
from twinspire_export.transformer import Linear, Norm, frozen


def fold_normalisation(tower: ImageTower) -> None:
    """Fold 1/255, mean and standard deviation of the pixels into the weights and bias of the patch convolution.

    Exact because the convolution has no padding: every patch sees the whole mean.
    """
    patches = tower.patches
    assert isinstance(patches, Patches), "the patches are a convolution until `patches_as_product`, which comes later"
    assert patches.mean is not None
    assert patches.std is not None
    weight, mean, std = patches.weight.double(), patches.mean.double(), patches.std.double()
    bias = -(weight * (mean / std)).sum(dim=(1, 2, 3))
    if patches.bias is not None:
        bias = bias + patches.bias.double()
    patches.weight, patches.bias = frozen((weight / std / 255.0).float()), frozen(bias.float())
    patches.mean = patches.std = None


def fold_norms(tower: ClipTower) -> None:
    """Fold the scale and shift of each LayerNorm into the products that read it.

    What remains divides and subtracts only. The norm in front of the image tower's first block keeps its own: what it
    gives is also added to what the blocks make.
    """
    for block in tower.every_block():
        _fold_norm(block.attention_norm, block.attention.readers())
        _fold_norm(block.mlp_norm, [block.mlp.up])
    _fold_norm(tower.final_norm, [tower.projection])


def fold_scale(tower: ClipTower) -> None:
    """Fold the attention's scale, one over the root of a head's width, into the weights and bias of the queries."""
    for block in tower.every_block():
        attention = block.attention
        scale, attention.heads.scale = attention.heads.scale, None
        assert scale is not None
        queries = attention.readers()[0]  # alone, or the topmost rows of a joint product
        factor = torch.ones(len(queries.weight), dtype=torch.float64)
        factor[: attention.heads.width] = scale
        bias = None if queries.bias is None else (queries.bias.double() * factor).float()
        queries.set((queries.weight.double() * factor[:, None]).float(), bias)


def _fold_norm(norm: Norm, readers: Iterable[Linear]) -> None:
    """Fold into `readers`, which are all that reads `norm`: W (g x + b) = (W g) x + W b."""
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
