"""onnxruntime on the bundle's fp32 engines, with its default settings: a session a tower, batches of 32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from ..bundle_inputs import TokenIds, image_batches

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PlainOnnxruntime:
    """Images are decoded by threads while the batch before is encoded."""

    description = "fp32 engines of the bundle, CPUExecutionProvider; decodes in threads beside it"

    def __init__(self, task: dict[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = task["threads"]
        self._images, self._texts = (
            onnxruntime.InferenceSession(task[f"{tower}_engine"], options, providers=["CPUExecutionProvider"])
            for tower in ("image", "text")
        )
        self._settings, self._threads, self._ids = task["image"], task["threads"], TokenIds(task)

    def encode_images(self, files: list[str]) -> NDArray[np.float32]:
        """Encode N image files: (N, D) float32."""
        batches = image_batches(files, self._settings, self._threads)
        return np.concatenate([self._images.run(None, {"image": batch})[0] for batch in batches])

    def encode_text(self, text: str) -> NDArray[np.float32]:
        """Encode one text: (D,) float32."""
        vector: NDArray[np.float32] = self._texts.run(None, {"input_ids": self._ids.encode(text)})[0][0]
        return vector


def open_peer(task: dict[str, Any]) -> PlainOnnxruntime:
    """Load the engines."""
    return PlainOnnxruntime(task)
