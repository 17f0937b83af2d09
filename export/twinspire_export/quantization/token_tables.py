"""Tables of token embeddings, of which the quantizer sees only the rows that its samples use.

NNCF copies its graph many times: with the 901,629 tokens of MetaCLIP 2, 1.8 GB in float32, it needed more than 20 GiB.
A table is looked up row by row and has a scale for each, so that the rest is quantized afterwards, to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import EngineError
from twinspire.graph_edit import Wiring, integer

if TYPE_CHECKING:
    import onnx

_STEPS = 127
_SMALLEST_SHARE, _SMALLEST = 0.01, 8e-5
"""The largest value that NNCF assumes for a row of small ones: a share of the table's, and at least this."""
_CHUNK_ROWS = 2**15


@dataclass(frozen=True, eq=False)
class TokenTable:
    """A table (V, D) float32 that the node `lookup` reads at the ids of the graph's input `ids`.

    In the graph it has the rows `used` alone, in this order, and the input `positions` says which.
    """

    lookup: str
    ids: str
    positions: str
    rows: NDArray[np.float32]
    used: NDArray[np.intp]


def keep_used_rows(
    model: onnx.ModelProto, feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> tuple[list[TokenTable], list[Mapping[str, NDArray[Any]]]]:
    """Reduce the token tables of `model` to the rows that `feeds` use; return them, and the feeds for what is left.

    The row with the largest value is kept too: NNCF's scales depend on it.
    """
    import onnx
    from onnx import numpy_helper

    graph, wiring = model.graph, Wiring(model.graph)
    inputs = {value.name: value for value in graph.input}
    found: list[TokenTable] = []
    fed = [dict(feed) for feed in feeds]
    for node in graph.node:
        if node.op_type != "Gather" or integer(node, "axis", 0) != 0 or node.input[1] not in inputs:
            continue
        name, ids = node.input
        if not wiring.is_constant(name) or len(wiring.readers(name)) > 1:
            continue
        rows = wiring.constant(name)
        if rows.ndim != 2 or rows.dtype != np.float32:
            continue
        largest = np.abs(rows).max(axis=1).argmax()
        used = np.unique(np.concatenate([[largest], *(feed[ids].ravel() for feed in feeds)]))
        table = TokenTable(node.name, ids, f"{name}_positions", rows, used)
        for feed in fed:
            feed[table.positions] = np.searchsorted(used, feed[ids]).astype(feed[ids].dtype)
        (stored,) = (tensor for tensor in graph.initializer if tensor.name == name)
        stored.CopyFrom(numpy_helper.from_array(rows[used], name))
        value = onnx.ValueInfoProto()
        value.CopyFrom(inputs[ids])
        value.name = table.positions
        graph.input.append(value)
        node.input[1] = table.positions
        found.append(table)
    return found, list(fed)


def restore_rows(model: onnx.ModelProto, tables: Sequence[TokenTable]) -> None:
    """Give the graph that NNCF made the whole tables, in int8 where it quantized what it saw of them.

    Raises EngineError where it did so in another way than this module.
    """
    from onnx import numpy_helper

    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    for table in tables:
        (lookup,) = (node for node in graph.node if node.name == table.lookup)
        name = lookup.input[0]
        lookup.input[1] = table.ids
        (value,) = (value for value in graph.input if value.name == table.positions)
        graph.input.remove(value)
        if name in stored:
            stored[name].CopyFrom(numpy_helper.from_array(table.rows, name))
            continue
        quantized, scales = _quantized(table.rows)
        whole: list[NDArray[Any]] = [quantized, scales, np.zeros_like(scales, np.int8)]  # zero points
        for part, values in zip(producers[name].input, whole, strict=False):
            if not np.array_equal(numpy_helper.to_array(stored[part]), values[table.used]):
                raise EngineError(f"nncf quantized the token table of {table.lookup} otherwise than row by row")
            stored[part].CopyFrom(numpy_helper.from_array(values, part))


def _quantized(rows: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize rows (V, D) to int8 (V, D) and scales (V,), as NNCF does with symmetric weights."""
    largest = np.abs(rows).max(axis=1)
    smallest = np.maximum(largest.max() * np.float32(_SMALLEST_SHARE), np.float32(_SMALLEST))
    scales = np.maximum(largest, smallest) / np.float32(_STEPS)
    quantized = np.empty(rows.shape, np.int8)
    for start in range(0, len(rows), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        quantized[part] = np.clip(np.rint(rows[part] / scales[part, None]), -_STEPS, _STEPS)
    return quantized, scales
