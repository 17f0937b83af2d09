"""fp16 engines of models whose activations go beyond 65,504, computed as a GPU computes them.

onnxruntime's CPU provider keeps float32 between operators that it has no float16 kernels for: values that a GPU would
lose survive there. Here every operator computes in float32 and its results are rounded to float16.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the bundle is exported, which needs torch")

import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import CLIPModel

from twinspire.bundle import Bundle, Precision, Tower
from twinspire_eval.statistics import row_cosines
from twinspire_export import export_checkpoint, quantize_bundle
from twinspire_export.engine_check import EngineRunner
from twinspire_export.fp16 import to_fp16

COSINE = 0.9999
"""What fp16 engines must reach to fp32; with the range search they reach 0.9999999."""


def emulate(model: onnx.ModelProto, feed: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float32], list[str]]:
    """Run an fp16 `model`. Return its embeddings (N, D) and the names of the tensors inside that are not finite."""
    emulated, halves = rounded_after_every_operator(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # no cast may be optimized away
    session = ort.InferenceSession(emulated.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with np.errstate(all="ignore"):
        embedding, *values = session.run([model.graph.output[0].name, *halves], feed)
    return embedding, [name for name, value in zip(halves, values, strict=True) if not np.isfinite(value).all()]


def rounded_after_every_operator(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return a graph that computes `model` in float32 and rounds every float16 tensor, and the names of those."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    halves = {value.name for value in inferred.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    constants = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    emulated = onnx.ModelProto()
    emulated.CopyFrom(model)
    emulated.graph.ClearField("node")
    emulated.graph.ClearField("value_info")
    emulated.graph.node.extend(_cast(name, f"{name}_single", TensorProto.FLOAT) for name in constants)
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants.update(halves.intersection(node.output))
        single = onnx.NodeProto()
        single.CopyFrom(node)
        _compute_in_float32(single)
        single.input[:] = [f"{name}_single" if name in halves | constants else name for name in node.input]
        made = [name for name in node.output if name in halves]
        single.output[:] = [f"{name}_exact" if name in made else name for name in node.output]
        emulated.graph.node.append(single)
        for name in made:
            emulated.graph.node.append(_cast(f"{name}_exact", name, TensorProto.FLOAT16))
            emulated.graph.node.append(_cast(name, f"{name}_single", TensorProto.FLOAT))
    names = sorted(halves)
    emulated.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return emulated, names


def _cast(given: str, made: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [given], [made], to=kind)


def _compute_in_float32(node: onnx.NodeProto) -> None:
    """Let a node that names float16 itself, such as a Cast or a Constant, make float32."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
        elif attribute.HasField("t") and attribute.t.data_type == TensorProto.FLOAT16:
            value = numpy_helper.to_array(attribute.t).astype(np.float32)
            attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))


@pytest.fixture(scope="module")
def bundle(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give a tiny bundle with fp16 and int8-tensorrt engines, a residual channel of which goes far beyond 65,504.

    All weights fit fp16. Trained transformers have such channels: https://arxiv.org/abs/2402.17762. There as here they
    keep their sign: one that passes through 0 would magnify any rounding.
    """
    folder = tmp_path_factory.mktemp("outliers")
    checkpoint = make_checkpoint(folder / "tiny-clip")
    model = CLIPModel.from_pretrained(checkpoint)
    with torch.no_grad():
        for tower in (model.vision_model, model.text_model):
            mlp = tower.encoder.layers[0].mlp
            mlp.fc1.weight *= 10
            mlp.fc2.weight[5] = 5000  # the activations in front of it are hardly ever below 0
    model.save_pretrained(checkpoint)
    bundle = export_checkpoint(checkpoint, folder / "fp32", name="outliers")
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for precision in (Precision.FP16, Precision.INT8_TENSORRT):
        bundle = quantize_bundle(
            bundle, folder / precision, precision=precision, images=images, captions=["a cat", "two boats at night"]
        )
    return bundle


def _feed(bundle: Bundle, tower: Tower) -> dict[str, NDArray[Any]]:
    """Give the probes, which the engines were not made on."""
    probes = bundle.probes()
    if tower is Tower.IMAGE:
        return {"image": probes.towers[Tower.IMAGE].inputs}
    ids = np.full((len(probes.towers[Tower.TEXT].inputs), bundle.text.context_length), bundle.text.pad_id, np.int32)
    for row, text in zip(ids, probes.towers[Tower.TEXT].inputs, strict=True):
        row[: len(text)] = text
    return {"input_ids": ids}


def _reference(bundle: Bundle, tower: Tower) -> NDArray[np.float32]:
    (given,) = _feed(bundle, tower).values()
    return EngineRunner(bundle.engine(tower, Precision.FP32)).embed([given])


@pytest.mark.slow
@pytest.mark.parametrize("tower", [Tower.IMAGE, Tower.TEXT])
def test_range_search_keeps_what_fp16_cannot_hold(bundle: Bundle, tower: Tower) -> None:
    """Rounded after every operator, the fp16 engine has finite values and embeddings as in fp32; most of it is fp16."""
    model = onnx.load(bundle.engine(tower, Precision.FP16))
    embedding, broken = emulate(model, _feed(bundle, tower))
    assert broken == []
    worst = row_cosines(embedding, _reference(bundle, tower)).min()
    assert worst >= COSINE, f"worst cosine {worst}"
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    kinds = [value.type.tensor_type.elem_type for value in inferred.value_info]
    assert kinds.count(TensorProto.FLOAT16) > 3 * kinds.count(TensorProto.FLOAT) > 0


@pytest.mark.parametrize("tower", [Tower.IMAGE, Tower.TEXT])
def test_without_the_range_search_values_overflow(bundle: Bundle, tower: Tower) -> None:
    """Converted without a search, the same towers have values that are not finite: the test above can fail."""
    model = to_fp16(onnx.load(bundle.engine(tower, Precision.FP32)))
    embedding, broken = emulate(model, _feed(bundle, tower))
    assert len(broken) > 10
    assert not np.isfinite(embedding).all()


@pytest.mark.parametrize("tower", [Tower.IMAGE, Tower.TEXT])
def test_int8_for_tensorrt_stays_in_range(bundle: Bundle, tower: Tower) -> None:
    """Between its int8 products, the engine for TensorRT keeps the same nodes in fp32: its values are finite."""
    model = onnx.load(bundle.engine(tower, Precision.INT8_TENSORRT))
    embedding, broken = emulate(model, _feed(bundle, tower))
    assert broken == []
    mean = row_cosines(embedding, _reference(bundle, tower)).mean()
    assert mean >= 0.99, f"mean cosine {mean}"


def test_the_emulator_rounds() -> None:
    """A product beyond 65,504 is infinite behind its operator, and one that fits is rounded to fp16."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
            helper.make_node("Mul", ["half", "half"], ["square"]),
            helper.make_node("Div", ["square", "half"], ["again"]),
            helper.make_node("Cast", ["again"], ["y"], to=TensorProto.FLOAT),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    result, broken = emulate(model, {"x": np.array([3, 1 + 2**-10, 300], np.float32)})
    assert broken == ["again", "square"]
    assert result.tolist() == [3, np.float16(np.float16(1 + 2**-9) / np.float16(1 + 2**-10)), np.inf]
