"""Checks that an ONNX file is an engine: valid, of standard operators, with the contract's tensors.

Knows no torch: exported and quantized engines are checked alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from twinspire.bundle import Tower
from twinspire.errors import EngineError

if TYPE_CHECKING:
    import onnx

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})

Signature = tuple[str, str, tuple[int | str, ...]]
"""Name, element type, shape; a dynamic axis by its name."""


def expected_signature(tower: Tower, *, dim: int, size: int) -> tuple[Signature, Signature]:
    """Give the input and output of a `tower` engine with `dim` dimensions and images of `size` pixels."""
    output: Signature = ("embedding", "FLOAT", ("N", dim))
    if tower is Tower.IMAGE:
        return ("image", "UINT8", ("N", size, size, 3)), output
    return ("input_ids", "INT32", ("N", "L")), output


def check_engine(path: Path, tower: Tower, *, dim: int, size: int) -> None:
    """Check the ONNX file `path` against the contract of `tower`.

    Does not run it. Raises EngineError where the file is invalid, has operators beyond the ONNX standard, or
    other inputs, outputs, types or axes than the contract names.
    """
    import onnx

    try:
        # The full check infers every shape strictly, so a stale one inside the graph fails here and not in a
        # runtime.
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path, load_external_data=False)
    except Exception as exc:  # onnx's checker, shape inference and protobuf share no base class
        raise EngineError(f"{path.name} is no valid ONNX file: {exc}") from exc
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in _nodes(model.graph) if _is_foreign(node)})
    if foreign:
        raise EngineError(f"{path.name} has operators beyond the ONNX standard: {', '.join(foreign)}")
    expected = expected_signature(tower, dim=dim, size=size)
    found = (
        [_signature(value) for value in model.graph.input],
        [_signature(value) for value in model.graph.output],
    )
    if found != ([expected[0]], [expected[1]]):
        raise EngineError(f"{path.name} takes and gives {found}; a {tower} engine has {expected}")


def _is_foreign(node: onnx.NodeProto) -> bool:
    return node.domain not in STANDARD_DOMAINS


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
            for subgraph in attribute.graphs:
                yield from _nodes(subgraph)


def _signature(value: onnx.ValueInfoProto) -> Signature:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    return value.name, onnx.TensorProto.DataType.Name(tensor.elem_type), shape
