"""The work of engines, against counts made by hand."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinspire.bundle import Bundle, Precision, Tower
from twinspire.errors import InputError, MissingDependencyError
from twinspire.sample import sample_bundle
from twinspire_eval.flops import FlopCount, count_flops
from twinspire_eval.machine import MatrixPeaks

FLOAT, UINT8, INT8 = np.float32, np.uint8, np.int8
N = 3


def _write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Any],
    *,
    given: Sequence[Any],
    kind: int = TensorProto.FLOAT,
    opset: int = 18,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, given)],
        [helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    domains = dict.fromkeys(["", *(node.domain for node in nodes)])
    versions = [helper.make_opsetid(domain, 1 if domain else opset) for domain in domains]
    model = helper.make_model(graph, opset_imports=versions, ir_version=11)
    path.write_bytes(model.SerializeToString())
    return path


def _quantize(name: str) -> list[onnx.NodeProto]:
    """Put Q and DQ behind a tensor: `name_dq`."""
    return [
        helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_dq"]),
    ]


QUANTIZER = {"scale": FLOAT(0.1), "zero": UINT8(128), "weight_zero": INT8(0)}


def test_products_and_convolutions_of_floats(tmp_path: Path) -> None:
    """A convolution, a Gemm and a MatMul of N rows: 2 operations a multiply-add, counted by hand."""
    nodes = [
        # (N, 4, 9, 9) by (8, 4 / 2, 3, 3), stride 3: (N, 8, 3, 3), each of 2 * 9 multiply-adds
        helper.make_node("Conv", ["x", "kernel"], ["patches"], group=2, strides=[3, 3]),
        helper.make_node("Flatten", ["patches"], ["flat"]),  # (N, 72)
        helper.make_node("Gemm", ["flat", "dense", "bias"], ["hidden"], transB=1),  # (N, 5)
        helper.make_node("Add", ["hidden", "bias"], ["sum"]),
        helper.make_node("MatMul", ["sum", "out"], ["y"]),  # (N, 7)
    ]
    constants = {
        "kernel": np.ones((8, 2, 3, 3), FLOAT),
        "dense": np.ones((5, 72), FLOAT),
        "bias": np.ones(5, FLOAT),
        "out": np.ones((5, 7), FLOAT),
    }
    path = _write(tmp_path / "m.onnx", nodes, constants, given=["batch", 4, 9, 9])
    expected = 2 * N * (8 * 3 * 3 * 18 + 5 * 72 + 7 * 5)
    assert count_flops(path, (N, 4, 9, 9)) == FlopCount(float_operations=expected, int8_operations=0)


def test_a_transposed_gemm(tmp_path: Path) -> None:
    """With transA the summed dimension is the first: (6, N) and (6, 4) make N x 4 of 6 multiply-adds."""
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)]
    path = _write(tmp_path / "m.onnx", nodes, {"w": np.ones((6, 4), FLOAT)}, given=[6, "n"])
    assert count_flops(path, (6, N)).operations == 2 * N * 4 * 6


def test_a_quantized_product_has_two_quantized_operands(tmp_path: Path) -> None:
    """Between Q and DQ nodes a MatMul counts as int8, also behind a Transpose; with one float operand as float."""
    nodes = [
        *_quantize("x"),
        helper.make_node("DequantizeLinear", ["w", "scale", "weight_zero"], ["w_dq"]),
        helper.make_node("Transpose", ["w_dq"], ["w_t"]),
        helper.make_node("MatMul", ["x_dq", "w_t"], ["a"]),  # (N, L, 6) by (6, 4), int8
        helper.make_node("MatMul", ["a", "u_dq"], ["y"]),  # (N, L, 4) by (4, 9), the activations are float
        helper.make_node("DequantizeLinear", ["u", "scale", "weight_zero"], ["u_dq"]),
    ]
    nodes = [*nodes[:-2], nodes[-1], nodes[-2]]
    constants = {**QUANTIZER, "w": np.ones((4, 6), INT8), "u": np.ones((4, 9), INT8)}
    path = _write(tmp_path / "m.onnx", nodes, constants, given=["batch", "length", 6])
    expected = FlopCount(float_operations=2 * N * 5 * 9 * 4, int8_operations=2 * N * 5 * 4 * 6)
    assert count_flops(path, (N, 5, 6)) == expected


def test_integer_operators(tmp_path: Path) -> None:
    """QLinearMatMul, MatMulInteger and QLinearConv have other places for their operands."""
    step = ["scale", "zero"]
    nodes = [
        helper.make_node("QLinearConv", ["x", *step, "kernel", "scale", "weight_zero", *step], ["c"]),  # (N, 5, 1, 1)
        helper.make_node("Flatten", ["c"], ["flat"]),
        helper.make_node("QLinearMatMul", ["flat", *step, "a", "scale", "weight_zero", *step], ["b"]),  # (N, 4)
        helper.make_node("MatMulInteger", ["b", "d"], ["y"]),  # (N, 6)
    ]
    constants = {
        **QUANTIZER,
        "kernel": np.ones((5, 3, 2, 2), INT8),
        "a": np.ones((5, 4), INT8),
        "d": np.ones((4, 6), INT8),
    }
    path = _write(tmp_path / "m.onnx", nodes, constants, given=["n", 3, 2, 2], kind=TensorProto.UINT8)
    assert count_flops(path, (N, 3, 2, 2)) == FlopCount(0, 2 * N * (5 * 12 + 4 * 5 + 6 * 4))


def test_attention_as_one_operator(tmp_path: Path) -> None:
    """Two products a head: (L, d) by (d, L) and (L, L) by (L, d), for heads in a dimension of their own."""
    nodes = [helper.make_node("Attention", ["x", "x", "x"], ["y"])]
    path = _write(tmp_path / "m.onnx", nodes, {}, given=["n", 4, "l", 8], opset=23)
    assert count_flops(path, (N, 4, 7, 8)).operations == 2 * N * 4 * (7 * 7 * 8 + 7 * 7 * 8)


def test_shapes_that_are_computed_in_the_graph(tmp_path: Path) -> None:
    """Rows picked by a computed Range, and a Reshape to computed sizes; stale shapes are not believed."""
    nodes = [
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=2),
        helper.make_node("Concat", ["rows", "heads"], ["target"], axis=0),
        helper.make_node("Shape", ["x"], ["rank_1"], start=1, end=2),
        helper.make_node("Squeeze", ["rank_1"], ["length"]),
        helper.make_node("Cast", ["length"], ["end"], to=TensorProto.INT32),
        helper.make_node("Range", ["zero", "end", "one"], ["places"]),
        helper.make_node("Gather", ["x", "places"], ["all"], axis=1),
        helper.make_node("Reshape", ["all", "target"], ["split"]),  # (N, L, 2, 8)
        helper.make_node("Transpose", ["split"], ["q"], perm=[0, 2, 1, 3]),
        helper.make_node("Transpose", ["split"], ["k"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["q", "k"], ["y"]),  # (N, 2, L, L) of 8 multiply-adds
    ]
    constants = {"heads": np.array([2, 8]), "zero": np.int32(0), "one": np.int32(1)}
    path = _write(tmp_path / "m.onnx", nodes, constants, given=["n", "l", 16])
    model = onnx.load(path)
    model.graph.value_info.append(helper.make_tensor_value_info("q", TensorProto.FLOAT, [1, 2, 77, 8]))
    path.write_bytes(model.SerializeToString())
    assert count_flops(path, (N, 11, 16)).operations == 2 * N * 2 * 11 * 11 * 8


def test_a_towers_work_grows_with_batch_and_length(tiny: Any) -> None:
    """The tiny bundle's towers have one product each, of N rows whatever the length."""
    image = count_flops(tiny.bundle.engine(Tower.IMAGE, Precision.FP32), (5, 16, 16, 3))
    assert image.operations == 2 * 5 * 16 * 16 * 3 * 12
    for length in (4, 20):
        text = count_flops(tiny.bundle.engine(Tower.TEXT, Precision.FP32), (5, length))
        assert text.operations == 2 * 5 * 8 * 12


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8])
def test_the_samples_towers_do_what_their_sizes_say(precision: Precision) -> None:
    """A transformer of width w over t tokens does 24 t w^2 + 4 t^2 w operations a layer, beside patches and projection.

    The int8 engines do their weights' products in int8; attention's own stay as they are.
    """
    bundle = Bundle.open(sample_bundle())
    size, dim, length = bundle.image.size, bundle.dim, 24
    graph = onnx.load(bundle.engine(Tower.IMAGE, Precision.FP32)).graph
    tower = bundle.manifest.towers.image
    assert tower is not None
    assert tower.patches is not None
    patches, patch = tower.patches, size // math.isqrt(tower.patches)
    first = next(node for node in graph.node if node.op_type == "MatMul").input[1]  # of the patches' pixels
    (width,) = [each.dims[1] for each in graph.initializer if each.name == first]
    layers = sum(node.op_type == "Softmax" for node in graph.node)
    tokens = patches + 1
    attention = layers * 4 * tokens**2 * width
    expected = 2 * patches * width * 3 * patch**2 + layers * 24 * tokens * width**2 + attention + 2 * width * dim
    found = count_flops(bundle.engine(Tower.IMAGE, precision), (N, size, size, 3))
    print(f"{precision}: {found}, by hand {N * expected}")
    assert found.operations <= N * expected  # a rewritten tower may do less
    assert found.operations > 0.8 * N * expected
    text = count_flops(bundle.engine(Tower.TEXT, precision), (N, length))
    if precision is Precision.INT8:
        assert found.int8_operations > 0.8 * found.operations
        assert text.int8_operations > 0.8 * text.operations
    else:
        assert found.int8_operations == text.int8_operations == 0


