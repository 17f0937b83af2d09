"""The roles of the matrix multiplications in a tower's graph, read from its structure, whoever exported it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from twinspire.errors import InputError
from twinspire.graph_edit import Wiring, name_nodes
from twinspire_export.quantization.graph_passes import multiplies_pixels

if TYPE_CHECKING:
    import onnx

MATMULS = frozenset({"MatMul", "Gemm", "Conv"})


class NodeRole(StrEnum):
    """Roles of a matrix multiplication, or of a lookup in a table, in a transformer."""

    PATCHES = "patches"
    TOKENS = "tokens"
    POSITIONS = "positions"
    ATTENTION_IN = "attention-in"
    ATTENTION_SCORES = "attention-scores"
    ATTENTION_VALUES = "attention-values"
    ATTENTION_OUT = "attention-out"
    MLP_UP = "mlp-up"
    MLP_DOWN = "mlp-down"
    PROJECTION = "projection"
    OTHER = "other"


@dataclass(frozen=True)
class RoleInBlock:
    """The role of one node; `block` counts from 0 and is None outside the blocks."""

    role: NodeRole
    block: int | None

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels by which a recipe's `keep_float` can name it: of all nodes of its role, and of its block's."""
        return (str(self.role),) if self.block is None else (str(self.role), f"{self.role}:{self.block}")


def roles_of(model: onnx.ModelProto) -> dict[str, RoleInBlock]:
    """Return the role of each matrix multiplication and token lookup of `model`, by the node's name.

    Between two softmaxes come, in order of dependency, the attention values of a block, its attention output, its two
    MLP layers, and the attention inputs and scores of the next block; so in pre-norm and in post-norm blocks. Names the
    nodes that have no name.
    """
    graph = model.graph
    name_nodes(graph)
    wiring = Wiring(graph)
    softmaxes = sum(node.op_type == "Softmax" for node in graph.node)
    roles: dict[str, RoleInBlock] = {}
    block, since = -1, 0  # the last softmax passed, and the multiplications by weights since then
    for node in graph.node:
        if node.op_type == "Softmax":
            block, since = block + 1, 0
        elif node.op_type == "Gather" and _is_lookup(node, wiring):
            by_id = _moved_input(node.input[1], wiring)
            roles[node.name] = RoleInBlock(NodeRole.TOKENS if by_id else NodeRole.POSITIONS, None)
        elif node.op_type == "Conv" or (node.op_type in MATMULS and multiplies_pixels(node, wiring)):
            roles[node.name] = RoleInBlock(NodeRole.PATCHES, None)
        elif node.op_type in MATMULS:
            if any(wiring.is_constant(name) for name in node.input[:2]):
                roles[node.name] = _role_of_weight(block, since, softmaxes)
                since += 1
            elif since == 0 and block >= 0:
                roles[node.name] = RoleInBlock(NodeRole.ATTENTION_VALUES, block)
            else:
                roles[node.name] = RoleInBlock(NodeRole.ATTENTION_SCORES, block + 1)
    return roles


def nodes_labelled(model: onnx.ModelProto, labels: Iterable[str]) -> tuple[str, ...]:
    """List the names of the nodes that `labels` match: roles, which may match none, or names of nodes.

    Raises InputError for any other label.
    """
    roles = roles_of(model)
    names = {node.name for node in model.graph.node}
    found: dict[str, None] = {}
    for label in labels:
        matching = [name for name, role in roles.items() if label in role.labels] or [label] * (label in names)
        if not matching and label not in tuple(NodeRole):
            present = ", ".join(sorted({str(role.role) for role in roles.values()}))
            raise InputError(f"{label!r} is neither a role nor a node of this graph, which has the roles {present}")
        found.update(dict.fromkeys(matching))
    return tuple(found)


def _is_lookup(node: onnx.NodeProto, wiring: Wiring) -> bool:
    """Whether a Gather reads rows of a constant float matrix by dynamic indices."""
    if not wiring.is_constant(node.input[0]) or wiring.is_constant(node.input[1]):
        return False
    table = wiring.constant(node.input[0])
    return table.ndim == 2 and table.dtype == np.float32


def _moved_input(name: str, wiring: Wiring) -> bool:
    """Whether the tensor `name` is an input of the graph, perhaps of another type: ids, and not positions."""
    while (producer := wiring.producers.get(name)) is not None and producer.op_type in ("Cast", "Identity"):
        name = producer.input[0]
    return any(value.name == name for value in wiring.graph.input)


_AFTER_SOFTMAX = (NodeRole.ATTENTION_OUT, NodeRole.MLP_UP, NodeRole.MLP_DOWN)


def _role_of_weight(block: int, since: int, softmaxes: int) -> RoleInBlock:
    """Return the role of a multiplication by a weight that follows `since` others after the softmax of `block`."""
    if softmaxes == 0:
        return RoleInBlock(NodeRole.OTHER, None)
    if block >= 0 and since < len(_AFTER_SOFTMAX):
        return RoleInBlock(_AFTER_SOFTMAX[since], block)
    if block + 1 < softmaxes:
        return RoleInBlock(NodeRole.ATTENTION_IN, block + 1)
    return RoleInBlock(NodeRole.PROJECTION, None)
