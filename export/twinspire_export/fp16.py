"""Conversion of an fp32 graph to fp16, for GPUs: weights and activations are float16, inputs and outputs unchanged.

onnxruntime's own converter (`onnxruntime.transformers.float16`) is not used: it silently clamps values that do not fit
float16, and rounds to float16 between any two operators that stay in float32, including those of the L2 norm.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import EngineError
from twinspire.graph_edit import Wiring, name_nodes
from twinspire_export.engine_check import open_engine, run_engine
from twinspire_export.quantization.node_roles import MATMULS

if TYPE_CHECKING:
    import onnx

LARGEST = float(np.finfo(np.float16).max)
"""65,504; the next float16 is infinity."""

RANGE_LIMIT = LARGEST / 4
"""An activation that reaches this on the samples may reach LARGEST on other inputs."""

_SMALLEST = np.float16(2**-24)
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_FP16_QUANTIZERS_SINCE = 19  # opset


def to_fp16(model: onnx.ModelProto, *, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Convert `model` to float16. `model` must not be used afterwards.

    The nodes after the last matrix multiplication, the L2 norm, stay in float32, as do the nodes named in `keep`, each
    with the quantizers before it. A LayerNormalization or softmax needs that only where its values do not fit: runtimes
    accumulate in float32 inside them. Inputs and outputs keep their types. Raises EngineError where a weight does not
    fit float16.
    """
    import onnx

    name_nodes(model.graph)
    model.graph.ClearField("value_info")
    try:
        types = _float_tensors(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    except Exception as exc:  # onnx's errors share no base class
        raise EngineError(f"the types inside the engine cannot be inferred: {exc}") from exc
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    fp32 = {*keep, *_quantizers_before(model.graph, keep), *_after_matmuls(model.graph)}
    if opset < _FP16_QUANTIZERS_SINCE:
        fp32.update(node.name for node in model.graph.node if node.op_type in _QUANTIZERS)
    _Conversion(model.graph, types, fp32).run()
    return model


def nodes_out_of_range(model: onnx.ModelProto, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> list[str]:
    """List the nodes with values near the limit of float16 on any of `feeds`; for `keep` of `to_fp16`.

    Runs `model` in float32 with all its tensors as outputs. Raises EngineError where a value is not finite.
    """
    import onnx

    name_nodes(model.graph)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.ClearField("value_info")
    floats = _float_tensors(onnx.shape_inference.infer_shapes(probe))
    already = {output.name for output in probe.graph.output}
    names = [name for node in probe.graph.node for name in node.output if name in floats]
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in already)
    session = open_engine(probe.SerializeToString(), "the engine")
    largest = dict.fromkeys(names, 0.0)
    for feed in feeds:
        for name, value in zip(names, run_engine(session, names, dict(feed), "the engine"), strict=True):
            # numpy's maximum keeps a NaN, Python's drops it.
            largest[name] = float(np.maximum(largest[name], np.abs(value).max(initial=0.0)))
    broken = [name for name, value in largest.items() if not np.isfinite(value)]
    if broken:
        raise EngineError(f"the engine's tensor {broken[0]!r} is not finite even in float32: its weights are broken")
    far = {name for name, value in largest.items() if value > RANGE_LIMIT}
    return [node.name for node in probe.graph.node if far.intersection((*node.input, *node.output))]


class _Conversion:
    """One pass over a graph, from inputs to outputs, that tracks which tensors are float16 already."""

    def __init__(self, graph: onnx.GraphProto, floats: frozenset[str], fp32: Collection[str]) -> None:
        self._graph = graph
        self._floats = floats
        self._fp32 = fp32
        self._constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._converted: set[str] = set()  # tensors that are float16 under their own name
        self._copies: dict[tuple[str, bool], str] = {}  # (tensor, whether float16) to its name in that type
        self._outputs = {output.name for output in graph.output}

    def run(self) -> None:
        from onnx import TensorProto

        for node in list(self._graph.node):
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise EngineError(f"{node.op_type} {node.name!r} has a graph inside, which cannot be converted to fp16")
            if node.op_type == "Constant" and node.output[0] in self._floats and node.attribute[0].HasField("t"):
                self._constants[node.output[0]] = _named(node.attribute[0].t, node.output[0])
                continue
            is_fp16 = node.name not in self._fp32 and not self._outputs.intersection(node.output)
            for position, name in enumerate(node.input):
                if name in self._floats:
                    node.input[position] = self._in_type(name, is_fp16=is_fp16, reader=node)
            if is_fp16:
                self._converted.update(name for name in node.output if name in self._floats)
                for attribute in node.attribute:
                    if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                        attribute.i = TensorProto.FLOAT16
                    elif node.op_type == "ConstantOfShape" and attribute.t.data_type == TensorProto.FLOAT:
                        attribute.t.CopyFrom(_constant_as_fp16(attribute.t, node))
            self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        del self._graph.initializer[:]
        self._graph.initializer.extend(tensor for name, tensor in self._constants.items() if name in used)

    def _in_type(self, name: str, *, is_fp16: bool, reader: onnx.NodeProto) -> str:
        """Return the name of the tensor `name` in float16, or in float32, after inserting a Cast where needed."""
        from onnx import TensorProto, helper

        if (name in self._converted) == is_fp16 and name not in self._constants:
            return name
        copy = self._copies.get((name, is_fp16))
        if copy is not None:
            return copy
        if name in self._constants:
            copy = name
            if is_fp16:
                copy = f"{name}_fp16"
                self._constants[copy] = _named(_constant_as_fp16(self._constants[name], reader), copy)
        else:
            copy = f"{name}_fp16" if is_fp16 else f"{name}_fp32"
            to = TensorProto.FLOAT16 if is_fp16 else TensorProto.FLOAT
            self._nodes.append(helper.make_node("Cast", [name], [copy], f"{copy}_cast", to=to))
        self._copies[name, is_fp16] = copy
        return copy


def _constant_as_fp16(tensor: onnx.TensorProto, reader: onnx.NodeProto) -> onnx.TensorProto:
    from onnx import numpy_helper

    value = numpy_helper.to_array(tensor)
    if not np.isfinite(value).all():
        raise EngineError(
            f"{tensor.name!r}, an input of {reader.op_type} {reader.name!r}, holds infinities or NaN; fp16 needs "
            "finite weights and a finite mask, such as -10000. Export the checkpoint again"
        )
    largest = float(np.abs(value).max(initial=0.0))
    if largest > LARGEST:
        raise EngineError(
            f"{tensor.name!r}, an input of {reader.op_type} {reader.name!r}, does not fit fp16: its largest value is "
            f"{largest:g}, the maximum of fp16 is {LARGEST:,.0f}. Stay with fp32 or use int8"
        )
    rounded = value.astype(np.float16)
    if reader.op_type in _QUANTIZERS:
        # The scale of a channel that is nearly 0 must not become 0: values are divided by it.
        rounded = np.where((rounded == 0) & (value != 0), _SMALLEST, rounded)
    return numpy_helper.from_array(rounded)


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    tensor.name = name
    return tensor


def _float_tensors(inferred: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the float32 tensors of a graph with inferred types."""
    from onnx import TensorProto

    graph = inferred.graph
    values = [
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    return frozenset([*values, *(t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT)])


def _quantizers_before(graph: onnx.GraphProto, keep: Collection[str]) -> set[str]:
    """Return the names of the quantizers whose values the nodes `keep` read.

    In float16 they would not hold those values, and TensorRT requires that no cast comes between a weight and its
    matrix multiplication.
    """
    wiring = Wiring(graph)
    found: set[str] = set()
    for op_type, readers in (("DequantizeLinear", frozenset(keep)), ("QuantizeLinear", found)):
        for node in graph.node:
            if node.op_type == op_type and any(reader.name in readers for reader in wiring.readers(node.output[0])):
                found.add(node.name)
    return found


def _after_matmuls(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the nodes that no matrix multiplication depends on."""
    before: set[str] = set()  # tensors that a matrix multiplication depends on
    after: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in MATMULS or before.intersection(node.output):
            before.update(node.input)
        else:
            after.add(node.name)
    return after
