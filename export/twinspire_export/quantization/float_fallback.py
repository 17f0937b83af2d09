"""Taking the quantizers away from some products of a graph, to see what they cost without quantizing anew."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinspire.graph_edit import Wiring, add_constant, integer, replace_nodes

if TYPE_CHECKING:
    import onnx

# What stands between a DequantizeLinear and the product that takes it, and passes values on as they are.
_MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity"})


def leave_out(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Give a copy of the quantized `model` in which the products `names` compute in float32.

    Their activations are those before the quantizer. Their weights stay rounded to int8, whose error is the smaller
    one by far, so this estimates what quantizing with them left out gives and costs; it does not replace it.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    wiring = Wiring(graph)
    for node in graph.node:
        if node.name in names:
            for position, name in enumerate(node.input):
                node.input[position] = _in_float(name, wiring)
    replace_nodes(graph, list(graph.node))
    return copy


def _in_float(name: str, wiring: Wiring) -> str:
    """Name the tensor that `name` was before it was quantized; made where there is none."""
    path: list[onnx.NodeProto] = []
    current = name
    while (node := wiring.producers.get(current)) is not None and node.op_type in _MOVES:
        path.append(node)
        current = node.input[0]
    node = wiring.producers.get(current)
    if node is None or node.op_type != "DequantizeLinear":
        return name
    if wiring.is_constant(node.input[0]):
        return add_constant(wiring.graph, f"{current}_float", _dequantized(node, wiring))
    source = wiring.producers.get(node.input[0])
    if source is None or source.op_type != "QuantizeLinear":
        return name
    if path:
        # The quantizer is the product's alone: nothing else reads what moved.
        path[-1].input[0] = source.input[0]
        return name
    return str(source.input[0])


def _dequantized(node: onnx.NodeProto, wiring: Wiring) -> NDArray[np.float32]:
    value, scale = wiring.constant(node.input[0]), wiring.constant(node.input[1])
    if scale.ndim == 1 and scale.size > 1:
        axis = integer(node, "axis", 1) % value.ndim
        scale = scale.reshape([-1 if position == axis else 1 for position in range(value.ndim)])
    zero = wiring.constant(node.input[2]).astype(np.float64) if len(node.input) > 2 else 0.0
    dequantized: NDArray[np.float32] = ((value.astype(np.float64) - zero) * scale).astype(np.float32)
    return dequantized
