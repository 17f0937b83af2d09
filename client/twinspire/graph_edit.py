"""Helpers for editing ONNX graphs in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx


class Wiring:
    """The producer and the consumers of each tensor of a graph, and its constants. Stale once nodes are replaced."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.producers = {output: node for node in graph.node for output in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)
        self._constants: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in graph.initializer}

    def is_constant(self, name: str) -> bool:
        """Whether a tensor is an initializer or the output of a Constant node."""
        return self._tensor(name) is not None

    def constant(self, name: str) -> NDArray[Any]:
        """Return the value of a constant tensor."""
        from onnx import numpy_helper

        tensor = self._tensor(name)
        assert tensor is not None
        value: NDArray[Any] = numpy_helper.to_array(tensor)
        return value

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a tensor's values, without those that read its shape only."""
        return [node for node in self.consumers.get(name, []) if node.op_type != "Shape"]

    def _tensor(self, name: str) -> onnx.TensorProto | None:
        if name in self._constants:
            return self._constants[name]
        node = self.producers.get(name)
        if node is None or node.op_type != "Constant":
            return None
        value: onnx.TensorProto | None = next((part.t for part in node.attribute if part.name == "value"), None)
        return value


def name_nodes(graph: onnx.GraphProto) -> None:
    """Name every node that has no name; the same graph gets the same names."""
    taken = {node.name for node in graph.node}
    for position, node in enumerate(graph.node):
        if not node.name:
            node.name = next(name for name in _numbered(f"{node.op_type}_node_{position}") if name not in taken)
            taken.add(node.name)


def integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def integers(node: onnx.NodeProto, name: str) -> list[int]:
    """Return an attribute of several integers; an empty list where it is not set."""
    return next((list(attribute.ints) for attribute in node.attribute if attribute.name == name), [])


def add_constant(graph: onnx.GraphProto, name: str, value: NDArray[Any]) -> str:
    """Add an initializer and return its name, which has a number where `name` is taken."""
    from onnx import numpy_helper

    taken = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    free = next(candidate for candidate in _numbered(name) if candidate not in taken)
    graph.initializer.append(numpy_helper.from_array(value, free))
    return free


def rename_input(graph: onnx.GraphProto, before: str, after: str) -> None:
    """Replace the input `before` of every node by `after`."""
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == before:
                node.input[position] = after


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Replace the nodes of `graph` by `nodes`, in topological order, without those that no output depends on."""
    wanted = {output.name for output in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if any(output in wanted for output in node.output):
            kept.append(node)
            wanted.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    for position in reversed(range(len(graph.initializer))):  # one by one, so that weights are not copied
        if graph.initializer[position].name not in wanted:
            del graph.initializer[position]


def cut_at(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Return the part of a model that computes the tensor `name`, which is its only output."""
    import onnx

    needed, nodes = {name}, list[onnx.NodeProto]()
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input)
    graph = onnx.helper.make_graph(
        nodes[::-1],
        "cut",
        [value for value in model.graph.input if value.name in needed],
        [onnx.helper.make_empty_tensor_value_info(name)],
        [tensor for tensor in model.graph.initializer if tensor.name in needed],
    )
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 1
    while True:
        yield f"{name}_{number}"
        number += 1
