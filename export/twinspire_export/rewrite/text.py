"""The causal mask and the end token in a form that engines of every precision can run; embeddings of unit length."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinspire_export.towers import ClipTower, TextTower

MASKED = -1e4
"""What the mask adds to a masked logit: its exp is exactly 0, yet it is finite in float16."""


class FiniteMask(nn.Module):
    """A causal mask of finite numbers, cut from one constant: (L, L), 0 and `MASKED`."""

    mask: Tensor

    def __init__(self, context_length: int) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((context_length, context_length), MASKED).triu(1))

    def forward(self, length: int) -> Tensor:
        """Cut it for `length` tokens: (L, L)."""
        return self.mask[:length, :length]


class EndTokenByIndex(nn.Module):
    """Pool at the end token by a single integer index: `(N, L, W), (N,) -> (N, 1, W)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden: Tensor, end: Tensor) -> Tensor:
        """Take the tokens at the positions `end` (N,) int64 out of `hidden` (N, L, W)."""
        rows, length = hidden.shape[:2]
        flat = hidden.reshape(-1, self.width)  # (N * L, W)
        return flat.index_select(0, torch.arange(rows) * length + end).unsqueeze(1)


def finite_mask(tower: TextTower) -> None:
    """Mask by a finite number from a constant that is made once. float32's least value is -inf in float16."""
    tower.mask = FiniteMask(len(tower.positions))


def end_token_by_index(tower: TextTower) -> None:
    """Pool by one Gather with an integer index; a pair of them becomes a chain of shape arithmetic and a GatherND."""
    tower.pool = EndTokenByIndex(tower.final_norm.width)


def unit_length(tower: ClipTower) -> None:
    """Divide each embedding by its L2 norm within the graph, which the contract of the towers asks for."""
    tower.unit_length = True
