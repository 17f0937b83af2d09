"""Recipes, the parts of a graph, and what is done to quantized graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="graphs are built with onnx")

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from twinspire.errors import EngineError, InputError
from twinspire.graph_edit import Wiring
from twinspire.tensorrt_support import check_symmetric
from twinspire_export.quantization.graph_passes import (
    absorb_smoothing,
    gather_before_dequantizing,
    mean_patch,
    multiplies_pixels,
    multiply_bytes,
    share_as_uint8,
    sign_activations,
)
from twinspire_export.quantization.node_roles import nodes_labelled, roles_of
from twinspire_export.quantization.quantizer import quantize_dynamically
from twinspire_export.quantization.recipe import Int8Recipe, QuantizationTarget, Ranges

Feed = dict[str, NDArray[Any]]


def make(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    *,
    given: tuple[str, int, list[int | str]] = ("x", TensorProto.FLOAT, ["N", 8]),
    made: str = "y",
) -> onnx.ModelProto:
    """Build a model of opset 17 with one input and one float output."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*given)],
        [helper.make_tensor_value_info(made, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)  # gives the output its shape
    model.graph.ClearField("value_info")
    return model


def run(model: onnx.ModelProto, feed: Feed) -> NDArray[np.float32]:
    """Check a model and run it by onnxruntime."""
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: NDArray[np.float32] = session.run(None, feed)[0]
    return result


def pair(name: str, source: str, scale: str, zero: str) -> list[onnx.NodeProto]:
    """Build the nodes that quantize and dequantize an activation."""
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [f"{name}_q"], f"{name}_quantize"),
        helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_dq"], f"{name}_dequantize"),
    ]


def weight(name: str, *, axis: int = 1) -> onnx.NodeProto:
    """Build the node that dequantizes a constant weight."""
    return helper.make_node(
        "DequantizeLinear", [f"{name}_int8", f"{name}_scale", f"{name}_zero"], [name], f"{name}_dequantize", axis=axis
    )


