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
from itertools import accumulate
from typing import Any

import torch
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

    def scaled(self, factors: Tensor) -> Linear:
        """Return a layer whose outputs are multiplied by `factors` (O,)."""
        factor = factors.detach().double()
        bias = None if self.bias is None else (self.bias.double() * factor).float()
        return Linear((self.weight.double() * factor[:, None]).float(), bias)

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
    """Several projections of the same tokens: `(N, L, W)` to one tensor (N, L, width) for each of `widths`.

    `linears` has one layer for each projection, or a single one with their weights stacked.
    """

    def __init__(self, linears: Iterable[Linear], widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.set(linears)

    def set(self, linears: Iterable[Linear]) -> None:
        """Replace the layers by others that compute the same projections."""
        self.linears: Sequence[Linear] = nn.ModuleList(linears)  # type: ignore[assignment]  # is not generic

    def separate(self) -> list[Linear]:
        """Return one layer for each projection."""
        if len(self.linears) == len(self.widths):
            return list(self.linears)
        ends = list(accumulate(self.widths))
        return [self.linears[0].rows(end - width, end) for end, width in zip(ends, self.widths, strict=True)]

    def join(self) -> None:
        """Stack the layers to one."""
        weights: list[Tensor] = [linear.weight for linear in self.linears]
        biases: list[Tensor] = [linear.bias for linear in self.linears if linear.bias is not None]
        self.set([Linear(torch.cat(weights), torch.cat(biases) if biases else None)])

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Project (N, L, W)."""
        projected = [linear(hidden) for linear in self.linears]
        if len(projected) == len(self.widths):
            return tuple(projected)
        split: tuple[Tensor, ...] = projected[0].split(list(self.widths), dim=-1)
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
        query, key = self._split(query, queries), self._split(key, keys)
        logits = query @ key.transpose(2, 3)
        if self.scale is not None:
            logits = logits * self.scale
        if mask is not None:
            logits = self.masked(logits, mask)
        return self.mix(logits, value, queries=queries, keys=keys)

    def mix(self, logits: Tensor, value: Tensor, *, queries: int, keys: int) -> Tensor:
        """Average `value` (N, K, W) by the softmax of `logits` (N, heads, Q, K): (N, Q, W)."""
        mixed = logits.softmax(dim=-1) @ self._split(value, keys)  # (N, H, Q, D)
        return mixed.transpose(1, 2).reshape(-1, queries, self.width)

    def masked(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Add `mask` to the logits (N, heads, Q, K)."""
        return logits + mask

    def _split(self, hidden: Tensor, length: int) -> Tensor:
        """(N, L, W) to (N, H, L, D)."""
        return hidden.reshape(-1, length, self.count, self.width // self.count).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention of all tokens: `(N, L, W) -> (N, L, W)`."""

    def __init__(self, query: Linear, key: Linear, value: Linear, output: Linear, *, heads: int, scale: float) -> None:
        super().__init__()
        width = len(query.weight)
        self.project = Projection((query, key, value), [width] * 3)
        self.heads, self.output = Heads(heads, width, scale), output

    @classmethod
    def of_vit(cls, layer: Any, *, scale: Tensor | None = None) -> Attention:  # noqa: ANN401 - of many classes
        """Return a module that shares the weights of a layer of transformers' ViT, Swin or DINOv2.

        `scale` (W,) multiplies the output, as DINOv2's LayerScale does.
        """
        inner = getattr(layer.attention, "self", None) or layer.attention.attention  # Swin's name, and the others'
        output = Linear.of(layer.attention.output.dense)
        query, key, value = map(Linear.of, (inner.query, inner.key, inner.value))
        return cls(
            query,
            key,
            value,
            output if scale is None else output.scaled(scale),
            heads=int(inner.num_attention_heads),
            scale=float(inner.attention_head_size) ** -0.5,
        )

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

    @classmethod
    def of(cls, mlp: Any) -> Mlp:  # noqa: ANN401 - several classes, with the same names for their parts
        """Return a module that shares the weights of an MLP of transformers' two-tower models."""
        return cls(Linear.of(mlp.fc1), mlp.activation_fn, Linear.of(mlp.fc2))

    @classmethod
    def of_vit(cls, layer: Any) -> Mlp:  # noqa: ANN401 - a layer of ViT, of Swin or of BERT
        """Return a module that shares the weights of the MLP of a layer of transformers' ViT or BERT."""
        up = layer.intermediate
        return cls(Linear.of(up.dense), up.intermediate_act_fn, Linear.of(layer.output.dense))

    def forward(self, hidden: Tensor) -> Tensor:
        """Transform each token of (N, L, W)."""
        output: Tensor = self.down(self.activation(self.up(hidden)))
        return output


class Block(nn.Module):
    """Attention and MLP, each with a norm before it and a residual sum after it: `(N, L, W) -> (N, L, W)`."""

    folds_attention_norm = True
    """Whether nothing comes between the first norm and the attention's layers, so that it can be folded into them."""

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
            Mlp.of(layer.mlp),
        )

    @classmethod
    def of_vit(cls, layer: Any) -> Block:  # noqa: ANN401 - layers of ViT and of the models derived from it
        """Return a block that shares the weights of a layer of transformers' ViT."""
        return cls(
            Norm(layer.layernorm_before), Attention.of_vit(layer), Norm(layer.layernorm_after), Mlp.of_vit(layer)
        )

    @classmethod
    def of_dinov2(cls, layer: Any) -> Block:  # noqa: ANN401 - layers with and without scale share no class
        """Return a block with the weights of a layer of transformers' DINOv2, its LayerScale folded into them."""
        return cls(
            Norm(layer.norm1),
            Attention.of_vit(layer, scale=layer.layer_scale1.lambda1),
            Norm(layer.norm2),
            Mlp(
                Linear.of(layer.mlp.fc1),
                layer.mlp.activation,
                Linear.of(layer.mlp.fc2).scaled(layer.layer_scale2.lambda1),
            ),
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
        joined = len(attention.project.linears) == 1
        self.query, *rest = attention.project.separate()
        self.project = Projection(rest, attention.project.widths[1:])
        if joined:
            self.project.join()
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
        self.folds_attention_norm = block.folds_attention_norm
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
        attention, mixed = layer.attention.self, layer.attention.output
        linears = (attention.query, attention.key, attention.value, mixed.dense)
        heads, scale = int(attention.num_attention_heads), float(attention.attention_head_size) ** -0.5
        return cls(
            Norm(mixed.LayerNorm),
            Attention(*map(Linear.of, linears), heads=heads, scale=scale),
            Norm(layer.output.LayerNorm),
            Mlp.of_vit(layer),
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
