"""Outlier channels of activations, multiplied in float beside the int8 multiplication of all others.

Trained transformers have a few channels whose values are tens to hundreds of times the others'
(https://arxiv.org/abs/2208.07339, https://arxiv.org/abs/2402.17762). An int8 range that holds them has no steps left
for the rest. As in LLM.int8 (https://arxiv.org/abs/2208.07339), the product is split by channels:
`x @ W = x[:, others] @ W[others] + x[:, outliers] @ W[outliers]`, the first in int8 and the second, a few columns wide,
in float.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.graph_edit import Wiring, add_constant, rename_input, replace_nodes
from twinspire_export.engine_check import open_engine, run_engine

if TYPE_CHECKING:
    import onnx

MAX_CHANNELS = 16
"""At most so many channels of a layer are split off: their multiplication must stay negligible."""


OUTLIER_FACTOR = 2.0
"""A channel is an outlier where its largest value is above so many times the usual one."""


@dataclass(frozen=True)
class SplitNodes:
    """The layers that were split, the added nodes that must not be quantized, and the masks to take away afterwards."""

    layers: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()


def split_nodes_of(name: str) -> tuple[str, str, str]:
    """Return the names of the float nodes that `split_outliers` adds to the multiplication `name`."""
    return f"{name}_outlier_columns", f"{name}_outliers", f"{name}_with_outliers"


def split_outliers(
    model: onnx.ModelProto, names: Collection[str], feeds: Sequence[Mapping[str, NDArray[Any]]], factor: float
) -> SplitNodes:
    """Split the multiplications `names` by a constant (K, O) whose input (..., K) has outlier channels on `feeds`.

    A channel is one where its largest value is above `factor` times that of the channel after the MAX_CHANNELS largest,
    or after an eighth of all. The other channels keep the node, with rows of zeros for the outliers and, so that ranges
    are estimated without them, a mask that multiplies its input; `remove_masks` takes it away. Raises EngineError where
    the graph cannot be run.
    """
    from onnx import helper

    graph = model.graph
    wiring = Wiring(graph)
    candidates = [
        node
        for node in graph.node
        if node.name in names and node.op_type == "MatMul" and wiring.is_constant(node.input[1])
        if wiring.constant(node.input[1]).ndim == 2
    ]
    largest = _largest_by_channel(model, sorted({node.input[0] for node in candidates}), feeds)
    before: dict[str, list[onnx.NodeProto]] = {}
    after: dict[str, list[onnx.NodeProto]] = {}
    split: list[str] = []
    in_float: list[str] = []
    masks: list[str] = []
    for node in candidates:
        channels = outliers_of(largest[node.input[0]], factor)
        if not len(channels):
            continue
        weight, name = wiring.constant(node.input[1]), node.name
        columns, product, total = split_nodes_of(name)
        mask = np.ones(len(weight), np.float32)
        mask[channels] = 0
        rest = weight.copy()
        rest[channels] = 0
        indices = add_constant(graph, f"{name}_outlier_channels", channels.astype(np.int64))
        outlying = add_constant(graph, f"{name}_outlier_weight", weight[channels])
        before[name] = [
            helper.make_node("Gather", [node.input[0], indices], [columns], columns, axis=-1),
            helper.make_node("MatMul", [columns, outlying], [product], product),
            helper.make_node(
                "Mul", [node.input[0], add_constant(graph, f"{name}_mask", mask)], [f"{name}_rest"], f"{name}_rest"
            ),
        ]
        after[name] = [helper.make_node("Add", [f"{name}_int8", product], [node.output[0]], total)]
        node.input[0], node.input[1] = f"{name}_rest", add_constant(graph, f"{name}_rest_weight", rest)
        node.output[0] = f"{name}_int8"
        in_float += [columns, product, total, f"{name}_rest"]
        masks.append(f"{name}_rest")
        split.append(name)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += [*before.get(node.name, ()), node, *after.get(node.name, ())]
    replace_nodes(graph, nodes)
    return SplitNodes(tuple(split), tuple(in_float), tuple(masks))


def remove_masks(model: onnx.ModelProto, masks: Collection[str]) -> None:
    """Take the masks of `split_outliers` away once the graph is quantized; equal bit for bit.

    An outlier then saturates its int8, and is multiplied by weights of 0.
    """
    graph = model.graph
    for node in graph.node:
        if node.name in masks:
            rename_input(graph, node.output[0], node.input[0])
    replace_nodes(graph, list(graph.node))


def outliers_of(largest: NDArray[np.float32], factor: float) -> NDArray[np.intp]:
    """Return the outlier channels, ascending, given the largest value of each channel, (K,)."""
    count = min(MAX_CHANNELS, len(largest) // 8)
    usual = np.sort(largest)[-count - 1]
    return np.flatnonzero((largest > factor * usual) & (count > 0))


def _largest_by_channel(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[np.float32]]:
    """Return the largest absolute value in each channel of the tensors `names` (..., K) over `feeds`: (K,) each."""
    import onnx

    if not names:  # no name would mean all outputs
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    present = {output.name for output in probe.graph.output}
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in present)
    session = open_engine(probe.SerializeToString(), "the engine")
    largest: dict[str, NDArray[np.float32]] = {}
    for feed in feeds:
        for name, value in zip(names, run_engine(session, names, dict(feed), "the engine"), strict=True):
            found = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            largest[name] = np.maximum(largest.get(name, found), found)
    return largest