def weight_constants(name: str, rows: int, columns: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Draw the constants of such a weight."""
    rng = np.random.default_rng(seed)
    return {
        f"{name}_int8": rng.integers(-127, 128, (rows, columns), dtype=np.int8),
        f"{name}_scale": rng.uniform(0.001, 0.01, columns).astype(np.float32),
        f"{name}_zero": np.zeros(columns, np.int8),
    }


def quantized_product(zero: NDArray[Any] = np.array(0, np.int8)) -> onnx.ModelProto:  # noqa: B008 - never changed
    """Build a quantized product of (N, 8) with a weight (8, 6), as TensorRT wants it unless `zero` differs."""
    nodes = [
        *pair("x", "x", "x_scale", "x_zero"),
        weight("w"),
        helper.make_node("MatMul", ["x_dq", "w"], ["y"], "product"),
    ]
    constants = {"x_scale": np.array(0.02, np.float32), "x_zero": zero, **weight_constants("w", 8, 6)}
    return make(nodes, constants)


def test_digest_does_not_depend_on_order() -> None:
    """Two recipes that keep the same nodes in float32, named in another order, are the same recipe."""
    one, other = Int8Recipe(keep_float=("a", "b")), Int8Recipe(keep_float=("b", "a"))
    assert one == other
    assert one.digest() == other.digest() != Int8Recipe().digest()
    assert Int8Recipe(keep_float=("b", "a", "b")).keep_float == ("a", "b")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"smooth_alpha": 1.5}, "smooth_alpha"),
        ({"ranges": "lopsided"}, "'lopsided'"),
        ({"estimator": "guess"}, "'guess'"),
        ({"keep_float": "mlp-down"}, "'mlp-down'"),
        ({"target": QuantizationTarget.TENSORRT, "ranges": Ranges.ASYMMETRIC}, "TensorRT"),
    ],
)
def test_bad_recipes(fields: dict[str, Any], said: str) -> None:
    """A recipe out of range is an InputError that says what came."""
    with pytest.raises(InputError, match=said):
        Int8Recipe(**fields)


def small_tower(*, hidden: int = 8) -> onnx.ModelProto:
    """Build a tower of two blocks without norms: (N, 4, 12) uint8 patches, one head, a projection."""
    rng = np.random.default_rng(5)
    constants: dict[str, NDArray[Any]] = {"patches": rng.normal(0, 0.05, (12, hidden)).astype(np.float32)}
    nodes = [
        helper.make_node("Cast", ["x"], ["pixels"], "cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "patches"], ["h0"], "embed"),
    ]
    at = "h0"
    for block in range(2):
        for name, rows, columns in (
            ("q", hidden, hidden), ("k", hidden, hidden), ("v", hidden, hidden), ("out", hidden, hidden),
            ("up", hidden, 2 * hidden), ("down", 2 * hidden, hidden),
        ):  # fmt: skip
            constants[f"{name}{block}"] = rng.normal(0, 0.3, (rows, columns)).astype(np.float32)
        b = str(block)
        nodes += [
            *(helper.make_node("MatMul", [at, f"{n}{b}"], [f"{n}_{b}"], f"{n}{b}_product") for n in ("q", "k", "v")),
            helper.make_node("Transpose", [f"k_{b}"], [f"kt_{b}"], f"kt{b}", perm=[0, 2, 1]),
            helper.make_node("MatMul", [f"q_{b}", f"kt_{b}"], [f"s_{b}"], f"scores{b}"),
            helper.make_node("Softmax", [f"s_{b}"], [f"p_{b}"], f"softmax{b}", axis=-1),
            helper.make_node("MatMul", [f"p_{b}", f"v_{b}"], [f"a_{b}"], f"values{b}"),
            helper.make_node("MatMul", [f"a_{b}", f"out{b}"], [f"o_{b}"], f"out{b}_product"),
            helper.make_node("MatMul", [f"o_{b}", f"up{b}"], [f"u_{b}"], f"up{b}_product"),
            helper.make_node("Relu", [f"u_{b}"], [f"r_{b}"], f"relu{b}"),
            helper.make_node("MatMul", [f"r_{b}", f"down{b}"], [f"h{block + 1}"], f"down{b}_product"),
        ]
        at = f"h{block + 1}"
    constants["projection"] = rng.normal(0, 0.3, (hidden, 5)).astype(np.float32)
    nodes.append(helper.make_node("MatMul", [at, "projection"], ["y"], "project"))
    return make(nodes, constants, given=("x", TensorProto.UINT8, ["N", 4, 12]))


def test_parts_of_a_tower() -> None:
    """Each product is told apart by where it stands: in the patches, a block's attention or MLP, or the projection."""
    parts = {name: part.labels[-1] for name, part in roles_of(small_tower()).items()}
    expected = {"embed": "patches", "project": "projection"}
    for block in range(2):
        expected |= {f"{name}{block}_product": f"attention-in:{block}" for name in "qkv"}
        expected |= {f"scores{block}": f"attention-scores:{block}", f"values{block}": f"attention-values:{block}"}
        expected |= {
            f"out{block}_product": f"attention-out:{block}",
            f"up{block}_product": f"mlp-up:{block}",
            f"down{block}_product": f"mlp-down:{block}",
        }
    assert parts == expected


def test_labels_mean_nodes() -> None:
    """A kind means all its products, with a block one of them; a kind that is not there none; other words fail."""
    model = small_tower()
    assert nodes_labelled(model, ["mlp-down"]) == ("down0_product", "down1_product")
    assert nodes_labelled(model, ["mlp-down:1", "project"]) == ("down1_product", "project")
    assert nodes_labelled(model, ["tokens"]) == ()
    for unknown in ("mlp-down:2", "everything"):
        with pytest.raises(InputError, match=f"'{unknown}'"):
            nodes_labelled(model, [unknown])


def test_nodes_without_names_are_named() -> None:
    """A product without a name gets one that no other node has."""
    model = small_tower()
    for node in model.graph.node:
        node.name = ""
    assert len(roles_of(model)) == 18
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_pixels_are_multiplied_as_bytes() -> None:
    """The product of pixels takes uint8 and int8 weights; with weights on the int8 grid the result is the same."""
    rng = np.random.default_rng(2)
    grid = rng.integers(-127, 128, (12, 6)).astype(np.float64)
    grid[0] = 127  # so that the scale found is the scale drawn
    matrix = (grid * rng.uniform(0.001, 0.01, 6)).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["rows"], "cut"),
        helper.make_node("Cast", ["rows"], ["pixels"], "cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "matrix"], ["y"], "embed"),
    ]
    model = make(
        nodes, {"shape": np.array([0, 4, 12]), "matrix": matrix}, given=("x", TensorProto.UINT8, ["N", 4, 4, 3])
    )
    feed = {"x": rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)}
    before = run(model, feed)
    assert multiplies_pixels(model.graph.node[2], Wiring(model.graph))
    multiply_bytes(model, "embed", mean_patch(model, "embed", [feed]))
    assert [node.op_type for node in model.graph.node] == [
        "Reshape", "DequantizeLinear", "DequantizeLinear", "MatMul", "Add",
    ]  # fmt: skip
    difference = np.abs(run(model, feed) - before).max()
    assert difference <= 1e-3 * np.abs(before).max(), f"largest difference {difference} of {np.abs(before).max()}"


