"""What the matrix products of a tower's graph are: read from its structure, so that any export of it will do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from twinspire.errors import InputError
from twinspire.graph_edit import Wiring, name_nodes
from twinspire_export.quantization.patches import multiplies_pixels

if TYPE_CHECKING:
    import onnx

PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})


class Kind(StrEnum):
    """The places of a matrix product, or of a table, in a transformer."""

    PATCHES = "patches"
    TOKENS = "tokens"
    ATTENTION_IN = "attention-in"
    ATTENTION_SCORES = "attention-scores"
    ATTENTION_VALUES = "attention-values"
    ATTENTION_OUT = "attention-out"
    MLP_UP = "mlp-up"
    MLP_DOWN = "mlp-down"
    PROJECTION = "projection"
    OTHER = "other"


@dataclass(frozen=True)
class Part:
    """What one node is. `block` counts from 0; None for what stands outside the blocks."""

    kind: Kind
    block: int | None

    @property
    def labels(self) -> tuple[str, ...]:
        """The names that `left_out` of a recipe may call it by: of its kind, and of it alone."""
        return (str(self.kind),) if self.block is None else (str(self.kind), f"{self.kind}:{self.block}")


def parts_of(model: onnx.ModelProto) -> dict[str, Part]:
    """Tell what each matrix product and token table of `model` is, by the node's name.

    Between two softmaxes stand, in the order in which they depend on each other, the values of one block, its output,
    its two MLP products, and what the next block's attention begins with. Nodes without a name are given one.
    """
    graph = model.graph
    name_nodes(graph)
    wiring = Wiring(graph)
    softmaxes = sum(node.op_type == "Softmax" for node in graph.node)
    parts: dict[str, Part] = {}
    block, since = -1, 0  # the last softmax passed, and the weights' products since then
    for node in graph.node:
        if node.op_type == "Softmax":
            block, since = block + 1, 0
        elif node.op_type == "Gather" and _is_table(node, wiring):
            parts[node.name] = Part(Kind.TOKENS, None)
        elif node.op_type == "Conv" or (node.op_type in PRODUCTS and multiplies_pixels(node, wiring)):
            parts[node.name] = Part(Kind.PATCHES, None)
        elif node.op_type in PRODUCTS:
            if any(wiring.is_constant(name) for name in node.input[:2]):
                parts[node.name] = _of_weight(block, since, softmaxes)
                since += 1
            elif since == 0 and block >= 0:
                parts[node.name] = Part(Kind.ATTENTION_VALUES, block)
            else:
                parts[node.name] = Part(Kind.ATTENTION_SCORES, block + 1)
    return parts


def nodes_labelled(model: onnx.ModelProto, labels: Iterable[str]) -> tuple[str, ...]:
    """List the names of the nodes that the labels mean; a kind may mean none. Raises InputError for other words."""
    parts = parts_of(model)
    names = {node.name for node in model.graph.node}
    found: dict[str, None] = {}
    for label in labels:
        meant = [name for name, part in parts.items() if label in part.labels] or [label] * (label in names)
        if not meant and label not in tuple(Kind):
            there = ", ".join(sorted({str(part.kind) for part in parts.values()}))
            raise InputError(f"{label!r} is no part or node of this graph: it has {there}")
        found.update(dict.fromkeys(meant))
    return tuple(found)


def _is_table(node: onnx.NodeProto, wiring: Wiring) -> bool:
    """Whether a Gather looks up rows of a matrix of floats by what is not constant."""
    if not wiring.is_constant(node.input[0]) or wiring.is_constant(node.input[1]):
        return False
    table = wiring.constant(node.input[0])
    return table.ndim == 2 and table.dtype == np.float32


_AFTER_SOFTMAX = (Kind.ATTENTION_OUT, Kind.MLP_UP, Kind.MLP_DOWN)


def _of_weight(block: int, since: int, softmaxes: int) -> Part:
    """Tell what the product with a weight is that comes after `since` others since the softmax of `block`."""
    if softmaxes == 0:
        return Part(Kind.OTHER, None)
    if block >= 0 and since < len(_AFTER_SOFTMAX):
        return Part(_AFTER_SOFTMAX[since], block)
    if block + 1 < softmaxes:
        return Part(Kind.ATTENTION_IN, block + 1)
    return Part(Kind.PROJECTION, None)
