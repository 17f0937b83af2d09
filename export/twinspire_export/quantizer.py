"""An fp32 graph to an int8 one, by NNCF's post-training quantization. Knows no torch and no bundle.

Made are Q/DQ pairs: SmoothQuant, symmetric ranges, weights per output channel, bias correction
(https://github.com/openvinotoolkit/nncf). Weights are stored as int8.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twinspire.errors import EngineError, MissingDependencyError

if TYPE_CHECKING:
    import onnx

Feed = Mapping[str, NDArray[Any]]
"""An engine's inputs by name, one sample."""


def quantize_graph(model: onnx.ModelProto, feeds: Sequence[Feed]) -> onnx.ModelProto:
    """Quantize `model` with the ranges that `feeds` show. `model` is not to be used afterwards.

    Raises EngineError where NNCF cannot do it.
    """
    # Shapes that the exporter wrote down go stale as nodes come in between; runtimes infer them anew.
    model.graph.ClearField("value_info")
    nncf = _import_nncf()
    try:
        with _silenced():
            quantized: onnx.ModelProto = nncf.quantize(
                model,
                nncf.Dataset(list(feeds)),
                preset=nncf.QuantizationPreset.PERFORMANCE,
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(feeds),
                fast_bias_correction=True,
            )
    except Exception as exc:  # NNCF's errors, onnx's and onnxruntime's share no base class
        raise EngineError(f"nncf cannot quantize the engine: {exc}") from exc
    gather_before_dequantizing(quantized)
    quantized.producer_name = "twinspire"
    quantized.producer_version = ""
    return quantized


def gather_before_dequantizing(model: onnx.ModelProto) -> int:
    """Look rows of int8 tables up before they are dequantized.

    NNCF leaves `DequantizeLinear(table, scales) -> Gather(rows)`; runtimes keep that order, so that all of
    CLIP's 49,408 token embeddings would become float32 for a text of ten tokens. Written instead are two Gathers, of
    int8 rows and of their scales, and a product. The result is equal bit by bit. Returns how many tables
    there were.
    """
    import onnx
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    tables = {node.output[0]: node for node in graph.node if _is_table(node, constants)}
    rewritten = 0
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        table = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or _axis(node, 0) != 0:
            nodes.append(node)
            continue
        quantized, scale = table.input[0], table.input[1]
        name, rows, output = node.name or node.output[0], node.input[1], node.output[0]
        column = f"{scale}_column"
        if column not in constants:  # (rows,) to (rows, 1), so that a row's scale meets all of its values
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
    _replace(graph, nodes)
    return rewritten


def _is_table(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether `node` dequantizes a constant (rows, columns) int8 by one scale a row, zero points 0."""
    from onnx import numpy_helper

    if node.op_type != "DequantizeLinear" or any(name not in constants for name in node.input):
        return False
    table, scale = constants[node.input[0]], constants[node.input[1]]
    if len(table.dims) != 2 or list(scale.dims) != [table.dims[0]] or _axis(node, 1) != 0:
        return False
    return len(node.input) < 3 or not np.any(numpy_helper.to_array(constants[node.input[2]]))


def _axis(node: onnx.NodeProto, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "axis"), default)


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Give `graph` these nodes, and let go of what nothing reads any more."""
    wanted = {output.name for output in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if any(output in wanted for output in node.output):
            kept.append(node)
            wanted.update(node.input)
    constants = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.node[:]
    graph.node.extend(reversed(kept))
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _import_nncf() -> ModuleType:
    # NNCF reports its use to Google Analytics unless this is set when it is first imported.
    variable = "NNCF_CI"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        import nncf
    except ImportError as exc:
        raise MissingDependencyError("nncf", "quantize", "quantizing a bundle") from exc
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
    module: ModuleType = nncf
    return module


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep NNCF's log and progress bars from stdout."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
