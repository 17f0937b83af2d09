"""An fp32 graph to fp16, for GPUs: weights and activations in half precision, inputs and outputs as they were.

Not done by onnxruntime's own converter (`onnxruntime.transformers.float16`): that one cuts what does not fit float16
off without a word, and rounds to float16 between any two operators that are to stay in float32, so the norm of an
embedding too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import EngineError, MissingDependencyError
from twinspire.graph_edit import Wiring, name_nodes
from twinspire_export.quantization.node_roles import PRODUCTS

if TYPE_CHECKING:
    import onnx

LARGEST = float(np.finfo(np.float16).max)
"""65,504; the next float16 is infinity."""

RANGE_LIMIT = LARGEST / 4
"""An activation that reached this on the samples may reach LARGEST on an input that was not among them."""

_SMALLEST = np.float16(2**-24)
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_HALF_QUANTIZERS_SINCE = 19  # opset


def to_half(model: onnx.ModelProto, *, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Convert `model` to float16. `model` is not to be used afterwards.

    What comes behind the last matrix product, the L2 norm, stays in float32, and so do the nodes named in `keep`, each
    with the quantizers in front of it. A LayerNormalization or softmax needs that only where its values do not fit:
    runtimes add up in float32 inside them. Inputs and outputs keep their types. Raises EngineError where a weight does
    not fit float16.
    """
    import onnx

    name_nodes(model.graph)
    model.graph.ClearField("value_info")
    try:
        types = _float_tensors(onnx.shape_inference.infer_shapes(model, strict_mode=True))
    except Exception as exc:  # onnx's errors share no base class
        raise EngineError(f"the types inside the engine cannot be inferred: {exc}") from exc
    opset = max(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    single = {*keep, *_quantizers_before(model.graph, keep), *_behind_products(model.graph)}
    if opset < _HALF_QUANTIZERS_SINCE:
        single.update(node.name for node in model.graph.node if node.op_type in _QUANTIZERS)
    _Conversion(model.graph, types, single).run()
    return model


def nodes_out_of_range(model: onnx.ModelProto, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> list[str]:
    """List the nodes whose values come near what float16 can hold, on any of `feeds`; for `keep` of `to_half`.

    Runs `model` in float32 with all its tensors as outputs. Raises EngineError where a value is not finite.
    """
    try:
        import onnxruntime as ort
    except ImportError as exc:
        raise MissingDependencyError("onnxruntime", "cpu", "measuring an engine") from exc
    import onnx

    name_nodes(model.graph)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.ClearField("value_info")
    floats = _float_tensors(onnx.shape_inference.infer_shapes(probe))
    already = {output.name for output in probe.graph.output}
    names = [name for node in probe.graph.node for name in node.output if name in floats]
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in already)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only
    try:
        session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        largest = dict.fromkeys(names, 0.0)
        for feed in feeds:
            for name, value in zip(names, session.run(names, dict(feed)), strict=True):
                # numpy's maximum keeps a NaN, Python's drops it.
                largest[name] = float(np.maximum(largest[name], np.abs(value).max(initial=0.0)))
    except Exception as exc:  # onnxruntime's errors share no base class
        raise EngineError(f"onnxruntime cannot run the engine: {exc}") from exc
    broken = [name for name, value in largest.items() if not np.isfinite(value)]
    if broken:
        raise EngineError(f"the engine's tensor {broken[0]!r} is not finite in float32 already: its weights are broken")
    far = {name for name, value in largest.items() if value > RANGE_LIMIT}
    return [node.name for node in probe.graph.node if far.intersection((*node.input, *node.output))]


class _Conversion:
    """One walk through a graph, from inputs to outputs, that keeps track of who is float16 by now."""

    def __init__(self, graph: onnx.GraphProto, floats: frozenset[str], single: Collection[str]) -> None:
        self._graph = graph
        self._floats = floats
        self._single = single
        self._constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._halved: set[str] = set()  # tensors that are float16 under their own name
        self._made: dict[tuple[str, bool], str] = {}  # (tensor, whether float16) to its name in that type
        self._outputs = {output.name for output in graph.output}

    def run(self) -> None:
        from onnx import TensorProto

        for node in list(self._graph.node):
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise EngineError(f"{node.op_type} {node.name!r} has a graph inside, which cannot be made fp16")
            if node.op_type == "Constant" and node.output[0] in self._floats and node.attribute[0].HasField("t"):
                self._constants[node.output[0]] = _named(node.attribute[0].t, node.output[0])
                continue
            half = node.name not in self._single and not self._outputs.intersection(node.output)
            for position, name in enumerate(node.input):
                if name in self._floats:
                    node.input[position] = self._in_type(name, half=half, reader=node)
            if half:
                self._halved.update(name for name in node.output if name in self._floats)
                for attribute in node.attribute:
                    if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                        attribute.i = TensorProto.FLOAT16
                    elif node.op_type == "ConstantOfShape" and attribute.t.data_type == TensorProto.FLOAT:
                        attribute.t.CopyFrom(_half(attribute.t, node))
            self._nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        del self._graph.initializer[:]
        self._graph.initializer.extend(tensor for name, tensor in self._constants.items() if name in used)

    def _in_type(self, name: str, *, half: bool, reader: onnx.NodeProto) -> str:
        """Give the name under which the tensor `name` can be had in float16, or in float32."""
        from onnx import TensorProto, helper

        if (name in self._halved) == half and name not in self._constants:
            return name
        made = self._made.get((name, half))
        if made is not None:
            return made
        if name in self._constants:
            made = name
            if half:
                made = f"{name}_fp16"
                self._constants[made] = _named(_half(self._constants[name], reader), made)
        else:
            made = f"{name}_fp16" if half else f"{name}_fp32"
            kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            self._nodes.append(helper.make_node("Cast", [name], [made], f"{made}_cast", to=kind))
        self._made[name, half] = made
        return made


def _half(tensor: onnx.TensorProto, reader: onnx.NodeProto) -> onnx.TensorProto:
    from onnx import numpy_helper

    value = numpy_helper.to_array(tensor)
    if not np.isfinite(value).all():
        raise EngineError(
            f"{tensor.name!r}, which {reader.op_type} {reader.name!r} reads, holds infinities or NaN; fp16 needs "
            "finite weights and a finite mask, such as -10000. Export the checkpoint again"
        )
    largest = float(np.abs(value).max(initial=0.0))
    if largest > LARGEST:
        raise EngineError(
            f"{tensor.name!r}, which {reader.op_type} {reader.name!r} reads, does not fit fp16: its largest value is "
            f"{largest:g}, fp16 ends at {LARGEST:,.0f}. Stay with fp32 or take int8"
        )
    halved = value.astype(np.float16)
    if reader.op_type in _QUANTIZERS:
        # The scale of a channel that is all but 0: as 0 it would be divided by.
        halved = np.where((halved == 0) & (value != 0), _SMALLEST, halved)
    return numpy_helper.from_array(halved)


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    tensor.name = name
    return tensor


def _float_tensors(inferred: onnx.ModelProto) -> frozenset[str]:
    """Name the float32 tensors of a graph whose types were inferred."""
    from onnx import TensorProto

    graph = inferred.graph
    values = [value.name for value in (*graph.input, *graph.value_info, *graph.output) if _is_float(value)]
    return frozenset([*values, *(t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT)])


def _is_float(value: onnx.ValueInfoProto) -> bool:
    from onnx import TensorProto

    kind: int = value.type.tensor_type.elem_type
    return kind == TensorProto.FLOAT


def _quantizers_before(graph: onnx.GraphProto, keep: Collection[str]) -> set[str]:
    """Name the quantizers whose values the nodes `keep` read.

    In float16 they would not hold those values, and TensorRT wants nothing between a weight and its product, no cast.
    """
    wiring = Wiring(graph)
    found: set[str] = set()
    for kind, readers in (("DequantizeLinear", frozenset(keep)), ("QuantizeLinear", found)):
        for node in graph.node:
            if node.op_type == kind and any(reader.name in readers for reader in wiring.readers(node.output[0])):
                found.add(node.name)
    return found


def _behind_products(graph: onnx.GraphProto) -> set[str]:
    """Name the nodes from which no matrix product is reached, but which one reaches."""
    leads: set[str] = set()  # tensors from which a product is reached
    ahead: set[str] = set()
    for node in reversed(graph.node):
        if node.op_type in PRODUCTS or leads.intersection(node.output):
            leads.update(node.input)
        else:
            ahead.add(node.name)
    return ahead
