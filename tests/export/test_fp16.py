"""A graph in fp16: what becomes half precision, what stays, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="graphs are built with onnx")

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from twinspire.errors import EngineError
from twinspire_export.fp16 import LARGEST, RANGE_LIMIT, nodes_out_of_range, to_fp16


def make(nodes: Sequence[onnx.NodeProto], constants: dict[str, NDArray[Any]], *, opset: int = 17) -> onnx.ModelProto:
    """Build a model of (N, 8) uint8 to `y` (N, 6) float32."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def tower(*, scale: float = 1.0) -> onnx.ModelProto:
    """Build a cast, a norm, a product with a bias given by a Constant, a softmax, another product, and the L2 norm."""
    rng = np.random.default_rng(0)
    bias = numpy_helper.from_array(rng.normal(0, 1, 8).astype(np.float32))
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("LayerNormalization", ["f", "gain", "shift"], ["n"], "norm", axis=-1),
        helper.make_node("MatMul", ["n", "w"], ["p"], "product"),
        helper.make_node("Constant", [], ["bias"], "constant", value=bias),
        helper.make_node("Add", ["p", "bias"], ["b"], "add"),
        helper.make_node("Softmax", ["b"], ["s"], "softmax", axis=-1),
        helper.make_node("MatMul", ["s", "v"], ["e"], "project"),
        helper.make_node("ReduceL2", ["e"], ["length"], "length", axes=[-1], keepdims=1),
        helper.make_node("Div", ["e", "length"], ["y"], "divide"),
    ]
    constants = {
        "gain": rng.uniform(0.5, 2, 8).astype(np.float32),
        "shift": rng.normal(0, 1, 8).astype(np.float32),
        "w": (scale * rng.normal(0, 1, (8, 8))).astype(np.float32),
        "v": rng.normal(0, 1, (8, 6)).astype(np.float32),
    }
    return make(nodes, constants)


def run(model: onnx.ModelProto, x: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Check a model and run it by onnxruntime."""
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return result


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Give the element type of every tensor that a node makes."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}


INPUT = np.random.default_rng(1).integers(0, 256, (40, 8), dtype=np.uint8)


def test_result_is_near_and_of_unit_length() -> None:
    """The fp16 graph gives nearly the same rows, whose length is 1 to float32's precision."""
    model = tower()
    expected = run(model, INPUT)
    made = run(to_fp16(model), INPUT)
    assert made.dtype == np.float32
    difference = np.abs(made - expected).max()
    assert 0 < difference <= 2e-3, f"largest difference {difference}"
    lengths = np.abs(np.linalg.norm(made, axis=1) - 1).max()
    assert lengths <= 1e-6, f"largest error of a length {lengths}"


def test_what_stays_in_float32() -> None:
    """Weights and activations are fp16; the L2 norm and the output are float32, the input is uint8."""
    made = to_fp16(tower())
    kinds = types(made)
    assert {kinds[name] for name in ("f", "n", "p", "b", "s", "e")} == {TensorProto.FLOAT16}
    assert {kinds[name] for name in ("length", "y")} == {TensorProto.FLOAT}
    assert {tensor.data_type for tensor in made.graph.initializer} == {TensorProto.FLOAT16}
    assert made.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert [node.op_type for node in made.graph.node].count("Cast") == 2


def test_nodes_kept_share_their_float32() -> None:
    """Between two kept nodes nothing is rounded to fp16: casts stand at the ends alone."""
    kinds = types(to_fp16(tower(), keep=["add", "softmax"]))
    assert {kinds[name] for name in ("b", "s")} == {TensorProto.FLOAT}
    assert {kinds[name] for name in ("n", "p", "e")} == {TensorProto.FLOAT16}


def test_nodes_out_of_range_are_found() -> None:
    """Nodes that make or read values near fp16's end on the samples are listed, and kept they give the right result."""
    assert nodes_out_of_range(tower(), [{"x": INPUT}]) == []
    model = tower(scale=30_000)
    found = nodes_out_of_range(model, [{"x": INPUT}])
    assert found == ["product", "add", "softmax"]
    expected = run(model, INPUT)
    difference = np.abs(run(to_fp16(model, keep=found), INPUT) - expected).max()
    assert difference <= 2e-2, f"largest difference {difference}"


def test_limit_leaves_room() -> None:
    """The limit for activations is a fourth of fp16's largest value, above the mask's -10000."""
    assert (LARGEST, RANGE_LIMIT) == (65504.0, 16376.0)
    assert RANGE_LIMIT > 1e4


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1e5, "'product'"),
        (-np.inf, "NaN"),
        (np.nan, "NaN"),
    ],
)
def test_weights_that_do_not_fit(value: float, said: str) -> None:
    """A weight beyond fp16, an infinite mask and NaN are EngineErrors that name the tensor and its reader."""
    model = tower()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    changed = numpy_helper.to_array(weight).copy()
    changed[0, 0] = value
    weight.CopyFrom(numpy_helper.from_array(changed, "w"))
    with pytest.raises(EngineError, match=said):
        to_fp16(model)


def test_weights_of_kept_nodes_may_be_large() -> None:
    """A weight that is read in float32 alone is not converted, however large."""
    model = tower()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1e6), "w"))
    kept = {tensor.name: tensor.data_type for tensor in to_fp16(model, keep=["product", "add"]).graph.initializer}
    assert kept["w"] == TensorProto.FLOAT
    assert TensorProto.FLOAT16 in kept.values()


def test_broken_fp32_engine() -> None:
    """An engine whose values are not finite in float32 is refused when its ranges are measured."""
    model = tower()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    weight.CopyFrom(numpy_helper.from_array(np.full((8, 8), np.inf, np.float32), "w"))
    with pytest.raises(EngineError, match="'p'"):
        nodes_out_of_range(model, [{"x": INPUT}])


@pytest.mark.parametrize(("opset", "kind"), [(17, TensorProto.FLOAT), (19, TensorProto.FLOAT16)])
def test_quantizers_follow_the_opset(opset: int, kind: int) -> None:
    """Quantizers take fp16 from opset 19 on, where a scale too small for it becomes its smallest; before, they stay."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["f", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w8", "w_scale", "w_zero"], ["w"], "dequantize_weight", axis=1),
        helper.make_node("MatMul", ["d", "w"], ["p"], "product"),
        helper.make_node("Identity", ["p"], ["y"], "out"),
    ]
    scales = np.full(6, 0.01, np.float32)
    scales[2] = 1e-12
    constants = {
        "scale": np.array(2, np.float32),
        "zero": np.array(0, np.int8),
        "w8": np.random.default_rng(0).integers(-127, 128, (8, 6), dtype=np.int8),
        "w_scale": scales,
        "w_zero": np.zeros(6, np.int8),
    }
    model = make(nodes, constants, opset=opset)
    expected = run(model, INPUT)
    made = to_fp16(model)
    made_types = types(made)
    assert made_types["d"] == made_types["w"] == kind
    assert not any(
        np.any(numpy_helper.to_array(tensor) == 0)
        for tensor in made.graph.initializer
        if tensor.name.startswith(("scale", "w_scale"))
    )
    difference = np.abs(run(made, INPUT) - expected).max()
    assert difference <= 2e-3 * np.abs(expected).max(), f"largest difference {difference} of {np.abs(expected).max()}"
