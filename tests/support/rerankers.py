"""A bundle with a reranker that NumPy can compute: a copy of another bundle with one more engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from twinspire.bundle import Bundle, BundleWriter, Precision
from twinspire.bundle.manifest import Reranker
from twinspire.contract import padded

NAME = "judge"
"""The reranker's name; it is served as `{bundle}_judge`."""
_LOSS = {Precision.FP32: 0.0, Precision.INT8: 1e-3}
"""What the logit of each precision's engine differs by, so that a test sees which one computed."""


def with_reranker(
    base: Bundle,
    destination: Path,
    *,
    precisions: Sequence[Precision] = (Precision.FP32, Precision.INT8),
    shift: float = 0.0,
) -> Bundle:
    """Copy `base` and add a reranker; another `shift` of its logits gives other engines."""
    files = {precision: f"{NAME}.{precision}.onnx" for precision in precisions}
    reranker = Reranker.of_contract(base.image, base.text, files)
    with BundleWriter(destination, base=base) as writer:
        for precision, file in files.items():
            model = _graph(base, shift + _LOSS[precision])
            writer.path(file).write_bytes(model.SerializeToString())
        return writer.commit(replace(base.manifest.draft(), rerankers={NAME: reranker}), {})


def expected_scores(
    bundle: Bundle,
    images: NDArray[np.uint8],
    sequences: Sequence[NDArray[np.int32]],
    *,
    precision: Precision = Precision.FP32,
    shift: float = 0.0,
) -> NDArray[np.float64]:
    """Compute (N,) probabilities of pairs in float64: the brighter the image and the smaller the ids, the higher."""
    input_ids = padded(sequences, bundle.text.pad_id, bundle.text.context_length)
    brightness = images.reshape(len(images), -1).astype(np.float64).mean(axis=1) / 255
    logits = 4 * brightness - input_ids.astype(np.float64).mean(axis=1) / 5 + shift + _LOSS[precision]
    probabilities: NDArray[np.float64] = 1 / (1 + np.exp(-logits))
    return probabilities


def drawn_pairs(bundle: Bundle, count: int, seed: int = 0) -> tuple[NDArray[np.uint8], list[NDArray[np.int32]]]:
    """Draw images (count, H, W, 3) of any brightness and as many texts of any length."""
    generator = np.random.default_rng(seed)
    settings, text = bundle.image, bundle.text
    noise = generator.integers(0, 256, (count, settings.height, settings.width, 3))
    images = (noise * generator.random((count, 1, 1, 1))).astype(np.uint8)
    lengths = generator.integers(0, text.context_length - 2, count, endpoint=True)
    texts = [np.array([1, *generator.integers(4, 18, length), text.eos_id], np.int32) for length in lengths]
    return images, texts


def _graph(bundle: Bundle, shift: float) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "pixel_axes"], ["mean_pixel"], keepdims=0),  # (N,)
        helper.make_node("Mul", ["mean_pixel", "per_level"], ["bright"]),
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["ids", "id_axes"], ["mean_id"], keepdims=0),
        helper.make_node("Mul", ["mean_id", "per_id"], ["cost"]),
        helper.make_node("Sub", ["bright", "cost"], ["difference"]),
        helper.make_node("Add", ["difference", "shift"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "id_axes"], ["probability"]),  # (N, 1)
    ]
    constants = {
        "pixel_axes": np.array([1, 2, 3]),
        "id_axes": np.array([1]),
        "per_level": np.float32(4 / 255),
        "per_id": np.float32(1 / 5),
        "shift": np.float32(shift),
    }
    image = ["batch", bundle.image.height, bundle.image.width, 3]
    graph = helper.make_graph(
        nodes,
        "reranker",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, image),
            helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", bundle.text.context_length]),
        ],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model
