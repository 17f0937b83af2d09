"""The product that makes patches into vectors: its pixels are uint8 already and need no quantizing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import EngineError, MissingDependencyError
from twinspire.graph_edit import Wiring, add_constant, cut_at, replace_nodes

if TYPE_CHECKING:
    import onnx

_MOVES = frozenset({"Reshape", "Transpose", "Identity"})


def multiplies_pixels(node: onnx.NodeProto, wiring: Wiring) -> bool:
    """Whether `node` is a product of the graph's uint8 input, cast to float, with a constant matrix."""
    from onnx import TensorProto

    if node.op_type != "MatMul" or not wiring.is_constant(node.input[1]):
        return False
    cast = wiring.producers.get(node.input[0])
    if cast is None or cast.op_type != "Cast":
        return False
    name = cast.input[0]
    while (mover := wiring.producers.get(name)) is not None and mover.op_type in _MOVES:
        name = mover.input[0]
    return any(
        value.name == name and value.type.tensor_type.elem_type == TensorProto.UINT8 for value in wiring.graph.input
    )


def multiply_bytes(model: onnx.ModelProto, name: str, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    """Let the product of pixels `name` take them as uint8 and its weight as int8, a scale for each output channel.

    Nothing is lost of the pixels. What rounding the weight does to the mean patch of `feeds`, which is far from 0, is
    added back. `multiplies_pixels` must hold of the node. Raises EngineError where the graph cannot be run.
    """
    from onnx import helper

    graph = model.graph
    wiring = Wiring(graph)
    product = next(node for node in graph.node if node.name == name)
    cast = wiring.producers[product.input[0]]
    weight = wiring.constant(product.input[1]).astype(np.float64)  # (K, W)
    scale = np.maximum(np.abs(weight).max(axis=0) / 127, np.finfo(np.float32).tiny).astype(np.float32)  # (W,)
    rounded = np.rint(weight / scale).clip(-127, 127)
    lost = _mean_row(model, cast.input[0], feeds) @ (weight - rounded * scale)  # (W,)

    def constant(what: str, value: NDArray[Any]) -> str:
        return add_constant(graph, f"{name}_{what}", value)

    pixels, weights, raw = f"{name}_pixels", f"{name}_weights", f"{name}_raw"
    in_front = [
        helper.make_node(
            "DequantizeLinear",
            [
                cast.input[0],
                constant("pixel_scale", np.array(1, np.float32)),
                constant("pixel_zero", np.array(0, np.uint8)),
            ],
            [pixels],
            pixels,
        ),
        helper.make_node(
            "DequantizeLinear",
            [
                constant("weight", rounded.astype(np.int8)),
                constant("weight_scale", scale),
                constant("weight_zero", np.zeros(len(scale), np.int8)),
            ],
            [weights],
            weights,
            axis=1,
        ),
    ]
    behind = helper.make_node(
        "Add", [raw, constant("lost", lost.astype(np.float32))], [product.output[0]], f"{name}_mean"
    )
    product.input[0], product.input[1], product.output[0] = pixels, weights, raw
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += [*in_front, node, behind] if node.name == name else [node]
    replace_nodes(graph, nodes)


def _mean_row(model: onnx.ModelProto, name: str, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.float64]:
    """Average the rows of the uint8 tensor `name` (..., K) over all that `feeds` show: (K,)."""
    try:
        import onnxruntime as ort
    except ImportError as exc:
        raise MissingDependencyError("onnxruntime", "cpu", "measuring an engine") from exc
    cut = cut_at(model, name)
    try:
        session = ort.InferenceSession(cut.SerializeToString(), providers=["CPUExecutionProvider"])
        rows = [session.run([name], dict(feed))[0] for feed in feeds]
    except Exception as exc:  # onnxruntime's errors share no base class
        raise EngineError(f"onnxruntime cannot cut pictures into patches: {exc}") from exc
    mean: NDArray[np.float64] = np.mean([row.reshape(-1, row.shape[-1]).mean(axis=0) for row in rows], axis=0)
    return mean
