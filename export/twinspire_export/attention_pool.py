"""Multi-head attention pooling: a learned probe attends over all tokens (https://arxiv.org/abs/2106.04560).

The image towers of SigLIP end in it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from twinspire_export.transformer import Attention, Heads, Linear, Mlp, Norm, PooledAttention, Projection, frozen


class ProbeAttention(nn.Module):
    """Attention of a constant query over all tokens, the query folded into the keys' weights: `(N, L, W) -> (N, 1, W)`.

    A logit q (K x + b) is (q K) x + q b. The last term is the same for all tokens, and softmax ignores it; so keys of
    the tower's width become logits, one for each head.
    """

    def __init__(self, attention: PooledAttention, probe: Tensor) -> None:
        super().__init__()
        old, joined = attention.heads, len(attention.project.linears) == 1
        key, value = attention.project.separate()
        query = (attention.query.weight.double() @ probe.double().flatten()).view(old.count, 1, -1)  # (H, 1, D)
        if attention.query.bias is not None:
            query = query + attention.query.bias.double().view(old.count, 1, -1)
        weight = (query @ key.weight.double().view(old.count, -1, key.weight.shape[1]))[:, 0]  # (H, W)
        if old.scale is not None:
            weight = weight * old.scale
        self.heads, self.output = Heads(old.count, old.width, scale=1.0), attention.output
        self.heads.scale = None
        logits = Linear(weight.float(), torch.zeros(old.count))
        self.project = Projection((logits, value), (old.count, old.width))
        if joined:
            self.project.join()

    def forward(self, hidden: Tensor, length: int) -> Tensor:
        """Attend over `hidden` (N, L, W)."""
        logits, value = self.project(hidden)  # (N, L, H), (N, L, W)
        logits = logits.transpose(1, 2).unsqueeze(2)  # (N, H, 1, L)
        mixed: Tensor = self.output(self.heads.mix(logits, value, queries=1, keys=length))
        return mixed


class AttentionPool(nn.Module):
    """A probe's attention over all tokens, and an MLP with a residual sum: `(N, L, W) -> (N, 1, W)`."""

    probe: nn.Parameter | None

    def __init__(self, probe: Tensor, attention: Attention, mlp_norm: Norm, mlp: Mlp) -> None:
        super().__init__()
        self.probe = frozen(probe)  # (1, 1, W)
        self.attention: PooledAttention | ProbeAttention = PooledAttention(attention)
        self.mlp_norm, self.mlp = mlp_norm, mlp

    def fold_probe(self) -> None:
        """Fold the probe into the attention's weights."""
        assert isinstance(self.attention, PooledAttention)
        assert self.probe is not None
        self.attention, self.probe = ProbeAttention(self.attention, self.probe), None

    def forward(self, hidden: Tensor, length: int) -> Tensor:
        """Pool the tokens `hidden` (N, L, W)."""
        if isinstance(self.attention, ProbeAttention):
            token = self.attention(hidden, length)
        else:
            token = self.attention(self.probe, hidden, length, None)
        output: Tensor = token + self.mlp(self.mlp_norm(token))
        return output
