"""The transformer that both of CLIP's towers are made of, in plain modules with explicit weights.

A block is that of ViT and CLIP (https://arxiv.org/abs/2010.11929, https://arxiv.org/abs/2103.00020): norms stand before
attention and MLP, sums behind them. Weights are shared with the checkpoint's modules and never written to: a rewrite
(`twinspire_export.rewrite`) gives a module new ones.

Lengths are given as arguments. A number becomes a constant of the graph; what a tracer reads off a shape is no number,
though it is typed as one, and stays variable.

Everything stays of rank 3, one pooled token too. onnxruntime makes a `Gemm` of a product of rank 2 and its bias, and of
a quantized graph runs `MatMul` in int8 but such a `Gemm` in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer


def frozen(tensor: Tensor) -> nn.Parameter:
    """Make a parameter of `tensor`, its storage shared."""
    return nn.Parameter(tensor.detach(), requires_grad=False)


class Linear(nn.Module):
    """`(..., I) -> (..., O)` by `weight` (O, I) and, unless None, `bias` (O,)."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.set(weight, bias)

    @classmethod
    def of(cls, linear: nn.Linear) -> Linear:
        """Share the weights of torch's module."""
        return cls(linear.weight, linear.bias)

    def set(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take other weights; the former ones stay as they are."""
        self.weight, self.bias = frozen(weight), None if bias is None else frozen(bias)

    def rows(self, start: int, stop: int) -> Linear:
        """Give the part that makes outputs `start` to `stop`."""
        return Linear(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform (..., I)."""
        return nn.functional.linear(hidden, self.weight, self.bias)


class Norm(nn.Module):
    """LayerNorm over the last axis; `weight` and `bias` (W,) are None once they are folded into what follows."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias = frozen(norm.weight), frozen(norm.bias)
        self.width, self.eps = int(norm.normalized_shape[0]), float(norm.eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise (..., W)."""
        return nn.functional.layer_norm(hidden, (self.width,), self.weight, self.bias, self.eps)


class Projection(nn.Module):
    """Several projections of the same tokens: `(N, L, W) -> parts x (N, L, W)`.

    `linears` are one for each part, or a single one with the parts' weights one above the other.
    """

    def __init__(self, linears: Iterable[Linear], width: int) -> None:
        super().__init__()
        self.width = width
        self.set(linears)
        self.parts = sum(len(linear.weight) for linear in self.linears) // width

    def set(self, linears: Iterable[Linear]) -> None:
        """Take other products that make the same parts."""
        self.linears: Sequence[Linear] = nn.ModuleList(linears)  # type: ignore[assignment]  # is not generic

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Project (N, L, W)."""
        products = [linear(hidden) for linear in self.linears]
        if len(products) == self.parts:
            return tuple(products)
        parts: tuple[Tensor, ...] = products[0].split([self.width] * self.parts, dim=-1)
        return parts


class Heads(nn.Module):
    """Where tokens meet: softmax attention of `count` heads, without any projection."""

    def __init__(self, count: int, width: int, scale: float) -> None:
        super().__init__()
        self.count, self.width = count, width
        self.scale: float | None = scale
        """What multiplies the logits; None once it is folded into the queries."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, queries: int, keys: int, mask: Tensor | None
    ) -> Tensor:
        """Mix `value` (N, K, W) by how well each `query` (N, Q, W) fits each `key` (N, K, W): (N, Q, W).

        `queries` and `keys` are Q and K; `mask` is added to the logits (N, heads, Q, K).
        """
        query, key, value = self._split(query, queries), self._split(key, keys), self._split(value, keys)
        logits = query @ key.transpose(2, 3)
        if self.scale is not None:
            logits = logits * self.scale
        if mask is not None:
            logits = logits + mask
        mixed = logits.softmax(dim=-1) @ value  # (N, H, Q, D)
        return mixed.transpose(1, 2).reshape(-1, queries, self.width)

    def _split(self, part: Tensor, length: int) -> Tensor:
        """(N, L, W) to (N, H, L, D)."""
        return part.reshape(-1, length, self.count, self.width // self.count).transpose(1, 2)


class Attention(nn.Module):
    """Each token looks at all: `(N, L, W) -> (N, L, W)`."""

    def __init__(self, attention: CLIPAttention) -> None:
        super().__init__()
        width = int(attention.embed_dim)
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.project = Projection((Linear.of(part) for part in parts), width)
        self.heads = Heads(int(attention.num_heads), width, float(attention.scale))
        self.output = Linear.of(attention.out_proj)

    def readers(self) -> list[Linear]:
        """List what reads the tokens; the queries come first."""
        return list(self.project.linears)

    def forward(self, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Transform (N, L, W); `mask` (L, L) is added to the logits."""
        query, key, value = self.project(hidden)
        mixed: Tensor = self.output(self.heads(query, key, value, queries=length, keys=length, mask=mask))
        return mixed


class Mlp(nn.Module):
    """`(N, L, W) -> (N, L, W)` by way of a greater width."""

    def __init__(self, up: Linear, activation: nn.Module, down: Linear) -> None:
        super().__init__()
        self.up, self.activation, self.down = up, activation, down

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform each token of (N, L, W)."""
        changed: Tensor = self.down(self.activation(self.up(hidden)))
        return changed


class Block(nn.Module):
    """Attention and MLP, each behind a norm and added to what came in: `(N, L, W) -> (N, L, W)`."""

    def __init__(self, layer: CLIPEncoderLayer) -> None:
        super().__init__()
        self.attention_norm, self.attention = Norm(layer.layer_norm1), Attention(layer.self_attn)
        self.mlp_norm = Norm(layer.layer_norm2)
        self.mlp = Mlp(Linear.of(layer.mlp.fc1), layer.mlp.activation_fn, Linear.of(layer.mlp.fc2))

    def forward(self, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Transform (N, L, W); `mask` (L, L) is added to the attention's logits."""
        hidden = hidden + self.attention(self.attention_norm(hidden), length, mask)
        changed: Tensor = hidden + self.mlp(self.mlp_norm(hidden))
        return changed


class PooledAttention(nn.Module):
    """One token looks at all: `(N, 1, W), (N, L, W) -> (N, 1, W)`."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        width, (first, *others) = attention.project.width, attention.project.linears
        if others:
            self.query, rest = first, others
        else:
            self.query, rest = first.rows(0, width), [first.rows(width, 3 * width)]
        self.project = Projection(rest, width)
        self.heads, self.output = attention.heads, attention.output

    def readers(self) -> list[Linear]:
        """List what reads the tokens; the queries come first."""
        return [self.query, *self.project.linears]

    def forward(self, token: Tensor, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Let `token` (N, 1, W) look at `hidden` (N, L, W); `mask` (N, 1, 1, L) is added to the logits."""
        key, value = self.project(hidden)
        mixed: Tensor = self.output(self.heads(self.query(token), key, value, queries=1, keys=length, mask=mask))
        return mixed


class PooledBlock(nn.Module):
    """The last block for one token only, whose output is all that is pooled: `(N, 1, W), (N, L, W) -> (N, 1, W)`."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.attention_norm, self.attention = block.attention_norm, PooledAttention(block.attention)
        self.mlp_norm, self.mlp = block.mlp_norm, block.mlp

    def forward(self, token: Tensor, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Transform `token` (N, 1, W), one of `hidden` (N, L, W); `mask` (N, 1, 1, L) is its row of the causal one."""
        norm = self.attention_norm
        token = token + self.attention(norm(token), norm(hidden), length, mask)
        changed: Tensor = token + self.mlp(self.mlp_norm(token))
        return changed
