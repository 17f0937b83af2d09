"""Token merging (ToMe, https://arxiv.org/abs/2210.09461) in the graph of an image tower.

After the attention of each block the `r` tokens that are most similar to another one, by the cosine of their keys' mean
over the heads, are merged into it: tokens at even positions into those at odd positions, weighted by the number of
patches that each stands for. Later attentions add the logarithm of that number to their logits. A class token is never
merged. With equal similarities the token that comes first is merged, so that the result is deterministic.

The graph may be in float or quantized: activations are quantized by tensor, whatever their number of tokens. Tokens are
merged by a product with a one-hot matrix: gathering and scattering rows is slower in onnxruntime and OpenVINO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from twinspire.errors import InputError
from twinspire.graph_edit import Wiring, add_constant, integer, replace_nodes
from twinspire_export.engine_check import open_engine, run_engine
from twinspire_export.graph_builder import GraphBuilder

if TYPE_CHECKING:
    import onnx

_ONE = np.array(1, np.int32)
_END = np.iinfo(np.int64).max
_MOVES = frozenset({"Transpose", "Identity", "Cast", "Mul", "Add", "Div", "QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True, kw_only=True)
class AttentionNodes:
    """One attention over the image's tokens.

    `keys` is their name, (N, L, H, D), None where they are folded into a probe; `residual` is the sum after the
    attention, None where not all tokens attend. `tokens` is L.
    """

    softmax: onnx.NodeProto
    keys: str | None
    residual: onnx.NodeProto | None
    tokens: int


def merge_tokens(model: onnx.ModelProto, r: int) -> tuple[int, ...]:
    """Merge `r` tokens after the attention of each block of `model`, in place; return the numbers of tokens.

    They begin with the number of the whole image. Where fewer than 2 `r` tokens are left, half of them are merged. The
    last block does not merge: nothing attends to its tokens any more. With `r` 0 the graph stays as it is.

    Raises InputError where `r` is negative, or the graph is no vision transformer whose tokens can be merged.
    """
    if r < 0:
        raise InputError(f"r {r}: expected 0 or more tokens to merge in each block")
    attentions, class_tokens = _attentions(model)
    if r == 0:
        return (attentions[0].tokens,)
    graph, length = model.graph, attentions[0].tokens
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    builder = GraphBuilder(graph, opset, prefix="merge")
    sizes, lengths = add_constant(graph, "merge_sizes", np.ones((1, length, 1), np.float32)), [length]
    nodes = list(graph.node)
    begins = {id(attention.softmax): attention for attention in attentions}
    merges = {id(attention.residual): attention for attention in attentions[:-1] if attention.residual is not None}
    renamed: dict[str, str] = {}
    wiring, placed = Wiring(graph), list[object]()
    for node in nodes:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)
        if node.op_type == "Reshape" and len(lengths) > 1:
            _shorten(graph, wiring, node, before=lengths[0], after=length)
        if id(node) in begins and len(lengths) > 1:
            logits = builder.add("Reshape", builder.add("Log", sizes), builder.ints([-1, 1, 1, length]))
            node.input[0] = builder.add("Add", node.input[0], logits)
        placed += [*builder.take(), node]
        attention = merges.get(id(node))
        count = 0 if attention is None else min(r, (length - class_tokens) // 2)
        if attention is None or attention.keys is None or count == 0:
            continue
        merged, sizes = _merge(
            builder, attention.keys, node.output[0], sizes, length=length, r=count, class_tokens=class_tokens
        )
        placed += builder.take()
        renamed[node.output[0]] = merged
        length -= count
        lengths.append(length)
    replace_nodes(graph, placed)  # type: ignore[arg-type]  # nodes
    del graph.value_info[:]  # their shapes are those of all tokens
    return tuple(lengths)


def _merge(
    builder: GraphBuilder, keys: str, hidden: str, sizes: str, *, length: int, r: int, class_tokens: int
) -> tuple[str, str]:
    """Merge `r` of the tokens `hidden` (N, L, W); return the names of the rest and of their sizes (N, L - r, 1).

    The tokens at even positions that stay come first, then those at odd positions.
    """
    add, ints = builder.add, builder.ints
    even = (length + 1) // 2
    metric = builder.reduce("ReduceMean", keys, 2)  # (N, L, D)
    metric = add("Div", metric, builder.reduce("ReduceL2", metric, 2, keepdims=True))
    sources, targets = _every_second(builder, metric, 0), _every_second(builder, metric, 1)
    similarity = add("MatMul", sources, add("Transpose", targets, perm=[0, 2, 1]))  # (N, even, odd), -1 to 1
    best = builder.reduce("ReduceMax", similarity, 2)  # (N, even)
    if class_tokens:
        lowered = np.zeros((1, even), np.float32)
        lowered[0, 0] = -4  # the lowest
        best = add("Add", best, builder.constant(lowered))
    nearest = add("ArgMax", similarity, axis=2, keepdims=0, select_last_index=0)  # (N, even) int64
    # The rank of each by similarity: how many are before it.
    other, own = add("Unsqueeze", best, ints([1])), add("Unsqueeze", best, ints([2]))
    first = builder.constant(np.tri(even, k=-1, dtype=bool)[None])  # the other has the smaller index
    before = add("Or", add("Greater", other, own), add("And", add("Equal", other, own), first))  # (N, even, even)
    rank = builder.reduce("ReduceSum", add("Cast", before, to=builder.int32), 2)  # (N, even) int32
    is_merged = add("Less", rank, builder.constant(np.array(r, np.int32)))
    if class_tokens:  # in their order, the class token first
        stays = add("Cast", add("Not", is_merged), to=builder.int32)
        place = add("Sub", add("CumSum", stays, builder.constant(np.array(1, np.int64))), builder.constant(_ONE))
    else:  # by similarity, as in the authors' code
        place = add("Sub", rank, builder.constant(np.array(r, np.int32)))
    onto = add("Add", add("Cast", nearest, to=builder.int32), builder.constant(np.array(even - r, np.int32)))
    row = add("Unsqueeze", add("Where", is_merged, onto, place), ints([1]))  # (N, 1, even)
    rows = builder.constant(np.arange(length - r, dtype=np.int32)[None, :, None])
    moved = add("Cast", add("Equal", row, rows), to=builder.float32)  # (N, L - r, even), one-hot in each column

    own_sizes, odd_sizes = _every_second(builder, sizes, 0), _every_second(builder, sizes, 1)
    padding = ints([0, even - r, 0, 0, 0, 0])
    merged_sizes = add("Add", add("MatMul", moved, own_sizes), add("Pad", odd_sizes, padding))
    share = add("Div", add("Mul", moved, add("Transpose", own_sizes, perm=[0, 2, 1])), merged_sizes)
    kept_share = add("Div", odd_sizes, builder.slice(merged_sizes, even - r, length - r))
    kept = add("Pad", add("Mul", _every_second(builder, hidden, 1), kept_share), padding)
    merged = add("Add", add("MatMul", share, _every_second(builder, hidden, 0)), kept)
    return merged, merged_sizes


def _every_second(builder: GraphBuilder, tensor: str, start: int) -> str:
    return builder.slice(tensor, start, _END, step=2)


def _attentions(model: onnx.ModelProto) -> tuple[list[AttentionNodes], int]:
    """Find the attentions over the image's tokens, and the number of class tokens, 0 or 1."""
    graph, wiring = model.graph, Wiring(model.graph)
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    keys = {id(softmax): name for softmax in softmaxes if (name := _keys(softmax, wiring)) is not None}
    if not keys:
        raise InputError("this graph has no attention: expected the image tower of a vision transformer")
    joined = [
        node
        for node in graph.node
        if node.op_type == "Concat" and integer(node, "axis", 0) == 1 and not wiring.is_constant(node.input[-1])
    ]
    shapes = _shapes(
        model,
        [softmax.input[0] for softmax in softmaxes]
        + list(keys.values())
        + [name for node in joined for name in (node.input[-1], node.output[0])],
    )
    logits = {id(softmax): shapes[softmax.input[0]] for softmax in softmaxes}  # (1, H, Q, K)
    tokens = next(shape[-1] for name, shape in logits.items() if name in keys)
    if any(len(shape) != 4 or shape[0] != 1 for shape in logits.values()) or tokens < 3:
        raise InputError("this graph attends within windows: expected the image tower of a vision transformer")
    class_tokens = sum(
        shapes[node.output[0]][1] - shapes[node.input[-1]][1]
        for node in joined
        if len(shapes[node.output[0]]) == 3 and shapes[node.output[0]][1] == tokens
    )
    if class_tokens > 1:
        raise InputError(f"this graph has {class_tokens} tokens beside the patches: expected one class token or none")
    attentions = [
        AttentionNodes(
            softmax=softmax,
            keys=keys.get(id(softmax)),
            residual=_residual(graph, softmax, wiring) if logits[id(softmax)][2] == tokens else None,
            tokens=tokens,
        )
        for softmax in softmaxes
        if logits[id(softmax)][3] == tokens
    ]
    if any(node.op_type in ("ReduceMean", "GlobalAveragePool") for node in graph.node):
        raise InputError("this graph averages its tokens: expected a class token or an attention that pools them")
    if len(attentions) < 2 or any(each.residual is None or each.keys is None for each in attentions[:-1]):
        raise InputError("this graph has fewer than two attentions over its tokens with a residual sum behind each")
    return attentions, class_tokens


