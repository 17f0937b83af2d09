"""Changes of a graph that OpenVINO's own runtime computes: the same values in less time.

Engines stack the layers of queries, keys and values to one, which onnxruntime computes faster. OpenVINO splits its
result by a reference kernel: of ViT-B/16 int8, batch 16 on one Xeon core, the layer and the split took 16.5 ms of a
block's 123, three layers take 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_DEQUANTIZING: Mapping[str, Sequence[str]] = {
    "Convert": ["destination_type"],
    "Subtract": [],
    "Multiply": [],
    "Reshape": ["special_zero"],
}
"""Operators that dequantize constants, with those of their attributes that are not the default."""


def split_projections(model: Any) -> int:  # noqa: ANN401 - OpenVINO's Model
    """Replace every split of a stacked layer's output by a layer for each part, in place; return how many.

    A layer is a matrix multiplication by a constant, float or int8 with a scale for each output, and a constant bias.
    """
    from openvino import opset13 as ops

    replaced = 0
    for split in model.get_ordered_ops():
        parts = _parts(split)
        layer = None if parts is None else _layer(split.input_value(0).get_node())
        if parts is None or layer is None:
            continue
        bias, product, width = layer
        for output, (start, stop) in zip(split.outputs(), parts, strict=True):
            weight = _columns(ops, product.input_value(1).get_node(), width, start, stop)
            part = ops.matmul(product.input_value(0), weight, transpose_a=False, transpose_b=False)
            made = ops.add(part, _columns(ops, bias, width, start, stop))
            for reader in output.get_target_inputs():
                reader.replace_source_output(made.output(0))
        replaced += 1
    if replaced:
        model.validate_nodes_and_infer_types()
    return replaced


def _parts(split: Any) -> list[tuple[int, int]] | None:  # noqa: ANN401 - OpenVINO's Node
    """Return where each part of a VariadicSplit of the last axis begins and ends; None for other nodes."""
    if split.get_type_name() != "VariadicSplit":
        return None
    _, axis, lengths = (split.input_value(position).get_node() for position in range(3))
    rank = split.input_value(0).get_partial_shape().rank
    if {axis.get_type_name(), lengths.get_type_name()} != {"Constant"} or not rank.is_static:
        return None
    ends = np.cumsum(lengths.data)
    is_last = int(axis.data.reshape(-1)[0]) in (-1, rank.get_length() - 1)
    return (
        list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)) if is_last and lengths.data.min() > 0 else None
    )


def _layer(node: Any) -> tuple[Any, Any, int] | None:  # noqa: ANN401 - OpenVINO's Node
    """Return the bias and the multiplication of a layer with constant weights, and its width; None for other nodes."""
    if node.get_type_name() != "Add":
        return None
    terms = [node.input_value(position).get_node() for position in range(2)]
    bias = next((term for term in terms if term.get_type_name() == "Constant"), None)
    product = next((term for term in terms if term.get_type_name() == "MatMul"), None)
    if bias is None or product is None or any(product.get_attributes().values()):  # a transposed factor
        return None
    width = bias.get_output_shape(0)[-1]
    return (bias, product, int(width)) if _is_constant(product.input_value(1).get_node()) else None


def _is_constant(node: Any) -> bool:  # noqa: ANN401 - OpenVINO's Node
    """Whether a tensor depends on no input: weights, or int8 weights that are dequantized."""
    if node.get_type_name() == "Constant":
        return True
    inputs = [node.input_value(position).get_node() for position in range(node.get_input_size())]
    return node.get_type_name() in _DEQUANTIZING and all(map(_is_constant, inputs))


def _columns(ops: Any, node: Any, width: int, start: int, stop: int) -> Any:  # noqa: ANN401 - OpenVINO's Node
    """Return the columns `start` to `stop` of `width` of a tensor that depends on no input."""
    if node.get_type_name() != "Constant":
        inputs = [
            _columns(ops, node.input_value(position).get_node(), width, start, stop)
            for position in range(node.get_input_size())
        ]
        kind, attributes = node.get_type_name(), node.get_attributes()
        return getattr(ops, kind.lower())(*inputs, *(attributes[name] for name in _DEQUANTIZING[kind]))
    value = node.data
    if value.ndim and value.shape[-1] == width:
        return ops.constant(np.ascontiguousarray(value[..., start:stop]))
    # The shape that scales are given: lengths, of which one may be the width.
    return ops.constant(np.where(value == width, stop - start, value).astype(value.dtype)) if value.ndim == 1 else node
