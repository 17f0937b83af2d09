"""Which layers of an int8 engine stay in float, found by measurement where the recipe alone falls short.

Layers with outlier channels are split first, which leaves them in int8 (`outlier_channels`). Then layers return to
float until the engine is accurate enough. NNCF runs once more for all of this: a layer returns to float by undoing in
the graph what NNCF did to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twinspire.graph_edit import Wiring, add_constant, replace_nodes
from twinspire_export.quantization.node_roles import RoleInBlock
from twinspire_export.quantization.outlier_channels import OUTLIER_FACTOR
from twinspire_export.quantization.quantizer import Feed, Prepared, finish, prepare, run_nncf, split_layers
from twinspire_export.quantization.recipe import Int8Recipe

if TYPE_CHECKING:
    import onnx

MIN_COSINE = 0.995
"""What the worst sample's cosine to fp32 must reach."""

RANKED_ON = 8
"""Samples that layers are ranked on: the worst ones."""

Measure = Callable[["onnx.ModelProto", Sequence[int] | None], NDArray[np.float64]]
"""Returns the cosine to fp32 of each measurement sample, or of those at the given positions.

Of a reranker, which gives probabilities, 1 less the difference (`pairs.agreement`).
"""


@dataclass(frozen=True)
class Accuracy:
    """What an int8 graph must reach: the cosine of its worst sample to fp32, and what measures it."""

    min_cosine: float
    measure: Measure


@dataclass(frozen=True)
class Layers:
    """The layers that were split and those that stayed in float, by labels as `keep_float` has them."""

    split: tuple[str, ...] = ()
    in_float: tuple[str, ...] = ()


def quantize_accurately(
    model: onnx.ModelProto, feeds: Sequence[Feed], recipe: Int8Recipe, accuracy: Accuracy
) -> tuple[onnx.ModelProto, Layers]:
    """Quantize `model` by `recipe` with split layers and with as few layers in float as reach `accuracy`.

    For a graph that `recipe` alone does not bring there. `model` must not be used afterwards. Layers are ranked by what
    the cosine of the worst samples gains when they return to float: first all layers of a role, until the roles
    suffice, then the blocks of each role that is needed. There are at most about as many measurements as layers.

    Raises what `quantize_graph` raises.
    """
    prepared = prepare(model, replace(recipe, outlier_factor=recipe.outlier_factor or OUTLIER_FACTOR))
    split_layers(prepared, feeds)
    search = _Search(prepared, feeds, accuracy)
    names = search.run()
    split = [name for name in prepared.split.layers if name not in names]
    labels = {name: role.labels[-1] for name, role in prepared.roles.items()}
    layers = Layers(
        split=tuple(dict.fromkeys(labels[name] for name in split)),
        in_float=tuple(dict.fromkeys(labels[name] for name in names)),
    )
    return search.graph(names), layers


class _Search:
    """The search for the layers that return to float."""

    def __init__(self, prepared: Prepared, feeds: Sequence[Feed], accuracy: Accuracy) -> None:
        import onnx

        self._original = onnx.ModelProto()
        self._original.CopyFrom(prepared.model)
        self._prepared, self._feeds = prepared, feeds
        self._measure, self._min_cosine = accuracy.measure, accuracy.min_cosine
        self._quantized = run_nncf(prepared, feeds)

    def graph(self, in_float: Sequence[str]) -> onnx.ModelProto:
        """Return the finished graph with the nodes `in_float` in float."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self._quantized)
        restore_float(model, self._original, in_float)
        prepared = replace(self._prepared, in_float=self._prepared.in_float.union(in_float))
        return finish(prepared, model, self._feeds)

    def run(self) -> list[str]:
        """Return the names of the nodes that must return to float, in the order of the graph."""
        cosines = self._measure(self.graph(()), None)
        if cosines.min() >= self._min_cosine:
            return []
        worst = [int(position) for position in np.argsort(cosines, kind="stable")[:RANKED_ON]]
        quantized = [
            *self._prepared.quantized.items(),
            *((name, self._prepared.roles[name]) for name in self._pixels()),
        ]
        groups: list[list[str]] = []
        for role in self._ranked(_grouped(quantized, lambda role: str(role.role)), (), worst):
            groups.append(role)
            if self._suffices(_flat(groups)):
                break
        else:
            return self._in_order(_flat(groups))
        for position in reversed(range(len(groups))):
            others = _flat(groups[:position] + groups[position + 1 :])
            groups[position] = self._needed(groups[position], others, worst)
        return self._in_order(_flat(groups))

    def _pixels(self) -> list[str]:
        return [name for name in self._prepared.pixels if name not in self._prepared.in_float]

    def _suffices(self, names: Sequence[str]) -> bool:
        return bool(self._measure(self.graph(names), None).min() >= self._min_cosine)

    def _ranked(self, groups: dict[str, list[str]], chosen: Sequence[str], worst: Sequence[int]) -> list[list[str]]:
        """Order groups of nodes by the minimum cosine of the worst samples with each in float, the best first."""
        cosines = {
            label: float(self._measure(self.graph([*chosen, *names]), worst).min()) for label, names in groups.items()
        }
        return [groups[label] for label in sorted(groups, key=lambda label: -cosines[label])]

    def _needed(self, role: Sequence[str], others: Sequence[str], worst: Sequence[int]) -> list[str]:
        """Return the nodes of the fewest blocks of a role that suffice beside `others`; all of them are known to."""
        if self._suffices(others):
            return []
        blocks = _grouped([(name, self._prepared.roles[name]) for name in role], lambda role: role.labels[-1])
        ordered = self._ranked(blocks, others, worst) if len(blocks) > 1 else list(blocks.values())
        low, high = 1, len(ordered)
        while low < high:
            middle = (low + high) // 2
            if self._suffices([*others, *_flat(ordered[:middle])]):
                high = middle
            else:
                low = middle + 1
        return _flat(ordered[:low])

    def _in_order(self, names: Sequence[str]) -> list[str]:
        return [name for name in self._prepared.roles if name in set(names)]


def _grouped(nodes: Iterable[tuple[str, RoleInBlock]], label: Callable[[RoleInBlock], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name, role in nodes:
        groups.setdefault(label(role), []).append(name)
    return groups


def _flat(groups: Sequence[Sequence[str]]) -> list[str]:
    return [name for group in groups for name in group]


def restore_float(quantized: onnx.ModelProto, original: onnx.ModelProto, names: Sequence[str]) -> None:
    """Let the nodes `names` of NNCF's graph compute in float what they compute in `original`.

    Their inputs become those of `original` again, past the quantizers and the smoothing, and the bias behind each loses
    its correction. Other layers are calibrated as if these had been left out.
    """
    if not names:
        return
    before = {node.name: node for node in original.graph.node}
    wiring = Wiring(original.graph)
    readers = Wiring(quantized.graph)
    for node in quantized.graph.node:
        if node.name not in names:
            continue
        biases = [reader for reader in readers.readers(node.output[0]) if reader.op_type == "Add"]
        for changed in (node, *(bias for bias in biases if bias.name in before)):
            for position, name in enumerate(before[changed.name].input):
                if wiring.is_constant(name):
                    constant = add_constant(quantized.graph, f"{name}_float", wiring.constant(name))
                    changed.input[position] = constant
                elif changed is node:
                    changed.input[position] = name
    replace_nodes(quantized.graph, list(quantized.graph.node))
