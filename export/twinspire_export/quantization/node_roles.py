"""The roles of the matrix multiplications in a tower's graph, read from its structure, whoever exported it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from twinspire.errors import InputError
from twinspire.graph_edit import Wiring, integer, name_nodes
from twinspire_export.quantization.graph_passes import multiplies_pixels

if TYPE_CHECKING:
    import onnx

MATMULS = frozenset({"MatMul", "Gemm", "Conv"})


class NodeRole(StrEnum):
    """Roles of a matrix multiplication, or of a lookup in a table, in a transformer; of convolutions in other networks.

    A network without attention is convolutional: `stem` reads the pixels, `depthwise` convolutions mix no channels,
    those of `squeeze-excite` read pooled maps (https://arxiv.org/abs/1709.01507), `convolution` is any other.
    """

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
    STEM = "stem"
    CONVOLUTION = "convolution"
    DEPTHWISE = "depthwise"
    SQUEEZE_EXCITE = "squeeze-excite"
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
    if is_convolutional(model):
        return _convolutional_roles(graph, wiring)
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
            if any(_is_weight(name, wiring) for name in node.input[:2]):
                roles[node.name] = _role_of_weight(block, since, softmaxes)
                since += 1
            elif since == 0 and block >= 0:
                roles[node.name] = RoleInBlock(NodeRole.ATTENTION_VALUES, block)
            else:
                roles[node.name] = RoleInBlock(NodeRole.ATTENTION_SCORES, block + 1)
    return roles


def is_convolutional(model: onnx.ModelProto) -> bool:
    """Whether `model` is a convolutional network: it has convolutions and no attention."""
    operators = {node.op_type for node in model.graph.node}
    return "Conv" in operators and "Softmax" not in operators


def _convolutional_roles(graph: onnx.GraphProto, wiring: Wiring) -> dict[str, RoleInBlock]:
    """Return the roles in a network without attention; its matrix multiplications come after the pooling."""
    roles: dict[str, RoleInBlock] = {}
    pooled: set[str] = set()  # tensors that are a pooled map, or made of nothing else
    for node in graph.node:
        sources = [name for name in node.input if name and not wiring.is_constant(name)]
        is_pooled = bool(sources) and pooled.issuperset(sources)
        if is_pooled or node.op_type == "GlobalAveragePool":
            pooled.update(node.output)
        if node.op_type not in MATMULS:
            continue
        if node.op_type != "Conv":
            role = NodeRole.PROJECTION
        elif not roles:
            role = NodeRole.STEM
        elif is_pooled:
            role = NodeRole.SQUEEZE_EXCITE
        else:
            role = NodeRole.CONVOLUTION if integer(node, "group", 1) == 1 else NodeRole.DEPTHWISE
        roles[node.name] = RoleInBlock(role, None)
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


def _is_weight(name: str, wiring: Wiring) -> bool:
    """Whether a factor is a constant matrix; constants of higher rank are queries of a probe, split into heads."""
    return wiring.is_constant(name) and wiring.constant(name).ndim <= 2


def _is_lookup(node: onnx.NodeProto, wiring: Wiring) -> bool:
    """Whether a Gather reads rows of a constant float matrix by dynamic indices."""
    if not wiring.is_constant(node.input[0]) or wiring.is_constant(node.input[1]):
        return False
    table = wiring.constant(node.input[0])
    return table.ndim == 2 and table.dtype in (np.float32, np.float16)


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
