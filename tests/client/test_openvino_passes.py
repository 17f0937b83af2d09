"""Passes over the graphs that OpenVINO's own runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", reason="needs openvino")

import openvino
from openvino import opset13 as ops

from twinspire.towers.openvino_passes import split_projections

WIDTHS = (8, 16, 24)
RNG = np.random.default_rng(0)
INPUT = RNG.normal(size=(2, 5, 32)).astype(np.float32)


def _float_weight() -> Any:
    return ops.constant(RNG.normal(size=(32, sum(WIDTHS))).astype(np.float32))


def _int8_weight() -> Any:
    """Dequantize int8 columns by their scales and zero points, as OpenVINO reads DequantizeLinear."""
    weight, width = RNG.integers(-128, 128, (32, sum(WIDTHS)), np.int8), sum(WIDTHS)
    zero = ops.convert(ops.constant(RNG.integers(-5, 5, width, np.int8)), "f32")
    zero = ops.reshape(zero, ops.constant(np.array([1, width])), special_zero=False)
    scale = ops.constant(RNG.uniform(0.01, 0.02, width).astype(np.float32))
    scale = ops.reshape(scale, ops.constant(np.array([1, -1])), special_zero=False)
    return ops.multiply(ops.subtract(ops.convert(ops.constant(weight), "f32"), zero), scale)


def _model(weight: Any, *, bias: bool = True, axis: int = 2) -> Any:
    hidden = ops.parameter([-1, 5, 32], np.float32, name="hidden")
    stacked = ops.matmul(hidden, weight, transpose_a=False, transpose_b=False)
    if bias:
        stacked = ops.add(ops.constant(RNG.normal(size=sum(WIDTHS)).astype(np.float32)), stacked)
    lengths = WIDTHS if axis != 1 else (1, 2, 2)
    split = ops.variadic_split(stacked, ops.constant(np.int64(axis)), ops.constant(np.array(lengths)))
    return openvino.Model([ops.result(ops.relu(output)) for output in split.outputs()], [hidden], "stacked")


def _run(model: Any) -> list[Any]:
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    return list(openvino.Core().compile_model(model, "CPU", settings)([INPUT]).values())


@pytest.mark.parametrize("weight", [_float_weight, _int8_weight])
@pytest.mark.parametrize("axis", [2, -1])
def test_a_stacked_layer_becomes_one_for_each_part(weight: Any, axis: int) -> None:
    """The parts have the same values without a split, whether weights are float or int8."""
    model = _model(weight(), axis=axis)
    expected = _run(model)
    assert split_projections(model) == 1
    assert "VariadicSplit" not in {node.get_type_name() for node in model.get_ops()}
    for found, part, width in zip(_run(model), expected, WIDTHS, strict=True):
        assert found.shape == (2, 5, width)
        difference = np.abs(found - part).max()
        assert difference <= 1e-5, f"largest difference {difference:.1e}"


@pytest.mark.parametrize("options", [{"bias": False}, {"axis": 1}])
def test_other_splits_stay(options: dict[str, Any]) -> None:
    """A split of another axis, or of something that is no layer with a bias, is left as it is."""
    model = _model(_float_weight(), **options)
    expected = _run(model)
    assert split_projections(model) == 0
    for found, part in zip(_run(model), expected, strict=True):
        assert np.array_equal(found, part)
