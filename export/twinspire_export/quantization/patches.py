"""Int8 patch embedding: pixels are uint8 already, so only its weight is quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.graph_edit import Wiring, add_constant, cut_at, replace_nodes
from twinspire_export.engine_check import open_engine, run_engine

if TYPE_CHECKING:
    import onnx

_MOVES = frozenset({"Reshape", "Transpose", "Identity"})


def multiplies_pixels(node: onnx.NodeProto, wiring: Wiring) -> bool:
    """Whether `node` multiplies the graph's uint8 input, cast to float, by a constant matrix."""
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
    """Make the multiplication of pixels `name` take them as uint8, and its weight as int8 with a scale per channel.

    The pixels stay exact. The mean patch of `feeds` is far from 0: the error that rounding the weight makes on it is
    added back as a bias. `multiplies_pixels` must hold for the node. Raises EngineError where the graph cannot be run.
    """
    from onnx import helper

    graph = model.graph
    wiring = Wiring(graph)
    matmul = next(node for node in graph.node if node.name == name)
    cast = wiring.producers[matmul.input[0]]
    weight = wiring.constant(matmul.input[1]).astype(np.float64)  # (K, W)
    scale = np.maximum(np.abs(weight).max(axis=0) / 127, np.finfo(np.float32).tiny).astype(np.float32)  # (W,)
    rounded = np.rint(weight / scale).clip(-127, 127)
    error = _mean_row(model, cast.input[0], feeds) @ (weight - rounded * scale)  # (W,)

    def constant(suffix: str, value: NDArray[Any]) -> str:
        return add_constant(graph, f"{name}_{suffix}", value)

    pixels, weights, raw = f"{name}_pixels", f"{name}_weights", f"{name}_raw"
    before = [
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
    after = helper.make_node(
        "Add", [raw, constant("error", error.astype(np.float32))], [matmul.output[0]], f"{name}_mean"
    )
    matmul.input[0], matmul.input[1], matmul.output[0] = pixels, weights, raw
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += [*before, node, after] if node.name == name else [node]
    replace_nodes(graph, nodes)


def _mean_row(model: onnx.ModelProto, name: str, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.float64]:
    """Return the mean row of the uint8 tensor `name` (..., K) over `feeds`: (K,)."""
    session = open_engine(cut_at(model, name).SerializeToString(), "the engine up to its patches")
    rows = [run_engine(session, [name], dict(feed), "the engine up to its patches")[0] for feed in feeds]
    mean: NDArray[np.float64] = np.mean([row.reshape(-1, row.shape[-1]).mean(axis=0) for row in rows], axis=0)
    return mean
