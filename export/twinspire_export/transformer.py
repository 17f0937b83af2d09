"""A transformer in plain modules with explicit weights.

A block is that of ViT (https://arxiv.org/abs/2010.11929), pre-norm: norms come before attention and MLP, residual sums
after them; or that of BERT (https://arxiv.org/abs/1810.04805), post-norm: norms come after the sums. Weights are shared
with the checkpoint's modules and never written to: a rewrite (`twinspire_export.rewrite`) replaces them.

Lengths are passed as arguments: an int becomes a constant of the traced graph, while a length that the tracer reads
from a shape is a traced value, though typed as int, and stays dynamic.

Everything keeps rank 3, even a single pooled token. onnxruntime fuses a matrix multiplication of rank 2 and its bias to
a `Gemm`, and in a quantized graph it runs `MatMul` in int8 but such a `Gemm` in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn


def frozen(tensor: Tensor) -> nn.Parameter:
    """Return a parameter that shares the storage of `tensor`."""
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
        """Return a module that shares the weights of torch's."""
        return cls(linear.weight, linear.bias)

    def set(self, weight: Tensor, bias: Tensor | None) -> None:
        """Replace the weights without writing to the old ones."""
        self.weight, self.bias = frozen(weight), None if bias is None else frozen(bias)

    def rows(self, start: int, stop: int) -> Linear:
        """Return the part that computes outputs `start` to `stop`."""
        return Linear(self.weight[start:stop], None if self.bias is None else self.bias[start:stop])

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform (..., I)."""
        return nn.functional.linear(hidden, self.weight, self.bias)


class Norm(nn.Module):
    """LayerNorm over the last axis; `weight` and `bias` (W,) are None once folded into the next layer."""

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
    """Several projections of the same tokens: `(N, L, W) -> count x (N, L, W)`.

    `linears` has one layer for each projection, or a single one with their weights stacked.
    """

    def __init__(self, linears: Iterable[Linear], width: int) -> None:
        super().__init__()
        self.width = width
        self.set(linears)
        self.count = sum(len(linear.weight) for linear in self.linears) // width

    def set(self, linears: Iterable[Linear]) -> None:
        """Replace the layers by others that compute the same projections."""
        self.linears: Sequence[Linear] = nn.ModuleList(linears)  # type: ignore[assignment]  # is not generic

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Project (N, L, W)."""
        projected = [linear(hidden) for linear in self.linears]
        if len(projected) == self.count:
            return tuple(projected)
        split: tuple[Tensor, ...] = projected[0].split([self.width] * self.count, dim=-1)
        return split


