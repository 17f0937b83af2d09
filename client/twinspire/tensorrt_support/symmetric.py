"""What TensorRT demands of a quantized graph: int8 everywhere, zero points 0 everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from twinspire.errors import EngineError
from twinspire.graph_edit import Wiring, integer

if TYPE_CHECKING:
    import onnx

_IMPLICIT = frozenset(
    {"QLinearMatMul", "QLinearConv", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "MatMulIntegerToFloat"}
)
_OUTPUT_AXIS = {"MatMul": 1, "Conv": 0}


def check_symmetric(model: onnx.ModelProto) -> None:
    """Check that TensorRT will take the quantized `model`.

    Every QuantizeLinear and DequantizeLinear is of int8 with zero point 0, and in pairs with one constant scale where
    it is of an activation; a constant that is dequantized is the weight of a matrix multiplication, with one scale for
    each output channel; no bias is quantized and no operator computes in integers by itself. Does not run it. Raises
    EngineError that names the node.

    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
    """
    graph = model.graph
    wiring = Wiring(graph)
    quantizers = 0
    for node in graph.node:
        if node.op_type in _IMPLICIT:
            raise _refused(node, f"{node.op_type} computes in integers by itself", "pairs of Q and DQ around a product")
        if node.op_type == "QuantizeLinear":
            _check_zero_point(node, wiring)
            _check_activation_scale(node, wiring)
            _check_pair(node, wiring)
            quantizers += 1
        elif node.op_type == "DequantizeLinear":
            _check_zero_point(node, wiring)
            _check_source(node, wiring)
    if not quantizers:
        raise EngineError("the graph has no QuantizeLinear: it is not quantized. Quantize an fp32 engine")


def _refused(node: onnx.NodeProto, came: str, expected: str) -> EngineError:
    return EngineError(
        f"TensorRT will not take {node.op_type} {node.name!r}: {came}; expected {expected}. Quantize the fp32 engine "
        "with the variant for TensorRT"
    )


def _check_zero_point(node: onnx.NodeProto, wiring: Wiring) -> None:
    if len(node.input) < 3 or not node.input[2]:
        if node.op_type == "QuantizeLinear":  # ONNX then takes uint8
            raise _refused(node, "it has no zero point, which makes it uint8", "an int8 zero point of 0")
        return
    if not wiring.is_constant(node.input[2]):
        raise _refused(node, "its zero point is computed", "a constant int8 zero point of 0")
    zero = wiring.constant(node.input[2])
    if zero.dtype != np.int8:
        raise _refused(node, f"its zero point is {zero.dtype}", "int8")
    if np.any(zero):
        raise _refused(node, f"its zero point is {zero[np.nonzero(zero)][0] if zero.ndim else int(zero)}", "0")


def _check_activation_scale(node: onnx.NodeProto, wiring: Wiring) -> None:
    if not wiring.is_constant(node.input[1]):
        raise _refused(node, "its scale is computed", "one constant scale for an activation")
    scale = wiring.constant(node.input[1])
    if scale.size != 1:
        raise _refused(node, f"it has {scale.size} scales", "one scale for an activation")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise _refused(node, f"its scale is {scale.item()}", "a positive number")


def _check_pair(node: onnx.NodeProto, wiring: Wiring) -> None:
    if wiring.is_constant(node.input[0]):
        raise _refused(node, "it quantizes a constant at every run", "weights stored as int8")
    others = [taker for taker in wiring.consumers.get(node.output[0], []) if taker.op_type != "DequantizeLinear"]
    if others:
        raise _refused(
            node, f"{others[0].op_type} {others[0].name!r} reads it", "nothing but DequantizeLinear behind it"
        )


def _check_source(node: onnx.NodeProto, wiring: Wiring) -> None:
    source = wiring.producers.get(node.input[0])
    if not wiring.is_constant(node.input[0]):
        if source is None or source.op_type != "QuantizeLinear":
            raise _refused(node, "what it dequantizes is of no QuantizeLinear", "pairs of Q and DQ")
        _check_activation_scale(node, wiring)
        return
    value = wiring.constant(node.input[0])
    if value.dtype != np.int8:
        raise _refused(node, f"it dequantizes a constant of {value.dtype}", "int8 weights, and biases in float")
    channels = wiring.constant(node.input[1]).size
    for reader in wiring.consumers.get(node.output[0], []):
        if reader.op_type == "Gemm":
            axis: int | None = 0 if integer(reader, "transB", 0) else 1
        else:
            axis = _OUTPUT_AXIS.get(reader.op_type)
        if axis is None or reader.input[1] != node.output[0] or value.ndim < 2:
            raise _refused(
                node, f"it dequantizes a constant for {reader.op_type} {reader.name!r}", "weights of products"
            )
        if integer(node, "axis", 1) % value.ndim != axis or channels != value.shape[axis]:
            raise _refused(
                node,
                f"it has {channels} scales along axis {integer(node, 'axis', 1)} of {value.shape}",
                f"one for each output channel, along axis {axis}",
            )
