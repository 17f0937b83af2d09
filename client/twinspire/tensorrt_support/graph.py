"""The ONNX graphs that TensorRT takes: pixels are cast before anything else, and quantization is symmetric."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from twinspire._arguments import shown
from twinspire.bundle import Precision
from twinspire.errors import EngineError, InputError, MissingDependencyError
from twinspire.graph_edit import Wiring, rename_input, replace_nodes
from twinspire.tensorrt_support.symmetric import check_symmetric

if TYPE_CHECKING:
    import onnx

PRECISIONS = (Precision.FP16, Precision.INT8_TENSORRT, Precision.FP32)
"""What TensorRT takes of a bundle. `int8` is for processors: its activations are uint8 with zero points."""

_MOVES = frozenset({"Reshape", "Transpose", "Identity"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def check_precision(precision: Precision | str) -> Precision:
    """Return the precision of that name. Raises InputError for one that TensorRT does not take."""
    if precision not in PRECISIONS:
        raise InputError(
            f"precision {shown(str(precision))}: expected one of {', '.join(PRECISIONS)} for TensorRT, which does not "
            "take int8 made for processors. Make an engine with: twinspire quantize BUNDLE -o NEW --precision fp16"
        )
    return Precision(precision)


def prepare_engine(engine: Path) -> bytes:
    """Read an ONNX engine of a bundle and return the ONNX file to give to TensorRT; it computes the same.

    Raises EngineError where TensorRT would not take it, MissingDependencyError where onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("onnx", "quantize", "Preparing an engine for TensorRT") from error
    try:
        model = onnx.load(engine)
        cast_bytes_first(model)
        check_graph(model)
        data: bytes = model.SerializeToString()
    except Exception as error:  # protobuf's and onnx's share no base below Exception
        raise EngineError(f"{engine.name}: {error}") from error
    return data


def check_graph(model: onnx.ModelProto) -> None:
    """Check that TensorRT will take `model`: what reads a uint8 input, and how it is quantized. Does not run it.

    Raises EngineError that names the node.
    """
    from onnx import TensorProto

    wiring = Wiring(model.graph)
    for given in model.graph.input:
        if given.type.tensor_type.elem_type == TensorProto.UINT8:
            for reader in wiring.consumers.get(given.name, []):
                if reader.op_type != "Cast":
                    raise EngineError(
                        f"TensorRT will not take {reader.op_type} {reader.name!r}: it reads the uint8 input "
                        f"{given.name!r}; expected nothing but Cast"
                    )
    if any(node.op_type in _QUANTIZERS for node in model.graph.node):
        check_symmetric(model)


def cast_bytes_first(model: onnx.ModelProto) -> bool:
    """Move the cast of a uint8 input before the nodes that move its values. Return whether the graph was changed.

    TensorRT takes uint8 as an input alone, and only to cast it. Bundles keep the cast last: processors move bytes
    faster than floats. ViT-B/32, 32 images cut into patches on two Xeon cores: 3.6 ms as bytes, 7.1 ms as float32, of
    about 160 ms for the whole int8 tower. Raises EngineError where the input is not cast before it is computed with.

    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/FoundationalTypes/DataType.html
    """
    from onnx import TensorProto

    graph = model.graph
    given = graph.input[0]
    if given.type.tensor_type.elem_type != TensorProto.UINT8:
        return False
    wiring = Wiring(graph)
    movers: list[onnx.NodeProto] = []
    name = given.name
    while True:
        readers = wiring.readers(name)
        if len(readers) != 1 or readers[0].op_type not in (*_MOVES, "Cast"):
            raise EngineError(
                f"the input {given.name!r} is not cast before it is computed with: export the bundle again"
            )
        cast = readers[0]
        if cast.op_type == "Cast":
            break
        movers.append(cast)
        name = cast.output[0]
    shapes = [reader for reader in wiring.consumers[given.name] if reader.op_type == "Shape"]
    if not movers and not shapes:
        return False
    graph.ClearField("value_info")
    if movers:
        rename_input(graph, cast.output[0], movers[-1].output[0])
        movers[0].input[0] = cast.output[0]
        cast.input[0] = given.name
    for reader in shapes:
        reader.input[0] = cast.output[0]
    replace_nodes(graph, [cast, *(node for node in graph.node if node is not cast)])
    return True