class Heads(nn.Module):
    """Softmax attention of `count` heads, without its projections."""

    def __init__(self, count: int, width: int, scale: float) -> None:
        super().__init__()
        self.count, self.width = count, width
        self.scale: float | None = scale
        """Factor of the logits; None once it is folded into the queries."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, queries: int, keys: int, mask: Tensor | None
    ) -> Tensor:
        """Attend with `query` (N, Q, W) over `key` and `value` (N, K, W): (N, Q, W).

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

    def _split(self, hidden: Tensor, length: int) -> Tensor:
        """(N, L, W) to (N, H, L, D)."""
        return hidden.reshape(-1, length, self.count, self.width // self.count).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention of all tokens: `(N, L, W) -> (N, L, W)`."""

    def __init__(self, query: Linear, key: Linear, value: Linear, output: Linear, *, heads: int, scale: float) -> None:
        super().__init__()
        width = len(query.weight)
        self.project = Projection((query, key, value), width)
        self.heads, self.output = Heads(heads, width, scale), output

    def input_layers(self) -> list[Linear]:
        """List the layers that read the tokens, the queries' first."""
        return list(self.project.linears)

    def forward(self, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Transform (N, L, W); `mask` (L, L) or (N, 1, 1, L) is added to the logits."""
        query, key, value = self.project(hidden)
        mixed: Tensor = self.output(self.heads(query, key, value, queries=length, keys=length, mask=mask))
        return mixed


class Mlp(nn.Module):
    """`(N, L, W) -> (N, L, W)` through a larger width."""

    def __init__(self, up: Linear, activation: nn.Module, down: Linear) -> None:
        super().__init__()
        self.up, self.activation, self.down = up, activation, down

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform each token of (N, L, W)."""
        output: Tensor = self.down(self.activation(self.up(hidden)))
        return output


class Block(nn.Module):
    """Attention and MLP, each with a norm before it and a residual sum after it: `(N, L, W) -> (N, L, W)`."""

    def __init__(self, attention_norm: Norm, attention: Attention, mlp_norm: Norm, mlp: Mlp) -> None:
        super().__init__()
        self.attention_norm, self.attention, self.mlp_norm, self.mlp = attention_norm, attention, mlp_norm, mlp

    @classmethod
    def of(cls, layer: Any) -> Block:  # noqa: ANN401 - several classes, with the same names for their parts
        """Return a block that shares the weights of an encoder layer of transformers' two-tower models."""
        attention = layer.self_attn
        linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
        return cls(
            Norm(layer.layer_norm1),
            Attention(*map(Linear.of, linears), heads=int(attention.num_heads), scale=float(attention.scale)),
            Norm(layer.layer_norm2),
            Mlp(Linear.of(layer.mlp.fc1), layer.mlp.activation_fn, Linear.of(layer.mlp.fc2)),
        )

    def pooled(self) -> PooledBlock:
        """Return the block that computes what this one does, for the pooled token only."""
        return PooledBlock(self)

    def forward(self, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Transform (N, L, W); `mask` (L, L) or (N, 1, 1, L) is added to the attention's logits."""
        hidden = hidden + self.attention(self.attention_norm(hidden), length, mask)
        output: Tensor = hidden + self.mlp(self.mlp_norm(hidden))
        return output


class PooledAttention(nn.Module):
    """Attention of one token over all: `(N, 1, W), (N, L, W) -> (N, 1, W)`."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        width, (first, *others) = attention.project.width, attention.project.linears
        if others:
            self.query, rest = first, others
        else:
            self.query, rest = first.rows(0, width), [first.rows(width, 3 * width)]
        self.project = Projection(rest, width)
        self.heads, self.output = attention.heads, attention.output

    def input_layers(self) -> list[Linear]:
        """List the layers that read the tokens, the queries' first."""
        return [self.query, *self.project.linears]

    def forward(self, token: Tensor, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Attend with `token` (N, 1, W) over `hidden` (N, L, W); `mask` (N, 1, 1, L) is added to the logits."""
        key, value = self.project(hidden)
        mixed: Tensor = self.output(self.heads(self.query(token), key, value, queries=1, keys=length, mask=mask))
        return mixed


class PooledBlock(nn.Module):
    """A last block that computes only the pooled token: `(N, 1, W), (N, L, W) -> (N, 1, W)`."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.attention_norm, self.attention = block.attention_norm, PooledAttention(block.attention)
        self.mlp_norm, self.mlp = block.mlp_norm, block.mlp

    def forward(self, token: Tensor, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Transform `token` (N, 1, W), one of `hidden` (N, L, W); `mask` (N, 1, 1, L) is its row of the causal one."""
        norm = self.attention_norm
        token = token + self.attention(norm(token), norm(hidden), length, mask)
        output: Tensor = token + self.mlp(self.mlp_norm(token))
        return output


class PostNormBlock(Block):
    """Attention and MLP, each with a residual sum and a norm after it: `(N, L, W) -> (N, L, W)`."""

    @classmethod
    def of(cls, layer: Any) -> PostNormBlock:  # noqa: ANN401 - several classes, with the same names for their parts
        """Return a block that shares the weights of a layer of transformers' BERT and of the models derived from it."""
        attention, mixed, up, down = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
        linears = (attention.query, attention.key, attention.value, mixed.dense)
        heads, scale = int(attention.num_attention_heads), float(attention.attention_head_size) ** -0.5
        return cls(
            Norm(mixed.LayerNorm),
            Attention(*map(Linear.of, linears), heads=heads, scale=scale),
            Norm(down.LayerNorm),
            Mlp(Linear.of(up.dense), up.intermediate_act_fn, Linear.of(down.dense)),
        )

    def pooled(self) -> PooledPostNormBlock:
        """Return the block that computes what this one does, for the pooled token only."""
        return PooledPostNormBlock(self)

    def forward(self, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Transform (N, L, W); `mask` (L, L) or (N, 1, 1, L) is added to the attention's logits."""
        hidden = self.attention_norm(hidden + self.attention(hidden, length, mask))
        output: Tensor = self.mlp_norm(hidden + self.mlp(hidden))
        return output


class PooledPostNormBlock(PooledBlock):
    """A last post-norm block that computes only the pooled token: `(N, 1, W), (N, L, W) -> (N, 1, W)`."""

    def forward(self, token: Tensor, hidden: Tensor, length: int, mask: Tensor | None) -> Tensor:
        """Transform `token` (N, 1, W), one of `hidden` (N, L, W); `mask` (N, 1, 1, L) is added to its logits."""
        token = self.attention_norm(token + self.attention(token, hidden, length, mask))
        output: Tensor = self.mlp_norm(token + self.mlp(token))
        return output
