"""Passes over NNCF's graphs that let runtimes use their fast kernels, and the int8 patch embedding.

Most do not change what the graph computes. Pixels are uint8 already, so of the patch embedding only the weight is
quantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.graph_edit import Wiring, add_constant, cut_at, integer, rename_input, replace_nodes
from twinspire_export.engine_check import open_engine, run_engine

if TYPE_CHECKING:
    import onnx

_MOVES = frozenset({"Reshape", "Transpose", "Identity"})


def absorb_smoothing(model: onnx.ModelProto) -> int:
    """Fold the factors of SmoothQuant into the node before or after them. Returns how many were folded.

    NNCF multiplies an activation by a vector, channel by channel, before the matrix multiplication whose weights it
    divided: a pass over the activations at every run. After a LayerNormalization that nothing else reads, the vector is
    folded into its weight and bias; before a multiplication that stays in float32, back into the weights. Equal up to
    rounding.
    """
    graph = model.graph
    wiring = Wiring(graph)
    folded: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Mul" or not wiring.is_constant(node.input[1]):
            continue
        factors = wiring.constant(node.input[1]).astype(np.float64)
        if factors.size < 2 or factors.size != factors.shape[-1]:
            continue
        source, readers = wiring.producers.get(node.input[0]), wiring.readers(node.output[0])
        if source is not None and _is_norm_of(source, node, wiring):
            for position, name in enumerate(source.input):
                if position > 0:  # weight, and bias where there is one; other norms may share them
                    scaled = (wiring.constant(name) * factors.reshape(-1)).astype(np.float32)
                    source.input[position] = add_constant(graph, f"{name}_smoothed", scaled)
        elif readers and all(_is_float_matmul_of(reader, node.output[0], wiring) for reader in readers):
            for reader in readers:
                weight = (wiring.constant(reader.input[1]) * factors.reshape(-1, 1)).astype(np.float32)
                reader.input[1] = add_constant(graph, f"{reader.input[1]}_smoothed", weight)
        else:
            continue
        rename_input(graph, node.output[0], node.input[0])
        folded.append(node)
    replace_nodes(graph, list(graph.node))
    return len(folded)


def has_post_norm_blocks(model: onnx.ModelProto) -> bool:
    """Whether a residual sum reads the norms that feed matrix multiplications, as in BERT.

    SmoothQuant's factors cannot be folded into such a norm, and cost more than they gain: all-MiniLM-L6-v2, 3,000 COCO
    captions among themselves, mean cosine to fp32 0.963 and R@1 48.5% with smoothing, 0.985 and 49.3% without; fp32
    49.2%.
    """
    wiring = Wiring(model.graph)
    readers = (
        {reader.op_type for reader in wiring.readers(node.output[0])}
        for node in model.graph.node
        if node.op_type == "LayerNormalization"
    )
    return any({"Add", "MatMul"} <= kinds for kinds in readers)


def _is_norm_of(source: onnx.NodeProto, node: onnx.NodeProto, wiring: Wiring) -> bool:
    """Whether `source` is a LayerNormalization over the last axis whose values `node` alone reads."""
    return (
        source.op_type == "LayerNormalization"
        and integer(source, "axis", -1) == -1
        and wiring.readers(source.output[0]) == [node]
        and all(wiring.is_constant(name) for name in source.input[1:])
    )


def _is_float_matmul_of(node: onnx.NodeProto, name: str, wiring: Wiring) -> bool:
    return (
        node.op_type == "MatMul"
        and node.input[0] == name
        and wiring.is_constant(node.input[1])
        and wiring.constant(node.input[1]).ndim == 2
    )


def gather_before_dequantizing(model: onnx.ModelProto) -> int:
    """Look rows of int8 tables up before they are dequantized. Returns the number of tables.

    NNCF leaves `DequantizeLinear(table, scales) -> Gather(rows)`; runtimes keep that order and convert a whole
    vocabulary of token embeddings, 49,408 rows, to float32 for a text of ten tokens. This gathers the int8 rows and
    their scales, then multiplies them: equal bit for bit.
    """
    import onnx
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    wiring = Wiring(graph)
    tables = {node.output[0]: node for node in graph.node if _is_table(node, wiring)}
    rewritten = 0
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or integer(node, "axis", 0) != 0:
            nodes.append(node)
            continue
        quantized, scale = table.input[0], table.input[1]
        name, rows, output = node.name or node.output[0], node.input[1], node.output[0]
        column = f"{scale}_column"
        if column not in constants:  # (rows,) to (rows, 1), so that a row's scale applies to all of its values
            values = numpy_helper.to_array(constants[scale])[:, None]
            constants[column] = numpy_helper.from_array(values, column)
            graph.initializer.append(constants[column])
        nodes += [
            helper.make_node("Gather", [quantized, rows], [f"{output}_int8"], f"{name}_int8", axis=0),
            helper.make_node(
                "Cast", [f"{output}_int8"], [f"{output}_float"], f"{name}_float", to=onnx.TensorProto.FLOAT
            ),
            helper.make_node("Gather", [column, rows], [f"{output}_scale"], f"{name}_scale", axis=0),
            helper.make_node("Mul", [f"{output}_float", f"{output}_scale"], [output], f"{name}_dequantized"),
        ]
        rewritten += 1
    replace_nodes(graph, nodes)
    return rewritten


def _is_table(node: onnx.NodeProto, wiring: Wiring) -> bool:
    """Whether `node` dequantizes a constant (rows, columns) int8 by one scale a row, zero points 0."""
    if node.op_type != "DequantizeLinear" or not all(wiring.is_constant(name) for name in node.input):
        return False
    table, scale = wiring.constant(node.input[0]), wiring.constant(node.input[1])
    if table.ndim != 2 or scale.shape != table.shape[:1] or integer(node, "axis", 1) != 0:
        return False
    return len(node.input) < 3 or not np.any(wiring.constant(node.input[2]))


def share_as_uint8(model: onnx.ModelProto) -> int:
    """Store quantized activations that several nodes read as uint8 instead of int8, with zero points 128 higher.

    Returns how many were changed; the values stay the same. onnxruntime's x86 kernels take uint8 activations. It
    converts int8 ones where one node reads them, but computes in float32 where several do, as Q, K and V read one
    activation: ViT-B/32 with separate Q, K and V, 31 images/s as int8, 47 as uint8 (2 cores with AVX512-VNNI). The
    others stay int8, which OpenVINO runs 5% faster.
    """
    graph = model.graph
    wiring = Wiring(graph)
    changed = 0
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or len(node.input) < 3:
            continue
        zero = wiring.constant(node.input[2])
        users = wiring.consumers.get(node.output[0], [])
        readers = [reader for user in users for reader in wiring.readers(user.output[0])]
        if zero.dtype != np.int8 or len(readers) < 2 or any(user.op_type != "DequantizeLinear" for user in users):
            continue
        moved = add_constant(graph, f"{node.input[2]}_uint8", (zero.astype(np.int16) + 128).astype(np.uint8))
        for quantizer in (node, *users):
            quantizer.input[2] = moved
        changed += 1
    replace_nodes(graph, list(graph.node))
    return changed


def sign_activations(model: onnx.ModelProto) -> int:
    """Store quantized activations that are uint8 with zero point 0 as int8, over the same range at half the resolution.

    Returns how many were changed. NNCF uses uint8 for values that are never negative, after a ReLU for example, even
    with symmetric ranges. Unlike the other passes this one costs precision; TensorRT has no uint8.
    """
    graph = model.graph
    wiring = Wiring(graph)
    changed = 0
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or len(node.input) < 3:
            continue
        zero = wiring.constant(node.input[2])
        if zero.dtype != np.uint8 or np.any(zero):
            continue
        scale = (wiring.constant(node.input[1]).astype(np.float64) * 255 / 127).astype(np.float32)
        new_scale = add_constant(graph, f"{node.input[1]}_int8", scale)
        new_zero = add_constant(graph, f"{node.input[2]}_int8", zero.astype(np.int8))
        for quantizer in (node, *wiring.consumers.get(node.output[0], [])):
            quantizer.input[1], quantizer.input[2] = new_scale, new_zero
        changed += 1
    replace_nodes(graph, list(graph.node))
    return changed


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


def multiply_bytes(model: onnx.ModelProto, name: str, mean: NDArray[np.float64]) -> None:
    """Make the multiplication of pixels `name` take them as uint8, and its weight as int8 with a scale per channel.

    The pixels stay exact. The `mean` patch (`mean_patch`) is far from 0: the error that rounding the weight makes on it
    is added back as a bias. `multiplies_pixels` must hold for the node.
    """
    from onnx import helper

    graph = model.graph
    wiring = Wiring(graph)
    matmul = next(node for node in graph.node if node.name == name)
    cast = wiring.producers[matmul.input[0]]
    weight = wiring.constant(matmul.input[1]).astype(np.float64)  # (K, W)
    scale = np.maximum(np.abs(weight).max(axis=0) / 127, np.finfo(np.float32).tiny).astype(np.float32)  # (W,)
    rounded = np.rint(weight / scale).clip(-127, 127)
    error = mean @ (weight - rounded * scale)  # (W,)

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


def mean_patch(model: onnx.ModelProto, name: str, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.float64]:
    """Return the mean over `feeds` of the pixels (..., K) that the multiplication `name` takes: (K,), 0 to 255.

    `multiplies_pixels` must hold for the node. Raises EngineError where the graph cannot be run.
    """
    matmul = next(node for node in model.graph.node if node.name == name)
    pixels = Wiring(model.graph).producers[matmul.input[0]].input[0]
    session = open_engine(cut_at(model, pixels).SerializeToString(), "the engine up to its patches")
    names = [node.name for node in session.get_inputs()]  # of a pair, the image alone
    rows = [
        run_engine(session, [pixels], {name: feed[name] for name in names}, "the engine up to its patches")[0]
        for feed in feeds
    ]
    mean: NDArray[np.float64] = np.mean([row.reshape(-1, row.shape[-1]).mean(axis=0) for row in rows], axis=0)
    return mean
