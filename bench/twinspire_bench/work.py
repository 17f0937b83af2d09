"""How much arithmetic an engine does, for the time below which no runtime can bring it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from twinspire.errors import InputError, MissingDependencyError
from twinspire_bench.machine import MatrixPeaks

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]

# What does not change numbers between a DequantizeLinear and the product that takes them.
_MOVES = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Concat", "Slice"})
_INT8 = frozenset({"QLinearMatMul", "QLinearConv", "MatMulInteger", "ConvInteger"})
# An operator with one of these in its name multiplies matrices: it is counted, or the count would be wrong.
_HEAVY = ("MatMul", "Gemm", "Conv", "Attention", "Einsum", "LSTM", "GRU", "RNN")
# Larger constants are weights, of which the shape alone matters; smaller ones may be shapes themselves.
_WEIGHT_ELEMENTS = 1024


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

    Raises InputError where the engine cannot be read, takes another kind of input, or has a product that cannot be
    counted: one of an operator that is not known, or of operands whose shapes cannot be inferred.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("onnx", "bench", "Counting an engine's operations") from error
    try:
        model = onnx.load(str(engine), load_external_data=False)
    except Exception as error:  # protobuf's and onnx's share no base below Exception
        raise InputError(f"{engine} is no ONNX model: {error}") from error
    shapes = _shapes(model, shape, engine)
    producers = {output: node for node in model.graph.node for output in node.output}
    counted = {True: 0, False: 0}
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise InputError(f"{engine}: {node.op_type} {node.name!r} has a graph inside, whose work cannot be counted")
        if not any(word in node.op_type for word in _HEAVY):
            continue
        count = _COUNTS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if count is None:
            raise InputError(
                f"{engine}: the work of {node.domain or 'ai.onnx'} {node.op_type} {node.name!r} is not known: expected "
                f"{', '.join(_COUNTS)}"
            )
        missing = [name for name in (*_operands(node), node.output[0]) if name not in shapes]
        if missing:
            raise InputError(
                f"{engine}: the shape of {missing[0]!r} at {node.op_type} {node.name!r} cannot be inferred"
            )
        is_int8 = node.op_type in _INT8 or all(_is_quantized(name, producers) for name in _operands(node))
        counted[is_int8] += 2 * count(node, shapes)
    return Work(float_operations=counted[False], int8_operations=counted[True])


def _shapes(model: onnx.ModelProto, shape: Sequence[int], engine: Path) -> dict[str, Shape]:
    """Infer the shape of every tensor for this input; those that cannot be inferred are left out."""
    from onnx import shape_inference

    graph = model.graph
    initializers = {each.name for each in graph.initializer}
    given = [each for each in graph.input if each.name not in initializers]
    dims = given[0].type.tensor_type.shape.dim if len(given) == 1 else []
    if len(dims) != len(shape) or any(
        dim.HasField("dim_value") and dim.dim_value != size for dim, size in zip(dims, shape, strict=True)
    ):
        came = [[dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim] for each in given]
        raise InputError(f"{engine} takes inputs of {came}: expected one that {tuple(shape)} fits")
    for dim, size in zip(dims, shape, strict=True):
        dim.dim_value = size
    del graph.value_info[:]  # of other sizes, where an optimiser left it
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    for constant in graph.initializer:
        if prod(constant.dims) > _WEIGHT_ELEMENTS:
            for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
                constant.ClearField(field)
    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:  # onnx's errors share no base below Exception
        raise InputError(f"the shapes of {engine} cannot be inferred: {error}") from error
    shapes = {each.name: tuple(each.dims) for each in inferred.initializer}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        known = value.type.tensor_type
        if known.HasField("shape") and all(dim.HasField("dim_value") for dim in known.shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in known.shape.dim)
    return shapes


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


_COUNTS: Mapping[str, Callable[[onnx.NodeProto, Mapping[str, Shape]], int]] = {
    "MatMul": _matmul,
    "QLinearMatMul": _matmul,
    "MatMulInteger": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "QLinearConv": _conv,
    "ConvInteger": _conv,
    "Attention": _attention,
}