def _keys(softmax: onnx.NodeProto, wiring: Wiring) -> str | None:
    """Return the keys of a softmax's attention, split into heads, (N, L, H, D); None where it is no attention."""
    scores = _origin(softmax.input[0], wiring)
    if scores is None or scores.op_type != "MatMul":
        return None
    split = _origin(scores.input[1], wiring)
    return split.output[0] if split is not None and split.op_type == "Reshape" else None


def _origin(name: str, wiring: Wiring) -> onnx.NodeProto | None:
    """Return the node that a tensor comes from, past nodes that move it or combine it with constants."""
    while (node := wiring.producers.get(name)) is not None and node.op_type in _MOVES:
        variable = [each for each in node.input if not wiring.is_constant(each)]
        if len(variable) != 1:
            return None
        name = variable[0]
    return node


def _residual(graph: onnx.GraphProto, softmax: onnx.NodeProto, wiring: Wiring) -> onnx.NodeProto | None:
    """Return the sum of the attention's output and what came before it: the first with a term of each."""
    after = set(softmax.output)
    began = False
    for node in graph.node:
        began = began or node is softmax
        touched = [name in after for name in node.input]
        if not began or not any(touched):
            continue
        if node.op_type == "Add" and not all(touched):
            other = node.input[touched.index(False)]
            if not wiring.is_constant(other):
                found: onnx.NodeProto = node
                return found
        after.update(node.output)
    return None


def _shapes(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors for one image."""
    import onnx

    wanted = list(dict.fromkeys(names))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    image = probe.graph.input[0]
    axes = [axis.dim_value or 1 for axis in image.type.tensor_type.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type)
    session = open_engine(probe.SerializeToString(), "the graph whose tokens are merged")
    values = run_engine(session, wanted, {image.name: np.zeros(axes, dtype)}, "the graph whose tokens are merged")
    return {name: value.shape for name, value in zip(wanted, values, strict=True)}


def _shorten(graph: onnx.GraphProto, wiring: Wiring, node: onnx.NodeProto, *, before: int, after: int) -> None:
    """Put the number of tokens that are left into the constant shape of a Reshape."""
    if not wiring.is_constant(node.input[1]):
        return
    shape = wiring.constant(node.input[1])
    if len(shape) >= 3 and shape[1] == before:
        shorter = shape.copy()
        shorter[1] = after
        node.input[1] = add_constant(graph, f"{node.input[1]}_merged", shorter)
