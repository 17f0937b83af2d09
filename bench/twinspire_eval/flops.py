"""FLOP counts of engines: a lower bound on their run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from twinspire.errors import InputError, MissingDependencyError
from twinspire.towers.onnxruntime_support import ONLY_FATAL, onnxruntime_library
from twinspire_eval.machine import MatrixPeaks

if TYPE_CHECKING:
    import onnx

Shape: TypeAlias = tuple[int, ...]
Counter: TypeAlias = "Callable[[onnx.NodeProto, Mapping[str, Shape]], int]"

# Operators that may stand between a DequantizeLinear and the multiplication: they change no number.
_MOVES = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Concat", "Slice"})
_INT8 = frozenset({"QLinearMatMul", "QLinearConv", "MatMulInteger", "ConvInteger"})
# An operator with one of these in its name multiplies matrices: it must be counted.
_MULTIPLICATIONS = ("MatMul", "Gemm", "Conv", "Attention", "Einsum", "LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class FlopCount:
    """Operations of the matrix multiplications and convolutions in one run of an engine; a multiply-add counts as two.

    `int8_operations` have two quantized operands, `float_operations` are the others. Element-wise operations (norms,
    softmax, biases) are not counted: they are less than 1% of a tower.
    """

    float_operations: int
    int8_operations: int

    @property
    def operations(self) -> int:
        """Operations of both types."""
        return self.float_operations + self.int8_operations

    def minimum_s(self, peaks: MatrixPeaks) -> float:
        """Return the seconds that these operations take at the peaks, with float operations at the peak of fp32.

        A runtime that computes float operations in bf16 may take less time.
        """
        return self.float_operations / peaks.fp32_op_per_s + self.int8_operations / peaks.int8_op_per_s


def count_flops(engine: Path, shape: Sequence[int]) -> FlopCount:
    """Count the operations of one run on an input of this shape: (N, S, S, 3), or (N, L).

    The shapes of the operands are taken from a run: ONNX's shape inference fails on some exported graphs (a Range to a
    computed end). Raises InputError where the engine cannot be read or run on such an input, or has an operator that
    cannot be counted; MissingDependencyError where onnx or onnxruntime is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("onnx", "bench", "Counting an engine's operations") from error
    try:
        model = onnx.load(str(engine))
    except Exception as error:  # protobuf's and onnx's share no base below Exception
        raise InputError(f"{engine} cannot be read as an ONNX model: {error}") from error
    producers = {output: node for node in model.graph.node for output in node.output}
    multiplications = [(node, _counter(node, engine)) for node in model.graph.node if _multiplies(node, engine)]
    names = dict.fromkeys(name for node, _ in multiplications for name in (*_operands(node), node.output[0]))
    shapes = _shapes(model, list(names), shape, engine)
    counted = {True: 0, False: 0}
    for node, count in multiplications:
        is_int8 = node.op_type in _INT8 or all(_is_quantized(name, producers) for name in _operands(node))
        counted[is_int8] += 2 * count(node, shapes)
    return FlopCount(float_operations=counted[False], int8_operations=counted[True])


def _multiplies(node: onnx.NodeProto, engine: Path) -> bool:
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        raise InputError(f"{engine}: {node.op_type} {node.name!r} has a subgraph, whose operations cannot be counted")
    return any(word in node.op_type for word in _MULTIPLICATIONS)


def _counter(node: onnx.NodeProto, engine: Path) -> Counter:
    count = _COUNTS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if count is None:
        raise InputError(
            f"{engine}: the operations of {node.domain or 'ai.onnx'} {node.op_type} {node.name!r} cannot be counted: "
            f"expected {', '.join(_COUNTS)}"
        )
    return count


def _shapes(model: onnx.ModelProto, names: list[str], shape: Sequence[int], engine: Path) -> dict[str, Shape]:
    """Return the shapes of tensors in a run of the graph on zeros. Changes the model."""
    onnxruntime = onnxruntime_library("Counting an engine's operations")
    from onnx import TensorProto, helper

    graph = model.graph
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in initializers]
    if len(inputs) != 1:
        raise InputError(f"{engine} has {len(inputs)} inputs: expected one, as towers have")
    del graph.output[:]
    for place, name in enumerate(names):
        graph.node.append(helper.make_node("Shape", [name], [f"shape of {place}"]))
        graph.output.append(helper.make_tensor_value_info(f"shape of {place}", TensorProto.INT64, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONLY_FATAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    zeros = np.zeros(shape, helper.tensor_dtype_to_np_dtype(inputs[0].type.tensor_type.elem_type))
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        found = session.run(None, {inputs[0].name: zeros}) if names else []
    except Exception as error:  # onnxruntime's exceptions share no base below Exception
        raise InputError(f"{engine} cannot be run on an input of {tuple(shape)}: {error}") from error
    return {name: tuple(int(size) for size in sizes) for name, sizes in zip(names, found, strict=True)}


def _operands(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the names of the operands."""
    if node.op_type.startswith("QLinear"):
        return node.input[0], node.input[3]
    return tuple(node.input[: 3 if node.op_type == "Attention" else 2])


def _is_quantized(name: str, producers: Mapping[str, onnx.NodeProto]) -> bool:
    node = producers.get(name)
    while node is not None and node.op_type in _MOVES:
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def _matmul(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    return prod(shapes[node.output[0]]) * shapes[_operands(node)[0]][-1]


def _gemm(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


def _conv(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # The weight is (out, in / groups, *kernel).
    return prod(shapes[node.output[0]]) * prod(shapes[_operands(node)[1]][1:])


def _attention(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # Queries (..., Lq, d) by keys (..., Lk, d), then weights by values (..., Lk, dv); heads as an axis or concatenated.
    queries, keys, _ = _operands(node)
    return shapes[keys][-2] * (prod(shapes[queries]) + prod(shapes[node.output[0]]))


_COUNTS: Mapping[str, Counter] = {
    "MatMul": _matmul,
    "QLinearMatMul": _matmul,
    "MatMulInteger": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "QLinearConv": _conv,
    "ConvInteger": _conv,
    "Attention": _attention,
}
