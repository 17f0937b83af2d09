"""Nodes appended to an ONNX graph, one operator after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.graph_edit import add_constant

if TYPE_CHECKING:
    import onnx

_REDUCTION_AXES_AS_INPUT = 18
"""The opset from which ReduceMean, ReduceMax and ReduceL2 take their axes as an input; ReduceSum does since 13."""


class GraphBuilder:
    """Makes nodes for a graph of the given opset; `take` hands them over. Constants become initializers."""

    def __init__(self, graph: onnx.GraphProto, opset: int, *, prefix: str) -> None:
        import onnx

        self._graph, self._opset, self._prefix = graph, opset, prefix
        self._make_node = onnx.helper.make_node
        self._nodes: list[onnx.NodeProto] = []
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.float32, self.int32 = int(onnx.TensorProto.FLOAT), int(onnx.TensorProto.INT32)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401 - ONNX attributes
        """Append a node; return the name of its output."""
        self._count += 1
        name = f"{self._prefix}_{self._count}_{operator}"
        self._nodes.append(self._make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def take(self) -> list[onnx.NodeProto]:
        """Return the nodes made since the last call."""
        nodes, self._nodes = self._nodes, []
        return nodes

    def constant(self, value: NDArray[Any]) -> str:
        """Return the name of a constant; equal ones are stored once."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = add_constant(self._graph, f"{self._prefix}_constant", value)
        return self._constants[key]

    def ints(self, values: list[int]) -> str:
        """Return the name of a constant of int64."""
        return self.constant(np.array(values, np.int64))

    def reduce(self, operator: str, tensor: str, axis: int, *, keepdims: bool = False) -> str:
        """Reduce one axis."""
        if operator == "ReduceSum" or self._opset >= _REDUCTION_AXES_AS_INPUT:
            return self.add(operator, tensor, self.ints([axis]), keepdims=int(keepdims))
        return self.add(operator, tensor, axes=[axis], keepdims=int(keepdims))

    def slice(self, tensor: str, start: int, stop: int, *, axis: int = 1, step: int = 1) -> str:
        """Take every `step`-th from `start` to `stop` along an axis."""
        return self.add("Slice", tensor, *(self.ints([value]) for value in (start, stop, axis, step)))