def test_mean_patch_keeps_its_place() -> None:
    """What rounding the weights does to the mean patch is added back: the mean result is that of the float weights."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Cast", ["x"], ["pixels"], "cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["pixels", "matrix"], ["y"], "embed"),
    ]
    matrix = rng.normal(0, 1, (12, 6)).astype(np.float32)
    model = make(nodes, {"matrix": matrix}, given=("x", TensorProto.UINT8, ["N", 4, 12]))
    feeds = [{"x": rng.integers(100, 256, (1, 4, 12), dtype=np.uint8)} for _ in range(8)]
    before = np.mean([run(model, feed) for feed in feeds], axis=(0, 1, 2))
    multiply_bytes(model, "embed", mean_patch(model, "embed", feeds))
    after = np.mean([run(model, feed) for feed in feeds], axis=(0, 1, 2))
    difference = np.abs(after - before).max()
    assert difference <= 1e-2, f"largest difference of the means {difference}"


def test_shared_activations_become_uint8() -> None:
    """An int8 activation that two products read becomes uint8 with the zero point 128; the result is the same."""
    nodes = [
        *pair("x", "x", "x_scale", "x_zero"),
        weight("w"),
        weight("v"),
        helper.make_node("MatMul", ["x_dq", "w"], ["a"], "one"),
        helper.make_node("MatMul", ["x_dq", "v"], ["b"], "two"),
        helper.make_node("Add", ["a", "b"], ["y"], "sum"),
    ]
    constants = {
        "x_scale": np.array(0.02, np.float32),
        "x_zero": np.array(0, np.int8),
        **weight_constants("w", 8, 6),
        **weight_constants("v", 8, 6, seed=1),
    }
    feed = {"x": np.random.default_rng(0).normal(0, 1, (5, 8)).astype(np.float32)}
    model = make(nodes, constants)
    before = run(model, feed)
    assert share_as_uint8(model) == 1
    zero = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}[model.graph.node[0].input[2]]
    assert (zero.dtype, int(zero)) == (np.uint8, 128)
    np.testing.assert_allclose(run(model, feed), before, atol=1e-5)
    assert share_as_uint8(quantized_product()) == 0


def test_unsigned_activations_become_signed() -> None:
    """uint8 with zero point 0 becomes int8 over the same range, so that TensorRT takes it."""
    model = quantized_product(np.array(0, np.uint8))
    feed = {"x": np.random.default_rng(0).uniform(0, 5, (50, 8)).astype(np.float32)}
    before = run(model, feed)
    with pytest.raises(EngineError, match="uint8"):
        check_symmetric(model)
    assert sign_activations(model) == 1
    check_symmetric(model)
    difference = np.abs(run(model, feed) - before).max()
    assert difference <= 0.02 * np.abs(before).max(), f"largest difference {difference} of {np.abs(before).max()}"


@pytest.mark.parametrize("quantized", [True, False])
def test_smoothing_is_folded(quantized: bool) -> None:
    """The factors behind a LayerNormalization go into it, those before a float product into its weight."""
    rng = np.random.default_rng(0)
    factors = rng.uniform(0.2, 5, (1, 8)).astype(np.float32)
    constants: dict[str, NDArray[Any]] = {
        "factors": factors,
        "gain": rng.uniform(0.5, 2, 8).astype(np.float32),
        "shift": rng.normal(0, 1, 8).astype(np.float32),
    }
    norm = helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"], "norm", axis=-1)
    smooth = helper.make_node("Mul", ["n", "factors"], ["s"], "smooth")
    if quantized:
        constants |= {
            "s_scale": np.array(0.05, np.float32),
            "s_zero": np.array(0, np.int8),
            **weight_constants("w", 8, 6),
        }
        nodes = [norm, smooth, *pair("s", "s", "s_scale", "s_zero"), weight("w")]
        nodes.append(helper.make_node("MatMul", ["s_dq", "w"], ["y"], "product"))
    else:
        constants["w"] = rng.normal(0, 1, (8, 6)).astype(np.float32)
        nodes = [helper.make_node("Relu", ["x"], ["n"], "relu"), smooth]
        nodes.append(helper.make_node("MatMul", ["s", "w"], ["y"], "product"))
    model = make(nodes, constants)
    feed = {"x": rng.normal(0, 1, (5, 8)).astype(np.float32)}
    before = run(model, feed)
    assert absorb_smoothing(model) == 1
    assert "Mul" not in {node.op_type for node in model.graph.node}
    difference = np.abs(run(model, feed) - before).max()
    assert difference <= (0.05 if quantized else 1e-4), f"largest difference {difference}"


def test_smoothing_that_others_would_see_stays() -> None:
    """A norm that something beside the factors reads keeps its weight, and the factors stay."""
    constants = {
        "factors": np.full((1, 8), 2, np.float32),
        "gain": np.ones(8, np.float32),
        "w": np.ones((8, 8), np.float32),
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain"], ["n"], "norm", axis=-1),
        helper.make_node("Mul", ["n", "factors"], ["s"], "smooth"),
        helper.make_node("Relu", ["s"], ["r"], "relu"),
        helper.make_node("Add", ["r", "n"], ["y"], "residual"),
    ]
    model = make(nodes, constants)
    assert absorb_smoothing(model) == 0
    assert "Mul" in {node.op_type for node in model.graph.node}


def test_gathering_before_dequantizing_is_exact() -> None:
    """The rewritten lookup gives the same bits as dequantizing the whole table first."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("DequantizeLinear", ["table", "scales", "zeros"], ["rows"], "dequantize", axis=0),
        helper.make_node("Gather", ["rows", "ids"], ["looked_up"], "lookup"),
    ]
    constants: dict[str, NDArray[Any]] = {
        "table": rng.integers(-128, 128, (50, 7), dtype=np.int8),
        "scales": rng.uniform(1e-4, 3, 50).astype(np.float32),
        "zeros": np.zeros(50, np.int8),
    }
    model = make(nodes, constants, given=("ids", TensorProto.INT32, ["N", "L"]), made="looked_up")
    feed = {"ids": rng.integers(0, 50, (3, 9)).astype(np.int32)}
    before = run(model, feed)
    assert gather_before_dequantizing(model) == 1
    assert [node.op_type for node in model.graph.node] == ["Gather", "Cast", "Gather", "Mul"]
    assert {tensor.name for tensor in model.graph.initializer} == {"table", "scales_column"}
    np.testing.assert_array_equal(run(model, feed), before)


