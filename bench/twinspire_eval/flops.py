"""How much arithmetic an engine does, for the time below which no runtime can bring it."""

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

# What does not change numbers between a DequantizeLinear and the product that takes them.
_MOVES = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Concat", "Slice"})
_INT8 = frozenset({"QLinearMatMul", "QLinearConv", "MatMulInteger", "ConvInteger"})
# An operator with one of these in its name multiplies matrices: it is counted, or the count would be wrong.
_HEAVY = ("MatMul", "Gemm", "Conv", "Attention", "Einsum", "LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Work:
    """The operations of matrix products and convolutions in one run of an engine; a multiply-add counts as two.

    `int8_operations` are those whose both operands are quantized, `float_operations` the others. What is linear in
    the activations (norms, softmax, biases) is left out: less than 1% of a tower.
    """

    float_operations: int
    int8_operations: int

    @property
    def operations(self) -> int:
        """All of them."""
        return self.float_operations + self.int8_operations

    def shortest_s(self, peaks: MatrixPeaks) -> float:
        """Return the seconds that these operations take at the peaks, float ones at that of fp32.

        A runtime that computes float operations in bf16 may take less.
        """
        return self.float_operations / peaks.fp32_op_per_s + self.int8_operations / peaks.int8_op_per_s


def engine_work(engine: Path, shape: Sequence[int]) -> Work:
    """Count the operations of one run on an input of this shape: (N, S, S, 3), or (N, L).

    The shapes of what is multiplied are those of a run: ONNX's own shape inference does not follow all that exporters
    write (a Range to a computed end). Raises InputError where the engine cannot be read or run on such an input, or
    has a product that cannot be counted; MissingDependencyError where onnx or onnxruntime is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("onnx", "bench", "Counting an engine's operations") from error
    try:
        model = onnx.load(str(engine))
    except Exception as error:  # protobuf's and onnx's share no base below Exception
        raise InputError(f"{engine} is no ONNX model: {error}") from error
    producers = {output: node for node in model.graph.node for output in node.output}
    products = [(node, _counter(node, engine)) for node in model.graph.node if _is_heavy(node, engine)]
    names = dict.fromkeys(name for node, _ in products for name in (*_operands(node), node.output[0]))
    shapes = _shapes(model, list(names), shape, engine)
    counted = {True: 0, False: 0}
    for node, count in products:
        is_int8 = node.op_type in _INT8 or all(_is_quantized(name, producers) for name in _operands(node))
        counted[is_int8] += 2 * count(node, shapes)
    return Work(float_operations=counted[False], int8_operations=counted[True])


def _is_heavy(node: onnx.NodeProto, engine: Path) -> bool:
    if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
        raise InputError(f"{engine}: {node.op_type} {node.name!r} has a graph inside, whose work cannot be counted")
    return any(word in node.op_type for word in _HEAVY)


def _counter(node: onnx.NodeProto, engine: Path) -> Counter:
    count = _COUNTS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if count is None:
        raise InputError(
            f"{engine}: the work of {node.domain or 'ai.onnx'} {node.op_type} {node.name!r} is not known: expected "
            f"{', '.join(_COUNTS)}"
        )
    return count


def _shapes(model: onnx.ModelProto, names: list[str], shape: Sequence[int], engine: Path) -> dict[str, Shape]:
    """Run the graph once, on zeros, for the shapes of these tensors alone. Changes the model."""
    onnxruntime = onnxruntime_library("Counting an engine's operations")
    from onnx import TensorProto, helper

    graph = model.graph
    initializers = {each.name for each in graph.initializer}
    given = [each for each in graph.input if each.name not in initializers]
    if len(given) != 1:
        raise InputError(f"{engine} has {len(given)} inputs: expected a tower's one")
    del graph.output[:]
    for place, name in enumerate(names):
        graph.node.append(helper.make_node("Shape", [name], [f"shape of {place}"]))
        graph.output.append(helper.make_tensor_value_info(f"shape of {place}", TensorProto.INT64, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ONLY_FATAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    zeros = np.zeros(shape, helper.tensor_dtype_to_np_dtype(given[0].type.tensor_type.elem_type))
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        found = session.run(None, {given[0].name: zeros}) if names else []
    except Exception as error:  # onnxruntime's exceptions share no base below Exception
        raise InputError(f"{engine} cannot be run on an input of {tuple(shape)}: {error}") from error
    return {name: tuple(int(size) for size in sizes) for name, sizes in zip(names, found, strict=True)}


def _operands(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return the names of what is multiplied."""
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
    transposed = any(each.name == "transA" and each.i for each in node.attribute)
    return prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


def _conv(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # The weight is (out, in / groups, *kernel).
    return prod(shapes[node.output[0]]) * prod(shapes[_operands(node)[1]][1:])


def _attention(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # Queries (..., Lq, d) by keys (..., Lk, d), and these weights by values (..., Lk, dv); heads apart or side by side.
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
