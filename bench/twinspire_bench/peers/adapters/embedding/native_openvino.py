"""OpenVINO on the bundle's fp32 engines, quantized to int8 by NNCF's post-training quantization for transformers.

Calibrated with the images and texts that are measured, 300 at most as by default; computed with OpenVINO's own choice
of arithmetic for the other operators.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nncf
import numpy as np
import openvino

from ..bundle_inputs import TokenIds, image_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAMPLES = 300


class NativeOpenvino:
    """Batches of images run in as many streams as OpenVINO takes for throughput; a text alone, for latency."""

    description = "fp32 engines of the bundle, quantized by NNCF for OpenVINO; decodes in threads beside it"

    def __init__(self, task: dict[str, Any]) -> None:
        self._settings, self._threads, self._ids = task["image"], task["threads"], TokenIds(task)
        inputs = json.loads(Path(task["inputs"]).read_text(encoding="utf-8"))
        images = [
            image[None]
            for batch in image_batches(inputs["files"][:_SAMPLES], self._settings, self._threads)
            for image in batch
        ]
        texts = [self._ids.encode(text) for text in inputs["texts"][:_SAMPLES]]
        threads = {"INFERENCE_NUM_THREADS": self._threads}
        self._queue = openvino.AsyncInferQueue(
            _compiled(task["image_engine"], images, {**threads, "PERFORMANCE_HINT": "THROUGHPUT"})
        )
        self._texts = _compiled(task["text_engine"], texts, {**threads, "PERFORMANCE_HINT": "LATENCY"})

    def encode_images(self, files: list[str]) -> NDArray[np.float32]:
        """Encode N image files: (N, D) float32."""
        parts: dict[int, NDArray[np.float32]] = {}

        def keep(request: Any, number: int) -> None:  # noqa: ANN401 - OpenVINO's
            parts[number] = np.array(request.get_output_tensor().data)

        self._queue.set_callback(keep)
        for number, batch in enumerate(image_batches(files, self._settings, self._threads)):
            self._queue.start_async([batch], number)
        self._queue.wait_all()
        return np.concatenate([parts[number] for number in sorted(parts)])

    def encode_text(self, text: str) -> NDArray[np.float32]:
        """Encode one text: (D,) float32."""
        return np.array(self._texts([self._ids.encode(text)])[0][0])


def _compiled(engine: str, samples: list[Any], settings: dict[str, Any]) -> Any:  # noqa: ANN401 - OpenVINO's
    plain = openvino.Core().read_model(engine)
    model = nncf.quantize(plain, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(samples))
    return openvino.Core().compile_model(model, "CPU", settings)


def open_peer(task: dict[str, Any]) -> NativeOpenvino:
    """Quantize and compile the engines."""
    return NativeOpenvino(task)