def test_symmetric_graph_passes() -> None:
    """A graph of int8 pairs with zero points 0 and a scale for each output channel is accepted."""
    check_symmetric(quantized_product())


def _replace(model: onnx.ModelProto, name: str, value: NDArray[Any]) -> None:
    tensor = next(each for each in model.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def _unsigned(model: onnx.ModelProto) -> None:
    _replace(model, "x_zero", np.array(128, np.uint8))


def _lopsided(model: onnx.ModelProto) -> None:
    _replace(model, "x_zero", np.array(3, np.int8))


def _without_zero_point(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[2:]


def _lopsided_weight(model: onnx.ModelProto) -> None:
    _replace(model, "w_zero", np.array([0, 0, 0, 5, 0, 0], np.int8))


def _one_scale(model: onnx.ModelProto) -> None:
    _replace(model, "w_scale", np.array(0.1, np.float32))
    _replace(model, "w_zero", np.array(0, np.int8))


def _wrong_axis(model: onnx.ModelProto) -> None:
    model.graph.node[2].attribute[0].i = 0
    _replace(model, "w_scale", np.ones(8, np.float32))
    _replace(model, "w_zero", np.zeros(8, np.int8))


def _scale_by_channel(model: onnx.ModelProto) -> None:
    _replace(model, "x_scale", np.full(8, 0.1, np.float32))
    _replace(model, "x_zero", np.zeros(8, np.int8))


def _no_scale(model: onnx.ModelProto) -> None:
    _replace(model, "x_scale", np.array(0, np.float32))


def _computed_scale(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Identity", ["x_scale"], ["computed"], "scale"))
    model.graph.node[1].input[1] = "computed"


def _quantized_bias(model: onnx.ModelProto) -> None:
    model.graph.node[3].output[0] = "raw"
    for name, value in (("bias_int", np.zeros(6, np.int32)), ("bias_scale", np.array(0.1, np.float32))):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    model.graph.node.extend(
        [
            helper.make_node("DequantizeLinear", ["bias_int", "bias_scale"], ["bias"], "bias_dequantize"),
            helper.make_node("Add", ["raw", "bias"], ["y"], "bias_added"),
        ]
    )


def _read_in_between(model: onnx.ModelProto) -> None:
    model.graph.node[3].output[0] = "raw"
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["x_q"], ["cast"], "peek", to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["cast"], ["sum"], "sum"),
            helper.make_node("Add", ["raw", "sum"], ["y"], "added"),
        ]
    )


