"""ONNX graphs for TensorRT: pixels are cast before anything else, and quantization is symmetric int8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from twinspire._arguments import shown
from twinspire.bundle import Precision
from twinspire.errors import EngineError, InputError, MissingDependencyError
from twinspire.graph_edit import Wiring, integer, rename_input, replace_nodes

if TYPE_CHECKING:
    import onnx

PRECISIONS = (Precision.FP16, Precision.INT8_TENSORRT, Precision.FP32)
"""The precisions that TensorRT accepts. `int8` is for processors: its activations are uint8 with zero points."""

_MOVES = frozenset({"Reshape", "Transpose", "Identity"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_IMPLICIT = frozenset(
    {"QLinearMatMul", "QLinearConv", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear", "MatMulIntegerToFloat"}
)
_OUTPUT_AXIS = {"MatMul": 1, "Conv": 0}


def check_precision(precision: Precision | str) -> Precision:
    """Return the precision of that name. Raises InputError for one that TensorRT does not accept."""
    if precision not in PRECISIONS:
        raise InputError(
            f"precision {shown(str(precision))}: expected one of {', '.join(PRECISIONS)} for TensorRT, which does not "
            "accept int8 made for processors. Make an engine with: twinspire quantize BUNDLE -o NEW --precision fp16",
            option="precision",
        )
    return Precision(precision)


def prepare_engine(engine: Path) -> bytes:
    """Read an ONNX engine of a bundle and return an equivalent ONNX file for TensorRT.

    Raises EngineError where TensorRT would not accept it, MissingDependencyError where onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("onnx", "quantize", "Preparing an engine for TensorRT") from error
    try:
        model = onnx.load(engine)
        cast_bytes_first(model)
        check_graph(model)
        data: bytes = model.SerializeToString()
    except Exception as error:  # protobuf's and onnx's share no base below Exception
        raise EngineError(f"{engine.name}: {error}", path=engine) from error
    return data


def check_graph(model: onnx.ModelProto) -> None:
    """Check that TensorRT will accept `model`: the readers of a uint8 input, and the quantization. Does not run it.

    Raises EngineError that names the node.
    """
    from onnx import TensorProto

    wiring = Wiring(model.graph)
    for value in model.graph.input:
        if value.type.tensor_type.elem_type == TensorProto.UINT8:
            for reader in wiring.consumers.get(value.name, []):
                if reader.op_type != "Cast":
                    raise EngineError(
                        f"TensorRT will not accept {reader.op_type} {reader.name!r}: it reads the uint8 input "
                        f"{value.name!r}; expected Cast only"
                    )
    if any(node.op_type in _QUANTIZERS for node in model.graph.node):
        check_symmetric(model)


def cast_bytes_first(model: onnx.ModelProto) -> bool:
    """Move the cast of a uint8 input before the nodes that move its values. Return whether the graph was changed.

    TensorRT accepts uint8 as an input only, and only to cast it. Bundles cast last: processors move bytes
    faster than floats. ViT-B/32, 32 images split into patches on two Xeon cores: 3.6 ms as bytes, 7.1 ms as float32, of
    about 160 ms for the whole int8 tower. Raises EngineError where the input is used before it is cast.

    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/FoundationalTypes/DataType.html
    """
    from onnx import TensorProto

    graph = model.graph
    pixels = graph.input[0]
    if pixels.type.tensor_type.elem_type != TensorProto.UINT8:
        return False
    wiring = Wiring(graph)
    movers: list[onnx.NodeProto] = []
    name = pixels.name
    while True:
        readers = wiring.readers(name)
        if len(readers) != 1 or readers[0].op_type not in (*_MOVES, "Cast"):
            raise EngineError(f"the input {pixels.name!r} is used before it is cast: export the bundle again")
        cast = readers[0]
        if cast.op_type == "Cast":
            break
        movers.append(cast)
        name = cast.output[0]
    shapes = [reader for reader in wiring.consumers[pixels.name] if reader.op_type == "Shape"]
    if not movers and not shapes:
        return False
    graph.ClearField("value_info")
    if movers:
        rename_input(graph, cast.output[0], movers[-1].output[0])
        movers[0].input[0] = cast.output[0]
        cast.input[0] = pixels.name
    for reader in shapes:
        reader.input[0] = cast.output[0]
    replace_nodes(graph, [cast, *(node for node in graph.node if node is not cast)])
    return True


def check_symmetric(model: onnx.ModelProto) -> None:
    """Check that TensorRT will accept the quantized `model`.

    Every QuantizeLinear and DequantizeLinear is int8 with zero point 0; those of activations come in pairs with one
    constant scale; a dequantized constant is the weight of a matrix multiplication, with one scale for
    each output channel; no bias is quantized and no operator computes in integers itself. Does not run it. Raises
    EngineError that names the node.

    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
    """
    graph = model.graph
    wiring = Wiring(graph)
    quantizers = 0
    for node in graph.node:
        if node.op_type in _IMPLICIT:
            raise _refused(
                node,
                f"{node.op_type} computes in integers itself",
                "QuantizeLinear and DequantizeLinear around a matrix multiplication",
            )
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


def _refused(node: onnx.NodeProto, found: str, expected: str) -> EngineError:
    return EngineError(
        f"TensorRT will not accept {node.op_type} {node.name!r}: {found}; expected {expected}. Quantize the fp32 "
        "engine with --precision int8-tensorrt"
    )


def _check_zero_point(node: onnx.NodeProto, wiring: Wiring) -> None:
    if len(node.input) < 3 or not node.input[2]:
        if node.op_type == "QuantizeLinear":  # ONNX's default is uint8
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
    others = [reader for reader in wiring.consumers.get(node.output[0], []) if reader.op_type != "DequantizeLinear"]
    if others:
        raise _refused(node, f"{others[0].op_type} {others[0].name!r} reads it", "DequantizeLinear only")


def _check_source(node: onnx.NodeProto, wiring: Wiring) -> None:
    source = wiring.producers.get(node.input[0])
    if not wiring.is_constant(node.input[0]):
        if source is None or source.op_type != "QuantizeLinear":
            raise _refused(
                node, "its input does not come from a QuantizeLinear", "pairs of QuantizeLinear and DequantizeLinear"
            )
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
                node,
                f"it dequantizes a constant for {reader.op_type} {reader.name!r}",
                "weights of matrix multiplications",
            )
        if integer(node, "axis", 1) % value.ndim != axis or channels != value.shape[axis]:
            raise _refused(
                node,
                f"it has {channels} scales along axis {integer(node, 'axis', 1)} of {value.shape}",
                f"one for each output channel, along axis {axis}",
            )