def test_the_shortest_time_adds_both_kinds_of_work() -> None:
    """Float work at the peak of fp32 and int8 work at its own."""
    peaks = MatrixPeaks(threads=2, fp32_op_per_s=100.0, int8_op_per_s=400.0, bf16_op_per_s=None)
    assert FlopCount(float_operations=50, int8_operations=400).minimum_s(peaks) == pytest.approx(1.5)


def _broken(path: Path, case: str) -> Path:
    constants: dict[str, Any] = {"w": np.ones((6, 4), FLOAT)}
    if case == "no model":
        path.write_bytes(b"not protobuf at all")
        return path
    if case == "another operator":
        nodes = [helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,jk->ik")]
    elif case == "another domain":
        nodes = [helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")]
    elif case == "unknown operator":
        nodes = [helper.make_node("Mystery", ["x"], ["z"], domain="own"), helper.make_node("MatMul", ["z", "w"], ["y"])]
    elif case == "inner graph":
        inner = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["z"])],
            "inner",
            [],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        )
        nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)]
        constants["yes"] = np.array(True)
    else:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return _write(path, nodes, constants, given=["n", 5 if case == "wrong product" else 6])


@pytest.mark.parametrize(
    ("case", "shape", "message"),
    [
        ("no model", (N, 6), "ModelProto"),
        ("another operator", (N, 6), "Einsum"),
        ("another domain", (N, 6), "FusedMatMul"),
        ("unknown operator", (N, 6), "Mystery"),
        ("inner graph", (N, 6), r"\bIf\b"),
        ("another size", (N, 7), r"\(3, 7\)"),
        ("another rank", (N, 6, 1), r"\(3, 6, 1\)"),
        ("wrong product", (N, 5), r"\(3, 5\)"),
    ],
)
def test_what_cannot_be_counted_is_refused(tmp_path: Path, case: str, shape: tuple[int, ...], message: str) -> None:
    """Nothing that multiplies is left out of the count without a word."""
    with pytest.raises(InputError, match=message):
        count_flops(_broken(tmp_path / "m.onnx", case), shape)


def test_counting_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnx or onnxruntime the error names the extra."""
    path = _broken(tmp_path / "m.onnx", "nothing")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingDependencyError, match="onnxruntime") as caught:
            count_flops(path, (1, 6))
    assert (caught.value.package, caught.value.extra) == ("onnxruntime", "cpu")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match="onnx") as caught:
        count_flops(path, (1, 6))
    assert (caught.value.package, caught.value.extra) == ("onnx", "bench")