def _integer_product(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("MatMulInteger", ["w_int8", "w_int8"], ["other"], "by_itself"))


@pytest.mark.parametrize(
    ("spoil", "node", "said"),
    [
        (_unsigned, "x_quantize", "uint8"),
        (_lopsided, "x_quantize", r"\b3\b"),
        (_without_zero_point, "x_quantize", "zero point"),
        (_lopsided_weight, "w_dequantize", r"\b5\b"),
        (_one_scale, "w_dequantize", "1 scales"),
        (_wrong_axis, "w_dequantize", "axis 0"),
        (_scale_by_channel, "x_quantize", "8 scales"),
        (_no_scale, "x_quantize", r"\b0\.0\b"),
        (_computed_scale, "x_quantize", "computed"),
        (_quantized_bias, "bias_dequantize", "int32"),
        (_read_in_between, "x_quantize", "'peek'"),
        (_integer_product, "by_itself", "integers"),
    ],
)
def test_graphs_that_tensorrt_refuses(spoil: Callable[[onnx.ModelProto], None], node: str, said: str) -> None:
    """Whatever TensorRT would not take is an EngineError that names the node and what is wrong with it."""
    model = quantized_product()
    spoil(model)
    with pytest.raises(EngineError, match=said) as caught:
        check_symmetric(model)
    assert f"'{node}'" in str(caught.value)


def test_float_graph_is_not_symmetric() -> None:
    """A graph without quantizers is refused too."""
    with pytest.raises(EngineError, match="QuantizeLinear"):
        check_symmetric(small_tower())


def test_dynamic_quantization(tmp_path: Path) -> None:
    """The baseline multiplies int8 weights by MatMulInteger and stays near the float graph, stale shapes or not."""
    model = small_tower()
    model.graph.value_info.append(helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["N", 7, 7]))
    onnx.save(model, tmp_path / "fp32.onnx")
    quantize_dynamically(tmp_path / "fp32.onnx", tmp_path / "dynamic.onnx")
    made = onnx.load(tmp_path / "dynamic.onnx")
    assert sum(node.op_type == "MatMulInteger" for node in made.graph.node) == 14
    feed = {"x": np.random.default_rng(0).integers(0, 256, (3, 4, 12), dtype=np.uint8)}
    model.graph.ClearField("value_info")
    session = ort.InferenceSession(tmp_path / "dynamic.onnx", providers=["CPUExecutionProvider"])
    before, after = run(model, feed).ravel(), session.run(None, feed)[0].ravel()
    cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    assert cosine >= 0.99, f"cosine {cosine}"
